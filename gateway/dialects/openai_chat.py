"""POST /v1/chat/completions: the body to a neutral request.

No parameter is dropped in silence: each is honoured, refused by name, or ignored on purpose, as `PARAMETERS` says.
"""

from collections.abc import Mapping
from typing import Any

from gateway.dialect import Dialect
from gateway.dialects import conversation, fields, openai_constraint, openai_sampling, openai_tools
from gateway.dialects.fields import bad
from gateway.dialects.openai_chat_answer import Notes, Stream, Whole
from gateway.dialects.openai_messages import chat_messages
from gateway.dialects.parameters import Parameters
from gateway.errors import NotSupported
from gateway.request import InferenceRequest
from shared.messages import Prompt

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

PARAMETERS = Parameters(
    honoured={
        "model": "an id or an alias, as GET /v1/models lists them",
        "messages": "roles system, developer, user, assistant, tool, in any order; parts text and image_url, inline",
        "tools": "function tools",
        "tool_choice": "auto, none, required or a function by name; the last two are constrained decoding",
        "parallel_tool_calls": "false: at most one call in an answer",
        "functions": "the older form of tools; the answer then has function_call in place of tool_calls",
        "function_call": "the older form of tool_choice: auto, none, or a function by name",
        **openai_sampling.HONOURED,
        "stream": "server-sent events",
        "stream_options": "include_usage",
        "max_tokens": "per choice; clamped to what the context leaves",
        "max_completion_tokens": "the same; it goes before max_tokens",
        "logprobs": "of the chosen tokens",
        "top_logprobs": f"0 to {openai_sampling.MAX_TOP_LOGPROBS}; needs logprobs",
        **openai_constraint.HONOURED,
        "reasoning_effort": "none to max: variables enable_thinking and reasoning_effort of the chat template",
        "thinking_budget": "an extension: so many tokens of reasoning at most, then it is ended and the answer follows",
        "chat_template_kwargs": "an extension: further variables of the chat template",
        "continue_final_message": "an extension: the last message, of the assistant, is the beginning of the answer",
        "add_generation_prompt": "an extension: false goes with continue_final_message, and with nothing else",
        "service_tier": "flex and batch wait behind all other requests; every other tier is the one there is",
    },
    ignored={
        "user": "plexus keeps no accounts of end users",
        "metadata": "checked, and not stored",
        "store": "nothing is stored",
        "safety_identifier": "plexus keeps no accounts of end users",
        "prompt_cache_key": "prefixes are found by content",
        "prompt_cache_retention": "prefixes stay as long as there is room",
        "prompt_cache_options": "prefixes are found by content",
        "prediction": "a speed hint; the result is the same without it",
        "verbosity": "local models have no such control",
        "moderation": "nothing is moderated",
        "priority": "jobs of one class are served in order; see service_tier",
        "cache_prompt": "prefixes are always cached",
        "skip_special_tokens": "special tokens are never part of the text",
        "spaces_between_special_tokens": "special tokens are never part of the text",
        "request_id": "the gateway gives ids; see the header x-request-id",
        "timings_per_token": "timings come with the usage",
        "include_reasoning": "reasoning comes in reasoning_content; see the header x-include-thinking",
        "guided_decoding_backend": "there is one",
    },
    refused={
        "modalities": ((["text"],), 'answers are "text"'),
        "audio": ((), "answers are text"),
        "web_search_options": ((), "there is no web search"),
        "guided_whitespace_pattern": ((), "use guided_grammar"),
        "min_tokens": ((0,), "use ignore_eos with max_tokens for a fixed length"),
        "best_of": ((1,), "use n"),
        "use_beam_search": ((False,), "only sampling is served"),
        "length_penalty": ((1, 1.0), "only sampling is served"),
        "bad_words": (([],), "use logit_bias"),
        "prompt_logprobs": ((), "use logprobs, of the completion"),
        "echo": ((False,), "the prompt is not repeated"),
        "include_stop_str_in_output": ((False,), "stop strings are never part of the text"),
        "chat_template": ((), "the model's own template is used"),
        "documents": (([],), "put documents into a message"),
        "truncate_prompt_tokens": ((), "shorten the messages"),
    },
)

_TEMPLATE_OWN = ("messages", "tools")
# Names that are read together: of most bodies it is enough to know that none of them is there.
_TURN = frozenset(("continue_final_message", "add_generation_prompt"))
_LOGPROBS = frozenset(("logprobs", "top_logprobs"))
_VARIABLES = frozenset(("reasoning_effort", "chat_template_kwargs"))


def parse(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request that a chat body means. Raises InvalidRequest or NotSupported naming the field."""
    ignored = PARAMETERS.check(body)
    model = model_of(body)
    messages, dropped, images = chat_messages(body)
    stream, include_usage = streaming(body, dropped)
    tools = openai_tools.read(body, dropped)
    constraint = openai_constraint.constraint(body, dropped)
    prompt = Prompt(
        messages=messages,
        tools=tools.functions,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.is_parallel,
        template=_template(body),
        continue_final=_continues(body, messages),
    )
    tokens, completion = fields.count(body, "max_tokens"), fields.count(body, "max_completion_tokens")
    return InferenceRequest(
        model=model,
        prompt=prompt,
        sampling=openai_sampling.sampling(
            body,
            max_tokens=tokens if completion is None else completion,
            logprobs=_logprobs(body),
            thinking_budget=fields.count(body, "thinking_budget"),
        ),
        constraint=constraint,
        job_class=openai_sampling.job_class(body),
        metadata=openai_sampling.metadata(body),
        stream=stream,
        include_usage=include_usage,
        include_thinking=headers.get("x-include-thinking", "").strip().lower() in ("1", "true", "yes"),
        estimate_tokens=conversation.estimate_tokens(prompt),
        notes=Notes(is_legacy=tools.is_legacy),
        images=tuple(images),
        ignored=tuple(ignored + dropped),
    )


def _continues(body: dict[str, Any], messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is to be continued. Raises InvalidRequest or NotSupported."""
    if _TURN.isdisjoint(body):
        return False
    wanted = bool(fields.boolean(body, "continue_final_message"))
    opens_turn = fields.boolean(body, "add_generation_prompt")
    if wanted and opens_turn:
        raise bad("add_generation_prompt", "must be false with continue_final_message")
    if not wanted and opens_turn is False:
        raise NotSupported(
            "add_generation_prompt: false is not supported without continue_final_message: the answer is the "
            "assistant's.",
            param="add_generation_prompt",
        )
    if wanted and not conversation.can_continue(messages):
        raise bad("continue_final_message", "needs messages that end with a text of the assistant")
    return wanted


def model_of(body: dict[str, Any]) -> str:
    """The model that a body names. Raises InvalidRequest."""
    model = fields.string(body, "model")
    if not model:
        raise bad("model", "is required: the id of a model, as GET /v1/models lists them")
    return model


def streaming(body: dict[str, Any], dropped: list[str]) -> tuple[bool, bool]:
    """(whether to stream, whether its usage is wanted). What has no effect is added to `dropped`."""
    stream = bool(fields.boolean(body, "stream"))
    options = fields.mapping(body, "stream_options") or {}
    include_usage = bool(fields.boolean(options, "include_usage", "stream_options."))
    dropped += [f"stream_options.{name}" for name in options if name != "include_usage"]
    if options and not stream:
        dropped.append("stream_options")
    return stream, include_usage and stream


def _logprobs(body: dict[str, Any]) -> int | None:
    if _LOGPROBS.isdisjoint(body):
        return None
    wanted = fields.boolean(body, "logprobs")
    most = fields.integer(body, "top_logprobs", 0, openai_sampling.MAX_TOP_LOGPROBS)
    if most and not wanted:
        raise bad("top_logprobs", "needs logprobs: true")
    return (most or 0) if wanted else None


def _template(body: dict[str, Any]) -> dict[str, Any]:
    """Variables of the chat template; those given by name win over those that reasoning_effort implies."""
    variables: dict[str, Any] = {}
    if _VARIABLES.isdisjoint(body):
        return variables
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


class ChatCompletions(Dialect):
    """The dialect as an exchange uses it."""

    id_prefix = "chatcmpl-"
    summary = "Chat completion, streamed or whole"

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
