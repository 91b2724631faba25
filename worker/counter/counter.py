"""Counts prompts, with the last few tokenizers kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from shared.log import get
from shared.messages import Count, Counted, Prompt, encode, no_sight
from shared.records import ModelRecord
from worker.counter.files import NotHere, NotToBeHad, directory
from worker.text.errors import CheckpointError, NoSight, PromptError
from worker.text.model_text import ModelText

MAX_KEPT = 4  # tokenizers; a large one takes a few hundred megabytes

log = get(__name__)
_decode = msgspec.json.Decoder(Count).decode


class Encoder(Protocol):
    """What counting needs of a model's text side."""

    def encode(self, prompt: Prompt) -> list[int]: ...


class Counter:
    """Answers encoded `Count` messages. May be called from several threads."""

    def __init__(
        self,
        find: Callable[[str, str], Path] = directory,
        load: Callable[[Path, ModelRecord], Encoder] | None = None,
        max_kept: int = MAX_KEPT,
    ) -> None:
        self._find = find
        self._load = load or _load
        self._max_kept = max_kept
        self._kept: OrderedDict[bytes, Encoder] = OrderedDict()
        self._loading: dict[bytes, threading.Lock] = {}
        self._lock = threading.Lock()  # over the two maps; never held while a tokenizer is loaded

    def answer(self, payload: bytes) -> bytes:
        """The encoded `Counted`; never raises."""
        try:
            asked = _decode(payload)
        except ValueError as error:
            return encode(Counted(problem="invalid_request", message=f"The count cannot be read: {error}."))
        try:
            return encode(Counted(tokens=len(self._text(asked.model).encode(asked.prompt))))
        except NoSight as error:
            message = no_sight(asked.model.id, error.param)
            return encode(Counted(problem="invalid_request", message=message, param=error.param))
        except PromptError as error:
            return encode(Counted(problem="invalid_request", message=error.message, param=error.param))
        except NotHere as error:
            return encode(Counted(problem="elsewhere", message=str(error)))
        except (NotToBeHad, CheckpointError) as error:
            return encode(Counted(problem="unavailable", message=str(error)))
        except Exception as error:  # the next count may be of another model
            log.exception("count.failed", model=asked.model.id)
            return encode(Counted(problem="unavailable", message=f"{type(error).__name__}: {error}"))

    def _text(self, model: ModelRecord) -> Encoder:
        """The model's text side. Those who ask for it while it is loaded wait for that."""
        key = msgspec.json.encode(
            [
                model.source,
                model.revision,
                model.chat_template,
                model.tool_convention,
                model.options.get("image_tokens"),
            ]
        )
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                known = self._kept.get(key)
            if known is None:
                known = self._load(self._find(model.source, model.revision), model)
                with self._lock:
                    self._kept[key] = known
                    if len(self._kept) > self._max_kept:
                        self._kept.popitem(last=False)
            with self._lock:
                self._loading.pop(key, None)
            return known


def _load(path: Path, model: ModelRecord) -> Encoder:
    return ModelText.load(
        path, chat_template=model.chat_template, tool_convention=model.tool_convention, options=model.options
    )
