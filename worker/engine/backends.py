"""What a rank loads: a runner, the size of its cache, and what to tell the front. One function a back end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worker.engine.cache_space import WindowCap
from worker.engine.draft_model import DraftRunner
from worker.engine.engine import Runner, Sight
from worker.protocol import RankConfig

if TYPE_CHECKING:
    from worker.engine.parallel.group import Group

Report = Callable[[str, int, int], None]  # stage (read, warm up), bytes read, bytes in all


@dataclass(frozen=True, slots=True)
class Backend:
    """A loaded model."""

    runner: Runner
    num_blocks: int
    block_tokens: int
    context_limit: int  # tokens of one sequence
    fingerprint: str
    is_warm: bool  # its first step is like any other
    measure: Callable[[], int]  # bytes taken on the device
    cap: WindowCap | None = None  # of the cache of sliding layers
    num_host_blocks: int = 0  # of the cache's second tier
    speculate: bool = False  # guessing tokens ahead may pay
    draft: tuple[DraftRunner, int] | None = None  # whom to ask for guesses, and the tokens that it can read
    sight: Sight | None = None  # of a model that takes images


def load_backend(config: RankConfig, report: Report, group: "Group | None" = None) -> Backend:
    """Load what the configuration names, over a group's ranks if it has others. Raises ModelError for whatever is wrong
    with model or grant.
    """
    match config.backend:
        case "synthetic":
            return _synthetic(config)
        case "torch":
            from worker.engine.torch_backend import load_torch

            return load_torch(config, report, group)


def _synthetic(config: RankConfig) -> Backend:
    from worker.engine.synthetic import SyntheticRunner, plain_words
    from worker.models.fingerprint import fingerprint
    from worker.models.shape import read_shape

    path = Path(config.path)
    shape = read_shape(path)
    context_limit = min(config.context_limit or shape.context_limit, shape.context_limit)
    options = dict(config.options)
    cache_tokens = int(options.pop("cache_tokens", config.slots * context_limit))
    ballast = b"\1" * int(options.pop("ballast_bytes", 0))  # it takes so much, whatever was estimated
    block_tokens = 32
    return Backend(
        runner=SyntheticRunner(plain_words(path), shape.vocab, ballast=ballast, **options),
        num_blocks=-(-cache_tokens // block_tokens),
        block_tokens=block_tokens,
        context_limit=context_limit,
        fingerprint=fingerprint(path, backend="synthetic", dtype="", device_kind="cpu", version="1", weights=False),
        is_warm=True,
        measure=resident_bytes,
    )


def taken_bytes(device: str, cache_bytes: int) -> int:
    """What this process takes of its device; on a CPU with the whole cache, which fills only with use."""
    if not device.startswith("cuda"):
        return resident_bytes() + cache_bytes
    import torch

    from worker.models.plan import FIXED_BYTES

    # The allocator knows its own part; the context is not visible from within.
    return torch.cuda.memory_reserved(device) + FIXED_BYTES["cuda"]


def resident_bytes() -> int:
    """Memory that only this process has."""
    import psutil

    return int(psutil.Process().memory_full_info().uss)
