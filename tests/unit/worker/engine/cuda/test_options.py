"""What a rank's options make of the CUDA path."""

import pytest

from worker.engine.cuda.attention import WAYS
from worker.engine.cuda.options import CudaChoice
from worker.engine.prepared import PathChoice


def test_everything_is_on_by_default():
    assert CudaChoice.from_options({}, "") == CudaChoice()


def test_each_piece_can_be_switched_off():
    choice = CudaChoice.from_options({"path": "generic", "graphs": False, "ahead": False, "attention": "gather"}, "fp8")
    assert choice == CudaChoice("generic", ("gather",), has_graphs=False, runs_ahead=False, quantization="fp8")
    without = CudaChoice.from_options({"triton": False}, "")
    assert not without.has_triton
    assert without.attention == tuple(way for way in WAYS if way != "triton")


@pytest.mark.parametrize("options", [{"path": "quick"}, {"attention": "flash"}])
def test_unknown_values_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        CudaChoice.from_options(options, "")


def test_fp8_is_left_out_on_a_cpu():
    assert PathChoice.from_options({}, "fp8") == PathChoice()
