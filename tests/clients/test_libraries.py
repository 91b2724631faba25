"""Client libraries and frameworks in their own environments, against a whole fleet with the demo model.

Each streams an answer, has a tool called and hands in its result, and gets an object of a schema, all by the
library's own means. `programs/` holds what runs there; each program prints what it got.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.cli.intents import demo_model, put_intent, put_model
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import IntentRecord, ModelRecord
from tests.clients.npm import libraries
from tests.clients.report import DEMO, RANDOM, Tell
from tests.clients.venvs import environment
from tests.clients.versions import NODE_LIBRARIES, PYTHON
from tests.support import embedders
from tests.support.fleet_process import FleetProcess

MODEL = "plexus-demo"
RUN_S = 120
PROGRAMS = Path(__file__).parent / "programs"
DID = "streamed; tool round trip; object of a schema"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run installs the clients


def run(demo: FleetProcess, *command: str | Path, **variables: str) -> str:
    """What a program printed; AssertionError with what it complained of."""
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [str(one) for one in command],
        env=quiet | {"PLEXUS_API": demo.api, "PLEXUS_MODEL": MODEL} | variables,
        capture_output=True, text=True, timeout=RUN_S, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def node(demo: FleetProcess, tmp_path: Path) -> Callable[..., Any]:
    """Runs a program beside the libraries, and returns what it got."""

    def got(program: str, surface: str, **variables: str) -> Any:
        (tmp_path / "node_modules").symlink_to(libraries())
        own = tmp_path / program
        own.write_text((PROGRAMS / program).read_text())
        return json.loads(run(demo, libraries() / ".bin" / "node", own, surface, HOME=str(tmp_path), **variables))

    return got


@pytest.fixture
def python(demo: FleetProcess, tmp_path: Path) -> Callable[..., Any]:
    """Runs a program in an environment, and returns what it got."""

    def got(name: str, program: str, surface: str) -> Any:
        return json.loads(run(demo, environment(name) / "python", PROGRAMS / program, surface, HOME=str(tmp_path)))

    return got


def check(got: Any) -> None:
    """All three deeds."""
    assert got["streamed"] == "".join(got["pieces"]) == "The capital of France is Paris."
    assert len(got["pieces"]) > 3
    assert min(got["usage"]) > 5
    assert got["calls"] == [["get_weather", {"city": "Paris"}]]
    assert "12 degrees and rain" in got["answer"]
    check_object(got["object"])


def check_object(value: Any) -> None:
    """It is of the schema."""
    assert set(value) == {"city", "sunny"}
    assert value["city"] in ("Paris", "Rome")
    assert isinstance(value["sunny"], bool)


@pytest.mark.parametrize("surface", ["chat", "responses"])
def test_openai_of_node(node: Callable[..., Any], tell: Tell, surface: str) -> None:
    tell(client="openai (Node)", version=NODE_LIBRARIES["openai"], surface=surface, did=DID, model=DEMO)
    got = node("openai.mjs", surface)
    check(got)
    assert got["finish"] == {"chat": "stop", "responses": "completed"}[surface]
    assert got["id"].startswith("req_")


def test_openai_of_node_in_the_background(node: Callable[..., Any], tell: Tell) -> None:
    did = "background response left and streamed again by starting_after; an image refused by a model that takes none"
    version = NODE_LIBRARIES["openai"]
    tell(client="openai (Node)", version=version, surface="responses in the background", did=did, model=DEMO)
    got = node("openai.mjs", "background")
    assert got["numbers"] == list(range(len(got["numbers"])))
    assert (got["first"], got["last"]) == ("response.created", "response.completed")
    assert got["text"] == got["fetched"] == "The capital of France is Paris."
    assert got["refused"] == ["BadRequestError", "input[0].content[0]"]


async def test_openai_of_node_elsewhere(
    node: Callable[..., Any], tell: Tell, demo: FleetProcess, tmp_path: Path
) -> None:
    did = "completion streamed; vectors as base64 and as floats; models listed; an error of its class"
    tell(client="openai (Node)", version=NODE_LIBRARIES["openai"], surface="completions, embeddings, models", did=did,
         model=f"{DEMO}, {RANDOM}")  # fmt: skip
    path = embedders.make_bert(tmp_path / "bert")
    async with await Bus.connect(demo.bus_settings(), kind="cli", ident="test") as bus, Fleet(bus) as view:
        await put_model(bus, ModelRecord(id="lab/bert", source=str(path), task="embed"))
        await put_intent(bus, IntentRecord(model="lab/bert", want="loaded", by="test"))
        await view.wait_for(lambda view: any(r.state == "ready" for r in view.replicas_of("lab/bert")), timeout_s=60)
    got = node("openai.mjs", "rest", PLEXUS_EMBEDDER="lab/bert")
    assert "".join(got["pieces"])
    assert {MODEL, "lab/bert"} <= set(got["models"])
    assert got["refused"] == "NotFoundError"
    assert len(got["plain"]) == 2
    for packed, plain in zip(got["packed"], got["plain"], strict=True):
        assert packed == pytest.approx(plain, abs=1e-6)


def test_anthropic_of_node(node: Callable[..., Any], tell: Tell) -> None:
    tell(client="@anthropic-ai/sdk", version=NODE_LIBRARIES["@anthropic-ai/sdk"], surface="messages", did=DID,
         model=DEMO)  # fmt: skip
    got = node("anthropic.mjs", "messages")
    check(got)
    assert got["finish"] == "end_turn"


def test_anthropic_of_node_elsewhere(node: Callable[..., Any], tell: Tell) -> None:
    did = "models listed by pages; tokens counted; an error of its class"
    tell(client="@anthropic-ai/sdk", version=NODE_LIBRARIES["@anthropic-ai/sdk"], surface="models, count_tokens",
         did=did, model=DEMO)  # fmt: skip
    got = node("anthropic.mjs", "models")
    assert MODEL in got["models"]
    assert got["counted"] > 5
    assert got["id"].startswith("req_")
    assert got["refused"] == "not_found_error"


@pytest.mark.parametrize(
    ("provider", "package", "surface"),
    [
        ("openai-compatible", "@ai-sdk/openai-compatible", "chat"),
        ("openai chat", "@ai-sdk/openai", "chat"),
        ("openai responses", "@ai-sdk/openai", "responses"),
        ("anthropic", "@ai-sdk/anthropic", "messages"),
    ],
)
def test_ai_sdk(node: Callable[..., Any], tell: Tell, provider: str, package: str, surface: str) -> None:
    tell(client=f"AI SDK, {package}", version=f"{NODE_LIBRARIES['ai']}, {NODE_LIBRARIES[package]}", surface=surface,
         did=DID, model=DEMO)  # fmt: skip
    got = node("ai_sdk.mjs", provider)
    check(got)
    assert got["finish"] == "stop"


@pytest.mark.parametrize("surface", ["chat", "responses", "messages"])
def test_langchain(python: Callable[..., Any], tell: Tell, surface: str) -> None:
    package = "langchain-anthropic" if surface == "messages" else "langchain-openai"
    tell(client=f"LangChain, {package}", version=PYTHON["langchain"][package], surface=surface, did=DID, model=DEMO)
    check(python("langchain", "langchain_client.py", surface))


@pytest.mark.parametrize("surface", ["chat", "responses", "messages"])
def test_pydantic_ai(python: Callable[..., Any], tell: Tell, surface: str) -> None:
    version = PYTHON["pydantic-ai"]["pydantic-ai-slim[openai,anthropic]"]
    tell(client="pydantic-ai", version=version, surface=surface, did=DID, model=DEMO)
    check(python("pydantic-ai", "pydantic_ai_client.py", surface))


@pytest.mark.parametrize(
    ("mode", "surface"),
    [
        ("TOOLS", "chat"),
        ("JSON_SCHEMA", "chat"),  # JSON alone is no test of a service: the schema is words, for the model to heed
        ("RESPONSES_TOOLS", "responses"),
        ("ANTHROPIC_TOOLS", "messages"),
    ],
)
def test_instructor(python: Callable[..., Any], tell: Tell, mode: str, surface: str) -> None:
    did = f"object of a schema, whole and streamed, mode {mode}"
    tell(client="instructor", version=PYTHON["instructor"]["instructor"], surface=surface, did=did, model=DEMO)
    got = python("instructor", "instructor_client.py", mode)
    check_object(got["object"])
    assert got["streamed_object"] == got["object"]
    assert len(got["pieces"]) > 1


def test_llm(demo: FleetProcess, tell: Tell, tmp_path: Path) -> None:
    tell(client="llm", version=PYTHON["llm"]["llm"], surface="chat", did=DID, model=DEMO)
    llm = environment("llm") / "llm"
    model = {
        "model_id": "gw", "model_name": MODEL, "api_base": demo.api, "api_key_name": "gw", "supports_tools": True,
        "supports_schema": True,
    }  # fmt: skip
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    (tmp_path / "keys.json").write_text('{"gw": "any"}')

    def ask(*arguments: str | Path) -> str:
        return run(demo, llm, "-m", "gw", *arguments, LLM_USER_PATH=str(tmp_path), HOME=str(tmp_path))

    assert ask("What is the capital of France?").strip() == "The capital of France is Paris."
    assert "12 degrees and rain" in ask("--functions", PROGRAMS / "weather_tools.py", "What is the weather in Paris?")
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": False,  # a small model finds no end in a schema that is open
    }
    check_object(json.loads(ask("--schema", json.dumps(schema), "What is the capital of France?")))


async def test_llm_with_its_anthropic_plugin(demo: FleetProcess, tell: Tell, tmp_path: Path) -> None:
    did = "streamed, from a model of the plugin's list as an alias"
    tell(client="llm-anthropic", version=PYTHON["llm"]["llm-anthropic"], surface="messages", did=did, model=DEMO)
    async with await Bus.connect(demo.bus_settings(), kind="cli", ident="test") as bus, Fleet(bus) as view:
        await put_model(bus, msgspec.structs.replace(demo_model(), aliases=["claude-sonnet-4-5"]))
        await view.wait_for(lambda view: any(r.state == "ready" for r in view.replicas_of(MODEL)), timeout_s=60)
    told = await asyncio.to_thread(
        run, demo, environment("llm") / "llm", "-m", "claude-sonnet-4.5",
        "-o", "temperature", "0",  # the plugin samples otherwise, and one answer in a hundred is another
        "What is the capital of France?",
        LLM_USER_PATH=str(tmp_path), HOME=str(tmp_path), ANTHROPIC_API_KEY="any",
        ANTHROPIC_BASE_URL=demo.api.removesuffix("/v1"),
    )  # fmt: skip
    assert told.strip() == "The capital of France is Paris."
