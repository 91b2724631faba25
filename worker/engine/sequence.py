"""One choice of a job, while the engine works on it."""

from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from worker.engine.block_table import BlockTable
from worker.engine.drafted import Drafted
from worker.engine.lookup import Record
from worker.engine.thinking import ThinkingBudget
from worker.protocol import Choice, Sample, Submit

if TYPE_CHECKING:
    from worker.engine.grammar import Matcher
    from worker.engine.vision.visual import Visual

_LEAST, _MOST = 1e-30, 1e30  # what a logit is divided by: the quotient is finite in 32 bits
_MOST_TOP_K = (1 << 31) - 1


class Turn(Protocol):
    """What choosing one token must know of its sequence."""

    @property
    def sample(self) -> Sample:
        """How to choose."""
        ...

    @property
    def choice(self) -> int:
        """The choice's number within its job."""
        ...

    @property
    def num_output(self) -> int:
        """The token's position."""
        ...

    @property
    def grammar(self) -> "Matcher | None":
        """What the token must fit."""
        ...

    def token_counts(self) -> dict[int, int]:
        """How often each token stands before it in the output; tokens of the prompt alone are there with 0."""
        ...


def _settle(sample: Sample) -> Sample:
    """The same, with numbers that every sampler can compute with; a temperature below them is 0."""
    temperature, repetition = sample.temperature, sample.repetition_penalty
    return msgspec.structs.replace(
        sample,
        temperature=min(temperature, _MOST) if temperature >= _LEAST else 0.0,
        repetition_penalty=min(max(repetition, _LEAST), _MOST),
        top_k=min(sample.top_k, _MOST_TOP_K),
    )


class Sequence:
    """Prompt and output of one choice, and how much of it is in the cache.

    `ids` are all tokens: prompt, resume prefix, output. The keys and values of the first `num_computed` are in the
    cache. A sequence with one token left to compute decodes, one with more prefills; either way the last token, once
    computed, brings the next.
    """

    def __init__(self, job: Submit, choice: Choice, *, arrival: int, context_limit: int, block_tokens: int) -> None:
        self.key = job.key
        self.choice = choice.index
        self.owner = job.owner
        self.is_batch = job.batch_class
        self.grammar: Matcher | None = None  # where the output stands in its grammar, if it has one
        self.sample = _settle(job.sample)
        self.visual: Visual | None = None  # its images, if it has any
        self.ids = job.prompt + choice.resume
        self.thinking = ThinkingBudget(job.thinking) if job.thinking else None  # how much reasoning is left
        if self.thinking:
            for id in choice.resume:
                self.thinking.see(id)
        self.num_prompt = len(job.prompt)
        self.max_ids = min(self.num_prompt + job.sample.max_tokens, context_limit)
        self.arrival = arrival
        self.num_charged = 0  # tokens that count as its owner's share of the engine
        self.num_computed = 0
        self.table = BlockTable(block_tokens)
        self.window_table = self.table  # of layers with a sliding window; a table of its own where these are capped
        self.chain: list[bytes] = []  # names of full blocks, for the prefix index
        self.tail: bytes | None = None  # the name under which others may find the last block, which is not full
        self.tail_index = 0  # and which block this is
        self.is_running = False
        self.room = 0  # positions for which its tables have blocks; kept by the cache space
        self.record = Record()  # of tokens guessed by lookup
        self._drafted: Drafted | None = None
        self.guesser = self.record  # whose record the guesses of its next step go to
        self.num_cached: int | None = None  # prompt tokens found in the cache when it first began; None: not begun
        self.has_reported = False
        self.unreported: list[int] = []  # written for the model before it began; they go out with its first tokens
        self._stop_ids = frozenset(job.sample.stop_ids)
        self._keys: list[int] = []  # where it has images
        self._counts: dict[int, int] = {}
        self._num_counted = 0

    @property
    def drafted(self) -> Drafted:
        """What a draft model knows of it."""
        if self._drafted is None:
            self._drafted = Drafted()
        return self._drafted

    def forget_drafted(self) -> None:
        """Its blocks are given up, in the draft model's cache too."""
        if self._drafted is not None:
            self._drafted.forget()

    @property
    def order(self) -> tuple[bool, int]:
        """Who goes first among those that run; the last is preempted first."""
        return self.is_batch, self.arrival

    @property
    def keys(self) -> list[int]:
        """Its tokens as the prefix index is to tell them apart."""
        if self.visual is None:
            return self.ids
        if not self._keys:
            self._keys = self.visual.keys(self.ids)
        self._keys += self.ids[len(self._keys) :]
        return self._keys

    @property
    def num_output(self) -> int:
        """Tokens generated so far, the resume prefix included; also the position of the next one."""
        return len(self.ids) - self.num_prompt

    @property
    def num_left(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.ids) - self.num_computed

    @property
    def is_prompt_computed(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.num_computed >= self.num_prompt

    def finish(self) -> Literal["stop", "length"] | None:
        """Why the sequence has ended, if it has."""
        if self.num_output and self.ids[-1] in self._stop_ids:
            return "stop"
        return "length" if len(self.ids) >= self.max_ids else None

    def token_counts(self) -> dict[int, int]:
        """How often each token is in the output; tokens of the prompt alone are there with 0.

        Counted on from the last call, so asking at every step costs one token.
        """
        for position in range(self._num_counted, len(self.ids)):
            token = self.ids[position]
            self._counts[token] = self._counts.get(token, 0) + (position >= self.num_prompt)
        self._num_counted = len(self.ids)
        return self._counts


class Ahead:
    """A sequence as it will be if these drafts come next: a turn of its own for the token behind them."""

    def __init__(self, sequence: Sequence, drafts: tuple[int, ...]) -> None:
        self.sample = sequence.sample
        self.choice = sequence.choice
        self.grammar = None  # no drafts where there is one
        self.num_output = sequence.num_output + len(drafts)
        self._sequence = sequence
        self._drafts = drafts

    def token_counts(self) -> dict[int, int]:
        """As `Sequence.token_counts`, the drafts included."""
        counts = dict(self._sequence.token_counts())
        for token in self._drafts:
            counts[token] = counts.get(token, 0) + 1
        return counts
