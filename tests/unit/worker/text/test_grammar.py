"""From what a job asks to a grammar, and what is refused on the way."""

import time
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Constraint, Prompt
from worker.text.errors import PromptError
from worker.text.grammar import MAX_RULES
from worker.text.guidance import Compiler, byte_tokenizer, compile_grammar, explain
from worker.text.model_text import ModelText
from worker.text.schema import MAX_REFERENCES, MAX_SCHEMA_BYTES, prepare
from worker.text.tools import names

FIELD = "response_format.json_schema.schema"


def ask(**fields: Any) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": "hi"}], **fields)


def tool(parameters: Any, name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


def grammar(text: ModelText, prompt: Prompt, constraint: Constraint | None = None) -> str:
    ready = text.constrain(prompt, constraint, text.encode(prompt))
    return "" if ready is None else ready.result()


def refusal(text: ModelText, prompt: Prompt, constraint: Constraint | None = None) -> PromptError:
    with pytest.raises(PromptError) as caught:
        grammar(text, prompt, constraint)
    return caught.value


@pytest.mark.parametrize(
    "prompt",
    [
        ask(),
        ask(tools=[tool({})]),
        ask(tools=[tool({"not": {}})], tool_choice="none"),
        Prompt(text="hi"),
        Prompt(ids=[1]),
    ],
)
def test_most_jobs_need_no_grammar(texts: dict[str, ModelText], prompt: Prompt) -> None:
    assert texts["qwen3"].constrain(prompt, None, [1]) is None


def test_marks_are_tokens_where_they_can_be(texts: dict[str, ModelText]) -> None:
    prompt = ask(tools=[tool({})], tool_choice="required")
    opening = texts["qwen3"]._vocabulary.id_of("<tool_call>")
    assert f"<[{opening}]>" in grammar(texts["qwen3"], prompt)
    assert '"<tool_call>' in grammar(texts["gemma"], prompt)


def test_reasoning_only_where_it_can_come(texts: dict[str, ModelText]) -> None:
    text, constraint = texts["qwen3"], Constraint(kind="regex", value="a")
    opening, closing = (text._vocabulary.id_of(mark) for mark in ("<think>", "</think>"))
    free = grammar(text, ask(), constraint)
    assert f"<[{opening}]>" in free and f"<[{closing}]>" in free
    silent = grammar(text, ask(template={"enable_thinking": False}), constraint)
    assert f"<[{opening}]>" not in silent and f"<[{closing}]>" not in silent
    assert f"<[{opening}]>" not in grammar(text, Prompt(text="hi"), constraint)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"$ref": "https://example.com/schema"}, "not present"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "#"}, "no text can match"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "text"}, "Invalid type"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        (False, "not"),
        ("text", "not a JSON schema"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes"),
        ({"anyOf": [{"$ref": "#/$defs/a"}] * (MAX_REFERENCES + 1), "$defs": {"a": {}}}, "$ref"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_by_name(texts: dict[str, ModelText], schema: Any, words: str) -> None:
    error = refusal(texts["qwen3"], ask(), Constraint(kind="json_schema", value=schema))
    assert error.param == FIELD and words in error.message
    if isinstance(schema, dict) and schema != {"$ref": "#"}:  # in a member, that is recursion and may go on
        parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        prompt = ask(tools=[tool({}, "good"), tool(parameters)], tool_choice="required")
        again = refusal(texts["qwen3"], prompt)
        assert again.param == "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("prompt", "constraint", "param"),
    [
        (ask(tools=[tool({})], tool_choice="=g"), None, "tool_choice"),
        (ask(tool_choice="required"), None, "tool_choice"),
        (ask(tools=[tool({}, "bad name")], tool_choice="required"), None, "tools"),
        (ask(tools=[tool({"type": "array"})], tool_choice="required"), None, "tools[0].function.parameters"),
        (ask(), Constraint(kind="regex", value="("), "regex"),
        (ask(), Constraint(kind="regex", value=""), "regex"),
        (ask(), Constraint(kind="regex", value="a" * 40_000), "regex"),
        (ask(), Constraint(kind="grammar", value='rule: "a"'), "grammar"),
        (ask(), Constraint(kind="grammar", value="start: <|im_end|>"), "grammar"),
        (ask(), Constraint(kind="grammar", value='start: "a"\n' + 'r: "a"\n' * (MAX_RULES + 1)), "grammar"),
        (Prompt(text="hi", tools=[tool({})], tool_choice="required"), None, "tools"),
    ],
)
def test_the_field_at_fault_is_named(
    texts: dict[str, ModelText], prompt: Prompt, constraint: Constraint | None, param: str
) -> None:
    assert refusal(texts["qwen3"], prompt, constraint).param == param


def test_tools_that_are_not_strict_may_have_any_schema_under_auto(texts: dict[str, ModelText]) -> None:
    loose, strict = tool({"type": "object", "not": {}}, "loose"), tool({}, "strict", strict=True)
    assert grammar(texts["qwen3"], ask(tools=[loose, strict]))
    assert refusal(texts["qwen3"], ask(tools=[tool({"type": "object", "not": {}}, strict=True)])).param


def test_what_a_schema_promises_nothing_by_is_taken_out() -> None:
    schema = {
        "format": "secret",
        "properties": {"format": {"format": "date"}, "x": {"const": {"format": "odd"}}},
        "propertyNames": {"type": "string"},
        "x-guidance": {"lenient": True},
    }
    ready = prepare(schema, FIELD)
    assert ready.pop("x-guidance") == {"whitespace_pattern": r"[ ]|\n[ ]{0,24}"}
    assert ready == {"properties": {"format": {"format": "date"}, "x": {"const": {"format": "odd"}}}}


def _chain(kind: str, length: int) -> dict[str, Any]:
    links = {f"a{n}": {kind: [{"$ref": f"#/$defs/a{n + 1}"}, {"type": "null"}]} for n in range(length)}
    return {"$defs": links | {f"a{length}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _members(length: int) -> dict[str, Any]:
    links = {
        f"a{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}, "required": ["x"]}
        for n in range(length)
    }
    return {"$defs": links | {f"a{length}": {"type": "string"}}, "$ref": "#/$defs/a0"}


HOSTILE: dict[str, Constraint] = {
    name: Constraint(kind="json_schema", value=schema)
    for name, schema in {
        "minLength": {"type": "string", "minLength": 10**9},
        "minItems": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
        "maxItems": {"type": "array", "maxItems": 10**6, "items": {"type": "integer"}},
        "enum": {"enum": [f"value number {n}" for n in range(10_000)]},
        "deep": _nested(60),
        "deeper": _nested(900),
        "links": _chain("anyOf", 1900),
        "members": _members(1900),
        "pattern": {"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100})$"},
        "many groups": {"type": "string", "pattern": "(a?)" * 5000},
        "automata": {"allOf": [{"type": "string", "pattern": f".*{letter}.{{20}}"} for letter in "abcdefgh"]},
        "multiple": {"type": "integer", "multipleOf": 999_999_937},
        "alternatives": {"anyOf": [{"type": "object", "required": [f"p{n}"]} for n in range(999)]},
    }.items()
} | {
    name: Constraint(kind="grammar", value=f"start: {text}")
    for name, text in {
        "rules": "r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(900)) + 'r900: "a"',
        "terminals": "T0\n" + "".join(f"T{n}: T{n + 1} T{n + 1}\n" for n in range(40)) + 'T40: "a"',
        "brackets": "(" * 50_000 + '"a"' + ")" * 50_000,
        "ambiguous": 's\ns: s s | s s s | "a" | ',
    }.items()
} | {
    "groups": Constraint(kind="regex", value="(" * 9000 + "a" + ")" * 9000),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_are_bounded(texts: dict[str, ModelText], name: str) -> None:
    """Either a grammar or a refusal, within seconds on a busy machine, and without a stack that overflows."""
    started = time.monotonic()
    try:
        assert grammar(texts["qwen3"], ask(template={"enable_thinking": False}), HOSTILE[name])
    except PromptError as error:
        assert len(error.message) < 600
    assert time.monotonic() - started < 60


def test_verdicts_are_remembered(texts: dict[str, ModelText], monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Constraint(kind="json_schema", value={"enum": ["remembered"]})
    first = grammar(texts["qwen3"], ask(), constraint)
    bad = Constraint(kind="regex", value="(remembered")
    wrong = refusal(texts["qwen3"], ask(), bad).message
    monkeypatch.setattr("worker.text.constrain.compile_grammar", lambda *_: pytest.fail("compiled again"))
    assert grammar(texts["qwen3"], ask(), constraint) == first
    assert refusal(texts["qwen3"], ask(), bad).message == wrong


def test_long_chains_need_a_stack_of_their_own() -> None:
    tokenizer = byte_tokenizer(300)
    chain = "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(20_000)) + 'r20000: "a"'
    compiler = Compiler("test")
    matcher, problem = compiler.submit(compile_grammar, tokenizer, chain).result()
    compiler.close()
    assert matcher is not None and not problem


PATCH = Constraint(kind="grammar", value='start: "*** Begin" LF ("+" /.*/ LF)+\n%import common.LF')


def custom(name: str = "f") -> dict[str, Any]:
    return tool({"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}, name)


@pytest.mark.parametrize("style", ["qwen3", "llama3", "mistral", "gemma", "harmony"])
@pytest.mark.parametrize("form", [PATCH, Constraint(kind="regex", value=r"^\+[^\n]*\n$")])
def test_the_text_of_a_freeform_tool_is_held_to_its_form(
    texts: dict[str, ModelText], style: str, form: Constraint
) -> None:
    prompt = ask(tools=[custom()], tool_choice="=f", freeform={"f": form})
    assert '"pattern": "^(?:' in grammar(texts[style], prompt)


def test_a_freeform_tool_is_held_to_its_form_also_where_the_model_chooses(texts: dict[str, ModelText]) -> None:
    prompt = ask(tools=[custom(), tool({}, "g")], freeform={"f": PATCH})
    assert '"pattern": "^(?:' in grammar(texts["qwen3"], prompt)
    assert grammar(texts["gemma"], prompt) == ""  # nothing announces its calls


def test_a_grammar_with_recursion_is_refused_only_where_it_must_be_kept(texts: dict[str, ModelText]) -> None:
    form = Constraint(kind="grammar", value='start: "(" start ")" | "x"')
    error = refusal(texts["qwen3"], ask(tools=[custom()], tool_choice="required", freeform={"f": form}))
    assert (error.param, "refers to itself" in error.message) == ("tools", True)
    assert '"pattern"' not in grammar(texts["qwen3"], ask(tools=[custom()], freeform={"f": form}))


@pytest.mark.parametrize(
    "form",
    [
        Constraint(kind="regex", value="(?=a)b"),
        Constraint(kind="regex", value="("),
        Constraint(kind="regex", value="a" * 40_000),
        Constraint(kind="regex"),
        Constraint(kind="json_object"),
        Constraint(kind="grammar", value="start: /(/"),
    ],
)
def test_a_form_that_cannot_be_enforced_is_a_refusal(texts: dict[str, ModelText], form: Constraint) -> None:
    assert refusal(texts["qwen3"], ask(tools=[custom()], tool_choice="=f", freeform={"f": form})).param == "tools"


@pytest.mark.parametrize("style", ["qwen3", "harmony"])
def test_an_answer_that_has_begun_is_not_constrained(texts: dict[str, ModelText], style: str) -> None:
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{"}]
    prompt = Prompt(messages=begun, continue_final=True)
    assert refusal(texts[style], prompt, Constraint(kind="regex", value="a")).param == "regex"
    prompt = Prompt(messages=begun, continue_final=True, tools=[custom()], tool_choice="required")
    assert refusal(texts[style], prompt).param == "tool_choice"


@pytest.mark.parametrize("convention", names())
def test_every_convention_holds_a_freeform_tool_to_its_form(model_dirs: dict[str, Path], convention: str) -> None:
    text = ModelText.load(model_dirs["qwen3"], tool_convention=convention)
    for choice in ("=f", "required", "auto"):
        prompt = ask(tools=[custom()], tool_choice=choice, freeform={"f": PATCH})
        written = grammar(text, prompt)
        assert not written or "Begin" in written
        assert written or choice == "auto"


def test_an_error_shows_no_lines_of_the_grammar_that_was_made_of_it():
    told = "at 2(5): (in schema): Invalid type: objekt\n   1 | start: r0\n   2 | r0: %json {}\n     ^\n"
    assert explain(told) == "at 2(5): (in schema): Invalid type: objekt"
