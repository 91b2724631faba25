"""From an embedding job to what the rank runs: every limit checked. Pure."""

from dataclasses import dataclass

from shared.messages import Embedded, Item, Job
from worker.front.errors import Unservable
from worker.front.request import Limits, too_long

MAX_INPUTS = 4096


@dataclass(frozen=True)
class Inputs:
    """An embedding job that can run."""

    ids: list[list[int]]
    wanted: list[int]  # indices of those that were not delivered before

    @property
    def num_tokens(self) -> int:
        """Of all inputs."""
        return sum(map(len, self.ids))


def resolve_inputs(job: Job, ids: list[list[int]], limits: Limits) -> Inputs:
    """The job as the rank runs it; `ids` are its inputs as tokens. Raises Unservable."""
    if not 0 < len(ids) <= MAX_INPUTS:
        raise Unservable("invalid_request", f"An embedding takes 1 to {MAX_INPUTS} inputs, not {len(ids)}.", "input")
    for index, one in enumerate(ids):
        where = place(index, len(ids))
        if not one:
            raise Unservable("invalid_request", f"{where} has no tokens.", where)
        if len(one) > limits.context_limit:
            raise too_long(len(one), limits.context_limit, where, f"{where} has")
        if not 0 <= min(one) <= max(one) < limits.vocab_size:
            raise Unservable("invalid_request", f"{where} has ids outside 0 … {limits.vocab_size - 1}.", where)
    resume = job.resume or []
    if resume and len(resume) != len(ids):
        raise Unservable("invalid_request", f"resume has {len(resume)} choices, not {len(ids)}.", "resume")
    wanted = [index for index in range(len(ids)) if not resume or resume[index].finish is None]
    return Inputs(ids, wanted)


def place(index: int, count: int) -> str:
    """What an input is called in errors: one of `count`."""
    return "input" if count == 1 else f"input[{index}]"


def vectors_since(
    job: Job, vectors: dict[int, bytes], positions: list[int], room_bytes: int
) -> tuple[list[Item], bool]:
    """The vectors that the owner lacks, as far as they fit, and whether those are all."""
    items: list[Item] = []
    for index, vector in vectors.items():
        if index < len(positions) and positions[index]:
            continue
        room_bytes -= len(vector) * 4 // 3 + 64
        if room_bytes < 0:
            return items, False
        items.append(Embedded(job.id, job.attempt, index, vector))
    return items, True
