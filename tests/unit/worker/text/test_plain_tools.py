"""Tools for models whose template knows none."""

from pathlib import Path

import pytest

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.model_text import ModelText
from worker.text.variables import spelled

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    path = tmp_path_factory.mktemp("plain")
    return ModelText.load(write_model(path, sentencepiece_tokenizer("gemma", ["[TOOL_CALLS]"]), template=TEMPLATE))


def test_nothing_is_added_without_tools(text: ModelText) -> None:
    assert text.render(Prompt(messages=[{"role": "user", "content": "hi"}])) == "[user]hi"


def test_tools_are_described_where_the_template_would_drop_them(text: ModelText) -> None:
    alone = text.render(Prompt(messages=[{"role": "user", "content": "hi"}], tools=TOOLS))
    assert alone.startswith("[system]# Tools") and '"name": "weather"' in alone and alone.endswith("[user]hi")
    for content in ("Be kind.", [{"type": "text", "text": "Be kind."}]):
        messages = [{"role": "system", "content": content}, {"role": "user", "content": "hi"}]
        assert text.render(Prompt(messages=messages, tools=TOOLS)).startswith("[system]Be kind.")


def test_earlier_calls_and_results_are_text(text: ModelText) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "See:", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "cold"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "dark"}]},
    ]
    rendered = text.render(Prompt(messages=messages, tools=TOOLS)).partition("[user]hi")[2]
    assert rendered == (
        '[assistant]See:\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        "[user]<tool_response>\ncold\n</tool_response>\n<tool_response>\ndark\n</tool_response>"
    )


def test_calls_are_read_as_they_were_described(text: ModelText) -> None:
    prompt = Prompt(messages=[{"role": "user", "content": "hi"}], tools=TOOLS)
    ids = text.encode(prompt)
    stream = text.stream(prompt, stop=[], prompt_ids=ids)
    piece = stream.feed(text.encode(Prompt(text='<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'))[1:])
    assert [call.name for call in piece.tool_calls] == ["weather"]


def test_a_template_that_shows_tools_is_left_alone(texts: dict[str, ModelText]) -> None:
    rendered = texts["qwen3"].render(Prompt(messages=[{"role": "user", "content": "hi"}], tools=TOOLS))
    assert rendered.count("<tools>") == 2  # the template's own words: one in its text, one around the list


def test_a_template_and_a_convention_of_the_catalogue(tmp_path: Path) -> None:
    path = write_model(tmp_path, sentencepiece_tokenizer("gemma", []), template=TEMPLATE)
    text = ModelText.load(path, chat_template="{{ messages[0].content }}!", tool_convention="mistral")
    assert text.render(Prompt(messages=[{"role": "user", "content": "hi"}])) == "hi!"
    assert text._tools.name == "mistral"
    with pytest.raises(Exception, match="known: qwen_xml"):
        ModelText.load(path, tool_convention="nonsense")


def test_reasoning_variables_under_the_templates_own_names() -> None:
    asked = {"enable_thinking": False, "reasoning_effort": "max"}
    assert spelled(asked, speaks_in_channels=False) == asked | {"thinking": False, "enable_reasoning": False}
    assert spelled(asked, speaks_in_channels=True)["reasoning_effort"] == "high"
    assert spelled({"enable_thinking": True, "thinking": "x"}, speaks_in_channels=False)["thinking"] == "x"
    assert spelled({}, speaks_in_channels=True) == {}
