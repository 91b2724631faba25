"""The demo model through the whole fleet: bounds on reasoning, begun answers, tools of free text, large bodies."""

import base64
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fleet_process import FleetProcess

MODEL = "plexus-demo"
TURNS = [{"role": "user", "content": "What is the capital of France?"}]
BODY_BYTES = 32_000_000  # what a gateway takes


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        FleetProcess(tmp_path_factory.mktemp("fleet")) as fleet,
        httpx.Client(base_url=fleet.started().api, timeout=60) as http,
    ):
        yield http


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    response = http.post(path, json={"model": MODEL, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def thought(http: httpx.Client, **fields: Any) -> tuple[str, str, int]:
    """Reasoning, content and the tokens of the first."""
    variables = {"enable_thinking": True}
    body = post(http, "/chat/completions", messages=TURNS, max_tokens=200, chat_template_kwargs=variables, **fields)
    message = body["choices"][0]["message"]
    num_tokens: int = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    return message.get("reasoning_content", ""), message["content"], num_tokens


def test_reasoning_ends_where_its_budget_does_and_is_the_same_before(http: httpx.Client) -> None:
    whole, content, num_whole = thought(http)
    assert num_whole > 8 and "Paris" in content
    for budget in (2, 4, 7):
        reasoning, answer, num_tokens = thought(http, thinking_budget=budget)
        assert num_tokens == budget
        assert whole.startswith(reasoning)
        assert answer and "think>" not in answer
    assert thought(http, thinking_budget=num_whole) == (whole, content, num_whole)


def test_the_budget_holds_on_every_surface(http: httpx.Client) -> None:
    reasoning, answer, _ = thought(http, thinking_budget=6)
    thinking = {"type": "enabled", "budget_tokens": 6}
    message = post(http, "/messages", messages=TURNS, max_tokens=200, thinking=thinking)
    assert [block.get("thinking") or block.get("text") for block in message["content"]] == [reasoning, answer]
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == 6
    response = post(
        http,
        "/responses",
        input=TURNS,
        max_output_tokens=200,
        store=False,
        reasoning={"effort": "high", "max_tokens": 6},
    )
    assert [item["content"][0]["text"] for item in response["output"]] == [reasoning, answer]


def test_an_answer_that_has_begun_goes_on_as_it_would_have(http: httpx.Client) -> None:
    message = post(http, "/messages", messages=TURNS, max_tokens=200)
    text = message["content"][0]["text"]
    begun = [*TURNS, {"role": "assistant", "content": text[: text.index(" ", 8)]}]
    rest = post(http, "/messages", messages=begun, max_tokens=200)["content"][0]["text"]
    assert begun[-1]["content"] + rest == text
    chat = post(http, "/chat/completions", messages=begun, max_tokens=200, continue_final_message=True)
    assert chat["choices"][0]["message"]["content"] == rest


def test_a_tool_of_free_text_is_held_to_its_grammar(http: httpx.Client) -> None:
    grammar = 'start: "*** Begin\\n" line~2 "*** End"\nline: ("+" | "-") /[a-z" ]{1,12}/ LF\n%import common.LF'
    tool = {
        "type": "custom",
        "name": "apply_patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": grammar},
    }
    response = post(
        http,
        "/responses",
        input="Edit it.",
        tools=[tool],
        tool_choice={"type": "custom", "name": "apply_patch"},
        max_output_tokens=400,
        store=False,
    )
    (call,) = [item for item in response["output"] if item["type"] == "custom_tool_call"]
    assert re.fullmatch(r'\*\*\* Begin\n([+-][a-z" ]{1,12}\n){2}\*\*\* End', call["input"])


def test_functions_are_answered_as_functions(http: httpx.Client) -> None:
    function = {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    body = post(
        http,
        "/chat/completions",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        functions=[function],
        function_call={"name": "get_weather"},
        max_tokens=200,
    )
    choice = body["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "get_weather"
    assert set(json.loads(choice["message"]["function_call"]["arguments"])) == {"city"}


def test_the_oldest_items_are_left_out_when_asked_for(http: httpx.Client) -> None:
    old = [{"role": role, "content": "The river rises in the hills. " * 4000} for role in ("user", "assistant") * 2]
    refused = http.post("/responses", json={"model": MODEL, "input": [*old, *TURNS], "store": False})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    body = {"input": [*old, *TURNS], "truncation": "auto", "max_output_tokens": 8, "store": False}
    assert post(http, "/responses", **body)["usage"]["input_tokens"] < 65536


def body_of(size: int) -> bytes:
    """A chat body of so many bytes."""
    head, tail = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"'.encode(), b'"}]}'
    text = b"The river rises in the hills. " * (size // 30 + 1)
    return head + text[: size - len(head) - len(tail)] + tail


def test_a_body_of_32_mb_is_read_and_holds_up_no_stream(http: httpx.Client) -> None:
    content = body_of(BODY_BYTES)
    answers: list[httpx.Response] = []

    def send() -> None:
        headers = {"content-type": "application/json"}
        answers.append(httpx.post(f"{http.base_url}chat/completions", content=content, headers=headers, timeout=60))

    sender = threading.Thread(target=send)
    body = {"model": MODEL, "messages": TURNS, "stream": True, "ignore_eos": True, "max_tokens": 1500}
    gaps: list[float] = []
    with http.stream("POST", "/chat/completions", json=body) as response:
        for count, line in enumerate(response.iter_lines()):
            if count == 20:
                sender.start()
            if line.startswith("data: "):
                gaps.append(time.perf_counter())
                last = line
    sender.join()
    (answer,) = answers
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded"), answer.text[:500]
    assert "maximum context length" in error["message"]
    assert last == "data: [DONE]"
    longest = max(later - earlier for earlier, later in itertools.pairwise(gaps))
    print(f"longest pause of the stream beside it: {longest:.3f} s")


def test_a_larger_body_is_refused_with_both_numbers(http: httpx.Client) -> None:
    content = body_of(BODY_BYTES + 1)
    answer = http.post("/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert all(str(number) in answer.text for number in (BODY_BYTES + 1, BODY_BYTES))


@pytest.mark.parametrize("place", ["message", "result"])
def test_images_are_named_and_refused_whatever_their_size(http: httpx.Client, place: str) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(9 << 19)).decode()
    url = f"data:image/png;base64,{data}"
    source = {"type": "base64", "media_type": "image/png", "data": data}
    parts: dict[str, dict[str, Any]] = {
        "/chat/completions": {"type": "image_url", "image_url": {"url": url}},
        "/messages": {"type": "image", "source": source},
        "/responses": {"type": "input_image", "image_url": url},
    }
    for path, part in parts.items():
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": [part]}], "max_tokens": 4}
        if place == "result" and path == "/chat/completions":
            body["messages"] = [{"role": "tool", "tool_call_id": "c", "content": [part]}]
        elif place == "result":
            body["messages"] = [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [part]}]}
            ]
        if path == "/responses":
            given = {"type": "function_call_output", "call_id": "c", "output": [part]}
            body = {"model": MODEL, "input": [given if place == "result" else body["messages"][0]]}
        answer = http.post(path, json=body)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400
        assert f"the model {MODEL!r} takes no images" in message and "[0]" in message and len(message) < 300
