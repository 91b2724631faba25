"""Sums and gathers over the ranks of a group.

A step is the same sequence of these calls on every rank: one for the embedding, two for each layer, one for logits if
any are wanted. A rank that fails within a step makes the calls that are left with numbers that are none (`abandon`):
so nobody waits for it, and the first rank sees it in what comes back, without a message in every step.

A call that fails itself, or that the others do not answer in time, ends the rank, and with it the group.
"""

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from worker.engine.errors import GroupLost
from worker.models.division import Division

TIMEOUT_S = 120.0  # for others to come to the same call; the front judges a step that hangs much sooner
_HOST = "127.0.0.1"


def listen() -> socket.socket:
    """Where the ranks of a group will meet; nobody outside of this host can."""
    meeting = socket.socket()
    meeting.bind((_HOST, 0))
    meeting.listen(64)
    return meeting


def join(rank: int, size: int, device: torch.device, port: int, meeting: socket.socket | None = None) -> None:
    """Become one of `size` ranks; returns when all are there. The first brings the socket where they meet."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo" if sys.platform == "linux" else "lo0")
    wait = timedelta(seconds=TIMEOUT_S)
    options: dict[str, Any] = {"master_listen_fd": meeting.detach()} if meeting is not None else {}
    store = dist.TCPStore(  # type: ignore[attr-defined]
        _HOST, port, size, is_master=meeting is not None, timeout=wait, wait_for_workers=False, **options
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, timeout=wait, device_id=device)
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)


class Collectives:
    """One rank's side.

    Args:
        division: which part of the model this rank has.
        num_layers, hidden: of the model.
        device, dtype: of what is summed.
        logits_dtype: of what is gathered.
    """

    def __init__(
        self,
        division: Division,
        *,
        num_layers: int,
        hidden: int,
        device: torch.device,
        dtype: torch.dtype,
        logits_dtype: torch.dtype,
    ) -> None:
        self._division = division
        self._num_sums = 1 + 2 * num_layers
        self._hidden = hidden
        self._is_first = division.rank == 0
        self._nothing = torch.empty(0, dtype=dtype, device=device)
        self._parts = torch.empty(0, dtype=logits_dtype, device=device)
        self._num_tokens = self._num_kept = 0
        self._left = 0  # sums of this step that are to come
        self._is_gathered = True
        self._last = self._nothing  # what was summed last

    # --- a step ----------------------------------------------------------------------------------------------

    def reserve(self, num_tokens: int, num_kept: int) -> None:
        """Have the room for a step, also for abandoning it. What goes wrong here is this rank's own business."""
        size = num_tokens * self._hidden
        if len(self._nothing) < size:
            self._nothing = self._nothing.new_full((size,), float("nan"))
        size = num_kept * self._division.vocab_part * (self._division.size if self._is_first else 1)
        if len(self._parts) < size:
            self._parts = self._parts.new_full((size,), float("nan"))
        self._num_tokens, self._num_kept = num_tokens, num_kept

    def run(self, compute: Callable[[], Tensor]) -> Tensor:
        """A step for which there is room. If it fails, the other ranks go on all the same. Raises what it raises."""
        self._left, self._is_gathered = self._num_sums, not self._num_kept
        try:
            return compute()
        except GroupLost:
            raise
        except Exception:
            self._abandon()
            raise

    @property
    def is_poisoned(self) -> bool:
        """Whether what came of the last step may be that of a rank that failed; on the first rank."""
        found = self._last.flatten()[:1].isnan().any()
        if self._num_kept:
            found = found | self._views()[:, 0, 0].isnan().any()
        return bool(found)

    def _abandon(self) -> None:
        nothing = self._nothing[: self._num_tokens * self._hidden].view(self._num_tokens, -1)
        while self._left:
            self.reduce(nothing.fill_(float("nan")))
        if not self._is_gathered:
            if self._is_first:
                self._gather(self._views()[0])
            else:
                size = self._num_kept * self._division.vocab_part
                self._gather(self._parts[:size].fill_(float("nan")).view(self._num_kept, -1))

    # --- what the decoder calls ------------------------------------------------------------------------------

    def embed(self, table: Tensor, ids: Tensor) -> Tensor:
        """See `worker.engine.fast.sharing.Sharing`."""
        return self.reduce(self.part_of_rows(table, ids))

    def reduce(self, x: Tensor) -> Tensor:
        """See `worker.engine.fast.sharing.Sharing`; in place."""
        x = x.contiguous()
        _run(lambda: dist.all_reduce(x))
        self._left -= 1
        self._last = x
        return x

    def gather(self, logits: Tensor) -> Tensor:
        """See `worker.engine.fast.sharing.Sharing`."""
        if not self._num_kept:
            return logits
        self._gather(self._padded(logits).to(self._parts.dtype))
        return self._joined(self._views()) if self._is_first else logits

    def part_of_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """This rank's part of the sum that an embedding of all ranks gives."""
        local = ids.long() - self._division.vocab_span[0]
        is_here = (local >= 0) & (local < len(table))
        rows = table[local.clamp(0, len(table) - 1)]
        return rows.masked_fill_(~is_here.unsqueeze(-1), 0)

    def gather_once(self, logits: Tensor) -> Tensor:
        """As `gather`, outside of a step."""
        flat = self._padded(logits.reshape(-1, logits.shape[-1]))
        parts = [torch.empty_like(flat) for _ in range(self._division.size)] if self._is_first else None
        _run(lambda: dist.gather(flat, parts))
        return logits if parts is None else self._joined(torch.stack(parts)).view(*logits.shape[:-1], -1)

    def _gather(self, logits: Tensor) -> None:
        parts = list(self._views().unbind(0)) if self._is_first else None
        _run(lambda: dist.gather(logits, parts))
        self._is_gathered = True

    def _views(self) -> Tensor:
        """The first rank's room for logits, [ranks, kept, part]."""
        part = self._division.vocab_part
        return self._parts[: self._division.size * self._num_kept * part].view(-1, self._num_kept, part)

    def _padded(self, logits: Tensor) -> Tensor:
        return F.pad(logits, (0, self._division.vocab_part - logits.shape[-1])).contiguous()

    def _joined(self, parts: Tensor) -> Tensor:
        return torch.cat(parts.unbind(0), dim=-1)[:, : self._division.vocab]


def sum_once(x: Tensor) -> Tensor:
    """The sum over all ranks, in place, outside of a step."""
    _run(lambda: dist.all_reduce(x))
    return x


def _run(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:  # torch's own types for these are not stable; none of them can be gone on from
        raise GroupLost(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__) from error
