"""The whole story, as a test."""

from pathlib import Path

import pytest

from tests.system.story import tell


@pytest.mark.timeout(300)
def test_the_story_is_true(tmp_path: Path) -> None:
    tell(tmp_path)
