"""A Hugging Face hub on a loopback port that serves directories, counts what is fetched, and fails on command.

It answers what huggingface_hub asks for a download: model information, the file tree, HEAD and GET of files, large
files by a redirect to another path as the real one sends them to its storage, byte ranges. Each response to a file is
noted in `sent`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MAIN = "1" * 40  # the commit of main, of every repository
_CHUNK = 1 << 16


@dataclass
class Sent:
    """One response to a GET of a file."""

    file: str
    start: int  # of the range asked for; 0 without one
    asked_range: bool
    size: int = 0  # bytes that went out


@dataclass
class Hub:
    """What the test decides and sees."""

    url: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cuts: dict[str, list[int]] = field(default_factory=dict)  # file → bytes after which each next response breaks off
    failing: int = 0  # answer so many requests with 503
    token: str = ""  # demanded of every request when set
    bytes_per_s: int = 0  # 0: as fast as it goes
    sent: list[Sent] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables for a process that shall use this hub and no other, with its own cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": self.token,
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub for the length of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(f"{self.command} {path}")
            if hub.failing > 0:
                hub.failing -= 1
                self._empty(503)
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}" and "storage/" not in path:
                self._empty(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            elif path.startswith("api/models/"):
                self._describe(path.removeprefix("api/models/"))
            else:
                self._file(path)

        def _describe(self, path: str) -> None:
            for verb in ("revision", "tree"):
                name, found, revision = path.partition(f"/{verb}/")
                if found and (folder := self._repository(name, revision)):
                    files = sorted(file for file in folder.rglob("*") if file.is_file())
                    names = [(str(file.relative_to(folder)), file.stat().st_size, _etag(file)) for file in files]
                    if verb == "tree":
                        self._json([{"type": "file", "path": n, "size": s, "oid": e} for n, s, e in names])
                    else:
                        siblings = [{"rfilename": n, "size": s, "blobId": e} for n, s, e in names]
                        self._json({"id": name, "sha": MAIN, "siblings": siblings})
                    return
                if found:
                    return
            self._empty(404, {"X-Error-Code": "RepoNotFound"})

        def _repository(self, name: str, revision: str) -> Path | None:
            if name not in hub.repositories:
                self._empty(404, {"X-Error-Code": "RepoNotFound"})
            elif name in hub.gated:
                self._empty(403, {"X-Error-Code": "GatedRepo"})
            elif revision not in ("main", MAIN):
                self._empty(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                return hub.repositories[name]
            return None

        def _file(self, path: str) -> None:
            is_storage = path.startswith("storage/")
            name, _, rest = path.removeprefix("storage/").partition("/resolve/")
            revision, _, inner = rest.partition("/")
            folder = self._repository(name, revision)
            if folder is None:
                return
            file = folder / inner
            if not file.is_file():
                self._empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": MAIN})
                return
            size, headers = file.stat().st_size, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": MAIN}
            if inner.endswith(".safetensors") and not is_storage:
                linked = {"X-Linked-Size": str(size), "X-Linked-ETag": headers["ETag"]}
                self._empty(302, headers | linked | {"Location": f"{hub.url}/storage/{path}"})
            elif self.command == "HEAD":
                self._head(200, size, headers)
            else:
                self._send(file, inner, size, headers)

        def _send(self, file: Path, inner: str, size: int, headers: dict[str, str]) -> None:
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            if asked:
                headers |= {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            self._head(206 if asked else 200, size - start, headers)
            note = Sent(inner, start, bool(asked))
            hub.sent.append(note)
            limit = hub.cuts[inner].pop(0) if hub.cuts.get(inner) else size
            with file.open("rb") as stream:
                stream.seek(start)
                while note.size < min(limit, size - start):
                    data = stream.read(min(_CHUNK, limit - note.size))
                    try:
                        self.wfile.write(data)
                    except ConnectionError:
                        return
                    note.size += len(data)
                    if hub.bytes_per_s:
                        threading.Event().wait(len(data) / hub.bytes_per_s)
            if note.size < size - start:
                self.close_connection = True

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self._head(200, len(body), {"Content-Type": "application/json"})
            if self.command != "HEAD":
                self.wfile.write(body)

        def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
            self._head(status, 0, headers or {})

        def _head(self, status: int, size: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(size))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

    return Handler


def _etag(file: Path) -> str:
    return hashlib.sha1(f"{file.name} {file.stat().st_size}".encode()).hexdigest()
