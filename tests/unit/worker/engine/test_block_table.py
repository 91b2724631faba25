from worker.engine.block_table import BlockTable, Run


def test_neighbouring_blocks_are_one_run():
    table = BlockTable(4)
    table.extend([3, 4])
    table.extend([5, 9])
    assert table.num_tokens == 16
    assert list(table.runs(0, 16)) == [Run(0, 12, 12), Run(12, 16, 36)]


def test_runs_are_cut_to_the_positions_asked_for():
    table = BlockTable(4)
    table.extend([3, 4, 9])
    assert list(table.runs(5, 10)) == [Run(5, 8, 17), Run(8, 10, 36)]
    assert list(table.runs(4, 4)) == []


def test_clearing_returns_the_blocks():
    table = BlockTable(4)
    table.extend([3, 1])
    assert table.clear() == [3, 1]
    assert (table.num_tokens, table.last, list(table.runs(0, 9))) == (0, None, [])
