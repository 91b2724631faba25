"""POST /v1/messages: the body to a neutral request."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.dialect import Dialect, StreamWriter
from gateway.dialects import anthropic_content, anthropic_errors, anthropic_tools, conversation, fields
from gateway.dialects.anthropic_answer import Stream, Whole, ping
from gateway.dialects.fields import bad
from gateway.dialects.openai_constraint import schema_constraint
from gateway.dialects.parameters import Parameters, note_strangers
from gateway.errors import ApiError, NotSupported
from gateway.request import InferenceRequest, Waiting
from shared.messages import Constraint, Prompt, Sampling

MAX_STOPS = 16
EFFORTS = ("low", "medium", "high", "xhigh", "max")

PARAMETERS = Parameters(
    honoured={
        "model": "the id or an alias of a model, as GET /v1/models lists them",
        "messages": "roles user, assistant, system (also between turns); a last one of the assistant is continued",
        "system": "a string or text blocks",
        "max_tokens": "required; clamped to what the context leaves",
        "stream": "server-sent events",
        "temperature": "0 to 2; 0 is greedy; not given: the model's own default",
        "top_p": "0 to 1",
        "top_k": "0 is off",
        "stop_sequences": f"up to {MAX_STOPS}; stop_reason and stop_sequence say which one was met",
        "tools": "custom tools; `defer_loading` tools are shown where a tool result refers to them",
        "tool_choice": "auto, any, tool, none; disable_parallel_tool_use; any and tool are constrained decoding",
        "thinking": "enabled and adaptive turn it on, disabled off; budget_tokens is a bound; display omitted",
        "output_config": "effort, to the chat template; format json_schema, by constrained decoding",
        "output_format": "the older name of output_config.format",
        "seed": "an extension: every random number is a function of seed and position",
    },
    ignored={
        "metadata": "plexus keeps no accounts of end users",
        "service_tier": "there is one tier; usage says standard",
        "cache_control": "prefixes are always cached; usage tells what was read",
        "betas": "features are told by the body alone",
        "context_management": "conversations are taken as they are",
        "compaction": "conversations are taken as they are",
        "inference_geo": "the operator chooses where models run",
        "speed": "there is one speed",
        "diagnostics": "see the timings in the answer",
        "user_profile_id": "plexus keeps no accounts of end users",
        "workspace_id": "plexus keeps no accounts of end users",
        "billing_policy": "plexus keeps no accounts of end users",
        "fallback_credit_token": "plexus keeps no accounts of end users",
        "safeguards": "there is no model of safeguards",
    },
    refused={
        "mcp_servers": (([],), "call the servers from the client, as custom tools"),
        "container": ((), "nothing is run here; use custom tools"),
        "fallbacks": (([],), "ask for the other model in a request of its own"),
        "thread": ((), "send the messages"),
        "n": ((1,), "send one request for each answer"),
    },
)


_THINKING, _OUTPUT = frozenset(("type", "display")), frozenset(("effort", "format"))
_FORMAT = frozenset(("type", "schema", "name"))
_DISPLAYS = (None, "omitted", "summarized")  # the last is what comes anyway, but whole


@dataclass(frozen=True, slots=True)
class Notes:
    """What the writers of the answer need to know of the body."""

    is_thinking_omitted: bool = False  # reasoning goes out inside the signature alone


def parse(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request that a messages body means. Raises InvalidRequest or NotSupported naming the field."""
    max_tokens = fields.count(body, "max_tokens")
    if max_tokens is None:
        raise bad("max_tokens", "is required: how many tokens the answer may have")
    return _read(body, max_tokens)


def parse_count(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request whose prompt a count_tokens body means. Raises as `parse`."""
    return _read(body, None)


def _read(body: dict[str, Any], max_tokens: int | None) -> InferenceRequest:
    ignored = PARAMETERS.check(body)
    model = fields.string(body, "model")
    if not model:
        raise bad("model", "is required: the id of a model, as GET /v1/models lists them")
    tools = anthropic_tools.read(body)
    read = anthropic_content.Conversation(body, tools)
    choice, parallel = anthropic_tools.choose(body, tools)
    template, budget, notes = _thinking(body, ignored)
    constraint = _output(body, template, ignored)
    prompt = Prompt(
        messages=read.messages,
        tools=tools.listed,
        shown_tools=tools.shown_tools(),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        template=template,
        continue_final=read.continues,
    )
    return InferenceRequest(
        model=model,
        prompt=prompt,
        sampling=_sampling(body, max_tokens, budget),
        constraint=constraint,
        stream=bool(fields.boolean(body, "stream")),
        include_usage=True,
        estimate_tokens=conversation.estimate_tokens(prompt),
        notes=notes,
        images=tuple(read.images.places),
        ignored=tuple(ignored + tools.dropped + read.dropped),
    )


def _sampling(body: dict[str, Any], max_tokens: int | None, thinking_budget: int | None) -> Sampling:
    seed = fields.integer(body, "seed", -(2**63), 2**63 - 1)
    stops = fields.array(body, "stop_sequences", MAX_STOPS) or []
    for index, one in enumerate(stops):
        if not fields.text(one, f"stop_sequences[{index}]"):
            raise bad(f"stop_sequences[{index}]", "must not be empty")
    return Sampling(
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
        max_tokens=max_tokens,
        temperature=fields.number(body, "temperature", 0.0, 2.0),
        top_p=fields.number(body, "top_p", 0.0, 1.0),
        top_k=fields.integer(body, "top_k", 0, 2**31 - 1),
        stop=stops,
        thinking_budget=thinking_budget,
    )


def _thinking(body: dict[str, Any], dropped: list[str]) -> tuple[dict[str, Any], int | None, Notes]:
    """(variables of the chat template, the most tokens of reasoning, notes).

    Nothing given leaves the template to its own default. What has no effect is added to `dropped`.
    """
    thinking = fields.mapping(body, "thinking")
    if thinking is None:
        return {}, None, Notes()
    kind = fields.string(thinking, "type", "thinking.")
    display = fields.string(thinking, "display", "thinking.")
    notes = Notes(display == "omitted")
    note_strangers(thinking, "thinking.", _THINKING | {"budget_tokens"} if kind == "enabled" else _THINKING, dropped)
    if display not in _DISPLAYS:
        dropped.append("thinking.display")
    budget = fields.count(thinking, "budget_tokens", "thinking.")
    if kind == "disabled":
        return {"enable_thinking": False}, None, notes
    if kind == "adaptive":
        return {"enable_thinking": True}, None, notes
    if kind != "enabled":
        raise bad("thinking.type", 'must be "enabled", "adaptive" or "disabled"', kind)
    if budget is None:
        raise bad("thinking.budget_tokens", 'is required with the type "enabled"')
    return {"enable_thinking": True, "thinking_budget": budget}, budget, notes


def _output(body: dict[str, Any], template: dict[str, Any], dropped: list[str]) -> Constraint | None:
    """The constraint that the output configuration means; its effort goes into the template's variables.

    What has no effect is added to `dropped`.
    """
    config = fields.mapping(body, "output_config") or {}
    note_strangers(config, "output_config.", _OUTPUT, dropped)
    effort = fields.string(config, "effort", "output_config.")
    if effort is not None:
        if effort not in EFFORTS:
            raise bad("output_config.effort", f"must be one of {', '.join(EFFORTS)}", effort)
        template["reasoning_effort"] = effort
    for where, parent, key in (("output_config.format", config, "format"), ("output_format", body, "output_format")):
        chosen = fields.mapping(parent, key, where.removesuffix(key))
        if chosen is None:
            continue
        if key == "format" and body.get("output_format") is not None:
            dropped.append("output_format")
        note_strangers(chosen, f"{where}.", _FORMAT, dropped)
        kind = fields.string(chosen, "type", f"{where}.")
        if kind != "json_schema":
            raise NotSupported(
                f'{where}.type {(kind or "null")[:40]!r} is not supported: use "json_schema".', param=f"{where}.type"
            )
        return schema_constraint(chosen.get("schema"), f"{where}.schema")
    return None


class Messages(Dialect):
    """The dialect as an exchange uses it."""

    id_prefix = "msg_"
    summary = "Message in Anthropic's form, streamed or whole"

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """See `parse`."""
        return parse(body, headers)

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> Stream:
        """A writer of events."""
        return Stream(request, identifier, is_thinking_omitted=request.notes.is_thinking_omitted)

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> Whole:
        """A writer of one message."""
        return Whole(request, identifier, is_thinking_omitted=request.notes.is_thinking_omitted)

    def error_body(self, error: ApiError, request_id: str = "") -> bytes:
        """The body of an error answer."""
        return anthropic_errors.to_json(error, request_id)

    def error_event(self, error: ApiError, request_id: str = "") -> bytes:
        """The event that ends a stream whose writer cannot."""
        return anthropic_errors.event(error, request_id)

    def keepalive(self, waiting: Waiting, writer: StreamWriter | None = None) -> bytes:
        """A ping, which clients take at any time, also before the message begins."""
        return ping(waiting)


DIALECT = Messages()
