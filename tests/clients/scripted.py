"""The scripted model of the coding agents: it changes a file with whichever means an agent has, then says so.

A replica double behind the real queue speaks its lines.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.messages import Extra, Job, ToolCall
from tests.support.fake_replica import Piece

DONE: list[Piece] = [("", Extra(reasoning="I see."), None), ("All", None, None), (" done.", None, "stop")]


def writer(names: list[str], path: Path) -> tuple[str, dict[str, Any]] | None:
    """The call of a tool that writes the file, with whichever tools the agent has."""
    command = f"echo hello > {path}"
    calls: dict[str, dict[str, Any]] = {
        "Write": {"file_path": str(path), "content": "hello\n"},
        "write": {"filePath": str(path), "content": "hello\n"},
        "exec_command": {"cmd": command},
        "shell_command": {"command": command},
        "shell": {"command": ["bash", "-lc", command]},
    }
    return next(((name, calls[name]) for name in calls if name in names), None)


class Scripted:
    """A model with one purpose: that the file says hello."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.turns: list[list[dict[str, Any]]] = []  # the messages of each turn, but for titles and the like

    def written(self) -> str | None:
        """What the file says by now; None if it is not there."""
        return self.file.read_text().strip() if self.file.exists() else None


class Caller(Scripted):
    """For agents with tools: calls one, and reports when it has the result."""

    def __call__(self, job: Job) -> Sequence[Piece]:
        messages = job.prompt.messages or []
        call = writer([tool["function"]["name"] for tool in job.prompt.tools], self.file)
        if call is not None:
            self.turns.append(messages)
        if call is None or messages[-1]["role"] == "tool":
            return DONE
        name, arguments = call[0], json.dumps(call[1])
        return [
            ("", Extra(reasoning="Let me"), None),
            ("", Extra(reasoning=" write."), None),
            ("I write.", None, None),
            ("", Extra(tool_calls=[ToolCall(0, "call_1", name, arguments[:9])]), None),
            ("", Extra(tool_calls=[ToolCall(0, "", "", arguments[9:])]), "tool_calls"),
        ]


class Editor(Scripted):
    """For an agent that reads edits from the text: the first is wrong, and what the agent's check says mends it."""

    def __call__(self, job: Job) -> Sequence[Piece]:
        self.turns.append(job.prompt.messages or [])
        word = "hallo" if len(self.turns) == 1 else "hello"
        text = f"All done.\n\n{self.file.name}\n```\n{word}\n```\n"
        pieces: list[Piece] = [(line, None, None) for line in text.splitlines(keepends=True)]
        return [*pieces, ("", None, "stop")]
