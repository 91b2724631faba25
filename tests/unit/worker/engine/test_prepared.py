"""Which path computes a model, and that a wrong one is found out and left."""

import weakref

import pytest
import torch

from tests.support.models import make_model
from worker.engine import prepared, self_test
from worker.engine.errors import UnsupportedArchitecture, WrongResult
from worker.engine.fast.families import FAMILIES
from worker.engine.native import library
from worker.engine.prepared import AS_IS, PathChoice, prepare, prepare_any

HAS_NATIVE = library.find() is not None
SWITCHES = {
    "fast native" if HAS_NATIVE else "fast torch": PathChoice(),
    "fast torch": PathChoice(is_native=False),
    "generic": PathChoice(path="generic"),
}


@pytest.mark.parametrize("path", list(SWITCHES))
def test_switches_choose_the_path(path):
    made = prepare(make_model("qwen3"), torch.float32, SWITCHES[path], verify=True, consume=False)
    assert made.path == path


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_topk_prob": True},
        {"norm_topk_prob": False},
        {"mlp_only_layers": [1]},
        {"num_experts": 12, "num_local_experts": 12, "num_experts_per_tok": 5},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_experts_are_computed_on_the_fast_path(changes):
    """The self-test compares every token's logits with the model's own."""
    model = make_model("qwen3_moe", **changes)
    made = prepare(model, torch.float32, PathChoice(), verify=True, consume=True)
    assert made.path == "fast torch"
    assert sum(tensor.numel() for tensor in model.model.layers[0].mlp.experts.parameters()) == 0


def test_weights_of_experts_are_in_memory_once():
    model = make_model("qwen3_moe")
    weight = model.model.layers[0].mlp.experts.gate_up_proj
    memory = weight.detach().numpy().copy()
    weight.data = torch.from_numpy(memory)
    held = weakref.ref(memory)
    del memory
    assert held() is not None
    made = prepare(model, torch.float32, PathChoice(), verify=False, consume=True)
    assert made.path == "fast torch" and held() is None


def test_experts_can_be_left_to_the_general_path():
    made = prepare(make_model("qwen3_moe"), torch.float32, PathChoice(path="generic"), verify=True, consume=True)
    assert made.path == "generic"


def test_what_stands_beside_experts_and_is_not_known_is_left_to_the_general_path():
    model = make_model("qwen3_moe")
    model.model.layers[1].mlp.shared_expert = torch.nn.Linear(64, 64)
    made = prepare(model, torch.float32, PathChoice(), verify=True, consume=True)
    assert made.path == "generic"


def test_what_is_not_described_takes_the_general_path():
    assert "gpt2" not in FAMILIES
    assert prepare(make_model("gpt2"), torch.float32, PathChoice(), verify=True, consume=True).path == "generic"


def test_options_and_record_make_a_choice():
    options = {"path": "generic", "native": False, "packed": False}
    assert PathChoice.from_options(options, "") == AS_IS
    assert PathChoice.from_options({}, "int8").quantization == "int8"
    assert PathChoice.from_options({"quantization": ""}, "int8").quantization == ""
    with pytest.raises(ValueError, match="int8, int4, fp8 or empty"):
        PathChoice.from_options({}, "q4_0")
    with pytest.raises(ValueError, match="fast or generic"):
        PathChoice.from_options({"path": "quick"}, "")


def test_consumed_weights_are_in_memory_once():
    model = make_model("llama")
    whole = sum(tensor.nbytes for tensor in model.parameters())
    made = prepare(model, torch.float32, PathChoice(), verify=False, consume=True)
    left = sum(tensor.nbytes for tensor in model.parameters() if tensor.dim() > 1)
    if made.path == "fast native":
        assert left == 0
    assert made.weights_bytes < 1.05 * whole


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.42), ("int4", 0.35)])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gpt_oss", "qwen3_moe"])
def test_quantised_weights_are_smaller_and_near(model_type, quantization, share):
    model = make_model(model_type)
    whole = sum(tensor.nbytes for tensor in model.parameters())
    made = prepare(
        model, torch.float32, PathChoice(quantization=quantization), verify=model_type != "gpt_oss", consume=True
    )
    if model_type == "qwen3_moe":
        assert made.weights_bytes < 2 * share * whole
    if model_type == "qwen3":
        assert made.weights_bytes < share * whole + (0 if made.path == "fast native" else whole)


def test_a_wrong_result_is_found_and_the_next_path_taken(monkeypatch):
    tried: list[PathChoice] = []
    describe = prepared.describe

    def describe_wrongly(model):
        decoder = describe(model)
        object.__setattr__(decoder, "scale", decoder.scale * 1.5)
        return decoder

    def load():
        tried.append(AS_IS)
        return make_model("qwen3")

    monkeypatch.setattr(prepared, "describe", describe_wrongly)
    with pytest.raises(WrongResult, match="off by"):
        prepare(load(), torch.float32, PathChoice(), verify=True, consume=True)
    _, made = prepare_any(load, torch.float32, PathChoice())
    assert made.path == "generic"
    assert len(tried) == 4  # once above; fast native, fast torch, generic


def test_where_every_path_is_wrong_the_model_is_refused(monkeypatch):
    monkeypatch.setattr(self_test, "compare", lambda *arguments, **more: 0.7)
    with pytest.raises(UnsupportedArchitecture, match="off by 70"):
        prepare_any(lambda: make_model("qwen3"), torch.float32, PathChoice())
