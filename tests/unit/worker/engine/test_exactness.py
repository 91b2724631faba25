"""Greedy output in float32 equals transformers' own `generate`, token for token, whatever else is in the batch."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import nn

from tests.support.models import CONFIGS, generate, make_model
from tests.support.stepping import Collected, drain, make_job
from worker.engine.cache_space import WindowCap
from worker.engine.engine import Engine
from worker.engine.fast.families import FAMILIES
from worker.engine.lookup import Lookup
from worker.engine.native import library
from worker.engine.prepared import AS_IS, PathChoice
from worker.engine.probe import probe
from worker.engine.runner import TorchRunner
from worker.protocol import Choice

BLOCK = 4
STEP = 12
NEW = 14


def make_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, 250, (length,), generator=generator).tolist()


class Subject(NamedTuple):
    """A model, and the path that computes it."""

    module: nn.Module
    choice: PathChoice


PATHS = {
    "as-is": AS_IS,
    "faster-modules": PathChoice(path="generic"),
    "fast-native": PathChoice(),
    "fast-torch": PathChoice(is_native=False),
}
MIXED = ("gpt_oss", "cohere2", "gpt2")  # sinks and experts, windows, no rotary positions
CASES = [(model_type, "as-is") for model_type in CONFIGS]
CASES += [(model_type, "faster-modules") for model_type in MIXED]
CASES += [(model_type, "fast-native") for model_type in FAMILIES]
PLAIN = (
    "qwen3",
    "gemma3_text",
    "phi3",
)  # without a compiler; the other families: slow tests
PARAMS = [pytest.param(case, id="-".join(case)) for case in CASES]
PARAMS += [
    pytest.param((model_type, "faster-modules"), id=f"{model_type}-faster-modules", marks=pytest.mark.slow)
    for model_type in CONFIGS
    if model_type not in MIXED
]
PARAMS += [
    pytest.param(
        (model_type, "fast-torch"),
        id=f"{model_type}-fast-torch",
        marks=() if model_type in PLAIN else pytest.mark.slow,
    )
    for model_type in FAMILIES
]


@pytest.fixture(scope="module", params=PARAMS)
def case(request):
    model_type, path = request.param
    if path in ("faster-modules", "fast-native") and library.find() is None:
        pytest.skip("there is no native library")
    return model_type, path


@pytest.fixture(scope="module")
def model_type(case):
    return case[0]


@pytest.fixture(scope="module")
def model(case):
    return Subject(make_model(case[0]), PATHS[case[1]])


def make_engine(model, *, num_blocks=64, num_window_blocks=40, num_host_blocks=0, slots=8, **options) -> Engine:
    """Layers that slide are capped, where a model has them."""
    windows = [shape.window for shape in probe(model.module).layers.values() if shape.window]
    cap = WindowCap(max(windows), num_window_blocks) if windows else None
    runner = TorchRunner(
        model.module,
        "cpu",
        torch.float32,
        num_blocks,
        BLOCK,
        cap=cap,
        num_host_blocks=num_host_blocks,
        verify=False,
        choice=model.choice,
    )
    return Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=BLOCK,
        slots=slots,
        prefill_tokens=STEP,
        context_limit=200,
        cap=cap,
        num_host_blocks=num_host_blocks,
        **options,
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
    engine = make_engine(model, num_blocks=12, num_window_blocks=6)
    for length in lengths:
        engine.submit(make_job(str(length), make_prompt(length), NEW))
    collected = drain(engine)
    for length in lengths:
        assert collected.ids[str(length), 0] == expect(model_type, make_prompt(length))


def test_turns_of_a_conversation_far_past_the_window(model_type, model):
    """Each turn finds the last one's tokens, to the last of them, and goes on in a copy of the shared block."""
    engine = make_engine(model)
    prompt: list[int] = []
    for turn, length in enumerate((25, 6, 3, 9)):
        prompt += make_prompt(length, seed=turn)
        engine.submit(make_job(str(turn), prompt, NEW))
        collected = drain(engine)
        assert collected.ids[str(turn), 0] == expect(model_type, prompt)
        assert collected.cached[str(turn), 0] == (len(prompt) - length - 1 if turn else 0)
        prompt += collected.ids[str(turn), 0]


def test_evicted_blocks_come_back_from_host_memory(model_type, model):
    engine = make_engine(model, num_blocks=12, num_window_blocks=12, num_host_blocks=40)
    for _ in range(2):
        for seed in range(3):
            engine.submit(make_job(str(seed), make_prompt(25, seed), NEW))
            collected = drain(engine)
            assert collected.ids[str(seed), 0] == expect(model_type, make_prompt(25, seed))
    assert collected.cached["2", 0] == 24


def test_guessed_tokens_change_nothing(model_type, model, monkeypatch):
    """Guesses that are right, wrong at first and wrong later, over block edges, in a batch."""
    prompts = {str(length): make_prompt(length) for length in (11, 25, 4)}
    known = [[*prompt, *expect(model_type, prompt)] for prompt in prompts.values()]

    def guess(self, ids, count):
        whole = next(whole for whole in known if whole[: len(ids)] == ids)
        right = whole[len(ids) : len(ids) + count]
        if len(ids) % 3 and right:
            wrong = len(ids) % len(right)
            right[wrong] = (right[wrong] + 1) % 256
        return tuple(right)

    monkeypatch.setattr(Lookup, "find", guess)
    ticks = itertools.count()
    engine = make_engine(model, num_blocks=30, clock=lambda: float(next(ticks)))  # guessing always pays
    collected = Collected()
    for key, prompt in prompts.items():
        engine.submit(make_job(key, prompt, NEW))
    num_steps = 0
    while engine.has_work:
        collected.take(engine.step())
        num_steps += 1
    for key, prompt in prompts.items():
        assert collected.ids[key, 0] == expect(model_type, prompt)
    assert num_steps < 4 + NEW  # what the prompts alone take, and each token a step
