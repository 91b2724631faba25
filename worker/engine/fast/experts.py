"""A mixture of experts: each token goes through a few of many small multi-layer perceptrons."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.fast.description import Experts
from worker.engine.linears import LinearChoice, make_linear

Activate = Callable[[Tensor], Tensor]


class RoutedExperts:
    """The experts of one layer, each with linear layers of the kind chosen. Tokens of one expert go through together.

    Args:
        of: the experts; their weights are let go once they are packed.
        activate: what stands between their layers.
        choice: which kinds of linear layers may be used.
        release: called with the module that holds the weights.
    """

    def __init__(
        self, of: Experts, activate: Activate, choice: LinearChoice, release: Callable[[nn.Module], None]
    ) -> None:
        self._activate = activate
        self._router = of.router().clone()
        self._num_chosen = of.num_chosen
        self._is_normed = of.is_normed
        self._experts = [
            (make_linear(gate_up, None, choice), make_linear(down, None, choice))
            for gate_up, down in zip(of.gate_up(), of.down(), strict=True)
        ]
        release(of.module)
        self.num_bytes = self._router.nbytes + sum(one.num_bytes for pair in self._experts for one in pair)

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to the same: what each token's experts give, weighted."""
        shares, chosen = self._route(x)
        numbers, order = chosen.flatten().sort(stable=True)
        tokens = order // self._num_chosen
        rows, shares = x[tokens], shares.flatten()[order, None]
        out = torch.zeros_like(x)
        start = 0
        for number, count in enumerate(torch.bincount(numbers, minlength=len(self._experts)).tolist()):
            if not count:
                continue
            part = slice(start, start + count)
            gate_up, down = self._experts[number]
            gate, up = gate_up(rows[part]).chunk(2, dim=-1)
            out.index_add_(0, tokens[part], down(self._activate(gate) * up) * shares[part])
            start += count
        return out

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Share and number of each token's experts, [tokens, chosen]."""
        shares, chosen = F.linear(x, self._router).float().softmax(-1).topk(self._num_chosen, dim=-1)
        if self._is_normed:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(x.dtype), chosen
