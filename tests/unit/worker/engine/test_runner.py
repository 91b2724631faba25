import itertools

import pytest
import torch

from tests.support.models import make_model
from tests.support.stepping import Collected, drain, make_job
from worker.engine.engine import Engine
from worker.engine.lookup import Lookup
from worker.engine.runner import TorchRunner


def make_engine(model, dtype=torch.float32, **options) -> Engine:
    runner = TorchRunner(model, "cpu", dtype, 64, 4)
    return Engine(runner, num_blocks=64, block_tokens=4, slots=8, prefill_tokens=16, context_limit=200, **options)


@pytest.mark.parametrize(
    ("model_type", "values_per_token"), [("qwen3", 3 * 2 * (16 + 16)), ("deepseek_v3", 3 * 4 * (24 + 16))]
)
def test_block_bytes_count_every_layer_as_it_is(model_type, values_per_token):
    model = make_model(model_type)
    assert TorchRunner.kv_block_bytes(model, 32) == values_per_token * 32 * 4
    assert TorchRunner.kv_block_bytes(model, 32, torch.bfloat16) == values_per_token * 32 * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gpt_oss"])
def test_narrow_types_serve(model_type, dtype):
    engine = make_engine(make_model(model_type).to(dtype), dtype)
    for number in range(3):
        engine.submit(make_job(str(number), list(range(2, 20 + number)), 8, temperature=0.8, seed=number, logprobs=2))
    collected = drain(engine)
    assert [len(ids) for ids in collected.ids.values()] == [8, 8, 8]
    assert all(logprob.logprob <= 0 for held in collected.logprobs.values() for logprob in held)


def test_sampled_streams_do_not_depend_on_the_batch_and_resume():
    model = make_model("qwen3")
    prompt = list(range(5, 30))
    alone = make_engine(model)
    alone.submit(make_job("a", prompt, 12, temperature=1.0, top_p=0.95, seed=42))
    whole = drain(alone).ids["a", 0]
    busy = make_engine(model)
    for number in range(4):
        busy.submit(make_job(str(number), prompt[number:], 20, temperature=1.0, seed=number))
    job = make_job("a", prompt, 12, temperature=1.0, top_p=0.95, seed=42)
    job.choices[0].resume = whole[:5]
    busy.submit(job)
    assert drain(busy).ids["a", 0] == whole[5:]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.9, "seed": 5},
        {"temperature": 0.8, "top_k": 9, "min_p": 0.05, "seed": 6},
        {"temperature": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3, "seed": 7},
        {"temperature": 1.0, "logit_bias": {7: 3.0}, "logprobs": 3, "seed": 8},
    ],
    ids=lambda fields: " ".join(name for name in fields if name != "seed"),
)
def test_guessed_tokens_change_no_sample(fields, monkeypatch):
    """Guesses half right: the same tokens, log probabilities and ends as one by one, for each of two choices."""
    model = make_model("qwen3")
    prompt = list(range(5, 30))

    def run(speculate, **more):
        ticks = itertools.count()
        engine = make_engine(model, speculate=speculate, clock=lambda: float(next(ticks)))
        engine.submit(make_job("a", prompt, 24, n=2, **fields, **more))
        num_steps, collected = 0, Collected()
        while engine.has_work:
            collected.take(engine.step())
            num_steps += 1
        return collected, num_steps

    plain, plain_steps = run(speculate=False)
    known = [[*prompt, *ids] for ids in plain.ids.values()]

    def guess(self, ids, count):
        whole = next(whole for whole in known if whole[: len(ids)] == ids)
        right = whole[len(ids) : len(ids) + count]
        if len(ids) % 2 and right:
            right[-1] = (right[-1] + 1) % 256
        return tuple(right)

    monkeypatch.setattr(Lookup, "find", guess)
    guessed, guessed_steps = run(speculate=True)
    assert guessed_steps < plain_steps
    assert guessed.ids == plain.ids
    for name, logprobs in plain.logprobs.items():
        assert [one.id for one in guessed.logprobs[name]] == [one.id for one in logprobs]
        for one, other in zip(guessed.logprobs[name], logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    # A stop token in the middle of what a step brings ends there.
    stop = plain.ids["a", 0][11]
    stopped, _ = run(speculate=True, stop_ids=[stop])
    for (name, ids), finish in zip(stopped.ids.items(), stopped.finish.values(), strict=True):
        whole = plain.ids[name]
        assert ids == whole[: whole.index(stop) + 1 if stop in whole else None]
        assert finish == ("stop" if stop in whole else "length")


def run_out_of_memory(engine, monkeypatch, when):
    """From now on, steps for which this is so ask the system for memory that it cannot have, and are refused it."""
    model = engine._runner._model
    forward = model.forward

    def allocate(rows, keep):
        if when(rows):
            torch.empty(1 << 60, dtype=torch.uint8)
        return forward(rows, keep)

    monkeypatch.setattr(model, "forward", allocate)


def test_a_step_that_the_memory_has_no_room_for_is_divided_and_nobody_notices(monkeypatch):
    model = make_model("qwen3")
    jobs = [make_job(str(number), list(range(number + 2, number + 40)), 6) for number in range(3)]
    plain, tight = make_engine(model), make_engine(model)
    run_out_of_memory(tight, monkeypatch, lambda rows: sum(row.stop - row.start for row in rows) > 9)
    for job in jobs:
        plain.submit(job)
        tight.submit(job)
    collected = drain(tight)
    assert collected.ids == drain(plain).ids and not collected.refused


def test_the_request_that_no_memory_is_enough_for_fails_alone_and_the_replica_lives_on(monkeypatch):
    engine = make_engine(make_model("qwen3"))
    run_out_of_memory(engine, monkeypatch, lambda rows: any(row.sequence.key == "large" for row in rows))
    for key in ("first", "large", "second"):
        engine.submit(make_job(key, list(range(5, 30)), 8))
    collected = drain(engine)
    assert collected.refused["large"].kind == "capacity"
    assert [len(collected.ids[key, 0]) for key in ("first", "second")] == [8, 8]
    engine.submit(make_job("later", list(range(5, 30)), 8))
    assert drain(engine).ids["later", 0] == collected.ids["first", 0]


def test_only_the_request_that_meets_a_damaged_weight_fails():
    model = make_model("qwen3")
    engine = make_engine(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = torch.nan
    engine.submit(make_job("bad", [5, 77, 6], 8))
    engine.submit(make_job("good", list(range(5, 15)), 8))
    collected = drain(engine)
    assert collected.refused["bad"].kind == "engine_error"
    assert "not finite" in collected.refused["bad"].message
    assert len(collected.ids["good", 0]) == 8
