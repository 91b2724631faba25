"""One fleet of two gateways and two workers, over HTTP from outside."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from gateway.cli import intents
from gateway.cli.home import DataDir
from shared.bus import Bus
from shared.settings import BusSettings
from tests.support.eventually import eventually
from tests.support.fleet_process import FleetProcess, Running, chat_body, content, events

TIMEOUT = httpx.Timeout(60.0)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[FleetProcess]:
    """Two workers, each with a replica of `tiny`."""
    with FleetProcess(tmp_path_factory.mktemp("fleet"), "--workers", "2", "--model", tiny) as fleet:
        yield fleet.started()


@pytest.fixture(scope="module")
def second_gateway(fleet: FleetProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of another gateway of the same fleet."""
    folder = tmp_path_factory.mktemp("gateway")
    user = json.loads((fleet.data_dir / "nats" / "passwords.json").read_text())
    config = folder / "gateway.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        f'[bus]\nurl = "{fleet.facts["nats"]}"\nuser = "gateway"\npassword = "{user["gateway"]}"\n'
    )
    with Running(folder / "serve.log", "serve", "--config", config, "--json") as gateway:
        yield f"{gateway.line()['url']}/v1"
        assert gateway.end() == 0


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        yield client


async def answer(http: httpx.AsyncClient, api: str, **body: object) -> dict[str, object]:
    response = await http.post(f"{api}/chat/completions", json=chat_body(**({"model": "tiny"} | body)))
    assert response.status_code == 200, response.text
    facts: dict[str, object] = response.json()
    return facts


async def stream(http: httpx.AsyncClient, api: str, **body: object) -> list[dict[str, object]]:
    response = await http.post(f"{api}/chat/completions", json=chat_body(**({"model": "tiny"} | body), stream=True))
    assert response.status_code == 200, response.text
    return events(response)


def text_of(facts: dict[str, object]) -> str:
    return str(facts["choices"][0]["message"]["content"])  # type: ignore[index]


async def test_the_given_models_are_listed(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    listed = (await http.get(f"{fleet.api}/models")).json()
    assert "tiny" in [model["id"] for model in listed["data"]]


async def test_an_answer_has_text_usage_and_a_finish_reason(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    facts = await answer(http, fleet.api, max_tokens=12, ignore_eos=True)
    assert facts["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
    assert facts["usage"]["completion_tokens"] == 12  # type: ignore[index]
    assert text_of(facts)


async def test_a_stream_says_the_same_as_a_whole_answer(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    whole = await answer(http, fleet.api, max_tokens=40)
    chunks = await stream(http, fleet.api, max_tokens=40)
    assert content(chunks) == text_of(whole)
    assert len(chunks) > 10


async def test_both_gateways_and_both_workers_give_the_same_answer(
    fleet: FleetProcess, second_gateway: str, http: httpx.AsyncClient
) -> None:
    apis = [fleet.api, second_gateway] * 8
    answers = await asyncio.gather(*(answer(http, api, max_tokens=60, ignore_eos=True) for api in apis))
    assert len({text_of(one) for one in answers}) == 1
    metrics = (await http.get(str(fleet.facts["metrics"]))).text
    served = set(re.findall(r'plexus_requests_total\{[^}]*model="tiny"[^}]*worker="(worker-\d)"', metrics))
    assert served == {"worker-1", "worker-2"}


async def test_sixteen_streams_at_once_keep_apart(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    def body(number: int) -> dict[str, object]:
        return {"text": f"Tell me about the number {number}.", "max_tokens": 24 + number, "ignore_eos": True}

    alone = [await stream(http, fleet.api, **body(number)) for number in range(16)]
    together = await asyncio.gather(*(stream(http, fleet.api, **body(number)) for number in range(16)))
    assert [content(chunks) for chunks in together] == [content(chunks) for chunks in alone]
    assert len({content(chunks) for chunks in together}) == 16


async def test_an_unknown_model_is_a_404(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    response = await http.post(f"{fleet.api}/chat/completions", json=chat_body("nothing"))
    assert response.status_code == 404
    assert "nothing" in response.json()["error"]["message"]


async def test_a_cancelled_stream_leaves_the_worker_and_the_queue(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    body = chat_body("tiny", stream=True, n=8, max_tokens=480, ignore_eos=True)
    async with http.stream("POST", f"{fleet.api}/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if '"content"' in line:
                break
    log = fleet.data_dir / "logs" / "gateway.log"
    await eventually(lambda: "outcome=cancelled" in log.read_text())

    def is_idle() -> bool:
        facts = fleet.status()
        return not facts["queued"] + facts["running"] and not any(one.get("running") for one in facts["replicas"])

    await eventually(is_idle, timeout_s=10.0)


async def test_jobs_wait_for_a_model_until_it_is_loaded(
    fleet: FleetProcess, http: httpx.AsyncClient, other: Path
) -> None:
    await asyncio.to_thread(fleet.operate, "load", other)
    waiting = [asyncio.create_task(stream(http, fleet.api, model="other", max_tokens=8)) for _ in range(3)]
    first = {content(await one) for one in waiting}
    assert len(first) == 1
    assert first != {""}
    (row,) = (row for row in fleet.status()["models"] if row["model"] == "other")
    assert (row["state"], row["want"], row["queued"]) == ("ready", "loaded", 0)
    await asyncio.to_thread(fleet.operate, "unload", "other", "--wait")
    (row,) = (row for row in fleet.status()["models"] if row["model"] == "other")
    assert (row["state"], row["want"], row["ready"]) == ("cold", "unloaded", 0)
    cold = asyncio.create_task(stream(http, fleet.api, model="other", max_tokens=8))
    await eventually(lambda: queued(fleet, "other") == 1)
    await asyncio.to_thread(fleet.operate, "load", "other", "--wait")
    assert {content(await cold)} == first
    assert queued(fleet, "other") == 0


def queued(fleet: FleetProcess, model: str) -> int:
    """Jobs that wait for the model, by `plexus status`."""
    return int(next(row["queued"] for row in fleet.status()["models"] if row["model"] == model))


async def test_a_model_that_nobody_wanted_is_loaded_when_a_job_asks_for_it(
    fleet: FleetProcess, http: httpx.AsyncClient, other: Path
) -> None:
    file = DataDir(fleet.data_dir).read()
    settings = BusSettings(url=file.nats, user=file.user, password=file.password)
    async with await Bus.connect(settings, kind="cli", ident="test") as bus:
        on_demand = intents.named_model(str(other))
        on_demand.id = "on-demand"
        await intents.put_model(bus, on_demand)
    await eventually(lambda: http_lists(fleet.api, "on-demand"))
    assert content(await stream(http, fleet.api, model="on-demand", max_tokens=8))


def http_lists(api: str, model: str) -> bool:
    return model in [one["id"] for one in httpx.get(f"{api}/models").json()["data"]]


async def test_status_shows_the_whole_fleet(fleet: FleetProcess, second_gateway: str) -> None:
    facts = await eventually(lambda: len((now := fleet.status())["gateways"]) == 2 and now)
    assert [worker["name"] for worker in facts["workers"]] == ["worker-1", "worker-2"]
    assert all(worker["devices"] for worker in facts["workers"])
    ready = [one["worker"] for one in facts["replicas"] if (one["model"], one["state"]) == ("tiny", "ready")]
    assert sorted(ready) == ["worker-1", "worker-2"]
    table = fleet.operate("status")
    assert all(word in table for word in ("worker-1", "worker-2", "tiny", "gateways"))


async def test_a_model_can_leave_one_worker(fleet: FleetProcess, http: httpx.AsyncClient) -> None:
    await asyncio.to_thread(fleet.operate, "unload", "tiny", "--on", "worker-2", "--wait")
    await answer(http, fleet.api, max_tokens=4)
    assert [one["worker"] for one in fleet.status()["replicas"] if one["model"] == "tiny"] == ["worker-1"]
    await asyncio.to_thread(fleet.operate, "load", "tiny", "--replicas", "2", "--wait")
    (row,) = (row for row in fleet.status()["models"] if row["model"] == "tiny")
    assert (row["ready"], row["detail"]) == (2, "on worker-1, worker-2")


async def test_load_refuses_what_it_cannot_understand(fleet: FleetProcess) -> None:
    with pytest.raises(AssertionError, match="neither a directory nor a hub id"):
        fleet.operate("load", "no-such-model")
    with pytest.raises(AssertionError, match=r"no worker w9 \(there are: worker-1, worker-2\)"):
        fleet.operate("load", "tiny", "--on", "w9")


async def test_chat_answers_in_the_terminal(fleet: FleetProcess) -> None:
    out = await asyncio.to_thread(fleet.operate, "chat", "tiny", typed="Tell me a story.\n/exit\n")
    assert out.strip()
    with pytest.raises(AssertionError, match="nothing"):
        await asyncio.to_thread(fleet.operate, "chat", "nothing", typed="hi\n")
