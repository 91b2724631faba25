"""An independent reader: the official JavaScript client looks at a fleet and steers it, by the operator's user."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared import names
from shared.broker import EmbeddedBroker
from tests.clients.npm import module
from tests.clients.versions import NATS_JS
from tests.support import micro_schemas
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, Running

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "nats_reader.js"


def read(broker: EmbeddedBroker, *argv: str) -> Any:
    """What the script prints."""
    settings = broker.bus_settings("operator")
    root = module("nats", NATS_JS)
    done = subprocess.run(
        ["node", str(SCRIPT), str(root), settings.url, settings.user, settings.password, *argv],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_services(broker: EmbeddedBroker, gateway: Running) -> None:
    found = await asyncio.to_thread(read, broker, "services")
    for verb in ("ping", "info", "stats"):
        (answer,) = [one for one in found[verb] if one["name"] == "plexus-gateway"]
        micro_schemas.check(verb.upper(), answer)
        assert answer["id"] == gateway.id


async def test_streams_and_consumers(broker: EmbeddedBroker, gateway: Running, replica: FakeReplica) -> None:
    assert (await gateway.ask(max_tokens=2)).status_code == 200
    found = await asyncio.to_thread(read, broker, "streams")
    assert {"JOBS", "EVENTS", "KV_fleet", "KV_plan"} <= set(found["streams"])
    assert names.job_consumer(MODEL, "interactive") in found["consumers"]


async def test_buckets(broker: EmbeddedBroker, gateway: Running) -> None:
    found = await asyncio.to_thread(read, broker, "bucket", "plan", names.model_key(MODEL))
    assert names.model_key(MODEL) in found["keys"]
    assert json.loads(found["value"])["id"] == MODEL
    assert [one["operation"] for one in found["history"]] == ["PUT"]
    # What is written while it watches comes to it.
    key = names.intent_key(MODEL)
    watched = await asyncio.to_thread(read, broker, "watch", "plan", key, '{"want": "loaded"}')
    assert watched == [
        {"key": key, "operation": "PUT", "value": '{"want": "loaded"}'},
        {"key": key, "operation": "DEL"},
    ]
