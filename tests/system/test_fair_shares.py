"""A client with many requests beside a client with one: each has its turn, at one gateway and over two.

Who came before whom is counted, not timed: of the many, how many were answered while the one waited.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.separate_fleet import Gateway, SeparateFleet, models_toml, write_whole
from tests.support.synthetic import synthetic_model, write_synthetic

SLOTS = 2
FLOOD = 60
FEW = 20  # at most so many of them come before it: four that ran or were before it, and those that end beside it
CACHE = 320  # tokens
FLOODED, NARROW = "flooded", "narrow"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateFleet]:
    """Two gateways; a model whose replica takes two jobs at once, and one whose cache holds a single one."""
    folder = tmp_path_factory.mktemp("fleet")
    path = write_synthetic(folder / "model")
    records = [
        synthetic_model(FLOODED, path, tokens_per_s=120, max_slots=SLOTS),
        synthetic_model(NARROW, path, tokens_per_s=120, max_slots=8, context_limit=CACHE),
    ]
    records[1].options["cache_tokens"] = CACHE
    write_whole(folder / "models.toml", models_toml(records))
    with SeparateFleet(folder) as fleet:
        for _ in range(2):
            fleet.gateway(models=str(folder / "models.toml"))
        fleet.worker("w1", 1 << 30, cores=1, standby=False)
        for process in (*fleet.gateways, *fleet.workers.values()):
            process.started()
        yield fleet


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60.0, limits=httpx.Limits(max_connections=None)) as client:
        yield client


class Crowd:
    """Requests of one API key, all at once."""

    def __init__(self, http: httpx.AsyncClient, gateway: Gateway, model: str, key: str, count: int, words: int) -> None:
        self.num_answered = self.prompt_tokens = 0
        self._first = asyncio.Event()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._tasks = []
        for number in range(count):
            prompt = f"{key} {number}: " + "hi " * words  # all unlike from the start: none finds another's cache
            body = {"model": model, "prompt": prompt, "max_tokens": 12, "ignore_eos": True}
            self._tasks.append(asyncio.create_task(self._ask(http, gateway, body, headers)))

    async def _ask(
        self, http: httpx.AsyncClient, gateway: Gateway, body: dict[str, object], headers: dict[str, str]
    ) -> None:
        answer = await http.post(f"{gateway.url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        self.prompt_tokens = answer.json()["usage"]["prompt_tokens"]
        self.num_answered += 1
        self._first.set()

    async def has_begun(self) -> None:
        await self._first.wait()

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)

    async def leave(self) -> None:
        """The clients close their connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize(("model", "words"), [(FLOODED, 4), (NARROW, 120)])
async def test_one_request_beside_sixty_of_another_key_has_its_turn(
    fleet: SeparateFleet, http: httpx.AsyncClient, model: str, words: int
) -> None:
    here, there = fleet.gateways
    many = Crowd(http, here, model, "sk-many", FLOOD, words)
    try:
        await many.has_begun()
        for gateway, key in ((here, "sk-one"), (there, "sk-other"), (there, "")):
            before = many.num_answered
            await Crowd(http, gateway, model, key, 1, words).end()
            assert many.num_answered - before <= FEW, (gateway.id, key)
            assert many.num_answered < FLOOD  # else nothing was shown
        assert model == FLOODED or 2 * many.prompt_tokens > CACHE  # one fits at a time
    finally:
        await many.leave()


async def test_two_crowds_at_two_gateways_share_evenly(fleet: SeparateFleet, http: httpx.AsyncClient) -> None:
    first = Crowd(http, fleet.gateways[0], FLOODED, "sk-first", FLOOD, 4)
    try:
        await first.has_begun()
        before = first.num_answered
        await Crowd(http, fleet.gateways[1], FLOODED, "sk-second", 8, 4).end()
        assert first.num_answered - before <= 8 + FEW
    finally:
        await first.leave()
