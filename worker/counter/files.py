"""From a model's source to a directory with its tokenizer: everything beside the weights, and nothing of them."""

from collections.abc import Iterable
from pathlib import Path

from worker.models.files import CONFIG, INDEX, TOKENIZERS, choose

_ANSWER_S = 10.0
_MAIN = "main"  # the branch of a model without a revision


class NotHere(Exception):
    """This host does not have the directory. Another may: it is the one that was named for the model."""


class NotToBeHad(Exception):
    """The files cannot be had now. Remedy: in the message."""


def directory(source: str, revision: str) -> Path:
    """A directory that holds at least the tokenizer. May download. Raises NotHere or NotToBeHad."""
    local = Path(source).expanduser()
    if local.is_absolute():
        if not (local / CONFIG).is_file():
            raise NotHere(f"there is no model in {local} on this worker")
        return local
    try:
        return _downloaded(source, revision)
    except Exception as error:  # of the hub, of the network, of the disk: what is in the cache may do
        if (cached := _cached(source, revision)) is not None:
            return cached
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotToBeHad(
            f"the tokenizer of {source} cannot be downloaded on this worker ({reason}); "
            "check the network, HF_ENDPOINT and HF_TOKEN, or load the model once"
        ) from error


def _downloaded(source: str, revision: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(source, revision=revision or _MAIN, timeout=_ANSWER_S)
    names = small_files(file.rfilename for file in info.siblings or [])
    path = snapshot_download(source, revision=revision or _MAIN, allow_patterns=names, etag_timeout=_ANSWER_S)
    return Path(path)


def _cached(source: str, revision: str) -> Path | None:
    """The folder of this revision in the cache, if a tokenizer is in it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, CONFIG, revision=revision or _MAIN)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if any((folder / name).is_file() for name in TOKENIZERS) else None


def small_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that a worker would take, without the weights."""
    return [name for name in choose(names, "the repository") if not name.endswith(".safetensors") and name != INDEX]
