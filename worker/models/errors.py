"""Everything that can be wrong with a model, each with its remedy in the message.

`kind` is for programs: it crosses process boundaries, as in the last line of ``python -m worker.models.fetch``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar


class ModelError(Exception):
    """A model cannot be had or cannot be run here."""

    kind: ClassVar[str] = "model_error"


class SourceNotFound(ModelError):
    """Neither a directory nor a repository with this name and revision. Check the spelling, or grant access."""

    kind = "not_found"


class MirrorUnusable(ModelError):
    """This worker does not know the mirror of a source, or cannot use it. Define it in the worker's settings."""

    kind = "mirror"


class SourceForbidden(ModelError):
    """The repository is gated or private. Accept its terms on the hub and give the worker a token."""

    kind = "forbidden"


class SourceUnreachable(ModelError):
    """The hub did not answer and the cache does not hold the whole model. Passing: try again."""

    kind = "unreachable"


class DiskFull(ModelError):
    """The cache has no room for the download."""

    kind = "disk_full"

    def __init__(self, needed_bytes: int, free_bytes: int, where: Path) -> None:
        super().__init__(
            f"the download needs {gigabytes(needed_bytes)} but {where} has {gigabytes(free_bytes)} free; "
            "make room or move the cache (HF_HUB_CACHE)"
        )
        self.needed_bytes, self.free_bytes, self.where = needed_bytes, free_bytes, where


class NotServable(ModelError):
    """The files are there but are not a model this engine runs: missing parts or a format it does not read."""

    kind = "not_servable"


class BadWeights(ModelError):
    """Weights and architecture do not match. A model with missing weights is never served."""

    kind = "bad_weights"

    def __init__(
        self,
        where: Path,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        other: Sequence[str] = (),
    ) -> None:
        parts = [
            f"{len(names)} {what} ({_some(names)})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", mismatched),
                ("unreadable", other),
            )
            if names
        ]
        super().__init__(
            f"the weights in {where} do not fit its config.json: {'; '.join(parts)}; "
            "download the model again, or correct its config.json"
        )
        self.missing, self.unexpected, self.mismatched = list(missing), list(unexpected), list(mismatched)


class DraftMismatch(ModelError):
    """A draft model guesses in another vocabulary. Take one of the same family, or none."""

    kind = "draft_mismatch"

    def __init__(self, model: Path, draft: Path, id: int, ours: str, theirs: str) -> None:
        super().__init__(
            f"the draft model in {draft} has another vocabulary than {model}: token {id} is {theirs!r} there and "
            f"{ours!r} here; take a smaller model of the same family, or leave the option `draft` out"
        )
        self.model, self.draft, self.id = model, draft, id


class CannotDivide(ModelError):
    """The model is not divided over so many devices. Ask for another number of them, or for one."""

    kind = "cannot_divide"

    def __init__(self, where: Path, size: int, reason: str) -> None:
        super().__init__(
            f"{where} cannot be divided over {size} devices: {reason}; "
            "set `devices` of its catalogue entry to a number that fits, or leave it out"
        )
        self.where, self.size = where, size


class DoesNotFit(ModelError):
    """The model and the least useful cache need more memory than was granted."""

    kind = "does_not_fit"

    def __init__(self, needed_bytes: int, granted_bytes: int, parts: Mapping[str, int], floor_tokens: int) -> None:
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items())
        super().__init__(
            f"needs {gigabytes(needed_bytes)} for a context of {floor_tokens} tokens ({listed}) "
            f"but {gigabytes(granted_bytes)} is granted; grant more memory, unload another model, "
            "or take a smaller model or dtype"
        )
        self.needed_bytes, self.granted_bytes, self.parts = needed_bytes, granted_bytes, dict(parts)


def gigabytes(size: int) -> str:
    """A size for people: GB from one up, MB below."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _some(names: Sequence[str], limit: int = 4) -> str:
    shown = ", ".join(sorted(names)[:limit])
    return f"{shown}, …" if len(names) > limit else shown
