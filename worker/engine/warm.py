"""What every rank imports, imported before it knows its model, by a thread that leaves the cores to whoever has work.

No device is touched. Priority is a thread's own on Linux, so that the process needs no right to raise it again.
"""

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Callable

NICE = 10
MODULES = (
    "numpy",
    "torch",
    "transformers",
    "worker.engine.engine",
    "worker.engine.backends",
    "worker.models.load",
    "worker.engine.torch_backend",
    "worker.models.fingerprint",
    "psutil",
)
# The families' own modules; what they share is the larger part.
FAMILIES = ("qwen3", "llama", "qwen2", "mistral", "gemma3", "phi3")


class Warming:
    """The imports, from `start` until they are done or `finish` is called."""

    def __init__(self, done: Callable[[], None]) -> None:
        """`done` is called in the thread when everything is imported."""
        self._done = done
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warm", daemon=True)

    def start(self) -> "Warming":
        """Begin."""
        self._thread.start()
        return self

    def finish(self) -> None:
        """Stop after the import that is going on; the caller imports the rest, with its own priority."""
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        names = [*MODULES, *(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)]
        for name in names:
            if self._wanted.is_set():
                return
            with contextlib.suppress(ImportError):  # whoever needs it says so
                importlib.import_module(name)
        if not self._wanted.is_set():
            self._done()
