"""Kinds of linear layers: each near the plain one, and left out where it is not; and no library at all."""

import pytest
import torch
import torch.nn.functional as F

from worker.engine import linears
from worker.engine.errors import NativeUnavailable
from worker.engine.linears import LinearChoice, PlainLinear, make_linear
from worker.engine.native import build, library

CHOICES = {
    "plain": (LinearChoice(is_packed=False, is_native=False), 1e-6),
    "packed": (LinearChoice(), 1e-5),
    "int8": (LinearChoice("int8"), 0.02),
    "torch int8": (LinearChoice("int8", is_native=False), 0.03),
    "int4": (LinearChoice("int4"), 0.15),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(CHOICES))
def test_every_kind_is_near_the_plain_one(name, dtype):
    choice, tolerance = CHOICES[name]
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(70, 96, generator=generator).to(dtype), torch.randn(70, generator=generator).to(dtype)
    linear = make_linear(weight, bias, choice)
    for shape in ((1, 96), (1, 9, 96)):
        x = torch.randn(shape, generator=generator).to(dtype)
        expected = F.linear(x.float(), weight.float(), bias.float())
        error = (linear(x).float() - expected).norm() / expected.norm()
        assert error < (tolerance if dtype == torch.float32 else max(tolerance, 0.01))
        assert linear(x).dtype == dtype and linear(x).shape == expected.shape


@pytest.mark.parametrize("name", list(CHOICES))
def test_a_small_row_beside_large_ones_is_as_exact(name):
    generator = torch.Generator().manual_seed(3)
    weight, small = torch.randn(70, 96, generator=generator), torch.randn(1, 96, generator=generator)
    linear = make_linear(weight, None, CHOICES[name][0])
    alone, beside = linear(small), linear(torch.cat([small, 50 * torch.randn(3, 96, generator=generator)]))[:1]
    assert (beside - alone).norm() < 0.03 * alone.norm()


def test_inputs_that_fit_no_group_get_another_kind():
    linear = make_linear(torch.randn(8, 50), None, LinearChoice("int4"))
    assert linear(torch.randn(2, 50)).shape == (2, 8)


def test_a_kind_that_computes_wrongly_is_left_out(monkeypatch):
    class Wrong(PlainLinear):
        def __call__(self, x):
            return super().__call__(x) * 1.1

    monkeypatch.setattr(linears, "_KINDS", dict.fromkeys(linears._KINDS, Wrong))
    linears._works.cache_clear()
    try:
        assert type(make_linear(torch.randn(8, 64), None, LinearChoice("int8"))) is PlainLinear
    finally:
        linears._works.cache_clear()


def test_without_a_compiler_there_is_no_library(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeUnavailable, match="install g"):
        build.library_path()


def test_a_compiler_that_fails_is_told_of(monkeypatch, tmp_path):
    compiler = tmp_path / "failing"
    compiler.write_text("#!/bin/sh\necho 'library.cpp: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailable, match="no such thing"):
        build.library_path()


def test_where_there_is_no_library_torch_computes(monkeypatch):
    def unavailable():
        raise NativeUnavailable("none here")

    monkeypatch.setattr(library, "load", unavailable)
    library.find.cache_clear()
    try:
        assert library.find() is None
        assert type(make_linear(torch.randn(8, 64), None, LinearChoice())) is not linears.NativeLinear
    finally:
        library.find.cache_clear()
