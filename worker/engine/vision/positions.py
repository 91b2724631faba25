"""Positions in three parts: time, row, column. Text moves on in all three at once, an image spans a rectangle.

An image takes as many positions as its longer side has tokens, so what comes behind it stands nearer than its count of
tokens says. That difference belongs to the sequence, never to the model, which computes many at once.
"""

from collections.abc import Iterable, Sequence

Part = Sequence[int]


class Positions:
    """Of one sequence's tokens, those that are still to come included.

    Args:
        num_prompt: tokens of the prompt.
        images: (first token, rows, columns) of each image, in order.
    """

    def __init__(self, num_prompt: int, images: Iterable[tuple[int, int, int]]) -> None:
        self._parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._num_prompt = num_prompt
        times, rows, columns = self._parts
        position = done = 0
        for first, height, width in images:
            gap = range(position, position + first - done)
            position += len(gap)
            for part in self._parts:
                part += gap
            times += [position] * (height * width)
            for row in range(height):
                rows += [position + row] * width
                columns += range(position, position + width)
            position += max(height, width)
            done = first + height * width
        for part in self._parts:
            part += range(position, position + num_prompt - done)
        self.delta = position - done  # of a token's position behind the last image, against its place

    def part(self, which: int, start: int, stop: int) -> list[int]:
        """Time (0), row (1) or column (2) of the tokens [start, stop)."""
        found = self._parts[which][start:stop]
        if stop > self._num_prompt:
            found += range(max(start, self._num_prompt) + self.delta, stop + self.delta)
        return found
