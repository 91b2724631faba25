"""Which of the first layers show everything that a decoder's layers do."""

import pytest
import torch

from tests.support.models import make_model
from worker.engine.errors import WrongResult
from worker.engine.prepared import PathChoice, prepare
from worker.engine.shallow import first_layers, num_telling


def layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    found: torch.nn.ModuleList = model.model.layers
    return found


def test_layers_that_are_alike_need_two():
    assert num_telling(layers(make_model("qwen3", num_hidden_layers=6))) == 2
    assert num_telling(layers(make_model("llama", num_hidden_layers=1))) == 1


def test_each_kind_is_shown():
    kinds = ["sliding_attention"] * 4 + ["full_attention", "sliding_attention"]
    model = make_model("gemma3_text", num_hidden_layers=6, layer_types=kinds)
    assert num_telling(layers(model)) == 5


@pytest.mark.parametrize("change", ["setting", "module", "shape"])
def test_a_last_layer_that_differs_is_shown(change):
    model = make_model("qwen3", num_hidden_layers=4)
    last = layers(model)[3]
    if change == "setting":
        last.self_attn.scaling = 0.5
    elif change == "module":
        last.mlp.act_fn = torch.nn.GELU()
    else:
        last.mlp.up_proj = torch.nn.Linear(last.mlp.up_proj.in_features, last.mlp.up_proj.out_features)
    assert num_telling(layers(model)) == 4


def test_the_layers_come_back():
    model = make_model("qwen3", num_hidden_layers=4)
    before = layers(model)
    with pytest.raises(RuntimeError), first_layers(model.model, 2):
        assert len(layers(model)) == 2
        raise RuntimeError
    assert layers(model) is before


def test_a_fast_path_that_is_wrong_is_noticed_on_its_first_layers(monkeypatch):
    model = make_model("qwen3", num_hidden_layers=4).to(torch.float32)
    with torch.no_grad():
        layers(model)[1].mlp.down_proj.weight.mul_(3)
    wrong = layers(model)[1].mlp.down_proj

    class Doubled(torch.nn.Module):  # computes something else than its weight says
        def __init__(self):
            super().__init__()
            self.weight, self.bias = wrong.weight, None
            self.in_features, self.out_features = wrong.in_features, wrong.out_features

        def forward(self, x):
            return 2 * torch.nn.functional.linear(x, self.weight)

    layers(model)[1].mlp.down_proj = Doubled()
    with pytest.raises(WrongResult, match="off by"):
        prepare(model, torch.float32, PathChoice(), verify=True, consume=False)
