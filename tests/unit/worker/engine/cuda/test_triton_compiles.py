"""Every kernel compiles to machine code, for devices that need not be there."""

import importlib.util
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels(capability):
    """In a process of its own: here Triton interprets."""
    command = [sys.executable, "-m", "tests.support.compile_kernels", str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("bytes") == 14
