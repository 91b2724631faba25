"""The demo model through the whole fleet: questions it was never trained on, thinking, and tools, over HTTP."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fleet_process import FleetProcess
from worker.demo import score as scoring
from worker.demo.score import FLOOR, Calls

MODEL = "plexus-demo"
THINKING_FLOOR = 0.85
THOUGHTS_FLOOR = 0.7  # before the other answers its thought is empty
TOOLS_FLOOR = 0.8


class Asker:
    """A client of the demo model."""

    def __init__(self, api: str) -> None:
        self._http = httpx.Client(base_url=api, timeout=60)
        self.num_thoughts = 0

    def message(self, text: str, **fields: Any) -> dict[str, Any]:
        """The message that answers a question."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 200,
            "temperature": 0,
            **fields,
        }
        response = self._http.post("/chat/completions", json=body)
        assert response.status_code == 200, response.text
        message: dict[str, Any] = response.json()["choices"][0]["message"]
        return message

    def ask(self, text: str) -> str:
        """A plain answer."""
        return str(self.message(text)["content"])

    def ask_thinking(self, text: str) -> str:
        """An answer after thinking, which is kept apart from it."""
        message = self.message(text, chat_template_kwargs={"enable_thinking": True})
        self.num_thoughts += bool(message.get("reasoning_content"))
        assert "think>" not in message["content"]
        return str(message["content"])

    def call(self, text: str, tools: list[dict[str, Any]]) -> Calls:
        """The calls of an answer."""
        message = self.message(text, tools=tools)
        functions = [call["function"] for call in message.get("tool_calls") or []]
        return [(function["name"], json.loads(function["arguments"])) for function in functions]

    def close(self) -> None:
        """Hang up."""
        self._http.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet.started()


@pytest.fixture
def asker(fleet: FleetProcess) -> Iterator[Asker]:
    asker = Asker(fleet.api)
    yield asker
    asker.close()


def test_it_knows_the_capital_of_france(asker: Asker) -> None:
    assert "Paris" in asker.ask("What is the capital of France?")


def test_held_out_questions_are_answered(asker: Asker) -> None:
    result = scoring.score(asker.ask)
    assert result.share >= FLOOR, f"{result.share:.1%}: {result.wrong}"


def test_held_out_questions_are_answered_after_thinking(asker: Asker) -> None:
    result = scoring.score(asker.ask_thinking)
    assert result.share >= THINKING_FLOOR, f"{result.share:.1%}: {result.wrong}"
    assert asker.num_thoughts >= THOUGHTS_FLOOR * len(result.outcomes)


def test_tools_are_called(asker: Asker) -> None:
    result = scoring.score_tools(asker.call)
    assert result.share >= TOOLS_FLOOR, f"{result.share:.1%}: {result.wrong}"


def test_a_call_streams_in_pieces_that_make_one(asker: Asker, fleet: FleetProcess) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": scoring.tools(),
        "stream": True,
    }
    chunks = []
    with httpx.stream("POST", f"{fleet.api}/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunks += json.loads(line[6:])["choices"]
    pieces = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls") or []]
    assert {piece["index"] for piece in pieces} == {0}
    assert pieces[0]["id"]
    assert pieces[0]["function"]["name"] == "get_weather"
    assert set(json.loads("".join(piece["function"]["arguments"] for piece in pieces))) == {"city"}
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == ["tool_calls"]


def test_a_long_prompt_fits(asker: Asker, fleet: FleetProcess) -> None:
    listed = httpx.get(f"{fleet.api}/models/{MODEL}").json()
    assert listed["context_limit"] >= 65536 or listed["max_model_len"] >= 65536, listed
    message = asker.message("The river rises in the hills. " * 800, max_tokens=4)
    assert message["content"] is not None


QUESTION = "What is the capital of France?"


def test_every_surface_gives_the_same_text_and_the_same_counts(fleet: FleetProcess) -> None:
    http = httpx.Client(base_url=fleet.api, timeout=60)

    def post(path: str, **body: Any) -> Any:
        response = http.post(path, json={"model": MODEL, "temperature": 0, **body})
        assert response.status_code == 200, response.text
        return response.json()

    turns = [{"role": "user", "content": QUESTION}]
    chat = post("/chat/completions", messages=turns, max_tokens=200)
    message = post("/messages", messages=turns, max_tokens=200)
    response = post("/responses", input=QUESTION, max_output_tokens=200, store=False)
    (block,), (item,) = message["content"], response["output"]
    texts = {chat["choices"][0]["message"]["content"], block["text"], item["content"][0]["text"]}
    assert len(texts) == 1
    assert "Paris" in texts.pop()
    usage = message["usage"]
    assert (chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"]) == (
        usage["input_tokens"] + usage["cache_read_input_tokens"],
        usage["output_tokens"],
    )
    assert chat["usage"]["prompt_tokens"] == response["usage"]["input_tokens"]
    assert chat["usage"]["completion_tokens"] == response["usage"]["output_tokens"]
    assert post("/messages/count_tokens", messages=turns)["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert post("/responses/input_tokens", input=QUESTION)["input_tokens"] == chat["usage"]["prompt_tokens"]
    http.close()


def test_a_stop_sequence_is_named(fleet: FleetProcess) -> None:
    body = {"model": MODEL, "temperature": 0, "max_tokens": 200, "messages": [{"role": "user", "content": QUESTION}]}
    message = httpx.post(f"{fleet.api}/messages", json=body | {"stop_sequences": ["Par"]}, timeout=60).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "Par")


def test_a_prompt_that_is_too_long_says_so_in_each_dialect(fleet: FleetProcess) -> None:
    long = "The river rises in the hills. " * 20_000
    turns = [{"role": "user", "content": long}]
    message = httpx.post(f"{fleet.api}/messages", json={"model": MODEL, "max_tokens": 1, "messages": turns}, timeout=60)
    assert message.status_code == 400
    assert re.fullmatch(r"prompt is too long: \d+ tokens > \d+ maximum", message.json()["error"]["message"])
    response = httpx.post(f"{fleet.api}/responses", json={"model": MODEL, "input": long}, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
