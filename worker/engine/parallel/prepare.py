"""Makes a model ready on all ranks of a group, and compares what they compute together with the model itself."""

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

from shared import log
from worker.engine import self_test
from worker.engine.cache_space import WindowCap
from worker.engine.cuda.options import PAGE_TOKENS
from worker.engine.errors import UnsupportedArchitecture, WrongResult
from worker.engine.parallel import collectives
from worker.engine.parallel.group import Group
from worker.engine.parallel.messages import Load, Make, Meet, Pack, Reference
from worker.engine.parallel.model import SharedModel
from worker.engine.parallel.share import Share
from worker.engine.prepared import Prepared, judge
from worker.models.division import Division

_log = log.get(__name__)


def prepare_any(
    group: Group, wanted: Load, division: Division, device: torch.device, progress: Callable[[int, int], None]
) -> tuple[nn.Module, Prepared]:
    """Load and make ready, packed or else as the weights are. The model is this rank's share, and used up.

    Raises:
        UnsupportedArchitecture: no way gives what the model itself gives.
    """
    attempt: Load | None = wanted
    last: WrongResult | None = None
    while attempt is not None:
        try:
            return _prepare(group, attempt, division, device, progress)
        except WrongResult as error:
            _log.warning("path.wrong", path=error.path, reason=error.reason)
            attempt, last = _weaker(attempt), error
    assert last is not None
    raise UnsupportedArchitecture(last.architecture, f"divided over {group.size} devices {last.reason}")


def _prepare(
    group: Group, wanted: Load, division: Division, device: torch.device, progress: Callable[[int, int], None]
) -> tuple[nn.Module, Prepared]:
    group.send(wanted)
    share = Share(wanted, division, device, progress)
    group.answers()
    if not group.has_met:
        meeting = collectives.listen()
        group.send(Meet(meeting.getsockname()[1]))
        collectives.join(0, group.size, device, meeting.getsockname()[1], meeting)
        group.has_met = True
    group.send(Reference())
    expected = share.reference()
    group.send(Pack())
    own_bytes = share.pack()
    num_bytes = max([own_bytes, *(done.num_bytes for done in group.answers())])
    prepared = _prepared(group, share, num_bytes, division.vocab)
    block_tokens = PAGE_TOKENS if share.is_device else self_test.TEST_BLOCK_TOKENS
    architecture, dtype = type(share.model).__name__, getattr(torch, wanted.dtype)
    judge(prepared, expected, dtype, wanted.quantization, architecture, block_tokens=block_tokens)
    _log.info("path.chosen", path=prepared.path, quantization=wanted.quantization, bytes=num_bytes)
    return share.model, prepared


def _prepared(group: Group, share: Share, num_bytes: int, vocab_size: int) -> Prepared:
    def make(
        dtype: torch.dtype,
        num_blocks: int,
        block_tokens: int,
        *,
        cap: WindowCap | None = None,
        num_host_blocks: int = 0,
        **_: Any,
    ) -> SharedModel:
        size = Make(
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            window=cap.window if cap else 0,
            num_window_blocks=cap.num_blocks if cap else 0,
            num_host_blocks=num_host_blocks,
        )
        return SharedModel(group, share, size, vocab_size)

    return Prepared("shared device" if share.is_device else "shared torch", share.shapes, num_bytes, make)


def _weaker(wanted: Load) -> Load | None:
    """What to try when this gave a wrong result; None: nothing is left."""
    if wanted.is_device:
        return msgspec.structs.replace(wanted, is_device=False, quantization="")
    if wanted.is_packed:
        return msgspec.structs.replace(wanted, is_packed=False, is_native=False, quantization="")
    return None
