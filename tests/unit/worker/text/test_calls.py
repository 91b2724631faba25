"""The bodies of tool calls, in all the forms that models write."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.text.call_readers import MakeReader, Schemas
from worker.text.tools import CONVENTIONS, HERMES, named, schemas_of

SCHEMAS = schemas_of(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string"},
                        "days": {"type": "integer"},
                        "ratio": {"type": "number"},
                        "exact": {"type": "boolean"},
                        "tags": {"type": "array"},
                        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                        "either": {"type": ["string", "integer"]},
                        "unit": {"enum": ["1", "2"]},
                        "free": {},
                    },
                },
            },
        },
        {"type": "function", "function": {"name": "ping"}},
    ]
)


PAIRS = "<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key><arg_value>3</arg_value>"


class Record:
    """A sink that joins what it is told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.text = ""
        self.is_open = False

    def begin_call(self, name: str) -> None:
        assert not self.is_open
        self.is_open = True
        self.calls.append([name, ""])

    def arguments(self, text: str) -> None:
        assert self.is_open and text
        self.calls[-1][1] += text

    def end_call(self) -> None:
        assert self.is_open
        self.is_open = False

    def verbatim(self, text: str) -> None:
        self.text += text


def read(make: MakeReader, parts: list[str], schemas: Schemas, *, closing: str = "") -> tuple[list[list[str]], str]:
    """Calls and text that a body becomes, opened by the mark "<<"."""
    record = Record()
    reader = make(record, schemas, "<<")
    for part in parts:
        reader.feed(part)
    reader.close(closing)
    assert not record.is_open
    return record.calls, record.text


def plain(make: MakeReader, body: str, schemas: Schemas | None = None) -> list[tuple[str, Any]] | None:
    """The calls, read character by character; None where the body is text."""
    schemas = SCHEMAS if schemas is None else schemas
    calls, text = read(make, list(body), schemas, closing=">>")
    assert read(make, [body], schemas, closing=">>") == (calls, text)
    if not calls:
        assert text == f"<<{body}>>"
        return None
    assert not text.strip()
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('\n{"name": "weather", "arguments": {"city": "Köln"}}\n', [("weather", {"city": "Köln"})]),
        ('{"name": "weather", "arguments": "{\\"days\\": 3}"}', [("weather", {"days": 3})]),
        ('{"name": "ping"}', [("ping", {})]),
        ('{"name": "ping", "arguments": null}', [("ping", {})]),
        ('[{"name": "ping"}, {"name": "pong", "parameters": {"a": 1}}]', [("ping", {}), ("pong", {"a": 1})]),
        ('{"type": "function", "function": {"name": "ping", "arguments": {}}}', [("ping", {})]),
        ('{"name": "weather", "arguments": {"city": "Köln"}', [("weather", {"city": "Köln"})]),
        ('{"arguments": {"city": "\\"}"}, "name": "weather"}', [("weather", {"city": '"}'})]),
        ('{"name": "weather", "arguments": {"city": "a\nb\t"}}', [("weather", {"city": "a\nb\t"})]),
        ('{"name": "weather", "arguments": {"city": "\\\\"}, "id": "}"}', [("weather", {"city": "\\"})]),
        ('{"name": "weather", "arguments": [1]}', None),
        ('{"name": "weather", "arguments": "no json"}', None),
        ('{"arguments": {}}', None),
        ("[1, 2]", None),
        ("[" * 100_000, None),
        ("", None),
        ("any text", None),
        ("any_text", None),
    ],
)  # fmt: skip
def test_tagged_json(body: str, expected: Any) -> None:
    assert plain(HERMES.read, body) == expected


def test_function_tags_are_coerced_by_schema() -> None:
    parameters = {
        "city": "3",
        "days": "3",
        "ratio": "0.5",
        "exact": "True",
        "tags": '["a"]',
        "maybe": "None",
        "either": "x1",
        "unit": "1",
        "free": '{"a": 1}',
        "unknown": "multi\nline",
    }
    body = "\n<function=weather>\n"
    body += "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    expected = {
        "city": "3",
        "days": 3,
        "ratio": 0.5,
        "exact": True,
        "tags": ["a"],
        "maybe": None,
        "either": "x1",
        "unit": "1",
        "free": {"a": 1},
        "unknown": "multi\nline",
    }
    assert plain(HERMES.read, body + "</function>\n") == [("weather", expected)]


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": ["string", "number"]}, "3", 3),
        ({"type": ["string", "number"]}, "true", "true"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "[1]", "[1]"),
        ({"type": ["string", "object"]}, '{"a": 1}', {"a": 1}),
        ({"oneOf": [{"type": "string"}, {"type": "array"}]}, '"a"', '"a"'),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "none", None),
        ({"type": "boolean"}, "FALSE", False),
        (None, "NaN", "NaN"),
    ],
)
def test_coercion(schema: Any, text: str, expected: Any) -> None:
    body = f"<function=f><parameter=p>{text}</parameter></function>"
    assert plain(HERMES.read, body, {"f": {"p": schema}}) == [("f", {"p": expected})]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<function=ping>\n</function>", [("ping", {})]),
        ("<function=ping></function><function=ping></function>", [("ping", {}), ("ping", {})]),
        ("<function=weather><parameter=days>many</parameter>", [("weather", {"days": "many"})]),
        ("<function=weather><parameter=city>\n  deep\n\n</parameter></function>", [("weather", {"city": "  deep\n"})]),
        ("lost text <function=ping></function>", None),
    ],
)  # fmt: skip
def test_function_tags(body: str, expected: Any) -> None:
    assert plain(HERMES.read, body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"weather\n{PAIRS}", [("weather", {"city": "Oslo", "days": 3})]),
        ("weather<arg_key>city</arg_key><arg_value>Oslo</arg_value>", [("weather", {"city": "Oslo"})]),
        ("ping\n", [("ping", {})]),
        ("weather\nsome prose", None),
    ],
)  # fmt: skip
def test_pairs(body: str, expected: Any) -> None:
    assert plain(HERMES.read, body) == expected


@pytest.mark.parametrize(
    ("convention", "body", "expected"),
    [
        ("mistral", ' [{"name": "ping", "arguments": {}, "id": "abcdefghi"}]', [("ping", {})]),
        ("mistral", 'weather[ARGS]{"days": 3}', [("weather", {"days": 3})]),
        ("mistral_named", 'weather[CALL_ID]abcdefghi[ARGS]{"days": 3}', [("weather", {"days": 3})]),
        ("mistral", "weather[ARGS]", None),
        ("mistral", "none", None),
        ("deepseek_v31", 'weather<｜tool▁sep｜>{"days": 3}', [("weather", {"days": 3})]),
        ("deepseek", 'function<｜tool▁sep｜>weather\n```json\n{"days": 3}\n```', [("weather", {"days": 3})]),
        ("deepseek", "function<｜tool▁sep｜>weather\n```json\n```", None),
        ("kimi", 'functions.weather:0<|tool_call_argument_begin|>{"days": 3}', [("weather", {"days": 3})]),
        ("llama3", '{"name": "ping"}; {"name": "pong", "parameters": {}}', [("ping", {}), ("pong", {})]),
        ("phi4", '[{"name": "ping", "arguments": {}}]', [("ping", {})]),
        ("granite", "a" * 2000, None),
        ("mistral", "a" * 2000, None),
    ],
)  # fmt: skip
def test_other_conventions(convention: str, body: str, expected: Any) -> None:
    assert plain(named(convention).read, body) == expected


@pytest.mark.parametrize(
    ("body", "calls", "text"),
    [
        ('{"name": "ping"} and text', [["ping", "{}"]], "and text"),
        ('{"name": "ping"} {"nam', [["ping", "{}"]], '{"nam'),
        ('{"name": "ping"} [1]', [["ping", "{}"]], "[1]"),
        ('{"name": "weather", "arguments": {"city": "Kö', [["weather", '{"city": "Kö']], ""),
        ('{"name": "weather", "arguments": {"a": NaN}}', [["weather", '{"a": NaN}']], ""),
        ("<function=ping></function> lost", [["ping", "{}"]], " lost"),
        ("<function=weather>lost<parameter=days>3</parameter></function>", [["weather", '{"days": 3}']], "lost"),
        (f"weather\n{PAIRS} lost", [["weather", '{"city": "Oslo", "days": 3}']], " lost"),
    ],
)
def test_what_goes_astray_after_a_call_began_is_passed_on(body: str, calls: list[list[str]], text: str) -> None:
    assert read(HERMES.read, list(body), SCHEMAS, closing=">>") == (calls, text)


def test_a_call_without_mark_names_a_tool() -> None:
    body = '{"name": "Anna", "parameters": {}}'
    read_bare = named("llama3").read
    record = Record()
    reader = read_bare(record, SCHEMAS, "")
    reader.feed(body)
    reader.close("")
    assert (record.calls, record.text) == ([], body)


def test_arguments_grow() -> None:
    record = Record()
    reader = HERMES.read(record, SCHEMAS, "<<")
    reader.feed('{"name": "weather", "arguments": {"city": "Os')
    assert record.calls == [["weather", '{"city": "Os']]
    reader.feed("lo")
    assert record.calls == [["weather", '{"city": "Oslo']]
    record = Record()
    reader = HERMES.read(record, SCHEMAS, "<<")
    reader.feed("<function=weather>\n<parameter=city>\nOs")
    assert record.calls == [["weather", '{"city": "Os']]


_BITS = st.sampled_from([
    *('{"name": "weather", ', '"arguments": ', "{", "}", "[", "]", '"', "\\", ",", ";", "\n", '"city": "a"', "weather"),
    *("<function=weather>", "<parameter=city>", "</parameter>", "</function>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>", "[ARGS]", "<｜tool▁sep｜>", "function", "```json", "🙂", " ", "x"),
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    convention=st.sampled_from(CONVENTIONS),
    body=st.lists(_BITS, max_size=14).map("".join),
    cuts=st.lists(st.integers(0, 80), max_size=6),
)
def test_any_cut_of_a_body_reads_the_same_and_loses_nothing(convention: Any, body: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    parts = [body[start:end] for start, end in pairwise(bounds)]
    calls, text = read(convention.read, parts, SCHEMAS, closing=">>")
    assert (calls, text) == read(convention.read, list(body), SCHEMAS, closing=">>")
    if not calls:
        assert text == f"<<{body}>>"
