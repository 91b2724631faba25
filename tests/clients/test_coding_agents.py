"""Coding agents as they are installed: each changes a file through its tools, and hears the end.

A scripted replica plays the model's part, because the demo model is not wise enough to. What the agents sent is then
sent again to a fleet with a real engine: each request comes to its end there too, and the second turn finds the first
in the prefix cache.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.broker import EmbeddedBroker
from shared.bus import Bus
from tests.clients.npm import installed
from tests.clients.replay import ENDS, replay
from tests.clients.report import DEMO, SCRIPTED, Tell
from tests.clients.scripted import Caller, Editor
from tests.clients.venvs import environment
from tests.clients.versions import CLAUDE_CODE, CODEX, OPENCODE, PYTHON
from tests.support.fake_replica import FakeReplica
from tests.support.fleet_process import FleetProcess
from tests.support.recording_proxy import Recorder, recording
from tests.support.running_gateway import Running, put_model, running_gateway

MODEL = "stub-1"
RUN_S = 90
DID = "a tool changed a file; both turns replayed"
BY = f"{SCRIPTED}, {DEMO}"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run installs the clients


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file that is to be written, in the agent's working directory; its home is beside that."""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    return tmp_path / "work" / "made.txt"


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    await put_model(bus, MODEL, context_limit=200_000)
    async with running_gateway(broker) as gateway:
        yield gateway


@pytest.fixture
async def recorder(gateway: Running) -> AsyncIterator[Recorder]:
    """The address that agents are told."""
    async with recording(gateway.url) as recorder:
        yield recorder


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """Who plays the model, once it has a script."""
    replica = await FakeReplica.start(broker, MODEL)
    yield replica
    await replica.close()


@pytest.fixture
def caller(replica: FakeReplica, file: Path) -> Caller:
    """The model of agents with tools."""
    replica.script = caller = Caller(file)
    return caller


async def run(file: Path, *command: str | Path, **environment: str) -> str:
    """Run an agent in its own home and working directory; returns what it printed."""
    own = {"HOME": str(file.parents[1] / "home"), "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=file.parent, env=own | environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RUN_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return out.decode()


def check(caller: Caller, out: str) -> None:
    """The file is there, the agent has heard the end, and its second turn began with its first."""
    assert caller.written() == "hello", out
    assert "All done." in out
    first, *_, last = caller.turns
    assert last[: len(first)] == first
    assert last[len(first)]["reasoning_content"] == "Let me write."
    assert last[len(first)]["tool_calls"][0]["id"] == "call_1"
    assert last[-1]["role"] == "tool"


async def check_replays(demo: FleetProcess, recorder: Recorder, *, share: float = 0.9) -> None:
    """Both turns come to their ends in a real engine, and `share` of the first prompt is cached for the second."""
    answered = [one for one in recorder.posts() if one.status == 200]
    turns = [one for one in answered if one.body.get("tools")] or answered  # some also ask for a title, without tools
    assert len(turns) == 2, [(one.path, one.status) for one in recorder.requests]
    first, second = [await replay(demo.api, "plexus-demo", one) for one in turns]
    assert {first.end, second.end} <= set(ENDS)
    assert min(first.answer_tokens, second.answer_tokens) > 0
    assert second.prompt_tokens > first.prompt_tokens
    assert second.cached_tokens >= share * first.prompt_tokens, (first, second)


async def test_claude_code(recorder: Recorder, caller: Caller, file: Path, demo: FleetProcess, tell: Tell) -> None:
    tell(client="Claude Code", version=CLAUDE_CODE, surface="messages", did=DID, model=BY)
    claude = installed("@anthropic-ai/claude-code", CLAUDE_CODE, "claude", "install.cjs")
    out = await run(
        file, claude, "-p", "make the file", "--output-format", "json", "--allowedTools", "Write",
        "--permission-mode", "acceptEdits",
        ANTHROPIC_BASE_URL=recorder.url, ANTHROPIC_AUTH_TOKEN="sk-test", ANTHROPIC_MODEL=MODEL,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_TELEMETRY="1", DISABLE_AUTOUPDATER="1",
        DISABLE_ERROR_REPORTING="1",
    )  # fmt: skip
    check(caller, out)
    await check_replays(demo, recorder)


@pytest.mark.parametrize("provider", ["own", "built in"])
async def test_codex(
    recorder: Recorder, caller: Caller, file: Path, demo: FleetProcess, tell: Tell, provider: str
) -> None:
    tell(client=f"Codex CLI, provider {provider}", version=CODEX, surface="responses", did=DID, model=BY)
    codex = installed("@openai/codex", CODEX, "codex")
    where = [
        "-c", "model_provider=gw", "-c",
        f'model_providers.gw={{name="gw",base_url="{recorder.url}/v1",env_key="CODEX_API_KEY",wire_api="responses"}}',
    ]  # fmt: skip
    if provider == "built in":  # it tries a WebSocket first
        where = ["-c", f'openai_base_url="{recorder.url}/v1"']
    out = await run(
        file, codex, "exec", "--skip-git-repo-check", "--json", "-m", MODEL, "--sandbox", "danger-full-access",
        *where, "make the file", CODEX_API_KEY="sk-test",
    )  # fmt: skip
    check(caller, out)
    upgrades = {one.status for one in recorder.requests if one.path == "/v1/responses" and one.method == "GET"}
    assert upgrades == ({405} if provider == "built in" else set())
    await check_replays(demo, recorder)


@pytest.mark.parametrize(
    ("npm", "surface"),
    [
        ("@ai-sdk/openai-compatible", "chat"),
        ("@ai-sdk/anthropic", "messages"),
        ("@ai-sdk/openai", "responses"),
    ],
)
async def test_opencode(
    recorder: Recorder, caller: Caller, file: Path, demo: FleetProcess, tell: Tell, npm: str, surface: str
) -> None:
    tell(client="opencode", version=OPENCODE, surface=surface, did=DID, model=BY)
    opencode = installed("opencode-ai", OPENCODE, "opencode", "postinstall.mjs")
    entry = {"limit": {"context": 200_000, "output": 4096}, "tool_call": True, "reasoning": True}
    provider = {"npm": npm, "options": {"baseURL": f"{recorder.url}/v1", "apiKey": "sk-test"}, "models": {MODEL: entry}}
    out = await run(
        file, opencode, "run", "-m", f"gw/{MODEL}", "make the file",
        OPENCODE_CONFIG_CONTENT=json.dumps({"provider": {"gw": provider}, "permission": {"edit": "allow"}}),
        OPENCODE_DISABLE_AUTOUPDATE="1", OPENCODE_DISABLE_MODELS_FETCH="1",
    )  # fmt: skip
    check(caller, out)
    await check_replays(demo, recorder)


@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_aider(
    recorder: Recorder, replica: FakeReplica, file: Path, demo: FleetProcess, tell: Tell, surface: str
) -> None:
    did = "an edit changed a file, a check failed, a second edit mended it; both turns replayed"
    tell(client="aider", version=PYTHON["aider"]["aider-chat"], surface=surface, did=did, model=BY)
    aider = environment("aider") / "aider"
    replica.script = editor = Editor(file)
    model = f"anthropic/{MODEL}" if surface == "messages" else f"openai/{MODEL}"
    out = await run(
        file, aider, "--model", model, "--no-check-update", "--no-show-release-notes", "--analytics-disable",
        "--no-show-model-warnings", "--yes-always", "--no-git", "--no-auto-commits", "--edit-format", "whole",
        "--auto-test", "--test-cmd", f"grep hello {file.name} || (echo no hello in it; exit 1)",
        "--message", "make the file", file.name,
        OPENAI_API_BASE=f"{recorder.url}/v1", OPENAI_API_KEY="sk-test",
        ANTHROPIC_API_BASE=recorder.url, ANTHROPIC_API_KEY="sk-test", LITELLM_LOCAL_MODEL_COST_MAP="True",
    )  # fmt: skip
    assert editor.written() == "hello", out
    assert len(editor.turns) == 2
    assert "no hello in it" in editor.turns[1][-1]["content"]
    await check_replays(demo, recorder, share=0.5)  # the file stands in the middle of its prompt, and has changed
