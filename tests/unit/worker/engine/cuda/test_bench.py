"""The GPU benchmark works as a program, on a small model; its figures mean nothing here."""

import json

import pytest
import torch

from tests.bench import gpu


def test_refuses_without_a_device(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main([]) == 2
    assert "There is no CUDA device here" in capsys.readouterr().err
    assert gpu.main(["--device", "cpu"]) == 2


@pytest.mark.timeout(900)  # where Triton is installed, its interpreter computes
def test_small_model_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "figures.json"
    small = ["--batch", "1", "3", "--context", "20", "--steps", "3", "--prompt", "40", "--repeats", "1"]
    code = gpu.main(["--tiny", "--device", "cpu", *small, "--json", str(path)])
    made = json.loads(path.read_text())
    failed = [figure for figure in made["figures"] if not figure["tokens_s"]]
    assert not failed, failed
    assert code == 0
    assert {figure["row"] for figure in made["figures"]} == set(gpu.ROWS)
    assert len(made["figures"]) == 3 * len(gpu.ROWS)
    assert "decode, batch 3" in capsys.readouterr().out
