"""What coding agents send, from messages to the cache: later turns and other sessions find all that they share.

The shapes are those that Claude Code, Codex and opencode send, in the one form that every dialect brings them into:
which roles come in which order, what is sent again, what changes from turn to turn.
"""

from pathlib import Path

import pytest

import worker.demo
from shared.messages import Prompt
from tests.support.stepping import drain, make_job
from worker.engine.engine import Engine
from worker.engine.synthetic import SyntheticRunner
from worker.text.model_text import ModelText

BLOCK = 32


@pytest.fixture(scope="module")
def text():
    return ModelText.load(Path(worker.demo.__file__).parent / "model")


def tools(*names):
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"{name} does one thing. " * 4,
                "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
            },
        }
        for name in names
    ]


def call(number, name="Bash"):
    function = {"name": name, "arguments": f'{{"path": "src/part {number}"}}'}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}],
    }


def result(number):
    return {
        "role": "tool",
        "tool_call_id": f"c{number}",
        "content": f"part {number}: " + "a line of code; " * number * 5,
    }


RULES = "Read before you write. Say little. Test what you change. " * 12


def claude_code(task):
    """Its rules come in blocks, the first user turn too, and a second system message stands behind that turn."""
    start = [
        {"role": "system", "content": "You are an agent of the command line.\n" + RULES},
        {"role": "user", "content": f"The directory is /home/me/project.\nToday is a day.\n{task}"},
        {"role": "system", "content": "The user's own rules: " + RULES},
    ]
    return tools("Bash", "Edit", "Glob", "Read", "Write"), start


def codex(task):
    """Two developer messages, then the surroundings and the task as two user messages."""
    start = [
        {"role": "developer", "content": RULES},
        {"role": "developer", "content": "The sandbox is read-only."},
        {"role": "user", "content": "<environment>/home/me/project</environment>"},
        {"role": "user", "content": task},
    ]
    return tools("shell", "apply_patch", "update_plan"), start


def opencode(task):
    """One long system message, and the task as it was typed."""
    return tools("bash", "edit", "read", "todowrite"), [
        {"role": "system", "content": RULES * 2},
        {"role": "user", "content": task},
    ]


CLIENTS = {"Claude Code": claude_code, "Codex": codex, "opencode": opencode}


class Replica:
    """An engine, and every token that it has seen."""

    def __init__(self, text):
        self.text = text
        self.known = []
        runner = SyntheticRunner([5, 6, 7], text.vocab_size)
        self.engine = Engine(
            runner, num_blocks=2000, block_tokens=BLOCK, slots=4, prefill_tokens=512, context_limit=60_000
        )

    def ask(self, offered, messages):
        """Run one request; its prompt, how many tokens of it were computed before, and how many were found."""
        ids = self.text.encode(Prompt(messages=messages, tools=offered))
        shared = max((common(ids, before) for before in self.known), default=0)
        self.engine.submit(make_job("job", list(ids), 5))
        collected = drain(self.engine)
        self.known.append([*ids, *collected.ids["job", 0]])
        return ids, shared, collected.cached["job", 0]


def common(one, other):
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def is_all(cached, shared):
    """All that was computed before, but for the few tokens that are not worth copying a block."""
    return shared - BLOCK // 8 < cached <= shared


@pytest.mark.parametrize("client", CLIENTS)
def test_every_turn_finds_the_turns_before_it(text, client):
    replica = Replica(text)
    offered, messages = CLIENTS[client]("Find the slow part.")
    previous, _, _ = replica.ask(offered, messages)
    for turn in range(1, 5):
        messages = [*messages, call(turn), result(turn)]
        ids, shared, cached = replica.ask(offered, messages)
        assert is_all(cached, shared)
        assert cached > 0.97 * len(previous)  # but for the mark of an answer's beginning, which history leaves out
        previous = ids


@pytest.mark.parametrize("client", CLIENTS)
def test_another_session_finds_the_rules_and_the_tools(text, client):
    replica = Replica(text)
    replica.ask(*CLIENTS[client]("Find the slow part."))
    ids, shared, cached = replica.ask(*CLIENTS[client]("Write a test for the parser."))
    assert is_all(cached, shared)
    assert cached > 0.65 * len(ids)  # whatever stands before the task; Claude Code says a third of its rules behind it


def test_sessions_of_all_three_beside_each_other_find_each_their_own(text):
    replica = Replica(text)
    sessions = {client: list(make(f"Task for {client}.")) for client, make in CLIENTS.items()}
    for client in sessions:
        replica.ask(*sessions[client])
    for turn in range(1, 4):
        for client, (offered, messages) in sessions.items():
            sessions[client][1] = [*messages, call(turn), result(turn)]
            _, shared, cached = replica.ask(offered, sessions[client][1])
            assert is_all(cached, shared)
            assert shared > 400
