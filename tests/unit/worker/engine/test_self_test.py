"""Models that the engine cannot compute are refused by trial, not by name."""

import pytest
import torch

from tests.support.models import CONFIGS, make_model
from worker.engine.errors import UnsupportedArchitecture
from worker.engine.probe import stable_context_tokens
from worker.engine.runner import TorchRunner
from worker.engine.self_test import self_test


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gpt_oss"])
def test_good_models_pass(model_type, dtype):
    error = self_test(make_model(model_type).to(dtype), dtype)
    assert 0 < error < (1e-5 if dtype == torch.float32 else 0.1)


REFUSED = {
    # linear attention: state outside of attention
    "qwen3_next": (
        CONFIGS["qwen3_moe"] | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        "linear_attention",
    ),
    "llama4_text": (CONFIGS["qwen3_moe"], "chunked_attention"),
    # no attention, or attention with a bias by position, outside of the interface
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}, "interface"),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64}, "interface"),
    # looks both ways
    "bert": (CONFIGS["gpt2"] | {"intermediate_size": 64, "is_decoder": False}, "differ"),
}


@pytest.mark.parametrize("model_type", list(REFUSED))
def test_others_are_refused_by_name_with_a_reason(model_type):
    changes, reason = REFUSED[model_type]
    model = make_model(model_type, **changes)
    with pytest.raises(UnsupportedArchitecture, match=reason) as caught:
        TorchRunner(model, "cpu", torch.float32, 8, 4)
    assert type(model).__name__ in str(caught.value)


def test_a_layer_that_keeps_state_is_noticed():
    model = make_model("llama")

    class Shifted(torch.nn.Module):  # mixes each token with the one before it, as a convolution would
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden):
            hidden = self.inner(hidden)
            return hidden + 0.2 * torch.nn.functional.pad(hidden, (0, 0, 1, -1))

    model.model.layers[1].mlp = Shifted(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedArchitecture, match="differ"):
        self_test(model, torch.float32)


def test_a_window_that_is_declared_and_not_passed_is_noticed():
    model = make_model("gemma3_text")
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(UnsupportedArchitecture, match="layer 0 slides"):
        self_test(model, torch.float32)


def test_rotary_scaling_by_length_bounds_the_stable_context():
    assert stable_context_tokens(make_model("llama")) is None
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert stable_context_tokens(make_model("llama", rope_parameters=dynamic)) == 256
    factors = [1.0] * 8
    longrope = {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 128,
    }
    assert stable_context_tokens(make_model("llama", rope_parameters=longrope)) == 128
