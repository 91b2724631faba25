"""The model's files on this host: looked at where they lie, or downloaded by a child process."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from shared.records import ModelRecord
from shared.settings import SourceSettings
from worker.agent.errors import FetchFailed
from worker.models import draft
from worker.models.files import check_directory, read_json
from worker.models.mirrors import find

FETCH = (sys.executable, "-m", "worker.models.fetch")
NO_MIRRORS: Mapping[str, SourceSettings] = {}
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
    mirrors: Mapping[str, SourceSettings] = NO_MIRRORS,
) -> Path:
    """The directory with the model's files. Raises FetchFailed, or ModelError for a directory that is no model and a
    mirror that is not among `mirrors`.

    With `headers`, no weights are downloaded: what is not here whole is put there with nothing but their headers. When
    cancelled, the download ends; its whole files are kept for the next time.
    """
    local = Path(model.source)
    if local.is_absolute():
        await asyncio.to_thread(_check_local, local, model)
        return local
    repository, mirror = find(model.source, mirrors)
    arguments = ["--revision", model.revision] if model.revision else []
    if headers is not None:
        arguments += ["--headers", str(headers / mirror.name if mirror else headers)]
    if mirror is not None:
        arguments.append("--mirror")
    process = await asyncio.create_subprocess_exec(
        *command, repository, *arguments, "--parent-pid", str(os.getpid()),
        stdin=asyncio.subprocess.PIPE if mirror else asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    if mirror is not None and process.stdin is not None:
        process.stdin.write(msgspec.json.encode(mirror) + b"\n")
        process.stdin.close()
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
        reason = last.error or f"the download of {model.source} ended with status {status}"
        where = f"; endpoint and token are in [sources.{mirror.name}] of this worker's settings" if mirror else ""
        raise FetchFailed(f"{reason}{where}")
    return Path(last.path)


async def with_draft(model: ModelRecord, fetch_one: Callable[[ModelRecord], Awaitable[Path]]) -> ModelRecord:
    """The model with the directory of its draft model, if it names one, in place of that one's source."""
    source = model.options.get(draft.OPTION)
    if not source:
        return model
    path = await fetch_one(msgspec.structs.replace(model, source=str(source), revision=""))
    return msgspec.structs.replace(model, options=model.options | {draft.OPTION: str(path)})


def _check_local(path: Path, model: ModelRecord) -> None:
    if not path.is_dir():
        raise FetchFailed(f"there is no directory {path} on this worker; check the model's source")
    if model.backend == "synthetic":
        read_json(path / "config.json")
    else:
        check_directory(path)
