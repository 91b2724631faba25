"""The bodies of tool calls, in all the forms that models write."""

import json
from typing import Any

import pytest

from worker.text.calls import Call, read_arguments, read_json, read_mistral, read_tagged, schemas_of

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


def plain(calls: list[Call] | None) -> list[tuple[str, Any]] | None:
    return None if calls is None else [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('\n{"name": "weather", "arguments": {"city": "Köln"}}\n', [("weather", {"city": "Köln"})]),
        ('{"name": "weather", "arguments": "{\\"days\\": 3}"}', [("weather", {"days": 3})]),
        ('{"name": "ping"}', [("ping", {})]),
        ('{"name": "ping", "arguments": null}', [("ping", {})]),
        ('[{"name": "ping"}, {"name": "pong", "parameters": {"a": 1}}]', [("ping", {}), ("pong", {"a": 1})]),
        ('{"type": "function", "function": {"name": "ping", "arguments": {}}}', [("ping", {})]),
        ('{"name": "weather", "arguments": {"city": "Köln"}', None),
        ('{"name": "weather", "arguments": {"a": NaN}}', None),
        ('{"name": "weather", "arguments": [1]}', None),
        ('{"name": "weather", "arguments": "no json"}', None),
        ('{"arguments": {}}', None),
        ('{"name": "ping"} and text', None),
        ("[1, 2]", None),
        ("[" * 100_000, None),
        ("", None),
        ("any text", None),
        ("any_text", None),
    ],
)  # fmt: skip
def test_tagged_json(body: str, expected: Any) -> None:
    assert plain(read_tagged(body, SCHEMAS)) == expected


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
    assert plain(read_tagged(body + "</function>\n", SCHEMAS)) == [("weather", expected)]


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
    assert plain(read_tagged(body, {"f": {"p": schema}})) == [("f", {"p": expected})]


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
    assert plain(read_tagged(body, SCHEMAS)) == expected


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
    assert plain(read_tagged(body, SCHEMAS)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (' [{"name": "ping", "arguments": {}, "id": "abcdefghi"}]', [("ping", {})]),
        ('weather[ARGS]{"days": 3}', [("weather", {"days": 3})]),
        ('weather[CALL_ID]abcdefghi[ARGS]{"days": 3}', [("weather", {"days": 3})]),
        ('weather{"days": 3} and text', None),
        ("weather[ARGS]{", None),
    ],
)
def test_mistral(body: str, expected: Any) -> None:
    assert plain(read_mistral(body, SCHEMAS)) == expected


def test_several_objects_in_a_row() -> None:
    body = '{"name": "ping", "parameters": {}}; {"name": "pong", "parameters": {}}'
    assert plain(read_json(body, SCHEMAS)) == [("ping", {}), ("pong", {})]


def test_arguments_are_plain_json() -> None:
    assert read_arguments(' {"a":"é",\n"b":[1]} ') == '{"a": "é", "b": [1]}'
    assert read_arguments("[1]") is None
