"""Draws are compared with transformers' own processors: same kept tokens, same probabilities, same draws."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worker.engine.draw import Limits, draw, uniform


def make_logits(vocab_size, seed=0, spread=3.0):
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def reference_probabilities(logits, temperature, limits):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if limits.top_k:
        warpers.append(TopKLogitsWarper(limits.top_k))
    if limits.top_p < 1:
        warpers.append(TopPLogitsWarper(limits.top_p))
    if limits.min_p:
        warpers.append(MinPLogitsWarper(limits.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0].double().softmax(-1)


def draw_at(logits, temperature, limits, points):
    scaled = ((logits - logits.max()) / temperature).expand(len(points), -1)
    return draw(scaled, [limits] * len(points), points)


LIMITS = [
    Limits(0, 1.0, 0.0),
    Limits(1, 1.0, 0.0),
    Limits(7, 1.0, 0.0),
    Limits(5000, 1.0, 0.0),
    Limits(0, 0.9, 0.0),
    Limits(0, 1e-6, 0.0),
    Limits(0, 0.999999, 0.0),
    Limits(0, 1.0, 0.1),
    Limits(0, 1.0, 1.0),
    Limits(40, 0.8, 0.0),
    Limits(40, 0.8, 0.05),
    Limits(0, 0.95, 0.02),
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_probabilities_are_those_of_transformers(limits, temperature):
    logits = make_logits(60, seed=int(temperature * 10))
    num_points = 4000  # at even distances, each token is drawn in proportion, within one draw
    points = [(index + 0.5) / num_points for index in range(num_points)]
    drawn = draw_at(logits, temperature, limits, points).bincount(minlength=60).double() / num_points
    expected = reference_probabilities(logits, temperature, limits)
    assert (drawn - expected).abs().max() <= 1.01 / num_points
    assert not drawn[expected == 0].any()


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_a_flat_large_vocabulary_needs_many_candidates(limits):
    logits = make_logits(20_000, spread=0.5)
    points = [(index + 0.5) / 40 for index in range(40)]
    sums = reference_probabilities(logits, 1.0, limits).cumsum(-1)
    expected = torch.searchsorted(sums, torch.tensor(points, dtype=torch.float64), right=True)
    drawn = draw_at(logits, 1.0, limits, points)
    assert ((drawn - expected).abs() <= 1).all()  # the reference rounds to float32 before it adds up
    assert (drawn == expected).float().mean() > 0.9


def test_rows_do_not_depend_on_the_rows_beside_them():
    rows = [make_logits(3000, seed, spread) for seed, spread in ((1, 4.0), (2, 0.1), (3, 2.0), (4, 1.0))]
    limits = [Limits(20, 0.9, 0.0), Limits(0, 0.99, 0.0), Limits(0, 1.0, 0.0), Limits(300, 1.0, 0.01)]
    scaled = torch.stack([row - row.max() for row in rows])
    points = [0.3, 0.71, 0.999, 0.1]
    together = draw(scaled, limits, points).tolist()
    alone = [draw(scaled[i : i + 1], limits[i : i + 1], points[i : i + 1]).item() for i in range(4)]
    assert together == alone


def test_equal_logits_are_kept_together():
    scaled = torch.tensor([[-1.0, 0.0, -1.0, -1.0, -9.0]]).expand(400, -1)
    points = [(index + 0.5) / 400 for index in range(400)]
    drawn = draw(scaled, [Limits(2, 1.0, 0.0)] * 400, points)
    assert set(drawn.tolist()) == {0, 1, 2, 3}  # as TopKLogitsWarper keeps them


def test_the_ends_of_the_range_are_tokens_with_weight():
    scaled = torch.tensor([[-torch.inf, 0.0, -1.0, -torch.inf]])
    for limits in (Limits(0, 1.0, 0.0), Limits(3, 1.0, 0.0)):
        assert draw(scaled, [limits], [0.0]).item() == 1
        assert draw(scaled, [limits], [1 - 2**-52]).item() == 2


def test_uniform_is_a_function_of_its_arguments():
    assert uniform(5, 0, 3) == uniform(5, 0, 3)
    assert len({uniform(seed, choice, position) for seed in (5, -6) for choice in (0, 1) for position in (0, 1)}) == 8


def test_uniform_is_uniform():
    numbers = [uniform(7, 0, position) for position in range(10_000)]
    counts = torch.histc(torch.tensor(numbers), bins=20, min=0, max=1)
    statistic = ((counts - 500) ** 2 / 500).sum()
    assert min(numbers) >= 0 and max(numbers) < 1
    assert statistic < 43.8  # chi-square, 19 degrees of freedom: 0.1 %
