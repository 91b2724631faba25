"""POST /v1/responses: the body to a neutral request.

Reading is pure here too: what the store knows of earlier responses comes in as a `Past`.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.dialect import Dialect, StreamWriter
from gateway.dialects import conversation, fields, openai_responses_tools, openai_sampling
from gateway.dialects.fields import bad
from gateway.dialects.openai_constraint import SCHEMA_FORMAT, schema_constraint
from gateway.dialects.openai_responses_answer import Notes, Stream, Whole, error_json, event_bytes
from gateway.dialects.openai_responses_input import Input, Past
from gateway.dialects.openai_responses_output import Form
from gateway.dialects.parameters import Parameters, note_strangers
from gateway.errors import ApiError, NotSupported, to_json
from gateway.request import InferenceRequest, Waiting
from shared.messages import Constraint, Prompt

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
MAX_INCLUDE = 32

PARAMETERS = Parameters(
    honoured={
        "model": "an id or an alias, as GET /v1/models lists them",
        "input": "a string, or items: see below",
        "instructions": "a system message before everything; not kept for the next response",
        "previous_response_id": "the conversation of that response goes before the input",
        "tools": "function, custom and namespace; of other types, which only OpenAI's servers run, none is served",
        "tool_choice": "auto, none, required, function, custom, allowed_tools; required calls are constrained decoding",
        "parallel_tool_calls": "false: at most one call in an answer",
        "text": "format text, json_object, json_schema, by constrained decoding; verbosity is ignored",
        "reasoning": "effort, to the template; summary: the reasoning comes there; max_tokens bounds it (extension)",
        "include": f"{ENCRYPTED}, {LOGPROBS}; others name what is never there",
        "max_output_tokens": "clamped to what the context leaves; reasoning counts",
        **{name: text for name, text in openai_sampling.HONOURED.items() if name != "n"},
        "top_logprobs": f"0 to {openai_sampling.MAX_TOP_LOGPROBS}",
        "stream": "server-sent events",
        "store": "default true: the response can be fetched, and continued from, until it expires",
        "background": "true: runs on without its client, to be fetched later, or streamed again; needs store",
        "metadata": "up to 16 pairs of strings, given back",
        "truncation": "auto leaves out the oldest items until the prompt fits; disabled: that is a 400",
        "service_tier": "flex and batch wait behind all other requests; every other tier is the one there is",
    },
    ignored={
        "user": "plexus keeps no accounts of end users",
        "safety_identifier": "plexus keeps no accounts of end users",
        "client_metadata": "plexus keeps no accounts of end users",
        "prompt_cache_key": "prefixes are found by content",
        "prompt_cache_retention": "prefixes stay as long as there is room",
        "prompt_cache_options": "prefixes are found by content",
        "stream_options": "nothing is obfuscated, and usage always comes",
        "max_tool_calls": "counts tools that OpenAI's servers run, and there are none",
        "context_management": "conversations are taken as they are",
        "access_programs": "there is no such program",
        "image": "images are made by nobody here; to show one, put it into the input",
    },
    refused={
        "conversation": ((), "send previous_response_id, or the items"),
        "prompt": ((), "there are no stored prompts; send instructions and input"),
        "moderation": ((), "there is no model that moderates"),
        "n": ((1,), "send one request for each answer"),
    },
)


_REPEATED = ("input", "tools", "tool_choice", "text")  # in the answer, or in the store, with all that is in them
_REASONING = frozenset(("effort", "summary", "generate_summary", "max_tokens"))
_TEXT, _PLAIN = frozenset(("format",)), frozenset(("type",))
_SCHEMA = SCHEMA_FORMAT | {"type"}


def parse(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request that a body means which refers to nothing stored."""
    return read(body, Past())


def read(body: dict[str, Any], past: Past) -> InferenceRequest:
    """The request that a body means. Raises InvalidRequest, NotSupported or NotFound naming the field."""
    ignored = PARAMETERS.check(body)
    model = fields.string(body, "model")
    if not model:
        raise bad("model", "is required: the id of a model, as GET /v1/models lists them")
    for name in _REPEATED:
        fields.check_depth(body.get(name), name, 2 * fields.MAX_DEPTH)
    tools = openai_responses_tools.read(body)
    choice = openai_responses_tools.choose(body, tools)
    given = Input(past)
    given.read(body)
    template, reasoning = _reasoning(body, ignored)
    include = _include(body)
    parallel = fields.boolean(body, "parallel_tool_calls") is not False
    prompt = Prompt(
        messages=given.messages,
        tools=tools.listed,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        template=template,
        freeform=tools.freeform,
        shorten=_shortens(body),
    )
    top = fields.integer(body, "top_logprobs", 0, openai_sampling.MAX_TOP_LOGPROBS)
    has_logprobs = bool(top) or LOGPROBS in include
    max_tokens = fields.count(body, "max_output_tokens")
    sampling = openai_sampling.sampling(
        body,
        max_tokens=max_tokens,
        logprobs=(top or 0) if has_logprobs else None,
        thinking_budget=fields.count(body.get("reasoning") or {}, "max_tokens", "reasoning."),
    )
    form, constraint = _text(body, ignored)
    stream, stored, background = _delivery(body)
    metadata = openai_sampling.metadata(body)
    echo = {
        "instructions": body.get("instructions") or None,
        "max_output_tokens": max_tokens,
        "parallel_tool_calls": parallel,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": reasoning,
        "service_tier": "default",
        "store": stored,
        "background": background,
        "temperature": sampling.temperature,
        "text": {"format": form},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": tools.echo,
        "top_logprobs": top or 0,
        "top_p": sampling.top_p,
        "truncation": body.get("truncation") or "disabled",
        "metadata": metadata,
    }
    is_summary = (reasoning["summary"] or "none") != "none"
    return InferenceRequest(
        model=model,
        prompt=prompt,
        sampling=sampling,
        constraint=constraint,
        job_class=openai_sampling.job_class(body),
        metadata=metadata,
        stream=stream,
        include_usage=True,
        estimate_tokens=conversation.estimate_tokens(prompt),
        notes=Notes(
            form=Form(tools.named, is_summary, ENCRYPTED in include, has_logprobs),
            echo=echo,
            items=given.items,
            past=past.items,
            is_stored=stored,
            is_background=background,
        ),
        images=tuple(given.images.places),
        ignored=tuple(ignored + tools.dropped + given.dropped),
    )


def _delivery(body: dict[str, Any]) -> tuple[bool, bool, bool]:
    """(stream, store, background)."""
    stream = bool(fields.boolean(body, "stream"))
    stored = fields.boolean(body, "store") is not False
    background = bool(fields.boolean(body, "background"))
    if background and not stored:
        raise bad("background", "needs store: the answer is fetched from there")
    return stream, stored, background


def _shortens(body: dict[str, Any]) -> bool:
    """Whether the oldest items are to be left out rather than the request refused."""
    truncation = fields.string(body, "truncation")
    if truncation not in (None, "auto", "disabled"):
        raise bad("truncation", 'must be "auto" or "disabled"', truncation)
    return truncation == "auto"


def _include(body: dict[str, Any]) -> set[str]:
    given = fields.array(body, "include", MAX_INCLUDE) or []
    return {fields.text(one, f"include[{index}]") for index, one in enumerate(given)}


def _reasoning(body: dict[str, Any], dropped: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables of the chat template, what the answer repeats). What has no effect is added to `dropped`."""
    reasoning = fields.mapping(body, "reasoning") or {}
    note_strangers(reasoning, "reasoning.", _REASONING, dropped)
    effort = fields.string(reasoning, "effort", "reasoning.")
    summary = fields.string(reasoning, "summary", "reasoning.")
    summary = summary or fields.string(reasoning, "generate_summary", "reasoning.")
    if effort is not None and effort not in EFFORTS:
        raise bad("reasoning.effort", f"must be one of {', '.join(EFFORTS)}", effort)
    if summary not in (None, "none", "auto", "concise", "detailed"):
        raise bad("reasoning.summary", 'must be "auto", "concise" or "detailed"', summary)
    variables = {} if effort is None else {"enable_thinking": effort != "none", "reasoning_effort": effort}
    return variables, {"effort": effort, "summary": summary}


def _text(body: dict[str, Any], dropped: list[str]) -> tuple[dict[str, Any], Constraint | None]:
    """(the format, the constraint that it means). What has no effect is added to `dropped`."""
    text = fields.mapping(body, "text") or {}
    note_strangers(text, "text.", _TEXT, dropped)
    form = fields.mapping(text, "format", "text.") or {"type": "text"}
    where = "text.format."
    kind = fields.string(form, "type", where)
    note_strangers(form, where, _SCHEMA if kind == "json_schema" else _PLAIN, dropped)
    if kind == "text":
        return form, None
    if kind == "json_object":
        return form, Constraint(kind="json_object")
    if kind == "json_schema":
        fields.string(form, "name", where)
        fields.boolean(form, "strict", where)
        if form.get("schema") is None:
            raise bad(f"{where}schema", "is required: a JSON schema")
        return form, schema_constraint(form["schema"], f"{where}schema")
    raise NotSupported(
        f'{where}type {(kind or "null")[:40]!r} is not supported: use "text", "json_object" or "json_schema".',
        param=f"{where}type",
    )


class Responses(Dialect):
    """The dialect as an exchange uses it."""

    id_prefix = "resp_"
    summary = "Response in the form of the Responses API, streamed, whole or in the background"

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """See `parse`."""
        return parse(body, headers)

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> Stream:
        """A writer of events."""
        return Stream(request, identifier, created)

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> Whole:
        """A writer of one response."""
        return Whole(request, identifier, created)

    def error_body(self, error: ApiError, request_id: str = "") -> bytes:
        """The body of an error answer. Replicas speak of messages, which are the input here."""
        value = orjson.loads(to_json(error))
        if (value["error"]["param"] or "").startswith("messages"):
            value["error"]["param"] = "input"
        return orjson.dumps(value)

    def error_event(self, error: ApiError, request_id: str = "") -> bytes:
        """The event that ends a stream whose writer cannot."""
        response = {
            "id": "resp_" + request_id.removeprefix("req_"),
            "object": "response",
            "status": "failed",
            "output": [],
            "error": error_json(error),
        }
        return event_bytes("response.failed", {"response": response})

    def keepalive(self, waiting: Waiting, writer: StreamWriter | None = None) -> bytes:
        """A numbered event: comments do not reset every client's clock."""
        assert isinstance(writer, Stream)
        return writer.write(waiting)


DIALECT = Responses()
