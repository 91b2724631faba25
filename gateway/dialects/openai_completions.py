"""POST /v1/completions: continues texts, or token ids, as they are; no chat template comes in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.dialect import Dialect
from gateway.dialects import fields, openai_constraint, openai_sampling
from gateway.dialects.fields import bad
from gateway.dialects.openai_chat import model_of, streaming
from gateway.dialects.openai_completions_answer import Stream, Whole
from gateway.dialects.parameters import Parameters
from gateway.errors import NotSupported
from gateway.request import InferenceRequest
from shared.messages import Prompt

MAX_PROMPTS = 128
MAX_PROMPT_IDS = 1 << 22
DEFAULT_TOKENS = 16  # as OpenAI has it: a text without an end would fill the context
MAX_LOGPROBS = 20

_CONSTRAINT = {name: text for name, text in openai_constraint.HONOURED.items() if name != "response_format"}

PARAMETERS = Parameters(
    honoured={
        "model": "an id or an alias, as GET /v1/models lists them",
        "prompt": f"a string, token ids, or up to {MAX_PROMPTS} of either",
        **openai_sampling.HONOURED,
        "best_of": "so many are made, and the n of the best mean log probability are given; not with stream",
        "echo": "the prompt goes before the text; not for token ids, and not with logprobs",
        "stream": "server-sent events",
        "stream_options": "include_usage",
        "max_tokens": f"per choice; {DEFAULT_TOKENS} if not given; clamped to what the context leaves",
        "logprobs": f"0 to {MAX_LOGPROBS}: of the chosen tokens and so many of the likeliest",
        "response_format": "as in chat",
        **_CONSTRAINT,
        "service_tier": "as in chat",
    },
    ignored={
        "user": "plexus keeps no accounts of end users",
        "metadata": "checked, and not stored",
        "cache_prompt": "prefixes are always cached",
        "add_special_tokens": "the tokenizer's own rule holds; send token ids to have another",
        "skip_special_tokens": "special tokens are never part of the text",
        "spaces_between_special_tokens": "special tokens are never part of the text",
        "priority": "jobs of one class are served in order; see service_tier",
        "request_id": "the gateway gives ids; see the header x-request-id",
        "guided_decoding_backend": "there is one",
    },
    refused={
        "suffix": (("",), "models are asked to continue, not to fill in; put the marks of the model into the prompt"),
        "min_tokens": ((0,), "use ignore_eos with max_tokens for a fixed length"),
        "use_beam_search": ((False,), "only sampling is served"),
        "length_penalty": ((1, 1.0), "only sampling is served"),
        "bad_words": (([],), "use logit_bias"),
        "prompt_logprobs": ((), "log probabilities are of the completion"),
        "include_stop_str_in_output": ((False,), "stop strings are never part of the text"),
        "prompt_embeds": ((), "send text or token ids"),
        "truncate_prompt_tokens": ((), "shorten the prompt"),
        "guided_whitespace_pattern": ((), "use guided_grammar"),
    },
)


@dataclass(frozen=True, slots=True)
class Notes:
    """What the writers of an answer need besides the request."""

    n: int  # choices of each prompt that are given
    made: int  # choices of each prompt that are made
    echo: tuple[str, ...] = ()  # what goes before the choices of each prompt
    with_logprobs: bool = False


def parse(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request that a completion body means. Raises InvalidRequest or NotSupported naming the field."""
    ignored = PARAMETERS.check(body)
    model = model_of(body)
    prompts = _prompts(body)
    dropped: list[str] = []
    stream, include_usage = streaming(body, dropped)
    wanted = fields.integer(body, "logprobs", 0, MAX_LOGPROBS)
    n = fields.integer(body, "n", 1, openai_sampling.MAX_CHOICES) or 1
    made = fields.integer(body, "best_of", 1, openai_sampling.MAX_CHOICES) or n
    if made < n:
        raise bad("best_of", f"must be at least n, which is {n}", made)
    if made > n and stream:
        raise bad("best_of", "cannot be streamed: which is best is known at the end", made)
    echo = _echo(body, prompts, wanted)
    estimate = sum(len(one.ids) if one.ids is not None else len(one.text or "") // 4 for one in prompts)
    return InferenceRequest(
        model=model,
        prompt=prompts[0],
        further=tuple(prompts[1:]),
        sampling=openai_sampling.sampling(
            body,
            max_tokens=fields.count(body, "max_tokens") or DEFAULT_TOKENS,
            logprobs=0 if wanted is None and made > n else wanted,
            num_choices=made,
        ),
        constraint=openai_constraint.constraint(body, dropped),
        job_class=openai_sampling.job_class(body),
        metadata=openai_sampling.metadata(body),
        stream=stream,
        include_usage=include_usage,
        estimate_tokens=estimate,
        ignored=tuple(ignored + dropped),
        notes=Notes(n=n, made=made, echo=echo, with_logprobs=wanted is not None),
    )


def _prompts(body: dict[str, Any]) -> list[Prompt]:
    given = body.get("prompt")
    if given is None:
        raise bad("prompt", "is required: a string, an array of strings, or token ids")
    prompts = texts_or_ids(given, "prompt", MAX_PROMPTS)
    if not prompts:
        raise bad("prompt", "must not be empty")
    return prompts


def texts_or_ids(given: object, where: str, most: int) -> list[Prompt]:
    """A string, token ids, or an array of up to `most` of either. Raises InvalidRequest naming the field."""
    if isinstance(given, str):
        return [Prompt(text=fields.text(given, where))]
    if not isinstance(given, list):
        raise bad(where, "must be a string, an array of strings, or token ids", given)
    if given and isinstance(given[0], int) and not isinstance(given[0], bool):
        return [Prompt(ids=openai_sampling.token_ids(given, where, MAX_PROMPT_IDS))]
    prompts = []
    for index, one in enumerate(fields.array({where: given}, where, most) or []):
        path = f"{where}[{index}]"
        if isinstance(one, list):
            if not one:
                raise bad(path, "must not be empty")
            prompts.append(Prompt(ids=openai_sampling.token_ids(one, path, MAX_PROMPT_IDS)))
        else:
            prompts.append(Prompt(text=fields.text(one, path)))
    return prompts


def _echo(body: dict[str, Any], prompts: list[Prompt], logprobs: int | None) -> tuple[str, ...]:
    if not fields.boolean(body, "echo"):
        return ()
    if logprobs is not None:
        raise NotSupported(
            "echo with logprobs is not supported: log probabilities are of the completion.", param="echo"
        )
    if any(prompt.ids is not None for prompt in prompts):
        raise NotSupported("echo is not supported for token ids: send the prompt as text.", param="echo")
    return tuple(prompt.text or "" for prompt in prompts)


class Completions(Dialect):
    """The dialect as an exchange uses it."""

    id_prefix = "cmpl-"
    summary = "Continue a text, streamed or whole"

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """See `parse`."""
        return parse(body, headers)

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> Stream:
        """A writer of chunks."""
        return Stream(request, identifier, created)

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> Whole:
        """A writer of one answer."""
        return Whole(request, identifier, created)


DIALECT = Completions()
