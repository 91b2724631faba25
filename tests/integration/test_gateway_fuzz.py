"""Bodies of strangers: whatever comes, the gateway answers soon, in an envelope, and never with an error of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import Bus, Msg
from shared.messages import Counted, encode
from tests.support import mutations
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway

EMBEDDER = "acme/embed-1"
BODIES = mutations.bodies(MODEL, EMBEDDER)
CLASSES: tuple[names.JobClass, ...] = ("interactive", "batch")
ANSWER_S = 15.0
CHECKS: list[Any] = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway with a replica of a chat model, one of an embedding model, and somebody who counts tokens."""
    await put_model(bus)
    await put_model(bus, EMBEDDER, task="embed")

    async def count(message: Msg) -> None:
        await worker.publish(message.reply, encode(Counted(tokens=7)))

    async with (
        running_gateway(broker) as gateway,
        await Bus.connect(broker.bus_settings("worker"), kind="replica", ident="counter") as worker,
    ):
        await worker.subscribe(names.COUNT, count, queue=names.COUNT_QUEUE)
        replicas = [
            await FakeReplica.start(broker, model, pace_s=0.0, job_class=job_class)
            for model in (MODEL, EMBEDDER)
            for job_class in CLASSES
        ]
        for replica in replicas:
            replica.script = lambda job: [("a", None, None), ("b", None, "stop")]  # however many tokens are asked for
        yield gateway
        for replica in replicas:
            await replica.close()


def limited(num_examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples, always the same, whatever they cost."""
    return settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],  # a failure is told as it was found: to shrink it takes minutes
        suppress_health_check=list(HealthCheck),
    )


def judge(response: httpx.Response) -> None:
    """An answer that a client can live with."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["type"] not in ("server_error", "api_error"), error
        assert response.headers["x-request-id"].startswith("req_")
    elif response.headers["content-type"].startswith("text/event-stream"):
        last = response.text.strip().splitlines()[-1]
        assert last == "data: [DONE]" or json.loads(last.removeprefix("data: ")), response.text[-300:]
    else:
        assert isinstance(response.json(), dict)


def send_mutations(url: str, path: str, num_examples: int) -> None:
    """Mutations of the bodies of a path, one after another."""
    with httpx.Client(base_url=url, timeout=ANSWER_S) as http:
        http.headers["content-type"] = "application/json"
        for body in BODIES[path]:
            judge(http.post(path, json=body))  # as it is, each is valid

        @limited(num_examples)
        @given(content=mutations.mutated(BODIES[path]))
        def run(content: bytes) -> None:
            judge(http.post(path, content=content))

        run()


def send_generated(url: str, document: dict[str, Any], num_examples: int) -> None:
    """What a tool makes of the API's own document, for every operation in it."""
    for name, model in (("ChatRequest", MODEL), ("CompletionRequest", MODEL), ("EmbeddingRequest", EMBEDDER)):
        document["components"]["schemas"][name]["properties"]["model"] = {"const": model}
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():
        operation = result.ok()

        @limited(num_examples)
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            response = case.call(base_url=url, timeout=ANSWER_S)
            case.validate_response(response, checks=CHECKS)

        run()


async def document_of(gateway: Running) -> dict[str, Any]:
    document: dict[str, Any] = (await gateway.http.get("/openapi.json")).json()
    return document


@pytest.mark.parametrize("path", sorted(BODIES))
async def test_mutations_of_valid_bodies(gateway: Running, path: str) -> None:
    await asyncio.to_thread(send_mutations, gateway.url, path, 20)


async def test_what_the_apis_own_document_allows(gateway: Running) -> None:
    await asyncio.to_thread(send_generated, gateway.url, await document_of(gateway), 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", sorted(BODIES))
async def test_many_mutations_of_valid_bodies(gateway: Running, path: str) -> None:
    await asyncio.to_thread(send_mutations, gateway.url, path, 3000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_much_of_what_the_apis_own_document_allows(gateway: Running) -> None:
    await asyncio.to_thread(send_generated, gateway.url, await document_of(gateway), 500)
