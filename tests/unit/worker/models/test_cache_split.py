"""Dividing a cache between layers that keep every token and layers that keep a window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models.cache_split import CacheNeeds, split


def needs(**changes):
    values = {
        "block_bytes": 1000,
        "window_block_bytes": 5000,
        "window": 512,
        "block_tokens": 32,
        "slots": 8,
        "step_tokens": 256,
        "context_limit": 32_768,
    }
    return CacheNeeds(**(values | changes))


def test_layers_that_slide_leave_their_room_to_the_others():
    plain = 10_000_000 // 6000
    blocks, window_blocks = split(10_000_000, needs())
    assert blocks > 2.5 * plain
    assert window_blocks > 8 * 18  # the windows of all slots, and some of sequences that ended
    assert blocks * 1000 + window_blocks * 5000 <= 10_000_000


def test_where_all_layers_slide_the_context_costs_nothing():
    blocks, window_blocks = split(10_000_000, needs(block_bytes=0))
    assert blocks == 8 * 1024
    assert window_blocks == 2000


@pytest.mark.parametrize("changes", [{"window_block_bytes": 0}, {"context_limit": 512}, {"window": 100_000}])
def test_nothing_differs_where_nothing_is_gained(changes):
    wanted = needs(**changes)
    assert split(10_000_000, wanted) == (
        min(10_000_000 // (1000 + wanted.window_block_bytes), wanted.useful_blocks),
        0,
    )


def test_there_is_no_more_than_the_slots_can_fill():
    blocks, window_blocks = split(10**12, needs())
    assert blocks == 8 * 1024
    assert window_blocks <= blocks


@given(
    cache_bytes=st.integers(0, 10**8),
    block_bytes=st.integers(0, 5000),
    window_block_bytes=st.integers(1, 5000),
    window=st.integers(1, 5000),
    slots=st.integers(1, 64),
    context_limit=st.integers(1, 40_000),
)
def test_it_never_costs_more_nor_holds_less_than_without(cache_bytes, **changes):
    wanted = needs(**changes)
    blocks, window_blocks = split(cache_bytes, wanted)
    plain = min(cache_bytes // (wanted.block_bytes + wanted.window_block_bytes), wanted.useful_blocks)
    assert blocks >= plain
    if window_blocks:
        assert wanted.window_blocks_each <= window_blocks <= blocks
        assert blocks * wanted.block_bytes + window_blocks * wanted.window_block_bytes <= cache_bytes
