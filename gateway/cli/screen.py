"""What a long command shows while it works: a live table on a terminal, plain lines elsewhere. Always on stderr."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from gateway.cli.progress import Row, describe

REPEAT_S = 5.0  # how often a plain screen repeats a line of which only the numbers changed


class Screen(Protocol):
    """Shows rows of progress, and sentences between them."""

    def show(self, rows: Iterable[Row]) -> None:
        """Replace the rows."""

    def say(self, text: str) -> None:
        """A sentence that stays."""

    def close(self) -> None:
        """Show no more rows; sentences still come. May be called twice."""

    def __enter__(self) -> "Screen": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def open_screen(*, live: bool) -> Screen:
    """A live screen if wanted and stderr is a terminal, else a plain one."""
    return LiveScreen() if live and sys.stderr.isatty() else PlainScreen()


class PlainScreen:
    """A line for every change that matters."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, str, float]] = {}  # name → state, text, when

    def show(self, rows: Iterable[Row]) -> None:
        """Print the rows that changed."""
        now = time.monotonic()
        for row in rows:
            state, text, at = self._shown.get(row.name, ("", "", 0.0))
            moving = row.state == "busy" and row.total_bytes > 0 and now - at >= REPEAT_S
            if (row.state, row.text) != (state, text) or moving:
                self._shown[row.name] = (row.state, row.text, now)
                self.say(f"{row.name}: {row.state}{' (' + describe(row) + ')' if row.text else ''}")

    def say(self, text: str) -> None:
        """Print a sentence."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> "PlainScreen":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class LiveScreen:
    """A table that is drawn again in place."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=False)
        self._spinners: dict[str, Spinner] = {}

    def show(self, rows: Iterable[Row]) -> None:
        """Draw the rows."""
        table = Table.grid(padding=(0, 2))
        for row in rows:
            bar: RenderableType = ""
            if row.state == "busy" and row.total_bytes:
                bar = ProgressBar(total=row.total_bytes, completed=row.done_bytes, width=30)
            table.add_row(self._mark(row), Text(row.name), Text(describe(row), style="dim"), bar)
        self._live.update(table)

    def say(self, text: str) -> None:
        """Print a sentence above the table."""
        self._live.console.print(Text(text))

    def close(self) -> None:
        """Leave the table as it is."""
        self._live.stop()

    def __enter__(self) -> "LiveScreen":
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _mark(self, row: Row) -> RenderableType:
        if row.state == "ready":
            return Text("✓", style="green")
        if row.state == "failed":
            return Text("✗", style="red")
        return self._spinners.setdefault(row.name, Spinner("dots"))
