"""The CUDA path on a CPU, its graphs faked: greedy output in float32 equals `generate`, whatever is in the batch."""

import pytest
import torch

from tests.support.models import generate, make_model
from tests.support.recorder import FakeRecorder
from tests.support.stepping import Collected, drain, make_job
from worker.engine.cache_space import WindowCap
from worker.engine.cuda.options import CudaChoice
from worker.engine.cuda.prepare import prepare
from worker.engine.cuda.runner import CudaRunner
from worker.engine.engine import Engine
from worker.engine.fast.families import FAMILIES
from worker.protocol import Choice

BLOCK = 4
NEW = 14
OFTEN = [("qwen3", "fast"), ("gemma3_text", "fast"), ("gpt_oss", "generic")]  # full, sliding, both; sinks and experts
WITH_EXPERTS = ("mixtral", "qwen3_moe")  # the fast path leaves them to the generic one
ALL = [(model_type, "fast") for model_type in FAMILIES]
ALL += [(model_type, "generic") for model_type in ("qwen3", "gpt_oss", "gpt2", "gemma2")]
CASES = [pytest.param(case, id="-".join(case), marks=() if case in OFTEN else pytest.mark.slow) for case in ALL]


def make_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, 250, (length,), generator=generator).tolist()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def model_type(case):
    return case[0]


@pytest.fixture(scope="module")
def prepared(case):
    choice = CudaChoice(path=case[1], attention=("gather",), has_triton=False)
    made = prepare(make_model(case[0]), torch.float32, choice, consume=False)
    assert made.path == ("generic cuda" if case[0] in WITH_EXPERTS else f"{case[1]} cuda")
    return made


@pytest.fixture
def recorder():
    return FakeRecorder()


def make_engine(model_type, prepared, recorder, *, num_blocks=64, num_window_blocks=40, num_host_blocks=0) -> Engine:
    windows = [shape.window for shape in prepared.shapes if shape.window]
    cap = WindowCap(max(windows), num_window_blocks) if windows else None
    runner = CudaRunner(
        prepared,
        "cpu",
        torch.float32,
        num_blocks,
        BLOCK,
        cap=cap,
        num_host_blocks=num_host_blocks,
        max_rows=8,
        context_limit=200,
        choice=CudaChoice(has_triton=False),
        recorder=recorder,
    )
    assert runner.has_graphs
    return Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=BLOCK,
        slots=8,
        prefill_tokens=12,
        context_limit=200,
        cap=cap,
        num_host_blocks=num_host_blocks,
        speculate=False,
    )


def expect(model_type, prompt, num_tokens=NEW) -> list[int]:
    return generate(model_type, tuple(prompt), num_tokens)


def test_one_sequence_is_decoded_ahead(model_type, prepared, recorder):
    engine = make_engine(model_type, prepared, recorder)
    engine.submit(make_job("a", make_prompt(23), NEW))
    assert drain(engine).ids["a", 0] == expect(model_type, make_prompt(23))
    assert recorder.num_replayed == NEW - 1  # the first token comes with the prompt; nothing was computed twice
    assert recorder.num_unread == 0  # nor in vain


def test_lengths_around_multiples_of_block_and_chunk_together(model_type, prepared, recorder):
    lengths = (3, 4, 5, 11, 12, 13)
    engine = make_engine(model_type, prepared, recorder)
    for length in lengths:
        engine.submit(make_job(str(length), make_prompt(length), NEW))
    collected = drain(engine)
    for length in lengths:
        assert collected.ids[str(length), 0] == expect(model_type, make_prompt(length))


def test_mixed_batch_with_joins_prefix_hits_choices_and_resume(model_type, prepared, recorder):
    engine = make_engine(model_type, prepared, recorder)
    collected = Collected()
    long, short = make_prompt(25), make_prompt(11)
    engine.submit(make_job("long", long, NEW))
    for _ in range(6):
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
    assert collected.ids["resumed", 0] == expect(model_type, long)[6:]
    assert collected.ids["again", 0] == expect(model_type, long)
    for choice in (0, 1):
        assert collected.ids["two", choice] == expect(model_type, make_prompt(13))


def test_preemption_in_a_pool_for_one(model_type, prepared, recorder):
    lengths = (11, 25, 4)
    engine = make_engine(model_type, prepared, recorder, num_blocks=12, num_window_blocks=6)
    for length in lengths:
        engine.submit(make_job(str(length), make_prompt(length), NEW))
    collected = drain(engine)
    for length in lengths:
        assert collected.ids[str(length), 0] == expect(model_type, make_prompt(length))


def test_evicted_blocks_come_back_from_host_memory(model_type, prepared, recorder):
    engine = make_engine(model_type, prepared, recorder, num_blocks=12, num_window_blocks=12, num_host_blocks=40)
    for _ in range(2):
        for seed in range(3):
            engine.submit(make_job(str(seed), make_prompt(25, seed), NEW))
            collected = drain(engine)
            assert collected.ids[str(seed), 0] == expect(model_type, make_prompt(25, seed))


def test_turns_of_a_conversation_far_past_the_window(model_type, prepared, recorder):
    engine = make_engine(model_type, prepared, recorder)
    prompt: list[int] = []
    for turn, length in enumerate((25, 6, 3, 9)):
        prompt += make_prompt(length, seed=turn)
        engine.submit(make_job(str(turn), prompt, NEW))
        collected = drain(engine)
        assert collected.ids[str(turn), 0] == expect(model_type, prompt)
        prompt += collected.ids[str(turn), 0]
