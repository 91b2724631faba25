"""Hubs beside the usual one, which the worker's settings define by name: where they are, and what they may be told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from shared import sources
from shared.settings import SourceSettings
from worker.models.errors import MirrorUnusable

FOLDER = "mirrors"  # in the cache of the usual hub: equal names of different hubs are different models


class Mirror(Struct, frozen=True):
    """One of them, as it is handed to whoever downloads."""

    name: str
    endpoint: str
    token: str = ""
    cache_dir: str = ""

    @property
    def credential(self) -> str | Literal[False]:
        """What huggingface_hub takes as a token. Never the one that is meant for the usual hub."""
        return self.token or False

    def cache(self) -> Path:
        """Where its models are kept."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE).expanduser() / FOLDER / self.name


def find(source: str, known: Mapping[str, SourceSettings]) -> tuple[str, Mirror | None]:
    """The repository of a source, and its mirror; None: the usual hub. Raises MirrorUnusable.

    The file of a token is read anew each time, so that a new token counts at once.
    """
    scheme, repository = sources.split(source)
    if not scheme:
        return repository, None
    settings = known.get(scheme)
    if settings is None:
        defined = ", ".join(sorted(known)) or "none"
        raise MirrorUnusable(
            f"{source}: this worker's settings define no mirror {scheme!r} (defined: {defined}); add "
            f"[sources.{scheme}] with its endpoint there, or name workers that have it in the model's entry"
        )
    token = settings.token
    if settings.token_file:
        try:
            token = Path(settings.token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise MirrorUnusable(
                f"{source}: the token file {settings.token_file} of the mirror {scheme!r} cannot be read ({reason}); "
                f"correct token_file in [sources.{scheme}] of this worker's settings"
            ) from error
    return repository, Mirror(scheme, settings.endpoint, token, settings.cache_dir)
