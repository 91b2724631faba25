"""The native kernels as a processor gets them that has nothing beyond its architecture's first instructions.

On x86-64 that leaves SSE2: neither AVX nor multiply-add, so every branch of the source that names an instruction is
left out, and what remains is what ARM gets too.
"""

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from worker.engine.errors import NativeUnavailable
from worker.engine.native.build import _find_compiler

HERE = Path(__file__).parent
BASELINE = {"x86_64": "-march=x86-64", "aarch64": "-march=armv8-a"}.get(platform.machine())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(BASELINE is None, reason="no baseline is known for this architecture")
def test_kernels_and_a_model_without_special_instructions(tmp_path: Path) -> None:
    try:
        real = _find_compiler()
    except NativeUnavailable as error:
        pytest.skip(str(error))
    compiler, asked = tmp_path / "c++", tmp_path / "asked"
    compiler.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {asked}\n'
        'for argument; do shift; case "$argument" in -m*=native) ;; *) set -- "$@" "$argument" ;; esac; done\n'
        f'exec {real} "$@" {BASELINE}\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    tests = ["test_native_packing.py", "test_native_matrix.py", "test_native_attention.py", "test_prepared.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / test) for test in tests)],
        env={**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "=native" in asked.read_text(), "the wrapper compiled nothing"
