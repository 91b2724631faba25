"""Tool calls from their pieces."""

from collections.abc import Iterable

from shared.messages import ToolCall


def join(pieces: Iterable[ToolCall]) -> list[ToolCall]:
    """Whole calls, in order. Every first piece has id and name, and no later one has."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        known = calls.get(piece.index)
        if known is None:
            assert piece.index == len(calls) and piece.id and piece.name
            calls[piece.index] = ToolCall(piece.index, piece.id, piece.name, piece.arguments)
        else:
            assert not piece.id and not piece.name and piece.index == len(calls) - 1
            known.arguments += piece.arguments
    return list(calls.values())
