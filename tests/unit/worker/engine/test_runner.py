import pytest
import torch

from tests.support.models import make_model
from tests.support.stepping import drain, make_job
from worker.engine.engine import Engine
from worker.engine.runner import TorchRunner


def make_engine(model, dtype=torch.float32) -> Engine:
    runner = TorchRunner(model, "cpu", dtype, 64, 4)
    return Engine(runner, num_blocks=64, block_tokens=4, slots=8, prefill_tokens=16, context_limit=200)


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
