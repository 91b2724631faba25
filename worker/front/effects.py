"""What the job table wants done: collected while it changes, carried out by the front afterwards."""

from shared.messages import Item
from worker.protocol import Submit

ACK = b"+ACK"  # done: delete the job from the queue
NAK = b"-NAK"  # not done: give it to another replica now
TERM = b"+TERM"  # never again: delete the job from the queue
PROGRESS = b"+WPI"  # still working: do not redeliver


class Effects:
    """Items to publish, deliveries to answer, work to start and to stop; each list in order."""

    __slots__ = ("aborts", "answers", "batches", "can_wait", "submits")

    def __init__(self) -> None:
        self.batches: dict[str, list[Item]] = {}  # reply subject → items
        self.answers: list[tuple[str, bytes]] = []  # (ack subject, one of the verbs above)
        self.submits: list[Submit] = []
        self.aborts: list[tuple[str, int]] = []  # (key, choice)
        self.can_wait = False  # the batches: a moment, for what is likely to follow them

    def emit(self, reply: str, item: Item) -> None:
        """Publish `item` on the reply subject of its job."""
        batch = self.batches.get(reply)
        if batch is None:
            self.batches[reply] = [item]
        else:
            batch.append(item)
