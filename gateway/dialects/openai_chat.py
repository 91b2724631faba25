"""POST /v1/chat/completions: the body to a neutral request.

No parameter is dropped in silence: each is honoured, refused by name, or ignored on purpose. `IGNORED` says why;
names that are in no list are ignored too, and both come back in the header ``x-plexus-ignored``.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.dialects import fields
from gateway.dialects.fields import bad
from gateway.dialects.openai_chat_answer import Stream, Whole
from gateway.dialects.openai_messages import chat_messages
from gateway.errors import NotSupported
from gateway.request import InferenceRequest
from shared.messages import Prompt, Sampling

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 512
MAX_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

HONOURED = frozenset(
    (
        "model",
        "messages",
        "tools",
        "tool_choice",
        "temperature",
        "top_p",
        "n",
        "stream",
        "stream_options",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "top_k",
        "min_p",
        "logit_bias",
        "seed",
        "logprobs",
        "top_logprobs",
        "response_format",
        "chat_template_kwargs",
        "reasoning_effort",
        "ignore_eos",
        "stop_token_ids",
    )
)

IGNORED = {
    "user": "plexus keeps no accounts of end users",
    "metadata": "nothing is stored",
    "store": "nothing is stored",
    "service_tier": "there is one tier",
    "safety_identifier": "plexus keeps no accounts of end users",
    "prompt_cache_key": "prefixes are found by content",
    "prompt_cache_retention": "prefixes stay as long as there is room",
    "prediction": "a speed hint; the result is the same without it",
    "parallel_tool_calls": "the model decides how many tools it calls",
    "verbosity": "local models have no such control",
    "priority": "jobs of one class are served in order",
    "cache_prompt": "prefixes are always cached",
    "skip_special_tokens": "special tokens are never part of the text",
    "spaces_between_special_tokens": "special tokens are never part of the text",
    "request_id": "the gateway gives ids; see the header x-request-id",
    "timings_per_token": "timings come with the usage",
    "include_reasoning": "reasoning comes in reasoning_content; see the header x-include-thinking",
}

# Refused because an answer that ignored them would be a wrong answer: (values that change nothing, remedy).
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "functions": (([],), "send them as tools"),
    "function_call": (("auto", "none"), "send tools and tool_choice"),
    "modalities": ((["text"],), 'only "text" is served'),
    "audio": ((), "only text is served"),
    "web_search_options": ((), "there is no web search"),
    "guided_json": ((), "constrained output is not served yet"),
    "guided_regex": ((), "constrained output is not served yet"),
    "guided_choice": ((), "constrained output is not served yet"),
    "guided_grammar": ((), "constrained output is not served yet"),
    "structured_outputs": ((), "constrained output is not served yet"),
    "grammar": (("",), "constrained output is not served yet"),
    "json_schema": ((), "constrained output is not served yet"),
    "min_tokens": ((0,), "use ignore_eos with max_tokens for a fixed length"),
    "best_of": ((1,), "use n"),
    "use_beam_search": ((False,), "only sampling is served"),
    "length_penalty": ((1, 1.0), "only sampling is served"),
    "bad_words": (([],), "use logit_bias"),
    "prompt_logprobs": ((), "use logprobs, of the completion"),
    "echo": ((False,), "the prompt is not repeated"),
    "include_stop_str_in_output": ((False,), "stop strings are never part of the text"),
    "continue_final_message": ((False,), "every answer is a new message"),
    "add_generation_prompt": ((True,), "every answer is a new message"),
    "chat_template": ((), "the model's own template is used"),
    "documents": (([],), "put documents into a message"),
    "truncate_prompt_tokens": ((), "shorten the messages"),
}

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TEMPLATE_OWN = ("messages", "tools")


def parse(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request that a chat body means. Raises InvalidRequest or NotSupported naming the field."""
    _refuse(body)
    model = fields.string(body, "model")
    if not model:
        raise bad("model", "is required: the id of a model, as GET /v1/models lists them")
    ignored = [name for name, value in body.items() if name not in HONOURED and name not in REFUSED]
    messages, dropped = chat_messages(body)
    stream = bool(fields.boolean(body, "stream"))
    options = fields.mapping(body, "stream_options") or {}
    include_usage = bool(fields.boolean(options, "include_usage", "stream_options."))
    dropped += [f"stream_options.{name}" for name in options if name != "include_usage"]
    if options and not stream:
        dropped.append("stream_options")
    prompt = Prompt(messages=messages, tools=_tools(body), template=_template(body))
    length = sum(len(message["content"]) + 16 for message in messages) + len(orjson.dumps(prompt.tools))
    return InferenceRequest(
        model=model,
        prompt=prompt,
        sampling=_sampling(body),
        stream=stream,
        include_usage=include_usage and stream,
        include_thinking=headers.get("x-include-thinking", "").strip().lower() in ("1", "true", "yes"),
        estimate_tokens=length // 4,
        ignored=tuple(ignored + dropped),
    )


def _refuse(body: dict[str, Any]) -> None:
    for name in body.keys() & REFUSED.keys():
        value, (neutral, remedy) = body[name], REFUSED[name]
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            raise NotSupported(f"{name} is not supported: {remedy}.", param=name)
    chosen = fields.mapping(body, "response_format")
    if chosen is not None:
        kind = fields.string(chosen, "type", "response_format.")
        if kind is None:
            raise bad("response_format.type", 'is required, such as "text"')
        if kind != "text":
            raise NotSupported(
                f"response_format.type {kind[:40]!r} is not supported yet: leave it out, or use 'text' and say in the"
                " messages which format you want.",
                param="response_format.type",
            )


def _sampling(body: dict[str, Any]) -> Sampling:
    seed = fields.integer(body, "seed", -(2**63), 2**63 - 1)
    top_k = fields.integer(body, "top_k", -1, 2**31 - 1)
    repetition = fields.number(body, "repetition_penalty", 0.0, 10.0)
    if repetition == 0.0:
        raise bad("repetition_penalty", "must be above 0", 0)
    tokens, completion = fields.count(body, "max_tokens"), fields.count(body, "max_completion_tokens")
    return Sampling(
        n=fields.integer(body, "n", 1, MAX_CHOICES) or 1,
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
        max_tokens=tokens if completion is None else completion,
        temperature=fields.number(body, "temperature", 0.0, 2.0),
        top_p=fields.number(body, "top_p", 0.0, 1.0),
        top_k=0 if top_k == -1 else top_k,
        min_p=fields.number(body, "min_p", 0.0, 1.0),
        repetition_penalty=repetition,
        presence_penalty=fields.number(body, "presence_penalty", -2.0, 2.0) or 0.0,
        frequency_penalty=fields.number(body, "frequency_penalty", -2.0, 2.0) or 0.0,
        logit_bias=_logit_bias(body),
        stop=_stop(body),
        stop_token_ids=_token_ids(body),
        ignore_eos=bool(fields.boolean(body, "ignore_eos")),
        logprobs=_logprobs(body),
    )


def _logprobs(body: dict[str, Any]) -> int | None:
    wanted = fields.boolean(body, "logprobs")
    most = fields.integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if most and not wanted:
        raise bad("top_logprobs", "needs logprobs: true")
    return (most or 0) if wanted else None


def _stop(body: dict[str, Any]) -> list[str]:
    value = body.get("stop")
    if isinstance(value, str):
        value = [value]
    elif value is not None and not isinstance(value, list):
        raise bad("stop", "must be a string or an array of strings", value)
    stops = fields.array({"stop": value}, "stop", MAX_STOPS) or []
    for index, one in enumerate(stops):
        if not fields.text(one, f"stop[{index}]"):
            raise bad(f"stop[{index}]", "must not be empty")
    return stops


def _token_ids(body: dict[str, Any]) -> list[int]:
    ids = fields.array(body, "stop_token_ids", MAX_BIASES) or []
    for index, one in enumerate(ids):
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= MAX_TOKEN_ID:
            raise bad(f"stop_token_ids[{index}]", "must be a token id", one)
    return ids


def _logit_bias(body: dict[str, Any]) -> dict[int, float]:
    biases = fields.mapping(body, "logit_bias") or {}
    if len(biases) > MAX_BIASES:
        raise bad("logit_bias", f"must have at most {MAX_BIASES} entries, and this has {len(biases)}")
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
            raise bad("logit_bias", "must have token ids as keys", key)
    return {int(key): fields.number(biases, key, -100.0, 100.0, "logit_bias.") or 0.0 for key in biases}


def _tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    tools = fields.array(body, "tools", MAX_TOOLS) or []
    checked = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    choice = body.get("tool_choice")
    if choice is None or choice == "auto":
        return checked
    if choice == "none":
        return []
    if choice == "required" or isinstance(choice, dict):
        raise NotSupported(
            'tool_choice is supported as "auto" and "none"; a required or named tool is not supported yet.',
            param="tool_choice",
        )
    raise bad("tool_choice", 'must be "auto", "none", "required" or an object', choice)


def _tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise bad(where, "must be an object", tool)
    kind = fields.string(tool, "type", f"{where}.")
    if kind != "function":
        raise bad(f"{where}.type", 'must be "function"', kind)
    function = fields.mapping(tool, "function", f"{where}.")
    if function is None:
        raise bad(f"{where}.function", "is required")
    path = f"{where}.function."
    name = fields.string(function, "name", path)
    if name is None or not _NAME.fullmatch(name):
        raise bad(f"{path}name", "must be 1 to 128 letters, digits, '_', '-', '.' or ':'", name)
    fields.string(function, "description", path)
    parameters = fields.mapping(function, "parameters", path)
    fields.boolean(function, "strict", path)
    if parameters is not None:
        fields.check_depth(parameters, f"{path}parameters")
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _template(body: dict[str, Any]) -> dict[str, Any]:
    """Variables of the chat template; those given by name win over those that reasoning_effort implies."""
    variables: dict[str, Any] = {}
    effort = fields.string(body, "reasoning_effort")
    if effort is not None:
        if effort not in EFFORTS:
            raise bad("reasoning_effort", f"must be one of {', '.join(EFFORTS)}", effort)
        variables = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    given = fields.mapping(body, "chat_template_kwargs") or {}
    for name in _TEMPLATE_OWN:
        if name in given:
            raise bad(f"chat_template_kwargs.{name}", "is the request's own; send it at the top")
    fields.check_depth(given, "chat_template_kwargs")
    return variables | given


class ChatCompletions:
    """The dialect as an exchange uses it."""

    id_prefix = "chatcmpl-"

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """See `parse`."""
        return parse(body, headers)

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> Stream:
        """A writer of chunks."""
        return Stream(request, identifier, created)

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> Whole:
        """A writer of one answer."""
        return Whole(request, identifier, created)


DIALECT = ChatCompletions()
