"""The HTTP surface of a real gateway: what every answer bears, and how every bad request is refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from gateway.app import ROUTES
from gateway.errors import MethodNotAllowed
from shared.broker import EmbeddedBroker
from shared.bus import Bus
from shared.settings import GatewaySettings
from tests.support.eventually import eventually
from tests.support.fake_replica import FakeReplica
from tests.support.running_gateway import MODEL, Running, put_model, running_gateway

JSON = {"content-type": "application/json"}
HI = b'{"model":"acme/fake-1","messages":[{"role":"user","content":"hi"}]'


@pytest.fixture
async def gateway(broker: EmbeddedBroker, bus: Bus) -> AsyncIterator[Running]:
    """A gateway that knows one model and takes bodies of up to 100 kB."""
    await put_model(bus)
    async with running_gateway(broker, max_body_bytes=100_000) as gateway:
        yield gateway


@pytest.fixture
async def replica(broker: EmbeddedBroker, gateway: Running) -> AsyncIterator[FakeReplica]:
    """A replica of that model."""
    replica = await FakeReplica.start(broker, MODEL)
    yield replica
    await replica.close()


def error_in(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, which must be an envelope with an id."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == response.headers["request-id"]
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"] == "server_error") == (status >= 500)
    return error


async def test_an_answer_in_one_piece(gateway: Running, replica: FakeReplica) -> None:
    response = await gateway.ask(max_tokens=3, wibble=1)
    body = response.json()
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == " t0 t1 t2"
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert response.headers["x-plexus-ignored"] == "wibble"
    assert response.headers["x-request-id"] == "req_" + body["id"].removeprefix("chatcmpl-")
    assert replica.received[0].id == body["id"].removeprefix("chatcmpl-")


async def test_the_openai_sdk(gateway: Running, replica: FakeReplica) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        models = [model.id async for model in client.models.list()]
        assert models == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        whole = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], n=2)
        assert [choice.message.content for choice in whole.choices] == [" t0 t1 t2 t3 t4 t5 t6 t7"] * 2
        assert whole._request_id == f"req_{whole.id.removeprefix('chatcmpl-')}"
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == " t0 t1 t2 t3 t4 t5 t6 t7"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 8
        with pytest.raises(openai.NotFoundError, match="did you mean acme/fake-1"):
            await client.chat.completions.create(model="acme/fake", messages=[{"role": "user", "content": "x"}])
        replica.failure = ("engine_error", "the engine failed", None)
        with pytest.raises(openai.InternalServerError, match="the engine failed"):
            await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])


BAD_BODIES: list[tuple[bytes, dict[str, str], int, str | None, str]] = [
    (b"", JSON, 400, None, "invalid_json"),
    (b"{", JSON, 400, None, "invalid_json"),
    (b"[1]", JSON, 400, None, "invalid_json"),
    (b"null", JSON, 400, None, "invalid_json"),
    (b"\xff\x00", JSON, 400, None, "invalid_json"),
    (b"[" * 50_000, JSON, 400, None, "invalid_json"),
    (HI + b',"temperature":NaN}', JSON, 400, "temperature", "invalid_json"),
    (HI + b',"temperature":1e999}', JSON, 400, "temperature", "invalid_json"),
    (HI + b',"stop":"\\ud800"}', JSON, 400, "stop", "invalid_json"),
    (HI + b',"stop":"\\u0000"}', JSON, 400, "stop[0]", "invalid_request"),
    (HI + b',"seed":123456789012345678901234567890}', JSON, 400, "seed", "invalid_request"),
    (HI + b',"n":0}', JSON, 400, "n", "invalid_request"),
    (HI + b',"n":17}', JSON, 400, "n", "invalid_request"),
    (HI + b',"top_logprobs":3}', JSON, 400, "top_logprobs", "invalid_request"),
    (HI + b',"temperature":2.5}', JSON, 400, "temperature", "invalid_request"),
    (HI + b',"tool_choice":"required"}', JSON, 400, "tool_choice", "invalid_request"),
    (HI + b',"response_format":{"type":"yaml"}}', JSON, 400, "response_format.type", "unsupported_parameter"),
    (HI + b',"modalities":["audio"]}', JSON, 400, "modalities", "unsupported_parameter"),
    (b'{"messages":[]}', JSON, 400, "model", "invalid_request"),
    (b'{"model":"acme/fake-1"}', JSON, 400, "messages", "invalid_request"),
    (b'{"model":"acme/fake-1","messages":[]}', JSON, 400, "messages", "invalid_request"),
    (
        b'{"model":"acme/fake-1","messages":[{"role":"user","content":[{"type":"image_url"}]}]}',
        JSON,
        400,
        "messages[0].content[0].image_url",
        "invalid_request",
    ),
    (b'{"model":"acme/fake-1","messages":[{"role":"robot"}]}', JSON, 400, "messages[0].role", "invalid_request"),
    (b'{"model":"\\n\\u0007/../x","messages":[{"role":"user","content":""}]}', JSON, 404, "model", "model_not_found"),
    (b'{"model":"acme/fake","messages":[{"role":"user","content":""}]}', JSON, 404, "model", "model_not_found"),
    (HI + b"}", {"content-type": "text/plain"}, 415, None, "unsupported_media_type"),
    (HI + b"}", {}, 415, None, "unsupported_media_type"),
    (HI + b"}", JSON | {"content-encoding": "gzip"}, 415, None, "unsupported_media_type"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_bad_bodies_are_refused_by_name(gateway: Running, replica: FakeReplica, stream: bool) -> None:
    for content, headers, status, param, code in BAD_BODIES:
        if stream and content.startswith(b"{") and content.endswith(b"}"):
            content = content[:-1] + b',"stream":true}'
        response = await gateway.http.post("/v1/chat/completions", content=content, headers=headers)
        error = error_in(response, status)
        assert (error["param"], error["code"]) == (param, code), content
    assert replica.received == []


async def test_an_unknown_model_names_near_ones(gateway: Running) -> None:
    error = error_in(await gateway.ask(model="Acme/Fake-2"), 404)
    assert "did you mean acme/fake-1?" in error["message"]


async def test_a_body_over_the_limit_is_refused_with_the_numbers(gateway: Running) -> None:
    error = error_in(await gateway.http.post("/v1/chat/completions", content=b"x" * 100_001, headers=JSON), 413)
    assert "100001" in error["message"]
    assert "100000" in error["message"]


async def test_a_body_of_unknown_length_over_the_limit_is_refused(gateway: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    response = await gateway.http.post("/v1/chat/completions", content=endless(), headers=JSON)
    assert "at most 100000" in error_in(response, 413)["message"]


async def test_a_job_over_the_limit_of_the_bus_is_refused_with_the_numbers(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, max_body_bytes=64 << 20) as gateway:
        content = "x" * (bus.max_payload + 1000)
        response = await gateway.ask(messages=[{"role": "user", "content": content}])
        error = error_in(response, 413)
        assert error["code"] == "job_too_large"
        assert str(bus.max_payload) in error["message"]


async def test_an_invalid_prompt_is_a_true_4xx_also_on_a_stream(gateway: Running, replica: FakeReplica) -> None:
    replica.failure = ("context_length_exceeded", "This model's maximum context length is 8 tokens.", None)
    error = error_in(await gateway.ask(stream=True), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    replica.failure = ("invalid_request", "bad template", "messages[0]")
    assert error_in(await gateway.ask(stream=True), 400)["param"] == "messages[0]"
    assert error_in(await gateway.ask(), 400)["message"] == "bad template"


async def test_what_is_not_there(gateway: Running) -> None:
    http = gateway.http
    assert "/v1/chat/completions" in error_in(await http.get("/nowhere"), 404)["message"]
    assert error_in(await http.post("/v1/rerank", json={}), 404)["code"] == "not_found"
    response = await http.get("/v1/chat/completions")
    assert error_in(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert error_in(await http.delete("/v1/models"), 405)["code"] == "method_not_allowed"
    assert error_in(await http.get("/v1/models/acme/nope"), 404)["code"] == "model_not_found"
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x", "sec-websocket-version": "13"}
    for path in ("/v1/responses", "/v1/chat/completions", "/nowhere"):
        response = await http.get(path, headers=upgrade)
        assert error_in(response, 405)["code"] == "method_not_allowed"
        assert response.headers["connection"] == "close"
    for path in ("/", "/api/hello", "/health"):
        assert (await http.head(path)).status_code == 200


async def test_every_dialect_is_described_and_errs_in_its_own_envelope(gateway: Running) -> None:
    described = (await gateway.http.get("/openapi.json")).json()["paths"]
    for path, dialect in ROUTES:
        assert described[path]["post"]["summary"] == dialect.summary
        error = MethodNotAllowed(f"{path} takes POST, not GET.")
        assert (await gateway.http.get(path)).content == dialect.error_body(error)


async def test_models(gateway: Running, bus: Bus, replica: FakeReplica) -> None:
    body = (await gateway.http.get("/v1/models?limit=1000")).json()
    assert [(one["id"], one["object"], one["state"]) for one in body["data"]] == [(MODEL, "model", "ready")]
    one = (await gateway.http.get(f"/v1/models/{MODEL}")).json()
    assert (one["id"], one["max_model_len"], one["workers"]) == (MODEL, 4096, ["w1"])


async def test_health_tells_the_truth_and_is_always_answered(
    broker: EmbeddedBroker, gateway: Running, replica: FakeReplica
) -> None:
    async def ready() -> bool:
        return bool((await gateway.http.get("/health")).json()["replicas_ready"])

    await eventually(ready)  # the gateway hears of the replica from the bus
    response = await gateway.http.get("/health")
    health = response.json()
    assert (response.status_code, health["status"], health["gateway"]) == (200, "ok", gateway.id)
    assert (health["bus"], health["replicas_ready"], health["models"]) == ({"connected": True}, 1, {MODEL: "ready"})
    assert (await gateway.http.head("/health")).status_code == 200
    assert (await gateway.http.get("/")).json()["name"] == "plexus"
    broker.kill()
    while (await gateway.http.get("/health")).json()["bus"]["connected"]:
        pass
    response = await gateway.http.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")


async def test_health_is_degraded_while_a_wanted_model_is_not_ready(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus, want="loaded")
    async with running_gateway(broker) as gateway:
        health = (await gateway.http.get("/health")).json()
        assert (health["status"], health["missing"]) == ("degraded", [MODEL])


async def test_a_full_queue_is_a_429_with_a_short_wait(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with (
        running_gateway(broker, max_queue_per_model=1, accept_wait_s=0) as gateway,
        gateway.http.stream("POST", "/v1/chat/completions", json=gateway.chat(stream=True)) as waiting,
    ):
        assert waiting.status_code == 200
        response = await gateway.ask()
        assert error_in(response, 429)["type"] == "rate_limit_error"
        assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_the_limit_of_the_stream_is_a_429_too(broker: EmbeddedBroker, bus: Bus) -> None:
    await put_model(bus)
    async with running_gateway(broker, accept_wait_s=0) as gateway:
        info = await bus.api("STREAM.INFO.JOBS", {})
        await bus.api("STREAM.UPDATE.JOBS", info["config"] | {"max_msgs_per_subject": 1})
        async with gateway.http.stream("POST", "/v1/chat/completions", json=gateway.chat(stream=True)) as waiting:
            assert waiting.status_code == 200
            lines = waiting.aiter_lines()
            assert (await anext(lines)).startswith(": plexus state=cold")
            while not (await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"]:
                pass
            response = await gateway.ask()
            assert error_in(response, 429)["code"] == "queue_full"


async def test_a_job_for_a_model_that_an_operator_unloaded_waits_until_it_is_there(
    broker: EmbeddedBroker, bus: Bus
) -> None:
    await put_model(bus, want="unloaded")
    async with running_gateway(broker, accept_wait_s=0.2) as gateway:
        asking = asyncio.create_task(gateway.ask(max_tokens=4))
        async with asyncio.timeout(10):
            while not (await bus.api("STREAM.INFO.JOBS", {}))["state"]["messages"]:
                assert not asking.done()
        replica = await FakeReplica.start(broker, MODEL)
        response = await asking
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["completion_tokens"] == 4
        await replica.close()


async def test_metrics_are_served_apart(gateway: Running, replica: FakeReplica) -> None:
    await gateway.ask(max_tokens=4)
    await gateway.ask(model="nope")
    assert await gateway.metric(f'plexus_requests_total{{model="{MODEL}",outcome="ok",worker="w1"}}') == 1
    assert await gateway.metric(f'plexus_completion_tokens_total{{model="{MODEL}",worker="w1"}}') == 4
    assert await gateway.metric('plexus_errors_total{kind="model_not_found"}') == 1
    assert await gateway.metric(f'plexus_in_flight{{model="{MODEL}"}}') == 0
    assert await gateway.metric("plexus_replica_load_seconds") == 1.5
    assert (await gateway.http.get(gateway.metrics_url.replace("/metrics", "/x"))).status_code == 404
    assert (await gateway.http.get("/metrics")).status_code == 404


async def test_one_log_line_for_each_outcome(
    gateway: Running, replica: FakeReplica, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="gateway"):
        await gateway.ask(max_tokens=4)
        await gateway.ask(model="nope")
        await gateway.http.post("/v1/chat/completions", content=b"{", headers=JSON)
        await eventually(lambda: len([record for record in caplog.records if record.msg == "request"]) == 3)
    lines: list[dict[str, Any]] = [record.__dict__["fields"] for record in caplog.records if record.msg == "request"]
    assert [(line["status"], line["outcome"]) for line in lines] == [
        (200, "ok"),
        (404, "model_not_found"),
        (400, "invalid_request"),
    ]
    assert (lines[0]["model"], lines[0]["worker"], lines[0]["completion_tokens"]) == (MODEL, "w1", 4)
    assert lines[0]["ttft"] > 0
    assert lines[0]["attempts"] == 1


def test_defaults_are_loopback() -> None:
    settings = GatewaySettings()
    assert settings.listen.startswith("127.0.0.1:")
    assert settings.metrics_listen.startswith("127.0.0.1:")
