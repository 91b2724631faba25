"""Drives an `Engine` by hand and collects what it reports; and a runner without a model that checks the cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.block_table import BlockTable
from worker.engine.cache_space import WindowCap
from worker.engine.engine import Engine
from worker.engine.errors import OutOfMemory
from worker.engine.plan import Row, Sampled, StepPlan, Transfer
from worker.protocol import Choice, ChoiceLogprob, Output, Prefilling, Refused, Sample, Step, Submit


def make_job(key: str, prompt: list[int], max_tokens: int = 8, *, n: int = 1, batch: bool = False, **sample) -> Submit:
    """A greedy job of `n` choices, unless the sample's fields say otherwise."""
    fields = {"seed": 1, "temperature": 0.0, "max_tokens": max_tokens} | sample
    choices = [Choice(index) for index in range(n)]
    return Submit(key=key, prompt=prompt, choices=choices, sample=Sample(**fields), batch_class=batch)


@dataclass
class Collected:
    """Everything reported so far."""

    ids: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    finish: dict[tuple[str, int], str] = field(default_factory=dict)
    cached: dict[tuple[str, int], int] = field(default_factory=dict)
    logprobs: dict[tuple[str, int], list[ChoiceLogprob]] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    prefilling: list[Prefilling] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Note one step's report; positions must follow each other and nothing may follow an end."""
        for output in step.outputs:
            self._take_output(output)
        for refused in step.refused:
            assert refused.key not in self.refused
            self.refused[refused.key] = refused
        self.prefilling += step.prefilling

    def _take_output(self, output: Output) -> None:
        name = (output.key, output.choice)
        assert name not in self.finish
        if name not in self.ids:
            self.ids[name] = []
            self.starts[name] = output.start
            self.cached[name] = output.cached
        else:
            assert output.cached == 0
        assert output.start == self.starts[name] + len(self.ids[name])
        assert output.ids or output.finish
        self.ids[name] += output.ids
        self.logprobs.setdefault(name, []).extend(output.logprobs or [])
        if output.finish:
            self.finish[name] = output.finish


def drain(engine: Engine, into: Collected | None = None, *, max_steps: int = 5000) -> Collected:
    """Step until there is no work."""
    collected = into or Collected()
    for _ in range(max_steps):
        if not engine.has_work:
            return collected
        collected.take(engine.step())
    raise AssertionError(f"still at work after {max_steps} steps")


def next_token(ids: list[int], vocab_size: int) -> int:
    """What `CheckingRunner` samples after these tokens: by turns ten that depend on all, and ten that repeat."""
    if len(ids) % 20 >= 10:
        return ids[-7]
    return (sum((index + 1) * token for index, token in enumerate(ids)) * 31 + len(ids)) % vocab_size


def tokens_of(row: Row) -> list[int]:
    """The sequence's tokens and the row's drafts."""
    return [*row.sequence.ids, *row.drafts]


class CheckingRunner:
    """Keeps in every cache slot which token at which position was written there, and checks all that a row reads.

    Layers of two kinds: full attention, and a sliding window if there is a cap. `host` is the second tier.
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, vocab_size: int = 50, *, cap: WindowCap | None = None
    ) -> None:
        self.vocab_size = vocab_size
        self.block_tokens = block_tokens
        self.window = cap.window if cap else None
        sizes = [num_blocks, cap.num_blocks] if cap else [num_blocks]
        self.slots: list[list[object]] = [[None] * (size * block_tokens) for size in sizes]
        self.host: list[dict[int, list[object]]] = [{} for _ in sizes]
        self.plans: list[StepPlan] = []
        self.poison: set[tuple[str, int]] = set()  # choices that cannot be computed
        self.fails_together = False  # nor can several rows at once
        self.memory_tokens: int | None = None  # nor more tokens than so many

    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Move blocks."""
        size = self.block_tokens
        for transfer in transfers:
            slots, host = self.slots[transfer.is_window], self.host[transfer.is_window]
            if transfer.kind == "spill":
                host[transfer.target] = slots[transfer.source * size : (transfer.source + 1) * size]
                continue
            block = (
                host[transfer.source]
                if transfer.kind == "load"
                else slots[transfer.source * size : (transfer.source + 1) * size]
            )
            slots[transfer.target * size : (transfer.target + 1) * size] = block

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Write, check, and sample `next_token`."""
        self.plans.append(plan)
        if self.fails_together and len(plan.rows) > 1:
            raise RuntimeError("not together")
        if self.memory_tokens is not None and plan.num_tokens > self.memory_tokens:
            raise OutOfMemory("too many tokens")
        for row in plan.rows:
            if (row.sequence.key, row.sequence.choice) in self.poison:
                raise ValueError("bad row")
            self._write(row)
        for row in plan.rows:  # after all writes: rows must not write over each other
            self._check(row)
        return [
            Sampled(next_token(tokens_of(row)[: position + 1], self.vocab_size))
            for row in plan.rows
            for position in plan.kept(row)
        ]

    def _write(self, row: Row) -> None:
        assert row.ids == tokens_of(row)[row.start : row.stop]
        for slots, table in self._kinds(row):
            for position, slot in zip(range(row.start, row.stop), table.slots(row.start, row.stop), strict=True):
                slots[slot] = (position, tuple(tokens_of(row)[: position + 1]))

    def _check(self, row: Row) -> None:
        for slots, table in self._kinds(row):
            first = max(0, row.start - self.window + 1) if slots is not self.slots[0] and self.window else 0
            for position, slot in zip(range(first, row.stop), table.slots(first, row.stop), strict=True):
                assert slots[slot] == (position, tuple(tokens_of(row)[: position + 1]))

    def _kinds(self, row: Row) -> list[tuple[list[object], BlockTable]]:
        tables = [row.sequence.table, row.sequence.window_table]
        return list(zip(self.slots, tables, strict=False))
