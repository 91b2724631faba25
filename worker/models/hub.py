"""From a model's source to a directory with all its files: a local path, or a repository of a Hugging Face hub.

Downloads go through huggingface_hub into its shared cache, so HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE
mean what they mean everywhere. The library takes up a broken file where it stopped; when it gives up, whole files are
kept and the rest is tried again here. A model that is wholly in the cache is served without the hub.
"""

import errno
import glob
import importlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from worker.models.errors import (
    DiskFull,
    ModelError,
    NotServable,
    SourceForbidden,
    SourceNotFound,
    SourceUnreachable,
)
from worker.models.files import CONFIG, INDEX, check_config, check_directory, choose, read_json
from worker.models.skeleton import make_skeleton

Progress = Callable[[int, int], None]  # bytes here, bytes in all
Token = str | bool | None  # None: HF_TOKEN; False: none

ATTEMPTS = 5  # in a row without a new byte
FIRST_WAIT_S = 1.0  # doubles with each attempt
PROGRESS_INTERVAL_S = 0.2
STALE_S = 3600.0  # a partial file untouched for so long belongs to no download
_DOWNLOADS = 4  # files at once
_ANSWER_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w.-]*")
_RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}


def _transport_errors() -> tuple[type[Exception], ...]:
    """The connection errors of whichever HTTP library this huggingface_hub is built on."""
    found: list[type[Exception]] = [OSError]
    for name in ("httpx", "httpx2"):
        try:
            found.append(importlib.import_module(name).TransportError)
        except ImportError:
            continue
    return tuple(found)


_TRANSPORT_ERRORS = _transport_errors()


def resolve(
    source: str,
    revision: str = "",
    cache_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
    *,
    endpoint: str = "",
    token: Token = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The directory of a model, downloaded first if need be. Raises ModelError of one kind or another.

    A source that is an absolute path, starts with ``.`` or ``~``, or exists as a directory is local and used as it is.
    `endpoint` goes before HF_ENDPOINT, `token` before HF_TOKEN; a token that is False sends none. `progress` is told at
    most five times a second from another thread, and at the beginning and end of each attempt.
    """
    local = Path(source).expanduser()
    if local.is_absolute() or source.startswith(("./", "../")) or local.is_dir():
        if not local.exists():
            raise SourceNotFound(f"there is no directory {local} on this worker; check the model's source")
        check_directory(local)
        return local.resolve()
    if not _REPOSITORY.fullmatch(source):
        raise SourceNotFound(f"{source!r} is neither a directory nor a repository id of the form owner/name")
    where = endpoint or constants.ENDPOINT
    return _Download(source, revision or constants.DEFAULT_REVISION, cache_dir, progress, where, token, sleep).run()


def headers(
    source: str,
    revision: str = "",
    cache_dir: Path | None = None,
    into: Path | None = None,
    *,
    endpoint: str = "",
    token: Token = None,
) -> Path:
    """A directory from which the model's size can be told: the model if the cache holds it, else its skeleton, made
    in `into`. One attempt. Raises ModelError.
    """
    if not _REPOSITORY.fullmatch(source):
        raise SourceNotFound(f"{source!r} is no repository id of the form owner/name")
    where = endpoint or constants.ENDPOINT
    download = _Download(
        source, revision or constants.DEFAULT_REVISION, cache_dir, lambda done, total: None, where, token, time.sleep
    )
    return download.headers(into or Path(constants.HF_HUB_CACHE) / "headers")


class _Download:
    """One repository at one revision on its way into the cache."""

    def __init__(
        self,
        source: str,
        revision: str,
        cache_dir: Path | None,
        progress: Progress,
        endpoint: str,
        token: Token,
        sleep: Callable[[float], None],
    ) -> None:
        self._source, self._revision, self._progress = source, revision, progress
        self._endpoint, self._token, self._sleep = endpoint, token, sleep
        self._cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self._folder = self._cache / f"models--{source.replace('/', '--')}"
        self._where = f"{source} (revision {revision})"

    def run(self) -> Path:
        """Download, or take what the cache holds."""
        if _COMMIT.fullmatch(self._revision) and (path := self._cached()):
            return path
        failures, best = 0, -1
        while True:
            try:
                return self._attempt()
            except ModelError:
                raise
            except Exception as error:
                reason = self._judge(error)
            # Unreachable, for now.
            if path := self._cached():
                return path
            here = _bytes_in(self._folder / "blobs")
            failures, best = (1 if here > best else failures + 1), max(here, best)
            if failures >= ATTEMPTS or constants.HF_HUB_OFFLINE:
                raise SourceUnreachable(
                    f"{self._where} cannot be downloaded from {self._endpoint}: {reason}; "
                    "check the network and HF_ENDPOINT, or copy the model to the worker"
                )
            self._sleep(FIRST_WAIT_S * 2 ** (failures - 1))

    def headers(self, folder: Path) -> Path:
        """The whole model if it is here, else its skeleton in `folder`."""
        if path := self._cached():
            return path
        try:
            return make_skeleton(self._source, self._revision, folder, endpoint=self._endpoint, token=self._token)
        except ModelError:
            raise
        except Exception as error:
            raise SourceUnreachable(
                f"{self._where}: {self._judge(error)}; check the network and HF_ENDPOINT"
            ) from error

    def _attempt(self) -> Path:
        """One pass over the repository. Whatever it raises goes to `_judge`."""
        info = HfApi(endpoint=self._endpoint, token=self._token).model_info(
            self._source, revision=self._revision, files_metadata=True, timeout=_ANSWER_S
        )
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
        names = choose(sizes, self._where)
        check_config(read_json(self._file(CONFIG, info.sha)), self._where)
        if INDEX in names:
            shards = set(read_json(self._file(INDEX, info.sha)).get("weight_map", {}).values())
            if lost := sorted(shards - sizes.keys()):
                raise NotServable(f"{self._where} lacks shards that its index names: {', '.join(lost[:3])}")
            names = sorted(shards.union(name for name in names if not name.endswith(".safetensors")))
        _drop_stale(self._folder / "blobs")
        snapshot = self._folder / "snapshots" / str(info.sha)
        with _Watch(snapshot, self._folder / "blobs", {name: sizes[name] for name in names}, self._progress) as watch:
            self._check_room(watch.total - watch.done())
            path = snapshot_download(
                self._source,
                revision=self._revision,
                cache_dir=self._cache,
                allow_patterns=[glob.escape(name) for name in names],
                max_workers=_DOWNLOADS,
                etag_timeout=_ANSWER_S,
                endpoint=self._endpoint,
                token=self._token,
            )
        check_directory(Path(path))
        return Path(path)

    def _file(self, name: str, commit: str | None) -> Path:
        return Path(
            hf_hub_download(
                self._source,
                name,
                revision=commit,
                cache_dir=self._cache,
                etag_timeout=_ANSWER_S,
                endpoint=self._endpoint,
                token=self._token,
            )
        )

    def _cached(self) -> Path | None:
        """The snapshot of this revision if the cache holds all of it."""
        config = try_to_load_from_cache(self._source, CONFIG, cache_dir=self._cache, revision=self._revision)
        if not isinstance(config, str):
            return None
        try:
            check_directory(Path(config).parent)
        except NotServable:
            return None
        return Path(config).parent

    def _check_room(self, needed: int) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._cache).free
        if needed > free:
            raise DiskFull(needed, free, self._cache)

    def _judge(self, error: Exception) -> str:
        """Raise a ModelError for what no repetition cures; else say what went wrong this time."""
        if isinstance(error, GatedRepoError):
            raise SourceForbidden(
                f"{self._where} is gated: accept its terms on the hub with your account, "
                "then give the worker that account's token (HF_TOKEN)"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            raise SourceNotFound(f"{self._source} has no revision {self._revision}; check the name") from error
        if isinstance(error, RepositoryNotFoundError | HFValidationError):
            raise SourceNotFound(
                f"{self._source} is not on {self._endpoint}, or is private: "
                "check the name, or give the worker a token with access (HF_TOKEN)"
            ) from error
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            if status in (401, 403):
                raise SourceForbidden(f"{self._endpoint} refused {self._where}: check HF_TOKEN") from error
            if status not in _RETRYABLE_STATUS:
                raise SourceNotFound(f"{self._endpoint} answered {status} for {self._where}") from error
            return f"HTTP {status}"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(0, shutil.disk_usage(self._cache).free, self._cache) from error
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | EntryNotFoundError):
            return str(error).splitlines()[0]
        if isinstance(error, _TRANSPORT_ERRORS):
            return f"{type(error).__name__} {error}".strip()
        raise error


class _Watch:
    """Tells the progress of a download by looking at the cache, whichever way the library fetches."""

    def __init__(self, snapshot: Path, blobs: Path, sizes: dict[str, int], progress: Progress) -> None:
        self.total = sum(sizes.values())
        self._snapshot, self._blobs, self._sizes, self._progress = snapshot, blobs, sizes, progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download progress", daemon=True)

    def done(self) -> int:
        """Bytes that are here, whole files and parts."""
        whole = sum(size for name, size in self._sizes.items() if (self._snapshot / name).exists())
        return min(self.total, whole + _sum_sizes(list(self._blobs.glob("*.incomplete"))))

    def __enter__(self) -> "_Watch":
        self._progress(self.done(), self.total)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._progress(self.done(), self.total)

    def _run(self) -> None:
        told = -1
        while not self._ended.wait(PROGRESS_INTERVAL_S):
            done = self.done()
            if done != told:
                self._progress(done, self.total)
            told = done


def _drop_stale(blobs: Path) -> None:
    """Remove parts that a killed download left: their names are unique to it, so nobody ever takes them up."""
    for part in blobs.glob("*.incomplete"):
        try:
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
        except FileNotFoundError:
            continue


def _bytes_in(folder: Path) -> int:
    return _sum_sizes(list(folder.iterdir())) if folder.is_dir() else 0


def _sum_sizes(files: Sequence[Path]) -> int:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total
