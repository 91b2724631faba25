"""Weights that stay in their files until they are packed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.tiny import make_checkpoint
from worker.engine import attention
from worker.engine.prepared import PathChoice, prepare
from worker.models import mapped
from worker.models.load import load
from worker.models.weights import TensorHeader, can_stay

LINUX = sys.platform == "linux"


@pytest.fixture(scope="module", params=["qwen3", "gpt2", "qwen3_moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, dtype="bfloat16", shards=2)


def read(path: Path, *, leave: bool, dtype: str = "bfloat16") -> torch.nn.Module:
    return load(path, device="cpu", dtype=dtype, attention=attention.NAME, leave=leave)


def num_mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path)) if LINUX else 0


def test_what_is_loaded_is_the_same(model: Path) -> None:
    there, copied = read(model, leave=True), read(model, leave=False)
    held = mapped.of(there)
    assert held is not None and mapped.of(copied) is None
    in_files = [name for name, one in there.named_parameters() if held.owns(one)]
    assert in_files and all(".weight" in name and "norm" not in name for name in in_files)
    for (name, ours), theirs in zip(there.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not held.owns(theirs)


def test_another_type_is_read_as_ever(model: Path) -> None:
    there = read(model, leave=True, dtype="float32")
    held = mapped.of(there)
    assert held is not None and not any(held.owns(one) for one in there.parameters())


@pytest.mark.parametrize(
    "choice",
    [
        PathChoice(quantization="int8"),
        PathChoice(quantization="int8", is_native=False),
        PathChoice(path="generic", quantization="int4"),
        PathChoice(path="generic", is_packed=False, is_native=False),
    ],
    ids=["fast", "fast torch", "generic", "as it is"],
)
def test_nothing_is_left_in_the_files_once_it_is_packed(model: Path, choice: PathChoice) -> None:
    there = read(model, leave=True)
    assert num_mappings(model) > 0 or not LINUX
    made = prepare(there, torch.bfloat16, choice, verify=False, consume=True)
    plain = prepare(read(model, leave=False), torch.bfloat16, choice, verify=False, consume=True)
    assert (made.path, made.weights_bytes) == (plain.path, plain.weights_bytes)
    assert num_mappings(model) == 0
    there.train().eval()  # what is left of it is its own


def test_layers_give_back_what_they_read(model: Path) -> None:
    there = read(model, leave=True)
    held = mapped.of(there)
    assert held is not None
    forgotten: list[int] = []
    held.forget = lambda: forgotten.append(1)  # type: ignore[method-assign]
    there.set_attn_implementation("eager")  # type: ignore[operator]
    ids = torch.zeros(1, 2, dtype=torch.long)
    there(input_ids=ids, use_cache=False)
    num_layers = len(forgotten)
    assert num_layers >= 3
    held.end(there)
    there(input_ids=ids, use_cache=False)
    assert len(forgotten) == num_layers + 1


def test_which_may_stay() -> None:
    def header(name: str, shape: tuple[int, ...] = (4, 4), dtype: str = "BF16") -> TensorHeader:
        return TensorHeader(name, dtype, shape, 32)

    assert can_stay(header("model.layers.0.mlp.up_proj.weight"), "bfloat16")
    assert can_stay(header("lm_head.weight"), "bfloat16")
    assert can_stay(header("model.embed_tokens.weight"), "bfloat16")
    assert not can_stay(header("model.layers.0.mlp.up_proj.weight", dtype="F16"), "float32")
    assert not can_stay(header("model.layers.0.mlp.experts.3.up_proj.weight"), "bfloat16")
    assert not can_stay(header("model.norm.weight", (4,)), "bfloat16")


_PEAK = """
import sys, json, torch
from pathlib import Path
from worker.engine import attention
from worker.engine.prepared import PathChoice, prepare_any
from worker.engine.profile import peak_bytes
from worker.models.load import load
torch.set_num_threads(1)
path, leave, quantization, way = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3], sys.argv[4]
made = []
def work():
    read = lambda: load(path, device="cpu", dtype="bfloat16", attention=attention.NAME, leave=leave)
    made.append(prepare_any(read, torch.bfloat16, PathChoice(path=way, quantization=quantization)))
import transformers.models.qwen3.modeling_qwen3
peak = peak_bytes(work, torch.device("cpu"))
print(peak, made[0][1].weights_bytes, made[0][1].path)
"""


def peak_of(path: Path, *, leave: bool, quantization: str, way: str) -> tuple[int, int]:
    arguments = [sys.executable, "-c", _PEAK, str(path), str(leave), quantization, way]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=100)
    peak, packed, *_ = done.stdout.split()
    return int(peak), int(packed)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 16}
    where = tmp_path_factory.mktemp("large")
    return make_checkpoint(where, "qwen3", dtype="bfloat16", num_key_value_heads=16, head_dim=64, **sizes)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="the peak is told by Linux")
@pytest.mark.parametrize(("quantization", "way"), [("int8", "fast"), ("int4", "fast"), ("int8", "generic")])
def test_the_peak_of_a_quantised_load_is_near_what_stays(large: Path, quantization: str, way: str) -> None:
    """200 MB of bfloat16: at its peak the load takes what it leaves and some layers, not all of the weights."""
    whole = (large / "model.safetensors").stat().st_size
    assert 190e6 < whole < 220e6
    peak, packed = peak_of(large, leave=True, quantization=quantization, way=way)
    layer = whole // 6
    assert peak < packed + 2 * layer + 25e6


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="the peak is told by Linux")
def test_a_load_that_copies_takes_all_of_the_weights(large: Path) -> None:
    """So that the test above measures what it says."""
    peak, _ = peak_of(large, leave=False, quantization="int8", way="fast")
    assert peak > (large / "model.safetensors").stat().st_size
