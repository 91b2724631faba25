"""The standing pull, against a bus that only notes what it is told."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from worker.front.pull import PAUSES_S, SILENCE_S, Pull, PullState, priority


class NotedBus:
    """Notes publishes; delivers what the test says."""

    is_connected = True
    has_priority_pulls = True

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, Any], str]] = []
        self.answers: list[tuple[str, bytes]] = []
        self.listeners: dict[str, Callable[[Any], None]] = {}
        self._inboxes = 0

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"inbox{self._inboxes}"

    def send(self, subject: str, payload: bytes, *, reply: str = "") -> None:
        if subject == "pull":
            self.requests.append((json.loads(payload), reply))
        else:
            self.answers.append((subject, payload))

    async def listen(self, subject: str, listener: Callable[[Any], None]) -> Any:
        self.listeners[subject] = listener

        async def unsubscribe() -> None:
            del self.listeners[subject]

        return SimpleNamespace(unsubscribe=unsubscribe)

    def deliver(self, inbox: str, status: str = "", data: bytes = b"job") -> None:
        headers = {"Status": status} if status else None
        self.listeners[inbox](SimpleNamespace(headers=headers, data=data, reply="ack"))


class Fixture:
    def __init__(self) -> None:
        self.bus, self.now = NotedBus(), 0.0
        self.jobs: list[bytes] = []
        self.overs = 0
        self.pull = Pull(self.bus, "pull", self._on_job, self._on_over, clock=lambda: self.now)

    def _on_job(self, message: Any) -> None:
        self.jobs.append(message.data)

    def _on_over(self) -> None:
        self.overs += 1


async def test_one_request_stands_and_a_job_ends_it() -> None:
    f = Fixture()
    await f.pull.offer(4, 3)
    await f.pull.offer(4, 3)
    ((request, inbox),) = f.bus.requests
    assert request == {
        "batch": 1,
        "expires": 6_000_000_000,
        "idle_heartbeat": 2_500_000_000,
        "group": "g",
        "priority": 3,
    }
    f.bus.deliver(inbox)
    assert f.jobs == [b"job"] and f.overs == 0  # the next request is the caller's affair
    await f.pull.offer(4, 3)
    assert len(f.bus.requests) == 2 and f.bus.requests[1][1] == inbox


async def test_a_second_request_only_when_less_loaded_and_with_room() -> None:
    f = Fixture()
    await f.pull.offer(4, 3)
    await f.pull.offer(1, 1)
    await f.pull.offer(2, 4)
    assert len(f.bus.requests) == 1
    await f.pull.offer(2, 2)
    await f.pull.offer(9, 0)
    assert [request["priority"] for request, _ in f.bus.requests] == [3, 2]


async def test_no_room_no_request() -> None:
    f = Fixture()
    await f.pull.offer(0, 0)
    assert f.bus.requests == []


async def test_heartbeats_keep_it_alive_and_silence_takes_a_new_inbox() -> None:
    f = Fixture()
    await f.pull.offer(1, 0)
    f.now = SILENCE_S
    f.bus.deliver("inbox1", "100")
    f.now = 2 * SILENCE_S
    await f.pull.offer(1, 0)
    assert len(f.bus.requests) == 1 and f.overs == 0
    f.now += 0.01
    await f.pull.offer(1, 0)
    assert f.bus.requests[1][1] == "inbox2" and list(f.bus.listeners) == ["inbox2"]


async def test_an_expired_request_is_renewed_at_once() -> None:
    f = Fixture()
    await f.pull.offer(1, 0)
    f.bus.deliver("inbox1", "408")
    await f.pull.offer(1, 0)
    assert f.overs == 1 and len(f.bus.requests) == 2


async def test_without_a_consumer_it_asks_again_after_growing_pauses() -> None:
    f = Fixture()
    for pause_s in (*PAUSES_S, PAUSES_S[-1]):
        await f.pull.offer(1, 0)
        before = len(f.bus.requests)
        f.bus.deliver("inbox1", "503")
        f.now += pause_s - 0.001
        await f.pull.offer(1, 0)
        assert len(f.bus.requests) == before
        f.now += 0.002
    await f.pull.offer(1, 0)
    assert len(f.bus.requests) == before + 1


async def test_a_refused_group_is_left_out() -> None:
    f = Fixture()
    await f.pull.offer(1, 0)
    f.bus.deliver("inbox1", "400")
    f.now = PAUSES_S[0] + 0.01
    await f.pull.offer(1, 0)
    assert "group" not in f.bus.requests[1][0] and "priority" not in f.bus.requests[1][0]


async def test_paused_it_hears_nothing_and_a_late_job_goes_back() -> None:
    f = Fixture()
    await f.pull.offer(1, 0)
    listener = f.bus.listeners["inbox1"]
    await f.pull.pause()
    assert f.bus.listeners == {}
    listener(SimpleNamespace(headers=None, data=b"late", reply="ack"))
    assert f.jobs == [] and f.bus.answers == [("ack", b"-NAK")]


def test_how_long_nobody_had_a_job() -> None:
    state = PullState()
    assert state.stands_for(5.0) == 0.0
    state.sent(0, 5.0)
    assert state.stands_for(6.0) == 1.0
    state.heard("100", 6.0)
    assert state.stands_for(6.5) == 1.5
    state.heard("", 7.0)
    assert state.stands_for(8.0) == 0.0


def test_priorities() -> None:
    assert [priority(used, 32) for used in (0, 3, 4, 16, 31, 32, 40)] == [0, 0, 1, 5, 9, 9, 9]
    assert priority(0, 0) == 0
