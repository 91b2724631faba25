"""What only a device can show: ``./plexus test -m gpu`` runs it on a host that has one."""

import functools

import pytest
import torch

from tests.support.models import make_model
from tests.support.stepping import drain, make_job
from worker.engine import self_test
from worker.engine.cuda import attention, choosing, linears
from worker.engine.cuda.options import PAGE_TOKENS, CudaChoice
from worker.engine.cuda.prepare import prepare
from worker.engine.cuda.runner import CudaRunner
from worker.engine.engine import Engine
from worker.engine.fast.families import FAMILIES
from worker.engine.probe import probe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
NEW = 40
PROMPT = torch.randint(2, 250, (PAGE_TOKENS + 9,), generator=torch.Generator().manual_seed(9)).tolist()
MODELS = [*FAMILIES, "gpt_oss"]


def make_kind(**options) -> attention.Kind:
    values = {
        "heads": 8,
        "kv_heads": 2,
        "key_dim": 128,
        "value_dim": 128,
        "window": None,
        "has_softcap": False,
        "has_sinks": False,
        "is_single": True,
        "page_tokens": PAGE_TOKENS,
        "dtype": torch.bfloat16,
        "device": torch.device("cuda"),
    }
    return attention.Kind(**(values | options))


@pytest.mark.parametrize("way", ["varlen", "packed", "triton"])
@pytest.mark.parametrize("is_single", [True, False])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_each_way_of_attention(way, is_single, window, dim):
    kind = make_kind(is_single=is_single, window=window, key_dim=dim, value_dim=dim)
    if reason := attention._unfit(way, kind):
        pytest.skip(f"{way}: {reason}")
    assert attention._try(way, kind) is None


@pytest.mark.parametrize(
    "options",
    [
        {"has_softcap": True},
        {"has_sinks": True, "window": 100},
        {"key_dim": 192, "value_dim": 128},
        {"key_dim": 512, "value_dim": 512},
        {"dtype": torch.float32},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_single", [True, False])
def test_triton_attends_what_flash_attention_cannot(options, is_single):
    assert attention._try("triton", make_kind(is_single=is_single, **options)) is None


@pytest.mark.parametrize("vocab_size", [1000, 32_768, 151_936])
def test_sampler(vocab_size):
    module = pytest.importorskip("worker.engine.cuda.triton_sampler")
    assert choosing.agrees(module.TritonChoose(), torch.device("cuda"), vocab_size)


def test_fp8_products():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this device has no fp8")
    assert linears._works("fp8", torch.bfloat16, torch.device("cuda"), True)


@functools.cache
def run_alone(model_type: str, choice: CudaChoice, dtype: torch.dtype) -> dict[tuple[str, int], list[int]]:
    model = make_model(model_type).to("cuda", dtype)
    prepared = prepare(model, dtype, choice, consume=False)
    runner = CudaRunner(
        prepared, "cuda", dtype, 24, PAGE_TOKENS, max_rows=8, context_limit=2 * PAGE_TOKENS, choice=choice
    )
    assert runner.has_graphs == choice.has_graphs
    engine = Engine(
        runner,
        num_blocks=24,
        block_tokens=PAGE_TOKENS,
        slots=8,
        prefill_tokens=100,
        context_limit=2 * PAGE_TOKENS,
        speculate=False,
    )
    for number in range(5):
        engine.submit(make_job(str(number), PROMPT[number * 40 :], NEW))
    engine.submit(make_job("hot", PROMPT[:50], NEW, temperature=0.8, top_p=0.9, seed=5))
    return drain(engine).ids


@pytest.mark.parametrize("model_type", MODELS)
def test_graphs_and_eager_steps_give_the_same_tokens_in_float32(model_type):
    """Greedy tokens equal the model's own, over a page's edge; sampled ones do not depend on how they are chosen."""
    found = run_alone(model_type, CudaChoice(), torch.float32)
    assert found == run_alone(model_type, CudaChoice(has_graphs=False), torch.float32)
    model = make_model(model_type).to("cuda")
    ids = torch.tensor([PROMPT[160:]], device="cuda")
    model.set_attn_implementation("eager")
    out = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert found["4", 0] == out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("path", ["fast", "generic"])
def test_logits_in_bfloat16_are_near_the_models_own(model_type, path):
    model = make_model(model_type).to("cuda", torch.bfloat16)
    prepared = prepare(model, torch.bfloat16, CudaChoice(path=path), consume=False, verify=False)
    expected = self_test.reference(model, probe(model).vocab_size)
    computes = prepared.make(torch.bfloat16, self_test.TEST_BLOCKS, PAGE_TOKENS)
    error = self_test.compare(computes, expected, torch.bfloat16, block_tokens=PAGE_TOKENS)
    assert self_test.is_close(error, torch.bfloat16)
