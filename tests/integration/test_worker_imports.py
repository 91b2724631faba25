"""Agent and front start quickly and hold no tensors: nothing they import may bring in torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["worker.__main__", "worker.agent.agent", "worker.front.__main__", "worker.counter.__main__"]
)
def test_no_tensors(module: str) -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
