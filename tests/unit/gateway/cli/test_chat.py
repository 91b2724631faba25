"""A conversation in the terminal, against a gateway of canned answers."""

import json
from collections.abc import Callable

import httpx
import pytest
from rich.console import Console

from gateway.cli.chat import Chat, api_of, pick_model, pieces
from gateway.cli.errors import CliError

URL = "http://gateway/v1"


def stream(*deltas: dict[str, str]) -> bytes:
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    return (
        b": keep-alive\n\n"
        + b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
        + b"data: [DONE]\n\n"
    )


def client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(answer))


def test_an_answer_is_shown_and_both_sides_are_remembered() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, content=stream({"role": "assistant"}, {"content": "Hel"}, {"content": "lo [b]"}))

    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        Chat(URL, "m", console, client(answer)).run(iter(["hi\n", "\n", "again\n", "/exit\n", "never\n"]))
    assert capture.get() == "Hello [b]\nHello [b]\n"
    assert [body["messages"][-1]["content"] for body in bodies] == ["hi", "again"]
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": "Hello [b]"}


def test_new_forgets() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, content=stream({"content": "x"}))

    Chat(URL, "m", Console(quiet=True), client(answer)).run(iter(["a", "/new", "b"]))
    assert bodies[1]["messages"] == [{"role": "user", "content": "b"}]


def test_reasoning_is_shown_but_not_sent_back() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=stream({"reasoning_content": "hmm "}, {"content": "yes"}))

    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        assert Chat(URL, "m", console, client(answer)).ask("?") == "yes"
    assert capture.get() == "hmm yes\n"


def test_a_refusal_is_an_error_with_the_gateways_words() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error": {"message": "no model 'm'"}})

    with pytest.raises(CliError, match="no model 'm'"):
        Chat(URL, "m", Console(quiet=True), client(answer)).ask("hi")


def test_an_error_in_the_stream_is_an_error() -> None:
    with pytest.raises(CliError, match="replicas were lost"):
        list(pieces('data: {"error": {"message": "replicas were lost"}}'))
    assert list(pieces(": comment")) == list(pieces("")) == list(pieces("data: [DONE]")) == []


def test_without_a_name_the_first_listed_model_is_taken() -> None:
    listed = client(lambda _: httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]}))
    empty = client(lambda _: httpx.Response(200, json={"data": []}))
    assert pick_model(URL, listed, None) == "a"
    assert pick_model(URL, listed, "c") == "c"
    with pytest.raises(CliError, match="plexus load"):
        pick_model(URL, empty, None)


def test_a_gateway_that_is_not_there_is_named() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(CliError, match=URL):
        pick_model(URL, client(answer), None)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://h:1/v1", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("http://h:1", "http://h:1/v1"),
        ("https://[::1]:1/", "https://[::1]:1/v1"),
        ("http://h/llm/v1", "http://h/llm/v1"),
    ],
)
def test_the_url_may_come_without_v1(given: str, meant: str) -> None:
    assert api_of(given) == meant


@pytest.mark.parametrize("given", ["h:1", "127.0.0.1:31313", "nats://h:4222", "http://h:port", "http://", ""])
def test_what_is_no_url_is_said(given: str) -> None:
    with pytest.raises(CliError, match="Expected http://host:port/v1"):
        api_of(given)
