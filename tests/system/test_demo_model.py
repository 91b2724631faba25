"""The demo model through the whole fleet: questions it was never trained on, thinking, and tools, over HTTP."""

import json
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
