"""POST /v1/embeddings: texts, or token ids, to vectors. Pure, as every dialect."""

import base64
import math
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialect import Dialect
from gateway.dialects import fields, openai_sampling
from gateway.dialects.fields import bad
from gateway.dialects.openai_chat import model_of
from gateway.dialects.openai_chat_answer import timings_json
from gateway.dialects.openai_completions import texts_or_ids
from gateway.dialects.parameters import Parameters
from gateway.errors import InternalError
from gateway.request import Event, Finished, InferenceRequest
from shared.messages import Embedded

MAX_INPUTS = 2048
MAX_DIMENSIONS = 1 << 16

PARAMETERS = Parameters(
    honoured={
        "model": "an id or an alias of an embedding model, as GET /v1/models lists them",
        "input": f"a string, token ids, or up to {MAX_INPUTS} of either; each within the model's context",
        "encoding_format": "float (also if not given) or base64, which is little-endian float32",
        "dimensions": "the first so many of the vector, brought to length 1 again",
        "service_tier": "as in chat",
    },
    ignored={
        "user": "plexus keeps no accounts of end users",
        "metadata": "checked, and not stored",
        "priority": "jobs of one class are served in order; see service_tier",
        "request_id": "the gateway gives ids; see the header x-request-id",
        "input_type": "prompts of a model are not added; put them before the text",
    },
    refused={
        "stream": ((False,), "an embedding is one answer"),
        "truncate": ((), "shorten the input"),
        "truncate_prompt_tokens": ((), "shorten the input"),
        "embedding_types": ((["float"],), "use encoding_format"),
        "messages": ((), "send texts as input"),
    },
)


@dataclass(frozen=True, slots=True)
class Notes:
    """How the vectors are to be written."""

    dimensions: int | None
    as_base64: bool


def parse(body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
    """The request that a body means. Raises InvalidRequest or NotSupported naming the field."""
    ignored = PARAMETERS.check(body)
    model = model_of(body)
    if body.get("input") is None:
        raise bad("input", "is required: a string, an array of strings, or token ids")
    inputs = texts_or_ids(body["input"], "input", MAX_INPUTS)
    if not inputs:
        raise bad("input", "must not be empty")
    for index, one in enumerate(inputs):
        if not (one.text or one.ids):
            raise bad("input" if isinstance(body["input"], str) else f"input[{index}]", "must not be empty")
    encoding = fields.string(body, "encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise bad("encoding_format", 'must be "float" or "base64"', encoding)
    openai_sampling.metadata(body)
    return InferenceRequest(
        model=model,
        task="embed",
        inputs=tuple(inputs),
        job_class=openai_sampling.job_class(body),
        estimate_tokens=sum(len(one.ids) if one.ids is not None else len(one.text or "") // 4 for one in inputs),
        ignored=tuple(ignored),
        notes=Notes(fields.integer(body, "dimensions", 1, MAX_DIMENSIONS), encoding == "base64"),
    )


class Whole:
    """The answer: a vector for each input."""

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._vectors: dict[int, bytes] = {}

    def add(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Embedded):
            self._vectors[event.choice] = event.vector

    def body(self, end: Finished) -> bytes:
        """The whole answer as JSON. Raises InvalidRequest for more dimensions than there are."""
        notes: Notes = self._request.notes
        data = [
            {"object": "embedding", "index": index, "embedding": _written(self._vectors[index], notes)}
            for index in range(len(self._request.inputs))
        ]
        tokens = end.usage.prompt_tokens
        return orjson.dumps(
            {
                "object": "list",
                "data": data,
                "model": self._request.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "timings": timings_json(end.timings),
            }
        )


def _written(vector: bytes, notes: Notes) -> str | list[float]:
    size = len(vector) // 4
    if notes.dimensions is not None and notes.dimensions > size:
        raise bad("dimensions", f"must be at most {size}, which is what the model has", notes.dimensions)
    if notes.dimensions is not None and notes.dimensions < size:
        vector = _shortened(vector, notes.dimensions)
    if notes.as_base64:
        return base64.b64encode(vector).decode()
    return _floats(vector).tolist()


def _shortened(vector: bytes, dimensions: int) -> bytes:
    kept = _floats(vector)[:dimensions]
    length = math.sqrt(sum(one * one for one in kept))
    return _bytes(array("f", [one / length for one in kept]) if length else kept)


def _floats(vector: bytes) -> "array[float]":
    numbers = array("f")
    numbers.frombytes(vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _bytes(numbers: "array[float]") -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


class Embeddings(Dialect):
    """The dialect as an exchange uses it."""

    id_prefix = "emb-"
    summary = "Vectors of texts"

    def parse(self, body: dict[str, Any], headers: Mapping[str, str]) -> InferenceRequest:
        """See `parse`."""
        return parse(body, headers)

    def stream(self, request: InferenceRequest, identifier: str, created: int) -> Any:
        """There is none; `parse` refuses the wish."""
        raise InternalError

    def whole(self, request: InferenceRequest, identifier: str, created: int) -> Whole:
        """A writer of one answer."""
        return Whole(request)


DIALECT = Embeddings()
