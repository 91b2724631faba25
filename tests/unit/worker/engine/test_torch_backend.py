"""Dividing a grant again by what was really loaded."""

import torch

from tests.support.models import make_model
from tests.support.ranks import rank_config
from worker.engine.prepared import PathChoice, prepare
from worker.engine.torch_backend import _fit_loaded
from worker.models.plan import fit


def test_a_draft_model_counts_with_its_weights_and_a_block_for_each_of_the_first(tmp_path):
    model, small = make_model("qwen3"), make_model("mistral", num_hidden_layers=1)
    first, second = (
        prepare(one, torch.float32, PathChoice(is_native=False), verify=False, consume=False) for one in (model, small)
    )
    planned = fit(
        dtype="float32",
        weights=0,
        activation=0,
        fixed=0,
        block_bytes=1,
        block_tokens=32,
        memory_bytes=1 << 30,
        slots=4,
        context_limit=256,
    )
    config = rank_config(tmp_path, memory_bytes=4 << 20)
    alone = _fit_loaded(model, first, None, planned, config, torch.float32, 1000)
    both = _fit_loaded(model, first, second, planned, config, torch.float32, 1000)
    assert both.weights_bytes == alone.weights_bytes + second.weights_bytes
    assert both.block_bytes == alone.block_bytes * 4 // 3  # its window, if it has one, is kept whole
    assert both.total_bytes <= 4 << 20
