"""Tokens chosen without the host are those that the host's sampler chooses."""

import math

import pytest
import torch

from tests.support.stepping import make_job
from worker.engine.cuda.choosing import NOT_FINITE, TorchChoose, choose_chooser, settings_of
from worker.engine.sampler import sample
from worker.engine.sequence import Sequence
from worker.protocol import Choice


def make_turns(count: int, **options) -> list[Sequence]:
    turns = []
    for number in range(count):
        job = make_job(str(number), [1, 2, 3], seed=number, **options)
        turns.append(Sequence(job, Choice(number % 3), arrival=0, context_limit=99, block_tokens=4))
    return turns


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.7},
        {"temperature": 0.9, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1e-4, "top_k": 3},
        {"temperature": 1e-46},
        {"temperature": 1.0, "top_k": 1 << 63},
    ],
    ids=str,
)
def test_like_the_hosts_sampler(options):
    turns = make_turns(200, **options)
    logits = torch.randn(200, 97, generator=torch.Generator().manual_seed(2)) * 2
    expected = [token.id for token in sample(logits.clone(), turns)]
    rows = [settings_of(turn.sample, turn.choice, turn.num_output) for turn in turns]
    settings = torch.tensor(rows, dtype=torch.float64).T
    is_random = options["temperature"] > 0
    assert TorchChoose()(logits, settings, is_random=is_random).tolist() == expected
    assert not is_random or len(set(expected)) > 20


def test_greedy_and_random_rows_together_and_one_that_is_not_finite():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    logits[2, 7] = torch.nan
    greedy, hot = make_turns(1, temperature=0.0)[0].sample, make_turns(1, temperature=2.0)[0].sample
    rows = [settings_of(each, 0, 5) for each in (greedy, hot, hot)]
    chosen = TorchChoose()(logits, torch.tensor(rows, dtype=torch.float64).T, is_random=True).tolist()
    assert chosen[0] == int(logits[0].argmax())
    assert chosen[2] == NOT_FINITE


def test_settings_of_a_greedy_row_limit_nothing():
    assert settings_of(make_turns(1)[0].sample, 0, 0) == (0.0, 0.0, 0.0, 1.0, math.inf)


def test_torch_is_chosen_where_triton_is_forbidden():
    assert choose_chooser(torch.device("cpu"), 50, use_triton=False).name == "torch"
