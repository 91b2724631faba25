"""The first steps of a loaded model: what the largest one takes is measured, and first times are over."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from worker.engine.engine import Engine
from worker.protocol import Choice, Sample, Submit

_CPU_TOKENS = 32


def trial_tokens(num_tokens: int, device: torch.device) -> int:
    """How many tokens to try, to learn of a step of `num_tokens`.

    A device is tried with all of them. On a CPU each takes its time, and what a step takes grows with its tokens: a few
    are computed and memory is taken to be in proportion. What does not grow makes that too much rather than too little.
    """
    return min(num_tokens, _CPU_TOKENS) if device.type == "cpu" else num_tokens


def warm_up(engine: Engine, num_tokens: int, vocab_size: int) -> None:
    """Run a prompt chunk and a decode step once, so that no request pays for first times or meets a fault."""
    prompt = [number % vocab_size for number in range(max(1, num_tokens))]
    engine.submit(Submit(key="warm up", prompt=prompt, choices=[Choice(0)], sample=Sample(seed=0, max_tokens=2)))
    while engine.has_work:
        if refused := engine.step().refused:
            raise RuntimeError(f"the warm-up was refused: {refused[0].message}")


def peak_bytes(work: Callable[[], None], device: torch.device) -> int | None:
    """What the work takes at its peak beyond what was taken before, in bytes; None where nobody can tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()
    if not _forget_peak():
        work()
        return None
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _give_back() -> None:
    """What the allocator keeps for later goes back to the system, so that work that takes it again is seen to."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _forget_peak() -> bool:
    """Have the system count this process's peak of memory from now on."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0
