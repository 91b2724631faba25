"""Two minutes of mixed demand on ten models with weights, which do not fit together. By hand: -m slow.

The memory that each host declares is enforced on its ranks: one that takes more than it was promised fails, and with it
a request. Beside the planner, what servers do that load on a miss and know no more: `tests/bench/placement.py`.
"""

from pathlib import Path

import pytest

from tests.support.swapping import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_no_request_fails_in_two_minutes(tmp_path: Path) -> None:
    # Two cores import what a rank needs in some ten seconds; more misses than this would only lengthen the queue.
    report = run(tmp_path, seconds=120.0, per_s=2.0, phase_s=30.0, steepness=2.5)
    assert report.problems == []
    assert report.statuses == {200}
    assert report.num_requests > 180
    assert report.refusals == []
    assert report.num_swaps > 5, "demand that fits shows nothing"
    assert all(0 < most <= total for most, total in report.most_of_total.values())
