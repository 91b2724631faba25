"""A runner without a model: random logits through the real sampler, as random weights would give them."""

import torch

from worker.engine.plan import Sampled, StepPlan
from worker.engine.sampler import sample


class RandomLogits:
    """The same sequence at the same length always gets the same logits.

    Some tokens can be made likelier: random weights hardly ever close a string of their own accord.
    """

    def __init__(self, vocab_size: int, *, seed: int = 0, likelier: dict[int, float] | None = None) -> None:
        self.vocab_size = vocab_size
        self._seed = seed
        self._bonus = torch.zeros(vocab_size)
        for token, bonus in (likelier or {}).items():
            self._bonus[token] = bonus

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Sample at each kept position."""
        turns = plan.turns
        if not turns:
            return []
        rows = []
        for turn in turns:
            generator = torch.Generator().manual_seed(hash((self._seed, turn.choice, turn.num_output)) & 0x7FFFFFFF)
            rows.append(torch.randn(self.vocab_size, generator=generator) * 2 + self._bonus)
        return sample(torch.stack(rows), turns)

    def transfer(self, transfers: object) -> None:
        """There is nothing to move."""
