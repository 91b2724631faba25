"""What a benchmark found: figures with their peer and target, as a table and as JSON."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One line: a quantity here and at a peer, one value a round, measured alternately."""

    row: str
    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    peer_name: str = ""
    at_least: float | None = None  # target of the ratio ours / peer, or of ours where there is no peer
    at_most: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The median over the rounds of ours / peer; of ours alone without a peer."""
        if not self.peer:
            return statistics.median(self.ours)
        return statistics.median(mine / theirs for mine, theirs in zip(self.ours, self.peer, strict=True))

    @property
    def verdict(self) -> str:
        """met, missed, or nothing where there is no target."""
        if self.at_least is not None:
            return "met" if self.ratio >= self.at_least else "missed"
        if self.at_most is not None:
            return "met" if self.ratio <= self.at_most else "missed"
        return ""

    def as_json(self) -> dict[str, Any]:
        """Everything, the medians included."""
        found = dataclasses.asdict(self) | {"median": statistics.median(self.ours), "verdict": self.verdict}
        if self.peer:
            found |= {"peer_median": statistics.median(self.peer), "ratio": self.ratio}
        return found


def show(figures: Sequence[Figure], title: str) -> None:
    """Print the table."""
    table = Table("row", "figure", "unit", "plexus", "peer", "ratio", "target", "", title=title, title_justify="left")
    for one in figures:
        target = ""
        if one.at_least is not None:
            target = f">= {one.at_least:g}"
        elif one.at_most is not None:
            target = f"<= {one.at_most:g}"
        peer = f"{_number(statistics.median(one.peer))} {one.peer_name}" if one.peer else ""
        ratio = f"{one.ratio:.2f}" if one.peer else ""
        ours = _number(statistics.median(one.ours))
        table.add_row(one.row, one.name, one.unit, ours, peer, ratio, target, one.verdict)
    Console(width=150).print(table)


def write(figures: Sequence[Figure], path: Path, facts: dict[str, Any]) -> None:
    """Add the figures to a JSON file; those of the same row and name that it held are replaced."""
    kept: list[dict[str, Any]] = []
    if path.is_file():
        kept = json.loads(path.read_text())["figures"]
    new = {(one.row, one.name) for one in figures}
    kept = [one for one in kept if (one["row"], one["name"]) not in new]
    path.write_text(json.dumps({"facts": facts, "figures": [*kept, *(one.as_json() for one in figures)]}, indent=2))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
