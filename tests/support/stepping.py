"""Drives an `Engine` by hand and collects what it reports; and a runner without a model that checks the cache."""

from dataclasses import dataclass, field

from worker.engine.engine import Engine
from worker.engine.plan import Row, Sampled, StepPlan
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
    """What `CheckingRunner` samples after these tokens."""
    return (sum((index + 1) * token for index, token in enumerate(ids)) * 31 + len(ids)) % vocab_size


class CheckingRunner:
    """Keeps in every cache slot which token at which position was written there, and checks all that a row reads."""

    def __init__(self, num_blocks: int, block_tokens: int, vocab_size: int = 50) -> None:
        self.vocab_size = vocab_size
        self.block_tokens = block_tokens
        self.slots: list[object] = [None] * (num_blocks * block_tokens)
        self.plans: list[StepPlan] = []
        self.poison: set[tuple[str, int]] = set()  # choices that cannot be computed
        self.fails_together = False  # nor can several rows at once

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Write, check, and sample `next_token`."""
        self.plans.append(plan)
        if self.fails_together and len(plan.rows) > 1:
            raise RuntimeError("out of memory")
        for row in plan.rows:
            if (row.sequence.key, row.sequence.choice) in self.poison:
                raise ValueError("bad row")
            self._write(row)
        for row in plan.rows:  # after all writes: rows must not write over each other
            self._check(row)
        return [Sampled(next_token(row.sequence.ids, self.vocab_size)) for row in plan.sampled]

    def _slot(self, row: Row, position: int) -> int:
        return (
            row.sequence.table.blocks[position // self.block_tokens] * self.block_tokens + position % self.block_tokens
        )

    def _write(self, row: Row) -> None:
        for position in range(row.start, row.stop):
            self.slots[self._slot(row, position)] = (position, tuple(row.sequence.ids[: position + 1]))

    def _check(self, row: Row) -> None:
        for position in range(row.stop):
            assert self.slots[self._slot(row, position)] == (position, tuple(row.sequence.ids[: position + 1]))
