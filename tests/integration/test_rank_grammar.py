"""A real rank process holds answers to what the front made of a request."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shared.messages import Constraint, Prompt
from tests.support.calls import join
from tests.support.ranks import RankProcess, ids, job, rank_config, running_rank
from tests.support.tiny import make_checkpoint
from worker.protocol import Ready, Step
from worker.text.model_text import ModelText

PARAMETERS = {"type": "object", "properties": {"days": {"type": "integer", "maximum": 9}}, "required": ["days"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]


@pytest.fixture
def rank() -> Iterator[RankProcess]:
    with running_rank() as rank:
        yield rank


def test_constrained_and_free_jobs_side_by_side(rank: RankProcess, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path)
    text = ModelText.load(path)
    rank.send(rank_config(path))
    rank.wait_for(Ready)
    silent = {"enable_thinking": False}
    asked = [{"role": "user", "content": "hi"}]
    held = Prompt(messages=asked, template=silent)
    called = Prompt(messages=asked, template=silent, tools=TOOLS, tool_choice="=weather")
    ready = text.constrain(held, Constraint(kind="json_schema", value={"enum": ["red", "green"]}), text.encode(held))
    call_ready = text.constrain(called, None, text.encode(called))
    assert ready is not None and call_ready is not None
    shared = {"max_tokens": 60, "stop_ids": text.eos_ids}
    # The prompt of the call is longer than the tiny model's context, and a grammar does not care.
    held_job = msgspec.structs.replace(job("held", text.encode(held), **shared), grammar=ready.result())
    call_job = msgspec.structs.replace(job("call", text.encode(held), **shared), grammar=call_ready.result())
    rank.send(held_job, call_job, job("free", [1, 2, 3], max_tokens=60))
    outputs = rank.collect(("held", 0), ("call", 0), ("free", 0))
    assert json.loads(text.render(Prompt(ids=ids(outputs["held", 0])))) in ("red", "green")
    stream = text.stream(called, stop=[], prompt_ids=[1])
    piece = stream.feed(ids(outputs["call", 0]))
    (call,) = join([*piece.tool_calls, *stream.finish("stop").tool_calls])
    assert call.name == "weather" and json.loads(call.arguments)["days"] <= 9
    assert len(ids(outputs["free", 0])) == 60
    rank.send(msgspec.structs.replace(job("bad", [1], **shared), grammar="start: nothing"))
    while not (refused := rank.wait_for(Step).refused):
        pass
    assert [(entry.key, entry.kind) for entry in refused] == [("bad", "invalid_request")]
