"""What every process that computes does first, whichever rank it is. Nothing here imports torch."""

import contextlib
import os
import select
import threading

from worker.protocol import RankConfig


def prepare_libraries() -> None:
    """The environment of the libraries that are imported from here on."""
    os.environ |= {
        # Threads that spin at a barrier stall for whole scheduler slices as soon as a neighbour wants their core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "THP_MEM_ALLOC_ENABLE": "1",  # huge pages for weights
        "HF_HUB_OFFLINE": "1",  # a load never waits for a network
        "TOKENIZERS_PARALLELISM": "false",
    }


def prepare(config: RankConfig, cpus: list[int]) -> None:
    """Become the process of this configuration: its log, its threads, its memory, the processors it may run on."""
    from shared import log
    from worker.engine.limit import hold_to

    log.setup(config.log_level, f"rank:{os.getpid()}")
    os.environ["OMP_NUM_THREADS"] = str(max(1, config.threads))  # for whatever is imported after this
    if cpus and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # they were taken away meanwhile: then wherever there is room
            os.sched_setaffinity(0, cpus)
    if config.enforce_memory and config.device.startswith("cpu"):
        hold_to(config.memory_bytes)


def torch_device(device: str) -> str:
    """The device as torch names it, for which the parts of a divided host (cpu:0, cpu:1 …) are all the CPU."""
    return "cpu" if device.startswith("cpu") else device


def end_with_channel(fd: int) -> None:
    """End the process the moment the other end closes, whatever it is doing."""
    hangup = getattr(select, "POLLRDHUP", select.POLLHUP)

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, hangup)
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="hang-up", daemon=True).start()
