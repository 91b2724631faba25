"""Without a device, Triton's kernels run in its interpreter, which has to be asked for before they are defined."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def device():
    """The device if there is one; else the CPU, with Triton interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
