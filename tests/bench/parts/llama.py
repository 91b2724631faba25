"""llama.cpp in a process of its own, under an interpreter that has llama-cpp-python."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Llama:
    """One loaded file."""

    def __init__(self, python: str, file: Path, *, threads: int, context: int, sequences: int) -> None:
        command = [python, str(Path(__file__).with_name("llama_driver.py")), str(file)]
        self._process = subprocess.Popen(
            [*command, str(threads), str(context), str(sequences)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def run(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Prefill the prompts and decode: `prefill_s`, `steps_s`, `ids`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(python: str, file: Path, *, threads: int, context: int, sequences: int) -> Iterator[Llama]:
    """llama.cpp for as long as the block runs."""
    llama = Llama(python, file, threads=threads, context=context, sequences=sequences)
    try:
        yield llama
    finally:
        llama.close()
