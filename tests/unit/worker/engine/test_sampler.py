import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from worker.engine.errors import NotFinite
from worker.engine.sampler import sample
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit

VOCABULARY = 40


def make_sequence(prompt=(1, 2, 3), output=(), choice=0, **fields) -> Sequence:
    job = Submit(
        key="a", prompt=list(prompt), choices=[], sample=Sample(**({"seed": 3, "max_tokens": 10_000} | fields))
    )
    return Sequence(job, Choice(choice, list(output)), arrival=0, context_limit=100_000, block_tokens=4)


def make_logits(rows=1, seed=0):
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def draw_many(logits, count, **fields):
    """Tokens at `count` positions of a sequence whose logits are always these."""
    sequence = make_sequence(**fields)
    ids = []
    for _ in range(count):
        (sampled,) = sample(logits.clone(), [sequence])
        ids.append(sampled.id)
        sequence.ids.append(sampled.id)
    return ids


def test_temperature_zero_takes_the_highest():
    logits = make_logits(3)
    sampled = sample(logits.clone(), [make_sequence(temperature=0.0) for _ in range(3)])
    assert [one.id for one in sampled] == logits.argmax(-1).tolist()
    assert sampled[0].logprob is None


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-46, 5e-324])
@pytest.mark.parametrize("fields", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_a_tiny_temperature_is_as_good_as_zero(temperature, fields):
    logits = make_logits()
    (sampled,) = sample(logits.clone(), [make_sequence(temperature=temperature, **fields)])
    assert sampled.id == logits.argmax().item()


@pytest.mark.parametrize("fields", [{"repetition_penalty": 5e-324}, {"top_k": 1 << 63}, {"temperature": 1e99}], ids=str)
def test_numbers_that_32_bits_do_not_hold_are_taken_as_the_nearest_that_they_do(fields):
    logits = make_logits() * 10
    logits[0, 7] = -torch.inf
    (sampled,) = sample(logits, [make_sequence(prompt=range(VOCABULARY - 1), **fields)])
    assert sampled.id in set(range(VOCABULARY)) - {7}


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_frequencies_follow_the_probabilities(fields):
    logits = make_logits()
    sequences = [make_sequence(choice=choice, **fields) for choice in range(4000)]
    ids = [sampled.id for sampled in sample(logits.expand(4000, -1).clone(), sequences)]
    probabilities = (logits[0].double() / fields.get("temperature", 1.0)).softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = torch.ones(VOCABULARY, dtype=torch.bool)
    if "top_k" in fields:
        kept[order[5:]] = False
    if "min_p" in fields:
        kept = probabilities >= 0.1 * probabilities.max()
    if "top_p" in fields:
        before = probabilities[order].cumsum(0) - probabilities[order]
        kept[order[before >= 0.8]] = False
    probabilities = probabilities * kept / (probabilities * kept).sum()
    counts = torch.tensor(ids).bincount(minlength=VOCABULARY)
    assert not counts[~kept].any()
    expected = probabilities * 4000
    is_common = expected >= 5
    statistic = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum().item()
    freedom = int(is_common.sum()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_the_stream_goes_on_where_it_was_interrupted():
    logits = make_logits()
    whole = draw_many(logits, 12)
    assert draw_many(logits, 5, output=whole[:7]) == whole[7:]


def test_seed_and_choice_change_the_stream_and_the_batch_does_not():
    logits = make_logits()
    whole = draw_many(logits, 20)
    assert draw_many(logits, 20, choice=1) != whole
    assert draw_many(logits, 20, seed=4) != whole
    others = [make_sequence(temperature=0.0), make_sequence(), make_sequence(top_k=3, seed=9)]
    sampled = sample(logits.expand(3, -1).clone(), others)
    assert sampled[1].id == whole[0]


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output():
    logits = make_logits()
    prompt, output = (1, 2, 3, 2), (int(logits.argmax()), 7, 7)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *output]]), logits.clone())
    sequence = make_sequence(prompt, output, temperature=0.0, repetition_penalty=1.7)
    given = logits.clone()
    (sampled,) = sample(given, [sequence])
    assert torch.equal(given, expected)
    assert sampled.id == expected.argmax().item()


def test_presence_and_frequency_count_the_output_only():
    sequence = make_sequence((1, 2), (5, 5, 9), temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    logits = make_logits()
    expected = logits.clone()
    expected[0, 5] -= 0.5 + 2 * 0.25
    expected[0, 9] -= 0.5 + 0.25
    sample(logits, [sequence])
    assert torch.allclose(logits, expected)


def test_counts_follow_a_growing_output():
    sequence = make_sequence((1, 2), (5,))
    assert sequence.token_counts() == {1: 0, 2: 0, 5: 1}
    sequence.ids += [5, 1]
    assert sequence.token_counts() == {1: 1, 2: 0, 5: 2}


def test_logit_bias_bans_and_forces():
    logits = make_logits()
    best = int(logits.argmax())
    assert best not in draw_many(logits, 200, logit_bias={best: -100.0})
    assert set(draw_many(logits, 20, logit_bias={17: 100.0})) == {17}


def test_logprobs_are_the_models_own():
    logits = make_logits()
    expected = logits[0].log_softmax(-1)
    sequence = make_sequence(logprobs=3, temperature=0.3, repetition_penalty=1.5, logit_bias={17: 100.0})
    (sampled,) = sample(logits, [sequence])
    assert sampled.id == 17
    assert sampled.logprob.id == 17
    assert sampled.logprob.logprob == pytest.approx(expected[17].item())
    values, ids = expected.topk(3)
    assert [token for token, _ in sampled.logprob.top] == ids.tolist()
    assert [value for _, value in sampled.logprob.top] == pytest.approx(values.tolist())


def test_logprobs_zero_gives_the_chosen_token_alone():
    (sampled,) = sample(make_logits(), [make_sequence(logprobs=0)])
    assert sampled.logprob.top == []


def test_bfloat16_logits_are_drawn_in_float32():
    logits = make_logits().bfloat16()
    (sampled,) = sample(logits.clone(), [make_sequence(temperature=0.0)])
    assert sampled.id == logits.float().argmax().item()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad):
    logits = make_logits(2)
    logits[1, 5] = bad
    with pytest.raises(NotFinite):
        sample(logits, [make_sequence(), make_sequence(temperature=0.0)])
