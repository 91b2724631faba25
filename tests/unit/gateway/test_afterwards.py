"""Work that waits until nobody does."""

import asyncio

import pytest

from gateway.afterwards import Afterwards


async def test_what_comes_together_is_done_together_and_in_order() -> None:
    done: list[str] = []
    afterwards = Afterwards(0.01)
    afterwards(lambda: done.append("a"))
    await asyncio.sleep(0)
    afterwards(lambda: done.append("b"))
    assert done == []
    await asyncio.sleep(0.05)
    assert done == ["a", "b"]


async def test_settled_at_once_it_is_done_once() -> None:
    done: list[str] = []
    afterwards = Afterwards(0.01)
    afterwards(lambda: done.append("a"))
    afterwards.settle()
    assert done == ["a"]
    afterwards(lambda: done.append("b"))
    await asyncio.sleep(0.05)
    assert done == ["a", "b"]


async def test_a_failure_is_logged_and_keeps_nothing_else_from_being_done(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    afterwards = Afterwards(0.0)
    afterwards(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    afterwards(lambda: done.append("b"))
    await asyncio.sleep(0.02)
    assert done == ["b"]
    assert [record.msg for record in caplog.records] == ["afterwards.failed"]
