"""Children that end with their parent, on every path, also when the parent is killed.

Linux tells a child when its parent is gone (PR_SET_PDEATHSIG). Two traps: the signal comes when the *thread* that
forked ends, so children are started from the main thread only; and a parent that died before the child asked is not
reported, so the child compares its parent's id afterwards. Off Linux only that comparison is made.

A Python child calls `die_with_parent` first of all. Another program is started as `bound_to_parent(command)`: that
runs this file as a script, which asks for the signal and then becomes the program (same process id). It is used
instead of a `preexec_fn`, which is not safe once the parent has threads.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent_pid: int | None = None, signum: int = signal.SIGKILL) -> None:
    """Called by a child early on: get `signum` when the parent ends; exit at once if it already has.

    Without `parent_pid` a parent that ended before this call goes unnoticed.
    """
    if parent_pid is None:
        parent_pid = os.getppid()
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def dying_with_parent(signum: int = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn` for a parent without threads. Call it, and start the child, in the main thread."""
    _require_main_thread()
    parent_pid = os.getpid()
    return lambda: die_with_parent(parent_pid, signum)


def bound_to_parent(command: list[str], signum: int = signal.SIGKILL) -> list[str]:
    """`command` as a child of this process that gets `signum` when this process ends; costs about 25 ms.

    Call it, and start the child, in the main thread: raises RuntimeError elsewhere. The first word must be a path.
    """
    _require_main_thread()
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(signum)), *command]


def is_running(pid: int) -> bool:
    """Is there a process of this id, other than one that only waits to be reaped?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return sys.platform != "linux"
    return state not in (b"Z", b"X")


def _require_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start children from the main thread: they end with the thread that started them")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), int(sys.argv[2]))
    os.execv(sys.argv[3], sys.argv[3:])
