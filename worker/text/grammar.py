"""From what a job asks to one grammar of its whole answer. Pure.

    answer = [reasoning] (content | calls)

Reasoning stays free, and so does content that nobody constrained. Where a mark is a token, no text can contain it: a
string in constrained content can neither open a call nor end the reasoning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llguidance import regex_to_lark

from shared.messages import Constraint, Prompt
from worker.text.call_grammar import calls, functions_of, harmony_call
from worker.text.errors import PromptError
from worker.text.guidance import MAX_GRAMMAR_BYTES
from worker.text.lark import Rules, Symbol
from worker.text.schema import prepare
from worker.text.tools import Convention

MAX_PATTERN_BYTES = 32 << 10
MAX_RULES = 1000  # of a client's own grammar

SCHEMA_PARAM = "response_format.json_schema.schema"
_PARAMS = {"json_object": "response_format", "json_schema": SCHEMA_PARAM, "regex": "regex", "grammar": "grammar"}

Reasoning = Literal["none", "optional", "open"]
"""Whether an answer may begin with reasoning: not at all, if it likes, or it stands in the midst of it already."""


@dataclass(frozen=True)
class Style:
    """How a model writes, as far as a grammar needs to know."""

    symbol: Symbol
    is_token: Callable[[str], bool]  # whether a mark is one
    convention: Convention
    reasoning: tuple[str, str] | None  # its marks
    speaks_in_channels: bool  # gpt-oss


def is_constrained(prompt: Prompt, constraint: Constraint | None) -> bool:
    """Whether an answer needs a grammar."""
    return constraint is not None or _must_call(prompt) or _has_strict(prompt)


def write(prompt: Prompt, constraint: Constraint | None, style: Style, reasoning: Reasoning) -> str:
    """The grammar; empty where there is nothing to hold the model to. Raises `PromptError`."""
    if prompt.messages is None and (prompt.tools or prompt.shown_tools):
        raise PromptError("Tools need a prompt of messages.", "tools")
    must_call = _must_call(prompt)
    if prompt.continue_final and (must_call or constraint is not None):
        param = "tool_choice" if must_call else _PARAMS[constraint.kind] if constraint else ""
        raise PromptError("An answer that has begun is continued freely: it cannot be constrained.", param)
    if must_call and constraint is not None:
        constraint = None  # what must be a call has no content
    tools = _tools(prompt)
    rules = Rules()
    if style.speaks_in_channels and prompt.messages is not None:
        if prompt.continue_final:
            return ""
        start = _channels(rules, prompt, constraint, style, must_call, tools)
        return rules.render(start)
    alternatives = []
    if not must_call:
        alternatives.append(rules.text() if constraint is None else content(rules, constraint))
    if must_call:
        alternatives.append(_calls(rules, prompt, style))
    elif tools and style.is_token(style.convention.frame[0] or style.convention.opening):
        # Calls stay possible beside content. Those of strict tools are held to their schemas.
        functions = functions_of(tools, prompt.freeform, loose=True)
        called = calls(rules, style.convention, functions, style.symbol, many=prompt.parallel_tool_calls)
        if style.convention.form == "bare":
            called = f"{style.symbol(style.convention.opening)} {called}"
        alternatives.append(called if constraint else f"{rules.text()} {called}")
    elif constraint is None:
        return ""  # strict tools of a model whose calls nothing announces
    body = rules.one_of(alternatives)
    return rules.render(_after_reasoning(rules, body, style, reasoning))


def content(rules: Rules, constraint: Constraint) -> str:
    """What the answer's content must be. Raises `PromptError`."""
    kind, value, param = constraint.kind, constraint.value, _PARAMS[constraint.kind]
    if kind == "json_object":
        return rules.json(prepare({"type": "object"}, param))
    if kind == "json_schema":
        return rules.json(prepare(value, param))
    if not isinstance(value, str) or not value:
        raise PromptError(f"{param} must be a text.", param)
    limit = MAX_PATTERN_BYTES if kind == "regex" else MAX_GRAMMAR_BYTES // 4
    if len(value.encode("utf-8", "replace")) > limit:
        raise PromptError(f"{param} has {len(value)} characters; {limit} bytes are the limit.", param)
    if kind == "regex":
        return rules.regex(regex_to_lark(value, "d"))
    if value.count(":") > MAX_RULES:
        raise PromptError(f"{param} has more than {MAX_RULES} rules.", param)
    return rules.foreign(value)


def parts(prompt: Prompt, constraint: Constraint | None, style: Style) -> list[tuple[str, str]]:
    """Each thing of the client's in the grammar, alone, with the field it came in: to tell which one is at fault."""
    found = []
    if constraint is not None and not _must_call(prompt):
        rules = Rules()
        found.append((_PARAMS[constraint.kind], rules.render(content(rules, constraint))))
    if (tools := _tools(prompt)) and is_constrained(prompt, constraint):
        for function in functions_of(tools, prompt.freeform, only=_only(prompt), loose=not _must_call(prompt)):
            rules = Rules()
            found.append((function.param, rules.render(rules.json(function.parameters))))
    return found


def _must_call(prompt: Prompt) -> bool:
    return prompt.tool_choice == "required" or prompt.tool_choice.startswith("=")


def _tools(prompt: Prompt) -> list[dict[str, Any]]:
    """What may be called."""
    return [] if prompt.tool_choice == "none" else [*prompt.tools, *prompt.shown_tools]


def _only(prompt: Prompt) -> str:
    return prompt.tool_choice[1:] if prompt.tool_choice.startswith("=") else ""


def _has_strict(prompt: Prompt) -> bool:
    def strict(tool: Any) -> bool:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        return isinstance(function, dict) and (
            function.get("strict") is True or function.get("name") in prompt.freeform
        )

    return prompt.tool_choice == "auto" and any(strict(tool) for tool in _tools(prompt))


def _calls(rules: Rules, prompt: Prompt, style: Style) -> str:
    functions = functions_of(_tools(prompt), prompt.freeform, only=_only(prompt))
    many = prompt.parallel_tool_calls and not _only(prompt)
    return calls(rules, style.convention, functions, style.symbol, many=many)


def _after_reasoning(rules: Rules, body: str, style: Style, reasoning: Reasoning) -> str:
    if reasoning == "none" or style.reasoning is None:
        return body
    opening, closing = style.reasoning
    rest = f"{rules.up_to(closing, style.symbol(closing))} {rules.breaks()}"
    if reasoning == "open":
        return f"{rest} {body}"
    return f"({style.symbol(opening)} {rest})? {body}"


def _channels(
    rules: Rules,
    prompt: Prompt,
    constraint: Constraint | None,
    style: Style,
    must_call: bool,
    tools: list[dict[str, Any]],
) -> str:
    """The prompt ended in `<|start|>assistant`: first analysis, if the model likes, then one message that counts."""
    symbol = style.symbol
    channel, message = symbol("<|channel|>"), symbol("<|message|>")
    aside = '("analysis" | "commentary")' if constraint is None and not must_call else '"analysis"'
    analysis = f'{channel} {aside} {message} {rules.text()} {symbol("<|end|>")} {symbol("<|start|>")} "assistant"'
    ends = []
    if not must_call:
        text = rules.text() if constraint is None else content(rules, constraint)
        ends.append(f'"final" {message} {text}')
    if must_call or tools:
        functions = functions_of(tools, prompt.freeform, only=_only(prompt), loose=not must_call)
        ends.append(harmony_call(rules, functions, symbol))
    return f"({rules.add(analysis)}){{0,4}} {channel} {rules.one_of(ends)}"
