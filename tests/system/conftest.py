"""Models for the fleets of these tests."""

from pathlib import Path

import pytest

from tests.support.tiny import make_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model of random weights, named `tiny`; what it says means nothing, but loads fast."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, named `other`."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1)
