from hypothesis import given
from hypothesis import strategies as st

from worker.engine.block_table import BlockTable
from worker.engine.tiles import Part, Tile, make_tiles


def tiles_of(start, stop, blocks, *, window=None, max_rows=1000, max_keys=None, block_tokens=4):
    table = BlockTable(block_tokens)
    table.extend(blocks)
    runs = table.runs(0, stop)
    return list(make_tiles(10, start, stop, runs, window=window, max_rows=max_rows, max_keys=max_keys))


def test_a_decode_row_sees_its_run_whole():
    assert tiles_of(6, 7, [5, 6]) == [Tile(10, 6, 7, (Part(0, 7, 20, "all"),))]


def test_a_first_chunk_is_plainly_causal():
    assert tiles_of(0, 6, [5, 6]) == [Tile(10, 0, 6, (Part(0, 6, 20, "causal"),))]


def test_a_later_chunk_sees_all_before_it():
    parts = (Part(0, 4, 20, "all"), Part(4, 8, 24, "causal"))
    assert tiles_of(4, 8, [5, 6]) == [Tile(10, 4, 8, parts)]


def test_a_decode_row_reads_only_its_window():
    (tile,) = tiles_of(11, 12, [5, 6, 7], window=3)
    assert tile.parts == (Part(9, 12, 29, "all"),)


@given(
    start=st.integers(0, 20),
    count=st.integers(1, 20),
    blocks=st.permutations(range(10)),
    window=st.none() | st.integers(1, 12),
    max_rows=st.integers(1, 25),
    max_keys=st.none() | st.integers(1, 9),
)
def test_every_query_meets_exactly_its_keys_once(start, count, blocks, window, max_rows, max_keys):
    stop = start + count
    seen = {}
    for tile in tiles_of(start, stop, blocks, window=window, max_rows=max_rows, max_keys=max_keys):
        assert tile.stop - tile.start <= max_rows
        for row in range(tile.start, tile.stop):
            assert row not in seen
            assert tile.row + row - tile.start == 10 + row - start
            keys = seen[row] = []
            for part in tile.parts:
                assert max_keys is None or part.stop - part.start <= max_keys
                for key in range(part.start, part.stop):
                    assert part.slot + key - part.start == blocks[key // 4] * 4 + key % 4
                    is_hidden = key > row or (window and row - key >= window)
                    assert not (part.visible == "all" and is_hidden)
                    assert not (part.visible == "causal" and key <= row and is_hidden)
                    if not is_hidden:
                        keys.append(key)
    for row in range(start, stop):
        first = max(0, row - window + 1) if window else 0
        assert sorted(seen[row]) == list(range(first, row + 1))
