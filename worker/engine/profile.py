"""The first steps of a loaded model: what the largest one takes is measured, and first times are over."""

from collections.abc import Callable
from pathlib import Path

import torch

from worker.engine.engine import Engine
from worker.protocol import Choice, Sample, Submit


def warm_up(engine: Engine, num_tokens: int, vocab_size: int) -> None:
    """Run the longest prompt chunk and a decode step once, so that no request pays for first times or meets a fault."""
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
    if not _forget_peak():
        work()
        return None
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


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
