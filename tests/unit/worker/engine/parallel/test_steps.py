"""Rows as they travel: what followers compute from them is what the first rank computes."""

import pytest

from tests.support.stepping import make_job
from worker.engine.fast.packing import pack
from worker.engine.parallel import messages
from worker.engine.parallel.messages import Run
from worker.engine.parallel.steps import kept, receive_rows, send_rows
from worker.engine.plan import Row, StepPlan
from worker.engine.sequence import Sequence

BLOCK = 4


def sequence(key: str, num_tokens: int, blocks: list[int]) -> Sequence:
    job = make_job(key, list(range(num_tokens)))
    made = Sequence(job, job.choices[0], arrival=0, context_limit=100, block_tokens=BLOCK)
    made.table.extend(blocks)
    return made


@pytest.mark.parametrize("is_capped", [False, True])
def test_rows_pack_alike_on_both_sides(is_capped: bool) -> None:
    decoding, filling = sequence("a", 10, [3, 4, 9]), sequence("b", 21, [7, 1, 2, 5, 6, 11])
    if is_capped:
        for one, blocks in ((decoding, [2]), (filling, [8, 9, 4])):
            one.window_table = type(one.table)(BLOCK)
            one.window_table.begin(2)
            one.window_table.extend(blocks)
    rows = (Row(decoding, 9, 12, (7, 8)), Row(filling, 9, 20))
    sent = send_rows(rows, StepPlan.kept, is_capped=is_capped)
    frame = messages.decode_to_follower(messages.encode(Run(sent)))
    assert isinstance(frame, Run)
    received = receive_rows(frame.rows, BLOCK)
    assert pack(received, kept, is_capped=is_capped) == pack(rows, StepPlan.kept, is_capped=is_capped)
    for row, one in zip(rows, received, strict=True):
        table, theirs = row.sequence.table, one.sequence.table
        assert theirs.blocks == table.blocks[: -(-row.stop // BLOCK)]
        assert one.sequence.window_table.num_dropped == row.sequence.window_table.num_dropped * is_capped
