"""The connection against a real server that is killed, frozen and offended."""

import asyncio

import pytest
import uvloop

from shared import names
from shared.broker import EmbeddedBroker
from shared.bus import OUTBOUND_BYTES, Bus, Msg
from shared.client import GuardedClient
from shared.errors import BadSubject, BusTimeout, BusUnavailable, NoResponders, PayloadTooLarge
from shared.settings import BusSettings
from tests.support.eventually import eventually
from tests.support.freeze import frozen


async def echo(bus: Bus, subject: str = "plexus.gw.echo.rpc") -> str:
    """Answer on the subject with what was sent."""

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await bus.subscribe(subject, answer)
    await bus.flush()
    return subject


async def test_request_and_answer(connect):
    gateway, worker = await connect("gateway"), await connect("worker")
    subject = await echo(gateway)
    assert await worker.request(subject, b"hello", timeout_s=5) == b"hello"
    answers = await asyncio.gather(*(worker.request(subject, b"%d" % n, timeout_s=2) for n in range(200)))
    assert answers == [b"%d" % n for n in range(200)]


async def test_nobody_listening_is_known_at_once(connect):
    bus = await connect()
    with pytest.raises(NoResponders):
        await bus.request("plexus.gw.nobody.rpc", b"", timeout_s=60)


async def test_no_answer_is_a_timeout(connect):
    bus = await connect()

    async def ignore(message: Msg) -> None:
        pass

    await bus.subscribe("plexus.gw.mute.rpc", ignore)
    with pytest.raises(BusTimeout) as caught:
        await bus.request("plexus.gw.mute.rpc", b"", timeout_s=0.05)
    assert caught.value.timeout_s == 0.05
    assert not bus._waiting


async def test_flush_means_that_the_server_knows(connect):
    listener, asker = await connect("gateway"), await connect("worker")
    for number in range(50):
        subject = await echo(listener, f"plexus.gw.flush{number}.rpc")
        assert await asker.request(subject, b"x", timeout_s=5) == b"x"


async def test_late_pong_does_not_kill_the_connection(broker, connect):
    bus = await connect()
    subject = await echo(bus)
    with frozen(broker.pid), pytest.raises(BusUnavailable):
        await bus.flush(timeout_s=0.05)
    assert await bus.request(subject, b"x", timeout_s=5) == b"x"
    assert bus._client.stats["reconnects"] == 0


async def test_dead_read_loop_is_noticed(connect):
    bus = await connect()
    subject = await echo(bus)
    bus._client._reading_task.cancel()
    await eventually(lambda: bus._client.stats["reconnects"] == 1)
    assert await eventually(lambda: bus.request(subject, b"x", timeout_s=0.5)) == b"x"


async def test_client_that_closed_for_good_is_replaced(connect):
    bus = await connect()
    subject = await echo(bus)
    again = asyncio.Event()

    async def note() -> None:
        again.set()

    bus.on_reconnect(note)
    old = bus._client
    # Behind the guard: the server answers this with an error on which the library gives up.
    await GuardedClient.publish(old, "plexus.x", b"x" * bus.max_payload, headers={"A": "b"})
    await asyncio.wait_for(again.wait(), 5)
    assert old.is_closed and bus.is_connected
    assert await bus.request(subject, b"x", timeout_s=5) == b"x"


async def test_oversized_message_is_refused_and_the_connection_lives(connect):
    bus = await connect()
    subject = await echo(bus)
    assert bus.max_payload == 33_000_000
    headers = {"Nats-Msg-Id": "ä" * 10}
    room = bus.max_payload - len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n") - 20
    with pytest.raises(PayloadTooLarge) as caught:
        await bus.publish(subject, b"x" * (room + 1), headers=headers)
    assert (caught.value.size, caught.value.limit) == (bus.max_payload + 1, bus.max_payload)
    await bus.publish(subject, b"x" * room, headers=headers)  # exactly full
    assert await bus.request(subject, b"still here", timeout_s=5) == b"still here"
    assert bus._client.stats["reconnects"] == 0


@pytest.mark.parametrize("subject", ["", "plexus.a b", "plexus.a\r\nPUB x 0", "plexus." + "x" * 5000])
async def test_bad_subject_is_refused_and_the_connection_lives(connect, subject):
    bus = await connect()
    with pytest.raises(BadSubject):
        await bus.publish(subject, b"")
    with pytest.raises(BadSubject):
        await bus.publish(names.no_responders("r", "x" * 4000), b"")
    assert await bus.request(await echo(bus), b"x", timeout_s=5) == b"x"
    assert bus._client.stats["reconnects"] == 0


async def test_failing_callbacks_do_not_stop_a_subscription(connect):
    bus = await connect()
    seen: list[bytes] = []

    async def fragile(message: Msg) -> None:
        seen.append(message.data)
        if message.data == b"raise":
            raise RuntimeError("on purpose")
        if message.data == b"cancelled":
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    await bus.subscribe("plexus.gw.a.tok", fragile)
    for data in (b"raise", b"cancelled", b"fine"):
        await bus.publish("plexus.gw.a.tok", data)
    await eventually(lambda: seen == [b"raise", b"cancelled", b"fine"])


async def test_callbacks_run_one_after_another(connect):
    bus = await connect()
    running, order = 0, []

    async def slow(message: Msg) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.01)
        order.append(message.data)
        running -= 1

    await bus.subscribe("plexus.gw.a.tok", slow)
    for number in range(5):
        await bus.publish("plexus.gw.a.tok", b"%d" % number)
    await eventually(lambda: order == [b"0", b"1", b"2", b"3", b"4"])


async def test_unsubscribe_ends_it(connect):
    bus = await connect()
    subject = "plexus.gw.a.rpc"

    async def answer(message: Msg) -> None:
        await message.respond(b"")

    subscription = await bus.subscribe(subject, answer)
    await bus.request(subject, b"", timeout_s=5)
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    with pytest.raises(NoResponders):
        await bus.request(subject, b"", timeout_s=5)


async def test_error_callback_never_raises(connect, monkeypatch):
    bus = await connect()

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("shared.connection.log.warning", refuse)
    await bus._client._error_cb(RuntimeError("an error"))
    assert await bus.request(await echo(bus), b"x", timeout_s=5) == b"x"


async def test_reconnects_however_long_it_takes(broker, connect):
    bus = await connect()
    subject = await echo(bus)
    called = 0

    async def failing() -> None:
        raise RuntimeError("on purpose")

    async def count() -> None:
        nonlocal called
        called += 1

    bus.on_reconnect(failing)
    bus.on_reconnect(count)
    take_back = bus.on_reconnect(failing)
    take_back()
    broker.kill()
    await eventually(lambda: bus._client.server_pool[0].reconnects >= 8)
    assert not bus.is_connected
    await broker.start()
    await eventually(lambda: bus.is_connected and called == 1)
    assert await bus.request(subject, b"x", timeout_s=5) == b"x"


async def test_frozen_server_is_given_up(broker, connect, monkeypatch):
    monkeypatch.setattr("shared.connection.PING_S", 0.1)
    bus = await connect()
    with frozen(broker.pid):
        await eventually(lambda: not bus.is_connected)
    await eventually(lambda: bus.is_connected)


async def test_buffer_for_an_outage_is_bounded(broker, connect):
    bus = await connect()
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    with pytest.raises(BusUnavailable):
        for _ in range((OUTBOUND_BYTES >> 20) + 2):
            await bus.publish("plexus.gw.a.tok", b"x" * (1 << 20))
    assert OUTBOUND_BYTES - (2 << 20) < bus._client.pending_data_size <= OUTBOUND_BYTES + 4096
    await broker.start()
    await eventually(lambda: bus.is_connected)
    assert await bus.request(await echo(bus), b"x", timeout_s=5) == b"x"


async def test_publisher_that_waits_for_a_frozen_server_can_be_cancelled(broker, connect):
    bus = await connect()
    num_sent = 0

    async def publish() -> None:
        nonlocal num_sent
        while True:
            await bus.publish("plexus.gw.a.tok", b"x" * (1 << 20))
            num_sent += 1
            await asyncio.sleep(0)

    with frozen(broker.pid):
        task = asyncio.create_task(publish())
        await eventually(lambda: bus._client.pending_data_size > OUTBOUND_BYTES)
        await asyncio.sleep(0)
        before = num_sent
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)
        assert num_sent == before


async def test_request_in_flight_ends_with_the_connection(broker, connect):
    bus = await connect()

    async def ignore(message: Msg) -> None:
        pass

    await bus.subscribe("plexus.gw.mute.rpc", ignore)
    waiting = asyncio.create_task(bus.request("plexus.gw.mute.rpc", b"", timeout_s=60))
    await eventually(lambda: len(bus._waiting) == 1)
    broker.kill()
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(waiting, 5)


async def test_request_during_an_outage_is_sent_after_it(broker, connect):
    bus = await connect()
    subject = await echo(bus)
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    waiting = asyncio.create_task(bus.request(subject, b"x", timeout_s=10))
    await broker.start()
    assert await waiting == b"x"


async def test_without_wait_no_server_is_an_error(broker):
    settings = broker.bus_settings("gateway")
    await broker.stop()
    with pytest.raises(BusUnavailable, match=settings.url):
        await asyncio.wait_for(Bus.connect(settings, kind="cli", ident="x", wait=False), 20)


async def test_without_wait_a_wrong_password_is_an_error(broker):
    settings = BusSettings(url=broker.url, user="gateway", password="wrong")
    with pytest.raises(BusUnavailable, match="Authorization"):
        await Bus.connect(settings, kind="cli", ident="x", wait=False)


async def test_without_wait_it_still_reconnects_later(broker):
    async with await Bus.connect(broker.bus_settings("gateway"), kind="cli", ident="x", wait=False) as bus:
        broker.kill()
        await eventually(lambda: bus._client.server_pool[0].reconnects >= 4)
        await broker.start()
        await eventually(lambda: bus.is_connected)


async def test_with_wait_the_server_may_come_later(broker: EmbeddedBroker):
    settings = broker.bus_settings("gateway")
    await broker.stop()
    connecting = asyncio.create_task(Bus.connect(settings, kind="gateway", ident="x"))
    assert not (await asyncio.wait({connecting}, timeout=0.3))[0]
    await broker.start()
    async with await asyncio.wait_for(connecting, 5) as bus:
        assert bus.is_connected
    await bus.close()
    assert not bus.is_connected


async def test_waiting_for_a_server_can_be_cancelled(broker):
    settings = broker.bus_settings("gateway")
    await broker.stop()
    connecting = asyncio.create_task(Bus.connect(settings, kind="gateway", ident="x"))
    assert not (await asyncio.wait({connecting}, timeout=0.1))[0]
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_closing_sends_what_is_buffered(connect):
    listener, speaker = await connect("gateway", "one"), await connect("gateway", "two")
    seen: list[bytes] = []

    async def note(message: Msg) -> None:
        seen.append(message.data)

    await listener.subscribe("plexus.gw.a.tok", note)
    await listener.flush()
    await speaker.publish("plexus.gw.a.tok", b"last words")
    await speaker.close()
    await eventually(lambda: seen == [b"last words"])
    with pytest.raises(BusUnavailable):
        await speaker.publish("plexus.gw.a.tok", b"too late")


async def test_a_listener_hears_all_in_order_and_survives_its_own_errors(connect):
    bus, other = await connect("gateway"), await connect("worker")
    heard: list[bytes] = []

    def listener(message: Msg) -> None:
        heard.append(bytes(message.data))
        if message.data == b"0":
            raise RuntimeError("a defect of the listener")

    subscription = await bus.listen("plexus.gw.listen.rpc", listener)
    await bus.flush()
    for number in range(100):
        other.send("plexus.gw.listen.rpc", b"%d" % number)
    await eventually(lambda: heard == [b"%d" % number for number in range(100)])
    await subscription.unsubscribe()
    await bus.flush()
    assert len(bus._client._listeners) == 1  # of the answers to requests


async def test_what_is_sent_without_a_connection_waits_for_one_up_to_a_bound(broker, connect):
    bus = await connect("gateway")
    heard: list[bytes] = []
    await bus.listen("plexus.gw.later.rpc", lambda message: heard.append(bytes(message.data)))
    await bus.flush()
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    for number in range(3):
        bus.send("plexus.gw.later.rpc", b"%d" % number)
    with pytest.raises(BusUnavailable):
        for _ in range(OUTBOUND_BYTES // (512 << 10) + 1):
            bus.send("plexus.gw.later.rpc", b"x" * (512 << 10))
    await broker.start()
    await eventually(lambda: heard[:3] == [b"0", b"1", b"2"])


async def test_what_would_cost_the_connection_is_not_sent(connect):
    bus = await connect("gateway")
    for subject in ("", "plexus.gw.x y", "plexus.gw.x\r\nPUB y"):
        with pytest.raises(BadSubject):
            bus.send(subject, b"x")
    with pytest.raises(ValueError, match="line break"):
        bus.send("plexus.gw.x.rpc", b"x", headers={"name": "a\r\nb: c"})
    with pytest.raises(PayloadTooLarge):
        bus.send("plexus.gw.x.rpc", b"x" * (bus.max_payload + 1))
    assert await bus.request(await echo(bus), b"still here", timeout_s=5) == b"still here"


def send_more_than_sockets_hold(bus: Bus) -> None:
    for _ in range(20):
        bus.send("plexus.gw.a.tok", b"x" * (1 << 20))


async def test_a_frozen_server_that_has_not_taken_everything_is_given_up(broker, connect, monkeypatch):
    monkeypatch.setattr("shared.connection.PING_S", 0.1)
    bus = await connect()
    with frozen(broker.pid):
        send_more_than_sockets_hold(bus)
        await eventually(lambda: not bus._connected.is_set())
    await eventually(lambda: bus.is_connected)


async def test_closing_does_not_wait_for_a_frozen_server(broker, connect, monkeypatch):
    monkeypatch.setattr("shared.client.CLOSE_S", 0.2)
    bus = await connect()
    with frozen(broker.pid):
        send_more_than_sockets_hold(bus)
        async with asyncio.timeout(10):
            await bus.close()


def test_what_is_sent_before_a_loss_is_noticed_leaves_after_it(tmp_path):
    """uvloop closes the transport at once, the client notices some turns later: a send in between raised."""

    async def lose() -> None:
        async with (
            EmbeddedBroker(tmp_path / "nats") as broker,
            await Bus.connect(broker.bus_settings("gateway"), kind="gateway", ident="one") as bus,
            await Bus.connect(broker.bus_settings("gateway"), kind="gateway", ident="two") as other,
        ):
            heard: list[bytes] = []
            await other.listen("plexus.gw.lost.rpc", lambda message: heard.append(bytes(message.data)))
            await other.flush()
            bus._client._transport._io_writer.transport.abort()
            assert bus._client.is_connected
            bus.send("plexus.gw.lost.rpc", b"1")
            await bus.publish("plexus.gw.lost.rpc", b"2")
            await bus.subscribe("plexus.gw.later.rpc", lambda message: message.respond(b"3"))
            await eventually(lambda: heard == [b"1", b"2"])
            assert await other.request("plexus.gw.later.rpc", b"", timeout_s=5) == b"3"

    uvloop.run(lose())


async def test_a_client_that_has_a_successor_says_nothing(connect):
    bus = await connect()
    await bus._note_disconnect(GuardedClient())
    assert bus._connected.is_set()


async def test_a_refused_listener_hears_nothing_of_others(connect):
    bus = await connect()
    refused: list[Msg] = []
    with pytest.raises(BadSubject):
        await bus.listen("bad subject", refused.append)
    subject = await echo(bus)
    assert await bus.request(subject, b"x", timeout_s=5) == b"x"
    assert not refused
