"""Whose turn a job takes in the engine: that of its key, or of its gateway where there is none."""

import pytest

from tests.unit.worker.front.test_jobs import Table, job


@pytest.mark.parametrize(
    ("share", "owner", "expected"),
    [("key-a", "gw-1", "key-a"), ("key-a", None, "key-a"), ("", "gw-1", "gw-1"), ("", None, "")],
)
def test_a_key_goes_before_the_gateway(share: str, owner: str | None, expected: str) -> None:
    _, fx = Table().start(job(share=share, owner=owner))
    assert [submit.owner for submit in fx.submits] == [expected]
