"""Frames survive the journey between front and rank."""

import pytest

from worker import protocol
from worker.protocol import (
    Abort,
    Choice,
    ChoiceLogprob,
    Output,
    Prefilling,
    RankConfig,
    Refused,
    Sample,
    Step,
    Stop,
    Submit,
)

CONFIG = RankConfig(
    path="/models/m",
    backend="torch",
    device="cpu",
    dtype="auto",
    threads=2,
    memory_bytes=1 << 30,
    context_limit=0,
    slots=8,
    prefill_tokens=512,
)
JOB = Submit(
    key="j#1",
    prompt=[1, 2, 3],
    choices=[Choice(0, [7]), Choice(1)],
    sample=Sample(seed=2**63 - 1, max_tokens=5, logit_bias={7: -1.5}, stop_ids=[9], logprobs=2),
    batch_class=True,
)
BROUGHT = Step(
    outputs=[
        Output("j#1", 0, 1, [4], "stop", 2, [ChoiceLogprob(4, -0.5, [(4, -0.5), (9, -1.0)])]),
        Output("j#1", 1, 0, [5]),
    ],
    prefilling=[Prefilling("k#1", 512, 2000)],
    refused=[Refused("l#1", "capacity", "no room")],
    running=2,
)


@pytest.mark.parametrize("message", [CONFIG, JOB, Abort([("j#1", -1)]), Stop()])
def test_down_to_the_rank(message: protocol.FrontToRank) -> None:
    assert protocol.decode_front_to_rank(protocol.encode(message)) == message


@pytest.mark.parametrize("message", [BROUGHT, protocol.Loading("read", 1, 2), protocol.Fatal("why")])
def test_up_to_the_front(message: protocol.RankToFront) -> None:
    assert protocol.decode_rank_to_front(protocol.encode(message)) == message
