"""The chat template, rendered without transformers."""

from typing import Any

from worker.demo.tokenizer import Renderer

CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
ASK = {"role": "user", "content": "What is Plexus?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Tell <the> time",
        "parameters": {"type": "object", "properties": {}},
    },
}


def render(*messages: dict[str, Any], **variables: Any) -> str:
    return Renderer().text(list(messages), **variables)


def test_a_question_alone_opens_a_plain_answer() -> None:
    assert render(ASK) == "<|im_start|>user\nWhat is Plexus?<|im_end|>\n" + CLOSED


def test_thinking_leaves_the_block_to_the_model() -> None:
    assert render(ASK, enable_thinking=True).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert render(ASK, enable_thinking=False) == render(ASK)


def test_without_a_generation_prompt_nothing_is_opened() -> None:
    assert render(ASK, add_generation_prompt=False).endswith("<|im_end|>\n")


def test_a_system_or_developer_message_comes_first() -> None:
    for role in ("system", "developer"):
        assert render({"role": role, "content": " Be brief. "}, ASK).startswith(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        )


def test_tools_are_listed_as_json_after_the_system_message() -> None:
    text = render({"role": "system", "content": "Be brief."}, ASK, tools=[TOOL])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert '\n<tools>\n{"type": "function", "function": {"name": "get_time", "description": "Tell <the> time"' in text
    assert text.count("<|im_start|>system") == 1


def test_calls_and_their_results_are_shown_in_hermes_form() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"city": "Rome"}}}],
    }
    text = render(ASK, call, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"})
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        in text
    )
    assert (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        in text
    )


def test_arguments_may_come_as_a_json_string() -> None:
    calls = [{"function": {"name": "f", "arguments": '{"a": 1}'}}, {"function": {"name": "g", "arguments": "{}"}}]
    text = render(ASK, {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "1"})
    assert '{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}' in text


def test_thoughts_of_earlier_turns_are_dropped() -> None:
    for answer in ({"content": "<think>\nhm\n</think>\n\nYes."}, {"content": "Yes.", "reasoning_content": "hm"}):
        text = render(ASK, {"role": "assistant", **answer}, ASK)
        assert "<|im_start|>assistant\nYes.<|im_end|>\n" in text
        assert "hm" not in text


def test_thoughts_since_the_last_question_stay() -> None:
    call = {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    text = render(ASK, call, {"role": "tool", "content": "1"}, enable_thinking=True)
    assert '<|im_start|>assistant\n<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f"' in text


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "Plexus?"}]
    assert render({"role": "user", "content": parts}) == render(ASK)
