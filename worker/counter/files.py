"""From a model's source to a directory with its tokenizer: everything beside the weights, and nothing of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from shared.settings import SourceSettings
from worker.models.errors import MirrorUnusable
from worker.models.files import CONFIG, INDEX, TOKENIZERS, choose
from worker.models.mirrors import Mirror, find

NO_MIRRORS: Mapping[str, SourceSettings] = {}
_ANSWER_S = 10.0
_MAIN = "main"  # the branch of a model without a revision


class NotHere(Exception):
    """This host does not have the directory. Another may: it is the one that was named for the model."""


class NotToBeHad(Exception):
    """The files cannot be had now. Remedy: in the message."""


def directory(source: str, revision: str, mirrors: Mapping[str, SourceSettings] = NO_MIRRORS) -> Path:
    """A directory that holds at least the tokenizer. May download. Raises NotHere or NotToBeHad."""
    local = Path(source).expanduser()
    if local.is_absolute():
        if not (local / CONFIG).is_file():
            raise NotHere(f"there is no model in {local} on this worker")
        return local
    try:
        repository, mirror = find(source, mirrors)
    except MirrorUnusable as error:
        raise NotHere(str(error)) from error
    try:
        return _downloaded(repository, revision, mirror)
    except Exception as error:  # of the hub, of the network, of the disk: what is in the cache may do
        if (cached := _cached(repository, revision, mirror)) is not None:
            return cached
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotToBeHad(
            f"the tokenizer of {source} cannot be downloaded on this worker ({reason}); "
            f"check the network{f' and [sources.{mirror.name}]' if mirror else ', HF_ENDPOINT and HF_TOKEN'}, "
            "or load the model once"
        ) from error


def _downloaded(source: str, revision: str, mirror: Mirror | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    endpoint, token = (mirror.endpoint, mirror.credential) if mirror else (None, None)
    api = HfApi(endpoint=endpoint, token=token)
    info = api.model_info(source, revision=revision or _MAIN, timeout=_ANSWER_S)
    path = snapshot_download(
        source,
        revision=revision or _MAIN,
        cache_dir=mirror.cache() if mirror else None,
        allow_patterns=small_files(file.rfilename for file in info.siblings or []),
        etag_timeout=_ANSWER_S,
        endpoint=endpoint,
        token=token,
    )
    return Path(path)


def _cached(source: str, revision: str, mirror: Mirror | None) -> Path | None:
    """The folder of this revision in the cache, if a tokenizer is in it."""
    from huggingface_hub import try_to_load_from_cache

    cache = mirror.cache() if mirror else None
    config = try_to_load_from_cache(source, CONFIG, cache_dir=cache, revision=revision or _MAIN)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if any((folder / name).is_file() for name in TOKENIZERS) else None


def small_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that a worker would take, without the weights."""
    return [name for name in choose(names, "the repository") if not name.endswith(".safetensors") and name != INDEX]
