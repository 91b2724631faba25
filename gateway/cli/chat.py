"""`plexus chat`: a conversation in the terminal, over the gateway's HTTP like any other client."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console

from gateway.cli.errors import CliError

HELP = "/exit leaves, /new starts over; Ctrl-C stops an answer."
_TIMEOUT = httpx.Timeout(10.0, read=300.0)  # the gateway keeps a waiting stream alive every few seconds


class Chat:
    """One conversation with one model."""

    def __init__(self, url: str, model: str, console: Console, client: httpx.Client) -> None:
        """`url` ends in /v1."""
        self.model = model
        self._url = url
        self._console = console
        self._client = client
        self._messages: list[dict[str, str]] = []

    def run(self, lines: Iterator[str]) -> None:
        """Answer line after line until they end or one says /exit."""
        for line in lines:
            text = line.strip()
            if text == "/exit":
                return
            if text == "/new":
                self._messages.clear()
            elif text:
                self.ask(text)

    def ask(self, text: str) -> str:
        """Stream the answer to the terminal and keep both in the history. Ctrl-C keeps what has come so far."""
        self._messages.append({"role": "user", "content": text})
        answer: list[str] = []
        try:
            for kind, piece in self._stream():
                answer += [piece] if kind == "content" else []
                self._console.print(
                    piece, end="", style="dim" if kind == "reasoning" else None, markup=False, highlight=False
                )
        except KeyboardInterrupt:
            self._console.print(" …", end="")
        except CliError:
            self._messages.pop()
            raise
        self._console.print()
        self._messages.append({"role": "assistant", "content": "".join(answer)})
        return self._messages[-1]["content"]

    def _stream(self) -> Iterator[tuple[str, str]]:
        body = {"model": self.model, "messages": self._messages, "stream": True}
        try:
            with self._client.stream("POST", f"{self._url}/chat/completions", json=body, timeout=_TIMEOUT) as response:
                if response.status_code != 200:
                    response.read()
                    raise CliError(error_message(response))
                for line in response.iter_lines():
                    yield from pieces(line)
        except httpx.HTTPError as error:
            raise CliError(f"the gateway at {self._url} does not answer: {error}") from error


def pieces(line: str) -> Iterator[tuple[str, str]]:
    """("content" or "reasoning", text) of one line of the event stream. Raises CliError for an error event."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise CliError(str(event["error"].get("message", event["error"])))
    for choice in event.get("choices", []):
        delta = choice.get("delta", {})
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            yield "reasoning", reasoning
        if content := delta.get("content"):
            yield "content", content


def error_message(response: httpx.Response) -> str:
    """The message of an error answer, in whatever form it came."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {response.status_code}: {response.text[:200]}"


def api_of(url: str) -> str:
    """The API of a gateway, whose URL was given with its /v1 or as a mere http://host:port. Raises CliError."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CliError(f"{url!r} is no URL: {error}. Expected http://host:port/v1.") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise CliError(f"{url!r} is no URL of a gateway. Expected http://host:port/v1.")
    return str(parts.copy_with(path="/v1") if parts.path == "/" else parts).rstrip("/")


def pick_model(url: str, client: httpx.Client, wanted: str | None) -> str:
    """The wanted model, else the first that the gateway lists. Raises CliError."""
    if wanted:
        return wanted
    try:
        response = client.get(f"{url}/models")
    except httpx.HTTPError as error:
        raise CliError(f"the gateway at {url} does not answer: {error}") from error
    if response.status_code != 200:
        raise CliError(error_message(response))
    models = [entry["id"] for entry in response.json()["data"]]
    if not models:
        raise CliError("the gateway lists no model. Load one with `plexus load`.")
    return str(models[0])


def prompts(console: Console) -> Iterator[str]:
    """Lines from the terminal with a prompt, or from a pipe without; Ctrl-D and Ctrl-C end them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield console.input("[bold]> [/bold]")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return


def chat(url: str, model: str | None) -> None:
    """Run a conversation until it is left."""
    url = api_of(url)
    console = Console(soft_wrap=True)
    with httpx.Client() as client:
        conversation = Chat(url, pick_model(url, client, model), console, client)
        if sys.stdin.isatty():
            console.print(f"[dim]{conversation.model} at {url}. {HELP}[/dim]")
            import readline  # noqa: F401  line editing and history for input()
        conversation.run(prompts(console))
