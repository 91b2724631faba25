"""Compiles the native library, once for each machine, compiler and version of the source.

It takes some ten seconds the first time; afterwards the file lies in the user's cache directory. One process builds,
others wait for it. Where no compiler is, or it fails, the engine does without.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from worker.engine.errors import NativeUnavailable

SOURCE = Path(__file__).parent / "source"
_BUILD_TIMEOUT_S = 240
_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi"]


def library_path() -> Path:
    """The compiled library, built now if need be. Raises NativeUnavailable, with the reason."""
    compiler = _find_compiler()
    flags = [*_FLAGS, "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"]
    path = cache_directory() / f"plexus-{_key(compiler, flags)}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "build.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _build(compiler, flags, path)
    except OSError as error:
        raise NativeUnavailable(f"{path.parent} cannot be written: {error}; set XDG_CACHE_HOME") from error
    return path


def cache_directory() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plexus" / "native"


def _find_compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise NativeUnavailable("no C++ compiler was found; install g++ or clang++, or set CXX")


def _key(compiler: str, flags: list[str]) -> str:
    state = hashlib.sha256()
    for file in sorted(SOURCE.iterdir()):
        state.update(f"{file.name}\n".encode() + file.read_bytes())
    status = Path(compiler).resolve().stat()
    state.update(f"{compiler} {status.st_size} {status.st_mtime_ns} {flags} {platform.machine()}\n".encode())
    state.update(_processor().encode())
    return state.hexdigest()[:20]


def _processor() -> str:
    """What the processor can do, since the library is compiled for it alone and home directories travel."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _build(compiler: str, flags: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        command = [compiler, *flags, "-o", str(built), str(SOURCE / "library.cpp")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or ["no message"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise NativeUnavailable(f"{compiler} failed: {first}") from error
        except subprocess.TimeoutExpired as error:
            raise NativeUnavailable(f"{compiler} took more than {_BUILD_TIMEOUT_S} s") from error
        built.replace(path)
