"""Prompts and the length of a context: refusing early what is far too long, and leaving out the oldest messages."""

from collections.abc import Callable

import msgspec

from shared.messages import Prompt
from worker.text.errors import PromptTooLong

_CHARACTERS = 8  # of a token; what has fewer for each token of the context is tokenised at once
_SLACK = 1.05  # tokens of the pieces of a text may be somewhat more than those of the text

Encode = Callable[[str], list[int]]


def check_length(text: str, limit: int, encode: Encode, param: str) -> None:
    """Refuse a text that surely has more than `limit` tokens. Raises `PromptTooLong`.

    Piece by piece, and no further than needed: tokenising 32 MB takes many seconds, in which no other prompt is read.
    """
    step = _CHARACTERS * limit
    if len(text) <= step:
        return
    num_tokens = 0
    for start in range(0, len(text), step):
        num_tokens += len(encode(text[start : start + step]))
        if num_tokens > _SLACK * limit + 64:
            raise PromptTooLong(num_tokens, limit, param)


def shorten(prompt: Prompt, room: int, encode: Callable[[Prompt], list[int]]) -> Prompt:
    """The prompt without as many of the oldest messages as it takes to have at most `room` tokens.

    What the operator says at the beginning stays, and so does the last message. A conversation begins with a user
    again, or, if that is not enough, at least not with the result of a call that is gone. Where nothing fits it is
    returned as short as it can be.
    """
    messages = prompt.messages or []
    head = next((place for place, one in enumerate(messages) if one.get("role") != "system"), len(messages))
    starts = _starts(messages, head)
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if _fits(_from(prompt, head, starts[middle]), room, encode):
            high = middle
        else:
            low = middle + 1
    return _from(prompt, head, starts[low]) if starts else prompt


def _starts(messages: list[dict[str, object]], head: int) -> list[int]:
    """Where a shorter conversation may begin, the longest first."""
    users = [place for place in range(head, len(messages)) if messages[place].get("role") == "user"]
    behind = users[-1] if users else head - 1
    others = [place for place in range(behind + 1, len(messages)) if messages[place].get("role") != "tool"]
    return [head, *(place for place in [*users, *others] if place > head)]


def _from(prompt: Prompt, head: int, start: int) -> Prompt:
    messages = prompt.messages or []
    kept = [*messages[:head], *messages[start:]]
    return msgspec.structs.replace(prompt, messages=kept)


def _fits(prompt: Prompt, room: int, encode: Callable[[Prompt], list[int]]) -> bool:
    try:
        return len(encode(prompt)) <= room
    except PromptTooLong:
        return False
