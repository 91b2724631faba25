"""All clients, and the table of what they did: ``python -m tests.clients.run [arguments of pytest]``.

Clients that are not installed yet are fetched from npm and PyPI into ``$PLEXUS_TEST_CLIENTS``, else
``~/.cache/plexus-test-clients``; everything else happens on this machine. Exit status as pytest's.
"""

import platform
import sys
import time
from pathlib import Path

import pytest

from tests.clients.report import PROPERTY, Row

FOLDER = Path(__file__).parent


RESULTS = ("ok", "skipped", "FAILED")


class Collector:
    """A plugin of pytest that keeps the rows, and of tests with one row together the worst result."""

    def __init__(self) -> None:
        self.rows: dict[Row, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test went through one of its phases."""
        if report.when != "call" and report.outcome == "passed":
            return
        result = {"passed": "ok", "skipped": "skipped"}.get(report.outcome, "FAILED")
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, dict):
                row = Row(**value)
                self.rows[row] = max(result, self.rows.get(row, "ok"), key=RESULTS.index)


def table(rows: dict[Row, str]) -> str:
    """The rows by client, in Markdown."""
    lines = ["| client | version | surface | what was done | played by | result |", "|---|---|---|---|---|---|"]
    for row, result in sorted(rows.items(), key=lambda one: (one[0].client.lower(), one[0].surface, one[0].did)):
        cells = (row.client, row.version, row.surface, row.did, row.model, result)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run, and print."""
    collector = Collector()
    arguments = [str(FOLDER), "-m", "slow or not slow", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]
    status = pytest.main(arguments, plugins=[collector])
    print(f"\n{time.strftime('%Y-%m-%d')}, {platform.system()} {platform.machine()}\n\n{table(collector.rows)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
