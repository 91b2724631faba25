"""Greedy output in float32 equals transformers' own `generate`, token for token, whatever else is in the batch."""

import pytest
import torch

from tests.support.models import CONFIGS, generate, make_model
from tests.support.stepping import Collected, drain, make_job
from worker.engine.engine import Engine
from worker.engine.runner import TorchRunner
from worker.protocol import Choice

BLOCK = 4
STEP = 12
NEW = 14


def make_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, 250, (length,), generator=generator).tolist()


@pytest.fixture(scope="module", params=list(CONFIGS))
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def model(model_type):
    return make_model(model_type)


def make_engine(model, *, num_blocks=64, slots=8) -> Engine:
    runner = TorchRunner(model, "cpu", torch.float32, num_blocks, BLOCK, verify=False)
    return Engine(
        runner, num_blocks=num_blocks, block_tokens=BLOCK, slots=slots, prefill_tokens=STEP, context_limit=200
    )


def expect(model_type, prompt, num_tokens=NEW) -> list[int]:
    return generate(model_type, tuple(prompt), num_tokens)


def test_reference_output_varies(model_type):
    outputs = [expect(model_type, make_prompt(length)) for length in (11, 25)]
    assert all(len(set(output)) >= 5 for output in outputs)
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize("length", [1, 25])
def test_alone(model_type, model, length):
    engine = make_engine(model)
    engine.submit(make_job("a", make_prompt(length), NEW))
    assert drain(engine).ids["a", 0] == expect(model_type, make_prompt(length))


def test_lengths_around_multiples_of_block_and_chunk_together(model_type, model):
    lengths = (3, 4, 5, 11, 12, 13)
    engine = make_engine(model)
    for length in lengths:
        engine.submit(make_job(str(length), make_prompt(length), NEW))
    collected = drain(engine)
    for length in lengths:
        assert collected.ids[str(length), 0] == expect(model_type, make_prompt(length))


def test_mixed_batch_with_joins_prefix_hits_choices_and_resume(model_type, model):
    engine = make_engine(model)
    collected = Collected()
    long, short = make_prompt(25), make_prompt(11)
    engine.submit(make_job("long", long, NEW))
    for _ in range(2):
        collected.take(engine.step())
    engine.submit(make_job("short", short, NEW))
    resumed = make_job("resumed", long, NEW)
    resumed.choices = [Choice(0, expect(model_type, long)[:6])]
    engine.submit(resumed)
    for _ in range(4):
        collected.take(engine.step())
    engine.submit(make_job("again", long, NEW))
    engine.submit(make_job("two", make_prompt(13), NEW, n=2))
    drain(engine, collected)
    assert collected.ids["long", 0] == expect(model_type, long)
    assert collected.ids["short", 0] == expect(model_type, short)
    assert collected.starts["resumed", 0] == 6
    assert collected.ids["resumed", 0] == expect(model_type, long)[6:]
    assert collected.ids["again", 0] == expect(model_type, long)
    assert collected.cached["again", 0] == 24
    for choice in (0, 1):
        assert collected.ids["two", choice] == expect(model_type, make_prompt(13))
    assert collected.cached["two", 1] == 12


def test_preemption_in_a_pool_for_one(model_type, model):
    lengths = (11, 25, 4)
    engine = make_engine(model, num_blocks=12)
    for length in lengths:
        engine.submit(make_job(str(length), make_prompt(length), NEW))
    collected = drain(engine)
    for length in lengths:
        assert collected.ids[str(length), 0] == expect(model_type, make_prompt(length))
