"""How an image stands in a prompt: how many tokens, in which runs, with what between. One rule for each way. Pure.

The rules follow from what image processors make of an image's width and height; a rank compares.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

_MAX_RATIO = 200  # of an image's sides, where its size is free
_MAX_SIDE = 4096  # pixels, before an image is cut into tiles


class TooLopsided(ValueError):
    """An image is too long for its width. Remedy: send it in parts."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"its sides are {width} and {height} pixels, which is too long for its width")


@dataclass(frozen=True, slots=True)
class Layout:
    """An image in a prompt: runs of so many image tokens, and the texts between them.

    `grid` is rows and columns: of tokens, or of tiles where it is cut into such.
    """

    grid: tuple[int, int]
    pieces: tuple[int | str, ...]

    @property
    def runs(self) -> list[int]:
        """How many image tokens each run has."""
        return [piece for piece in self.pieces if isinstance(piece, int)]

    def text(self, mark: str) -> str:
        """The text that stands for the image, with one mark for each run."""
        return "".join(mark if isinstance(piece, int) else piece for piece in self.pieces)


class Rule(Protocol):
    """One way to lay images out."""

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest image, without texts."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """What to tell the image processor."""
        ...

    def layout(self, width: int, height: int) -> Layout:
        """How an image of so many pixels stands in a prompt. Raises TooLopsided."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every image is brought to one size."""

    rows: int
    columns: int

    @property
    def max_tokens(self) -> int:
        """Of any."""
        return self.rows * self.columns

    @property
    def options(self) -> dict[str, Any]:
        """Nothing: it knows."""
        return {}

    def layout(self, width: int, height: int) -> Layout:
        """The one."""
        return Layout((self.rows, self.columns), (self.max_tokens,))


@dataclass(frozen=True, slots=True)
class Area:
    """Sides in multiples of `side` pixels, and an area between `least` and `most` pixels."""

    side: int
    least: int
    most: int

    @property
    def max_tokens(self) -> int:
        """Of the largest area."""
        return self.most // self.side**2

    @property
    def options(self) -> dict[str, Any]:
        """The bounds."""
        return {"size": {"shortest_edge": self.least, "longest_edge": self.most}}

    def layout(self, width: int, height: int) -> Layout:
        """The nearest multiples, or the nearest that keep the area within its bounds."""
        if max(width, height) > _MAX_RATIO * min(width, height):
            raise TooLopsided(width, height)
        rows, columns = round(height / self.side), round(width / self.side)
        area = rows * columns * self.side**2
        if area > self.most:
            shrink = math.sqrt(height * width / self.most)
            rows = max(1, math.floor(height / shrink / self.side))
            columns = max(1, math.floor(width / shrink / self.side))
        elif area < self.least:
            grow = math.sqrt(self.least / (height * width))
            rows = math.ceil(height * grow / self.side)
            columns = math.ceil(width * grow / self.side)
        return Layout((rows, columns), (rows * columns,))


@dataclass(frozen=True, slots=True)
class Edge:
    """The longer side has at most `longest` pixels; each row of tokens is a run, with a text behind it."""

    side: int  # pixels of a token
    longest: int
    row_end: str
    image_end: str

    @property
    def max_tokens(self) -> int:
        """Of a square."""
        return (-(-self.longest // self.side)) ** 2

    @property
    def options(self) -> dict[str, Any]:
        """The bound."""
        return {
            "size": {"longest_edge": self.longest},
            "patch_size": {"height": self.side, "width": self.side},
        }

    def layout(self, width: int, height: int) -> Layout:
        """As many whole tokens as cover it."""
        ratio = max(height / self.longest, width / self.longest)
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        rows, columns = -(-height // self.side), -(-width // self.side)
        if not rows or not columns:
            raise TooLopsided(width, height)
        pieces = [piece for _ in range(rows) for piece in (columns, self.row_end)]
        return Layout((rows, columns), (*pieces[:-1], self.image_end))


@dataclass(frozen=True, slots=True)
class Tiles:
    """Cut into square tiles of `tile` pixels, each of `tokens`; then the whole once more as one tile."""

    tile: int
    longest: int  # pixels of the longer side, before it is cut
    tokens: int
    is_cut: bool = True
    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    @property
    def max_tokens(self) -> int:
        """Of a square."""
        across = -(-min(self.longest, _MAX_SIDE) // self.tile) if self.is_cut else 0
        return (across**2 * (across > 1) + 1) * self.tokens

    @property
    def options(self) -> dict[str, Any]:
        """The bound, and that it tells rows and columns."""
        return {"size": {"longest_edge": self.longest}, "return_row_col_info": True}

    def layout(self, width: int, height: int) -> Layout:
        """Rows and columns of tiles; none of either where one tile is enough."""
        rows, columns = self._grid(width, height) if self.is_cut else (0, 0)
        pieces: list[int | str] = []
        for row in range(rows):
            for column in range(columns):
                pieces += [f"{self.around}<row_{row + 1}_col_{column + 1}>", self.tokens]
            pieces.append("\n")
        pieces += [("\n" if pieces else "") + self.around + self.whole, self.tokens, self.around]
        return Layout((rows, columns), tuple(pieces))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        is_wide = width >= height
        width, height = _to_longer(width, height, self.longest)
        if is_wide:  # the shorter side is even
            height = max(1, height + height % 2)
        else:
            width = max(1, width + width % 2)
        if max(width, height) > _MAX_SIDE:
            width, height = _to_longer(width, height, _MAX_SIDE)
        across = math.ceil(max(width, height) / self.tile) * self.tile
        width, height = _to_longer(max(1, width), max(1, height), across)
        rows, columns = math.ceil(height / self.tile), math.ceil(width / self.tile)
        return (rows, columns) if rows * columns > 1 else (0, 0)


def _to_longer(width: int, height: int, longer: int) -> tuple[int, int]:
    """Both sides when the longer one becomes so long. Rounded as image processors do, which depends on which it is."""
    aspect = width / height
    return (longer, int(longer / aspect)) if width >= height else (int(longer * aspect), longer)
