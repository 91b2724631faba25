"""How people really type: case, punctuation, typing errors, missing little words."""

import random
import re

_NAMES = (
    "Plexus NATS GPU GPUs CPU KV API APIs OpenAI Anthropic JetStream HTTP NVIDIA Jupiter Romeo Juliet NAT URL I I'm I'd"
)
PROPER = {name.lower(): name for name in _NAMES.split(" ")}
_PROPER = re.compile(r"\b(" + "|".join(sorted(PROPER, key=len, reverse=True)) + r")\b")
_LITTLE_WORDS = (
    "a an the is are do does of in on for to what which how can i it its this that with my me you your would will"
)
_LITTLE = frozenset(_LITTLE_WORDS.split(" "))
_WORD = re.compile(r"[^\W\d_]+")
_SQUASH = re.compile(r"[^a-z0-9]+")


def normalise(text: str) -> str:
    """`text` as it is compared: lower case, letters and digits only, single spaces."""
    return _SQUASH.sub(" ", text.lower()).strip()


def disturb(text: str, rng: random.Random, *, keep: frozenset[str] = frozenset()) -> str:
    """`text` as somebody may have typed it. Words of `keep` stay as they are, since the answer copies them."""
    text = _drop_little_word(text, rng) if rng.random() < 0.10 else text
    text = _typo(text, rng, keep) if rng.random() < 0.12 else text
    return _case(text, rng, keep)


def _drop_little_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    little = [index for index, word in enumerate(words) if word.lower() in _LITTLE]
    if len(words) < 5 or not little:
        return text
    del words[rng.choice(little)]
    return " ".join(words)


def _typo(text: str, rng: random.Random, keep: frozenset[str]) -> str:
    words = [match for match in _WORD.finditer(text) if len(match[0]) >= 4 and match[0] not in keep]
    if not words:
        return text
    match = rng.choice(words)
    at = rng.randrange(match.start() + 1, match.end() - 1)
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    dropped = text[:at] + text[at + 1 :]
    doubled = text[:at] + text[at] + text[at:]
    return rng.choice([swapped, dropped, doubled])


def _case(text: str, rng: random.Random, keep: frozenset[str]) -> str:
    way = rng.random()
    if way < 0.30:
        return text
    if way < 0.33 and not keep:
        return text.upper()
    text = _PROPER.sub(lambda match: PROPER[match[0]] if rng.random() < 0.9 else match[0], text)
    if way < 0.45:
        return text
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)
