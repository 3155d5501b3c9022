"""Events that outlive a connection: none lost, none twice, each name in order."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from rpc_support import outcome, session_of, virtual
from test_reconnect import IDENTITY, WIRE, client, down, server

from echostream import ConnectionClosed, Session, Unavailable
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Status
from echostream.errors import ProtocolError
from echostream.protocol import payload as payloads
from echostream.protocol.resumption import (
    ENTRY_OVERHEAD,
    JOURNAL_BYTES,
    JOURNAL_SPAN,
    Delivered,
    Entry,
    Journal,
    Outcomes,
)
from echostream.rpc.call import current_call
from echostream.rpc.context import ClientContext
from echostream.rpc.event_session import EventSessions
from echostream.testing import Impairment, QuicNetwork

HOLE = Impairment(blackhole=True)
NAMES = ["a", "b", "c", "d", "e", "f"]


class Heard:
    """What listeners heard, by name, over all servers or connections of a test."""

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = defaultdict(list)
        self.count = 0
        self.enough = asyncio.Event()
        self.expected = 0

    def listen(self, builder: Any, chance: random.Random | None = None) -> Any:
        def listener(name: str) -> Any:
            async def hear(value: Any) -> None:
                number = value if isinstance(value, int) else int.from_bytes(value[:4], "big")
                self.values[name].append(number)
                self.count += 1
                if 0 < self.expected <= self.count:
                    self.enough.set()
                if chance is not None and chance.random() < 0.05:
                    await asyncio.sleep(chance.random() * 0.3)

            return hear

        for name in NAMES:
            builder.listener(name, listener(name))
        return builder

    async def all(self, expected: int) -> None:
        self.expected = expected
        if self.count < expected:
            await self.enough.wait()

    def check(self, sent: dict[str, list[int]]) -> None:
        assert {name: self.values[name] for name in sent} == sent


def payload(number: int, chance: random.Random) -> Any:
    """Mostly small, sometimes one that has a lane of its own."""
    if chance.random() < 0.02:
        return number.to_bytes(4, "big") + bytes(40_000)
    return number


@pytest.mark.parametrize("upward", [True, False], ids=["to the server", "to the client"])
def test_every_event_arrives_once_over_many_losses(upward: bool, seed: int) -> None:
    """The path fails again and again; listeners dawdle; the server stays."""
    chance = random.Random(seed)
    heard: list[Heard] = []
    sent: dict[str, list[int]] = defaultdict(list)
    sessions: list[Session] = []

    async def on_connect(session: Session) -> None:
        sessions.append(session)

    async def talk(count: int, connected: RpcClient) -> None:
        for number in range(count):
            name = chance.choice(NAMES)
            while True:
                side: Any = connected if upward else sessions[-1]
                try:
                    await side.emit(name, payload(number, chance))
                    break
                except Exception:  # the session is over: the next one takes it
                    assert not upward
                    await asyncio.sleep(0.05)
            sent[name].append(number)
            if chance.random() < 0.02:
                await asyncio.sleep(chance.random() * 0.1)

    @virtual
    async def main() -> None:
        heard.append(Heard())
        serving, calling = server().on_connect(on_connect), client()
        serving.quic(keep_alive=0.5, idle_timeout=1.5)
        heard[0].listen(serving if upward else calling, chance)
        path = Impairment(delay=0.015, jitter=0.01, loss=0.03)
        async with QuicNetwork(seed=seed) as network:
            running = await network.serve(serving)
            connected = await network.connect(calling, up=path, down=path)
            await session_of(running)
            talking = asyncio.create_task(talk(3000, connected))
            for _ in range(8):
                await asyncio.sleep(chance.random())
                network.impair(connected, up=HOLE, down=HOLE)
                await down(connected)
                network.impair(connected, up=path, down=path)
                await connected.wait_connected()
            await talking
            await heard[0].all(3000)
            await asyncio.sleep(2.0)
            assert connected._link is not None
            assert connected.link_statistics().connections > 8
            assert upward is False or connected._link.resumption.resent > 0
            assert len(connected._link.resumption.journal) == 0

    main()
    heard[0].check(sent)


def test_what_a_killed_server_had_handled_is_not_handled_again(seed: int) -> None:
    """The application keeps the number of each event beside what it made of it, and tells the next
    server: exactly once, also over kills."""
    chance = random.Random(seed)
    kept: dict[str, list[tuple[int, int]]] = defaultdict(list)  # a disk: it outlives servers
    sent: list[int] = []

    def serving() -> ServerBuilder:
        async def store(session: Session, value: int) -> None:
            assert session.resume_id is not None
            kept[session.resume_id].append((current_call().event_number, value))

        async def on_resume(session: Session) -> int:
            assert session.resume_id is not None
            return max((number for number, _ in kept[session.resume_id]), default=0)

        return server().listener("store", store).on_resume(on_resume)

    async def talk(connected: RpcClient) -> None:
        for number in range(4000):
            await connected.emit("store", number)
            sent.append(number)
            if number % 10 == 0:
                await asyncio.sleep(chance.random() * 0.01)

    @virtual
    async def main() -> None:
        path = Impairment(delay=0.015, jitter=0.01, loss=0.03)
        async with QuicNetwork(seed=seed) as network:
            running = await network.serve(serving())
            connected = await network.connect(client(), up=path, down=path)
            talking = asyncio.create_task(talk(connected))
            for _ in range(5):
                await asyncio.sleep(chance.random() * 0.5)
                await network.kill(running)
                running = await network.serve(serving())
                await down(connected)
            await talking
            await connected.wait_connected()
            assert connected._link is not None
            while len(connected._link.resumption.journal):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.05)

    main()
    (events,) = kept.values()
    assert [value for _, value in events] == sent
    assert [number for number, _ in events] == list(range(1, 4001))


@virtual
async def test_without_a_memory_events_are_repeated_and_never_lost() -> None:
    """The contract where nobody keeps numbers: at least once, for what was not acknowledged."""
    heard = Heard()
    async with QuicNetwork() as network:
        running = await network.serve(heard.listen(server()))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await connected.emit("a", 0)
        await asyncio.sleep(1.0)  # handled and acknowledged
        await connected.emit("a", 1)
        await asyncio.sleep(0.016)  # handled, not yet acknowledged
        assert heard.values["a"] == [0, 1]
        await network.kill(running)
        await connected.emit("a", 2)
        await down(connected)
        await connected.emit("a", 3)
        await network.serve(heard.listen(server()))
        await heard.all(5)
        assert heard.values["a"] == [0, 1, 1, 2, 3]


@virtual
async def test_events_that_got_too_old_in_the_gap_are_left_out() -> None:
    heard = Heard()
    async with QuicNetwork() as network:
        await network.serve(heard.listen(server()))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        network.impair(connected, up=HOLE, down=HOLE)
        await connected.emit("a", 1, max_age=1.0)
        await connected.emit("a", 2)
        await down(connected)
        await connected.emit("a", 3, max_age=0.05)
        await connected.emit("a", 4, max_age=60.0)
        await connected.emit("a", 5, delivery="realtime")
        await asyncio.sleep(1.0)
        network.impair(connected, up=WIRE, down=WIRE)
        await heard.all(2)
        await asyncio.sleep(1.0)
        assert heard.values["a"] == [2, 4]
        assert connected._link is not None
        assert len(connected._link.resumption.journal) == 0


@virtual
async def test_emits_wait_when_the_gap_is_too_long_and_nothing_grows() -> None:
    heard = Heard()
    async with QuicNetwork() as network:
        running = await network.serve(heard.listen(server()))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await network.kill(running)
        await down(connected)

        async def talk() -> None:
            for number in range(1000):
                await connected.emit("a", number.to_bytes(4, "big") + bytes(10_000))

        talking = asyncio.create_task(talk())
        await asyncio.sleep(5.0)
        assert not talking.done()
        assert connected._link is not None
        assert connected._link.resumption.pending_bytes < 1.1 * 1024 * 1024
        await network.serve(heard.listen(server()))
        await talking
        await heard.all(1000)
        assert heard.values["a"] == list(range(1000))


@virtual
async def test_a_session_is_taken_over_from_a_connection_that_the_server_thinks_alive() -> None:
    heard = Heard()
    async with QuicNetwork() as network:
        running = await network.serve(heard.listen(server()))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await connected.emit("a", 1)
        await session_of(running)
        network.impair(connected, up=HOLE, down=HOLE)
        connected._peer.close()
        await down(connected)
        await connected.emit("a", 2)
        assert len(running.context.sessions) == 1
        network.impair(connected, up=WIRE, down=WIRE)
        await heard.all(2)
        await asyncio.sleep(1.0)
        assert len(running.context.sessions) == 1
        assert heard.values["a"] == [1, 2]
        await connected.close()
        await asyncio.sleep(0.1)
        assert len(running._event_sessions) == 0


@virtual
async def test_a_plain_client_has_no_session() -> None:
    heard = Heard()
    async with QuicNetwork() as network:
        running = await network.serve(heard.listen(server()))
        connected = await network.connect(ClientBuilder(), up=WIRE, down=WIRE)
        await connected.emit("a", 1)
        await heard.all(1)
        (session,) = running.context.sessions
        assert session.resume_id is None
        assert len(running._event_sessions) == 0


@virtual
async def test_a_failing_on_resume_refuses_the_connection() -> None:
    asked = []

    async def on_resume(session: Session) -> int:
        asked.append(session.resume_id)
        if len(asked) == 1:
            raise OSError("the disk is not there yet")
        return 0

    heard = Heard()
    async with QuicNetwork() as network:
        builder = heard.listen(ServerBuilder().identity(IDENTITY).on_resume(on_resume))
        await network.serve(builder)
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await connected.emit("a", 7)
        await heard.all(1)
        assert len(asked) == 2
        assert len(set(asked)) == 1
        assert heard.values["a"] == [7]


@virtual
async def test_a_call_during_a_drain_goes_to_the_next_server() -> None:
    """GOAWAY: what runs there finishes, what is new waits for the next connection."""
    async with QuicNetwork() as network:

        async def slow(value: int) -> int:
            await asyncio.sleep(1.0)
            return value

        running = await network.serve(server().handler("slow", slow))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        accepted = asyncio.create_task(connected.request("slow", 1))
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(running.shutdown(drain=5.0))
        await down(connected)
        waiting = asyncio.create_task(outcome(connected.request("slow", 2, timeout=10.0)))
        await connected.emit("a", 1)
        assert await accepted == 1
        await stopping
        heard = Heard()
        await network.serve(heard.listen(server().handler("slow", slow)))
        assert await waiting == 2
        await heard.all(1)


def entry(number: int) -> Entry:
    return Entry(number, float("inf"), "a", b"x", None, -1)


def test_a_journal_is_bounded_and_believes_no_acknowledgement_of_the_future() -> None:
    journal = Journal()
    fits = -(-JOURNAL_BYTES // (ENTRY_OVERHEAD + 1))
    for number in range(1, fits + 1):
        assert not journal.full
        journal.record(entry(number))
    assert journal.full
    journal.acknowledge(0, [2, 2, 4, fits])
    assert [each.number for each in journal.entries] == [1, 3]
    for number in range(fits + 1, JOURNAL_SPAN + 2):
        journal.acknowledge(0, [2, 2, 4, number - 1])
        assert (len(journal), journal.full) == (2, False)
        journal.record(entry(number))
    assert journal.full, "one event that is not handled must not let the numbers run away"
    for upto, ranges in [
        (JOURNAL_SPAN + 2, []),
        (0, [1, 1 << 60]),
        (0, [1]),
        (0, [2, 1]),
        (0, [1] * 130),
    ]:
        with pytest.raises(ProtocolError):
            journal.acknowledge(upto, ranges)
    journal.acknowledge(JOURNAL_SPAN + 1, [])
    assert (len(journal), journal.size, journal.first) == (0, 0, JOURNAL_SPAN + 2)


def test_delivered_names_what_is_missing(seed: int) -> None:
    chance = random.Random(seed)
    numbers = list(range(1, 500))
    chance.shuffle(numbers)
    delivered = Delivered()
    seen: set[int] = set()
    for number in numbers:
        delivered.add(number)
        seen.add(number)
        upto = next(n for n in range(1, 501) if n not in seen) - 1
        assert delivered.upto == upto
        ranges = delivered.ranges
        named = {n for a, b in zip(ranges[::2], ranges[1::2], strict=True) for n in range(a, b + 1)}
        assert named <= {n for n in seen if n > upto}
        assert len(ranges) <= 128
    assert (delivered.upto, delivered.ranges) == (499, [])
    delivered.add(502)
    assert delivered.begin(504) == 3
    assert (delivered.upto, delivered.beyond) == (503, set())
    assert delivered.begin(1) == 0


def test_outcomes_are_bounded_and_never_made_up(seed: int) -> None:
    chance = random.Random(seed)
    outcomes, truth = Outcomes(), {}
    for number in range(1, 5000):
        truth[number] = status = chance.choice([Status.OK, Status.INTERNAL])
        outcomes.note(number, status)
    assert len(outcomes.failures) <= 1024
    told = Outcomes.decode(payloads.encode(outcomes.encode()))
    assert told is not None
    assert len(payloads.encode(outcomes.encode())) <= 16 * 1024
    for each in (outcomes, told):
        answers = {number: each.of(number) for number in truth}
        known = {n: a for n, a in answers.items() if a != Status.UNAVAILABLE}
        assert known == {n: truth[n] for n in known}
        assert set(range(3500, 5000)) <= set(known)
    assert Outcomes.decode(None) is None
    assert Outcomes.decode(payloads.encode({"other": "text"})) is None
    for broken in ([], [1, 2], [0], ["1"], {}, "x", [1, 2, -3]):
        metadata = payloads.encode({"echostream.outcomes": payloads.encode(broken)})
        with pytest.raises(ProtocolError):
            Outcomes.decode(metadata)
    with pytest.raises(ProtocolError):
        Outcomes.decode(payloads.encode({"echostream.outcomes": b"\xc1"}))


def test_unavailable_says_whether_the_call_was_made() -> None:
    assert Unavailable("x").unserved is False


@virtual
async def test_events_emitted_while_the_hooks_run_follow_them() -> None:
    heard = Heard()

    async def on_connect(ctx: ClientContext) -> None:
        await ctx.emit("b", 0)
        await asyncio.sleep(1.0)  # long after both sides have agreed where to go on

    async with QuicNetwork() as network:
        first = await network.serve(heard.listen(server()))
        connected = await network.connect(client().on_connect(on_connect), up=WIRE, down=WIRE)
        await network.kill(first)
        await down(connected)
        await network.serve(heard.listen(server()))
        for number in range(200):
            await connected.emit("a", number)
            await asyncio.sleep(0.05)
        await heard.all(202)
        assert heard.values == {"a": list(range(200)), "b": [0, 0]}


@virtual
async def test_events_of_a_session_that_ends_at_once_are_not_lost() -> None:
    """The server emits before the client has said where it goes on, and the path breaks."""
    heard = Heard()
    emitted: list[int] = []

    async def on_connect(session: Session) -> None:
        emitted.append(len(emitted))
        await session.emit("a", emitted[-1])
        if len(emitted) == 1:
            await session.close()

    async with QuicNetwork() as network:
        await network.serve(server().on_connect(on_connect))
        await network.connect(heard.listen(client()), up=WIRE, down=WIRE)
        await heard.all(2)
        assert heard.values["a"] == [0, 1]


@virtual
async def test_who_waits_in_vain_for_a_client_leaves_nothing_behind() -> None:
    sessions = EventSessions()
    gone: Any = SimpleNamespace(events=SimpleNamespace(token=b"gone"))
    first = asyncio.create_task(sessions.wait_peer(gone))
    await asyncio.sleep(1.0)
    second = asyncio.create_task(sessions.wait_peer(gone))
    await asyncio.sleep(1.0)
    first.cancel()
    await asyncio.sleep(1.0)
    assert len(sessions._coming) == 1
    with pytest.raises(ConnectionClosed):
        await second
    assert not sessions._coming
