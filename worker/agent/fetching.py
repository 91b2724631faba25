"""The model's files on this host: looked at where they lie, or downloaded by a child process."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from shared.records import ModelRecord
from worker.agent.errors import FetchFailed
from worker.models.files import check_directory, read_json

FETCH = (sys.executable, "-m", "worker.models.fetch")
_LINE_LIMIT = 1 << 20


class _Line(msgspec.Struct):
    done: int = 0
    total: int = 0
    path: str = ""
    error: str = ""


async def fetch(
    model: ModelRecord,
    progress: Callable[[int, int], None],
    command: Sequence[str] = FETCH,
    *,
    headers: Path | None = None,
) -> Path:
    """The directory with the model's files. Raises FetchFailed, or ModelError for a directory that is no model.

    With `headers`, no weights are downloaded: what is not here whole is put there with nothing but their headers. When
    cancelled, the download ends; its whole files are kept for the next time.
    """
    local = Path(model.source)
    if local.is_absolute():
        await asyncio.to_thread(_check_local, local, model)
        return local
    revision = ["--revision", model.revision] if model.revision else []
    if headers is not None:
        revision += ["--headers", str(headers)]
    process = await asyncio.create_subprocess_exec(
        *command, model.source, *revision, "--parent-pid", str(os.getpid()),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=_LINE_LIMIT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    last = _Line()
    try:
        async for text in process.stdout:
            with contextlib.suppress(msgspec.DecodeError):
                last = msgspec.json.decode(text, type=_Line)
                if last.total:
                    progress(last.done, last.total)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not last.path:
        raise FetchFailed(last.error or f"the download of {model.source} ended with status {status}")
    return Path(last.path)


def _check_local(path: Path, model: ModelRecord) -> None:
    if not path.is_dir():
        raise FetchFailed(f"there is no directory {path} on this worker; check the model's source")
    if model.backend == "synthetic":
        read_json(path / "config.json")
    else:
        check_directory(path)
