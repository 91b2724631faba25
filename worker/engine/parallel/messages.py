"""Every message between the first rank of a replica and the others: this module is their protocol.

Each of them is joined to the first by a socket pair (`worker.channel`) with frames of MessagePack. The first rank ends
when any other does, and each ends with the first. `Meet`, `Run`, `Move` and `Reference` are not answered; what goes
wrong in a `Run` is kept until `Ask`. Everything else is answered, in order.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from worker.protocol import FatalKind, RankConfig

# --- first rank → others -------------------------------------------------------------------------------------


class Join(Struct, tag="join", kw_only=True):
    """Who it is. The first frame."""

    rank: int
    size: int
    config: RankConfig  # with its own device
    cpus: list[int] = []  # that it may run on; empty: all


class Load(Struct, tag="load", kw_only=True):
    """Read your share of the model. Answered with Done."""

    path: str
    dtype: str
    quantization: str
    is_packed: bool
    is_native: bool
    is_device: bool  # by the decoder for devices
    options: dict[str, Any] = {}  # the model's


class Meet(Struct, tag="meet"):
    """Come together, at this port of this host."""

    port: int


class Reference(Struct, tag="reference"):
    """Compute the trial prompts by the model's own modules."""


class Pack(Struct, tag="pack"):
    """Make your share ready; the model's own modules are used up. Answered with Done: what the weights take."""


class Make(Struct, tag="make", kw_only=True):
    """Have a cache of this size, in place of the one before. Answered with Done."""

    num_blocks: int
    block_tokens: int
    window: int  # tokens; 0: no layer is capped
    num_window_blocks: int
    num_host_blocks: int


class Places(Struct, array_like=True):
    """Where a sequence lies in the cache: its runs as start, stop and slot, one after the other."""

    num_dropped: int
    runs: list[int]


class SentRow(Struct, array_like=True):
    """A row of a step."""

    ids: list[int]
    start: int
    stop: int
    kept: tuple[int, int]  # the positions whose logits are wanted
    places: Places
    window: Places | None  # of capped layers, where they have a table of their own


class Run(Struct, tag="run"):
    """Compute these rows."""

    rows: list[SentRow]


class Move(Struct, tag="move"):
    """Move blocks: kind, whether of capped layers, source, target."""

    transfers: list[tuple[Literal["copy", "spill", "load"], bool, int, int]]


class Ask(Struct, tag="ask"):
    """Did the last `Run` fail? Answered with Failed, or Done."""


class Measure(Struct, tag="measure"):
    """What do you take of your device? Answered with Done."""


ToFollower = Join | Load | Meet | Reference | Pack | Make | Run | Move | Ask | Measure

# --- others → first rank -------------------------------------------------------------------------------------


class Done(Struct, tag="done"):
    """It is done."""

    num_bytes: int = 0


class Failed(Struct, tag="failed"):
    """It cannot be done. But for an answer to `Ask` these are the last words of the rank."""

    message: str
    kind: FatalKind = ""


ToFirst = Done | Failed

encode = msgspec.msgpack.encode
decode_to_follower = msgspec.msgpack.Decoder(ToFollower).decode
decode_to_first = msgspec.msgpack.Decoder(ToFirst).decode
