"""Reliable streams that go on over lost connections: each item once, in order, or reported."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from rpc_support import outcome, raw_client, session_of, turns, virtual
from test_reconnect import WIRE, client, down, server

from echostream import (
    AudioFormat,
    ConfigurationError,
    ConnectionClosed,
    MethodNotFound,
    RpcError,
    Session,
    StreamReceiver,
    StreamReset,
)
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Status
from echostream.errors import ProtocolError
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.protocol.payload import encode
from echostream.protocol.stream_journal import (
    ITEM_OVERHEAD,
    STREAM_JOURNAL_BYTES,
    Places,
    StreamJournal,
)
from echostream.testing import Impairment, QuicNetwork

HOLE = Impairment(blackhole=True)


class Reader:
    """What all runs of one handler read together: its model is the plain list of what was sent."""

    def __init__(self, chance: random.Random | None = None, slow: float = 0.02) -> None:
        self.items: list[bytes] = []
        self.offsets: list[int] = []
        self.names: set[str | None] = set()
        self.ends = 0
        self.lost = 0
        self._chance = chance
        self._slow = slow

    async def read(self, stream: StreamReceiver) -> None:
        self.offsets.append(stream.offset)
        self.names.add(stream.resume_id)
        try:
            async for item in stream:
                assert isinstance(item, bytes)
                self.items.append(item)
                if self._chance is not None and self._chance.random() < 0.05:
                    await asyncio.sleep(self._chance.random() * self._slow)
            self.ends += 1
        finally:
            self.lost += stream.statistics().lost


def made(count: int, chance: random.Random) -> list[bytes]:
    """Items of all sizes, each with its number."""
    sizes = (0, 10, 1000, 5000, 40_000)
    return [n.to_bytes(4, "big") + bytes(chance.choice(sizes)) for n in range(count)]


@pytest.mark.parametrize("upward", [True, False], ids=["to the server", "to the client"])
@pytest.mark.parametrize("run", range(3))
def test_every_item_is_read_once_and_in_order(upward: bool, run: int, seed: int) -> None:
    """The path breaks at random points; readers dawdle; both programs live."""
    chance = random.Random(seed + run)
    sent = made(600, chance)
    reader = Reader(chance)

    async def talk(sender: Any) -> None:
        for item in sent:
            await sender.send(item)
            if chance.random() < 0.05:
                await asyncio.sleep(chance.random() * 0.2)
        await sender.end()
        assert sender.statistics().read == len(sent)

    @virtual
    async def main() -> None:
        path = Impairment(delay=0.015, jitter=0.01, loss=0.03)
        serving, calling = server().quic(keep_alive=0.5, idle_timeout=1.5), client()
        (serving if upward else calling).stream_handler("feed", reader.read)
        async with QuicNetwork(seed=seed) as network:
            running = await network.serve(serving)
            connected = await network.connect(calling, up=path, down=path)
            session = await session_of(running)
            side: Any = connected if upward else session
            sender = await side.create_stream("feed", resume=True)
            talking = asyncio.create_task(talk(sender))
            for _ in range(5):
                await asyncio.sleep(chance.random())
                network.impair(connected, up=HOLE, down=HOLE)
                await down(connected)
                network.impair(connected, up=path, down=path)
                await connected.wait_connected()
            await talking
            assert sender.statistics().resent > 0
            await asyncio.sleep(1.0)

    main()
    assert reader.items == sent
    assert reader.ends == 1
    assert reader.lost == 0
    assert len(reader.offsets) > 3
    assert reader.offsets == sorted(reader.offsets)
    assert len(reader.names) == 1


@virtual
async def test_the_end_is_told_once_even_when_its_acknowledgement_is_lost() -> None:
    reader = Reader()
    async with QuicNetwork() as network:
        serving = server().stream_handler("feed", reader.read).quic(keep_alive=0.5)
        await network.serve(serving)
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)
        await sender.send(b"all")
        await asyncio.sleep(0.2)
        network.impair(
            connected, up=WIRE, down=HOLE
        )  # the server reads the end, nobody hears of it
        ending = asyncio.create_task(sender.end())
        await down(connected)
        assert reader.ends == 1
        assert not ending.done()
        network.impair(connected, up=WIRE, down=WIRE)
        await ending
        await sender.end()
        await asyncio.sleep(1.0)
        assert (reader.items, reader.ends) == ([b"all"], 1)


@virtual
async def test_a_killed_server_forgets_and_nothing_is_lost() -> None:
    """What had not been acknowledged comes again, numbered: at least once."""
    read: dict[int, bytes] = {}
    twice: list[int] = []

    async def keep(stream: StreamReceiver) -> None:
        number = stream.offset
        async for item in stream:
            assert isinstance(item, bytes)
            if number in read:
                assert read[number] == item
                twice.append(number)
            read[number] = item
            number += 1

    chance = random.Random(7)
    sent = made(500, chance)
    async with QuicNetwork() as network:
        running = await network.serve(server().stream_handler("feed", keep))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)

        async def talk() -> None:
            for item in sent:
                await sender.send(item)
                await asyncio.sleep(0.01)
            await sender.end()

        talking = asyncio.create_task(talk())
        for _ in range(3):
            await asyncio.sleep(0.7)
            await network.kill(running)
            running = await network.serve(server().stream_handler("feed", keep))
            await down(connected)
        await talking
        assert [read[number] for number in range(len(sent))] == sent
        assert len(twice) < 50


@virtual
async def test_a_long_gap_holds_the_sender_back_and_nothing_grows() -> None:
    reader = Reader()
    async with QuicNetwork() as network:
        running = await network.serve(server().stream_handler("feed", reader.read))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)
        await network.kill(running)
        await down(connected)

        async def talk() -> None:
            for number in range(400):
                await sender.send(number.to_bytes(4, "big") + bytes(10_000))
            await sender.end()

        talking = asyncio.create_task(talk())
        await asyncio.sleep(5.0)
        assert not talking.done()
        kept = sender.statistics().packets * (10_004 + ITEM_OVERHEAD)
        assert kept < STREAM_JOURNAL_BYTES + 20_000
        await network.serve(server().stream_handler("feed", reader.read))
        await talking
        assert [int.from_bytes(item[:4], "big") for item in reader.items] == list(range(400))


@virtual
async def test_a_stream_that_cannot_go_on_says_what_was_not_read() -> None:
    reader = Reader()
    async with QuicNetwork() as network:
        running = await network.serve(server().stream_handler("feed", reader.read))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)
        await sender.send(b"0")
        await asyncio.sleep(0.5)
        await network.kill(running)
        await down(connected)
        for number in range(1, 5):
            await sender.send(bytes(number))
        ending = asyncio.create_task(outcome(sender.end()))
        await asyncio.sleep(0.1)
        await connected.close()
        error = await ending
        assert isinstance(error, ConnectionClosed)
        assert "items from number 1 on" in str(error)
        assert isinstance(await outcome(sender.send(b"x")), ConnectionClosed)
        assert (sender.statistics().read, sender.statistics().packets) == (1, 5)


@virtual
async def test_items_that_cannot_be_had_any_more_are_counted() -> None:
    """The sender was told that they were read: by another server, say, that is gone now."""
    reader = Reader()
    async with QuicNetwork() as network:
        serving = server().stream_handler("feed", reader.read)
        running = await network.serve(serving.quic(keep_alive=0.5, idle_timeout=1.5))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        session = await session_of(running)
        sender = await connected.create_stream("feed", resume=True)
        for number in range(5):
            await sender.send(bytes([number]))
        await asyncio.sleep(0.5)
        resumption = session._peer.events._resumption
        assert resumption is not None
        (place,) = resumption.places._places.values()
        network.impair(connected, up=HOLE, down=HOLE)
        await down(connected)
        place.next = 2
        network.impair(connected, up=WIRE, down=WIRE)
        await sender.send(b"last")
        await sender.end()
        assert reader.offsets == [0, 5]
        assert reader.lost == 3
        assert reader.items[5:] == [b"last"]


@virtual
async def test_a_client_that_left_ends_the_streams_to_it() -> None:
    reader = Reader()
    async with QuicNetwork() as network:
        running = await network.serve(server())
        builder = client().stream_handler("feed", reader.read)
        connected = await network.connect(builder, up=WIRE, down=WIRE)
        session = await session_of(running)
        sender = await session.create_stream("feed", resume=True)
        await sender.send(b"0")
        await asyncio.sleep(0.5)
        await connected.close()
        await asyncio.sleep(0.5)
        assert isinstance(await outcome(sender.end()), ConnectionClosed)
        assert reader.items == [b"0"]


@virtual
async def test_a_client_that_does_not_come_back_and_a_server_that_stops() -> None:
    for stops in (False, True):
        async with QuicNetwork() as network:
            running = await network.serve(server().quic(keep_alive=0.5, idle_timeout=1.5))
            builder = client().stream_handler("feed", Reader().read)
            connected = await network.connect(builder, up=WIRE, down=WIRE)
            session = await session_of(running)
            sender = await session.create_stream("feed", resume=True)
            await sender.send(b"0")
            network.impair(connected, up=HOLE, down=HOLE)
            ending = asyncio.create_task(outcome(sender.end()))
            await asyncio.sleep(10.0)
            assert not ending.done()
            if stops:
                await running.shutdown(drain=0.1)
            error = await ending
            assert isinstance(error, ConnectionClosed)
            assert ("server stops" if stops else "did not come back") in str(error)


@virtual
async def test_a_reader_that_stops_and_a_sender_that_gives_up() -> None:
    async def one(stream: StreamReceiver) -> None:
        await stream.recv()

    async def to_the_end(stream: StreamReceiver) -> None:
        with pytest.raises(StreamReset):
            await stream.read_all()

    async with QuicNetwork() as network:
        builder = server().stream_handler("one", one).stream_handler("all", to_the_end)
        await network.serve(builder)
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("one", resume=True)
        await sender.send(b"0")
        await sender.send(b"1")
        assert isinstance(await outcome(sender.end()), StreamReset)
        sender = await connected.create_stream("all", resume=True)
        await sender.send(b"0")
        sender.abort()
        assert isinstance(await outcome(sender.send(b"1")), StreamReset)
        with pytest.raises(ConfigurationError, match="flush"):
            other = await connected.create_stream("all", resume=True)
            await other.flush()
        other.abort()
        missing = await outcome(connected.create_stream("nobody", resume=True).build())
        assert isinstance(missing, MethodNotFound)
        await asyncio.sleep(0.5)


@virtual
async def test_audio_goes_on_and_into_a_playout() -> None:
    format = AudioFormat(48_000, 1)
    taken: list[int] = []

    async def play(stream: StreamReceiver) -> None:
        playout = stream.playout()
        while stream.statistics().playout is not None:
            taken.append(stream.offset)
            await asyncio.sleep(0.05)
            if stream.ended_cleanly:
                return
            if stream._error is not None:
                raise stream._error
        assert playout

    async with QuicNetwork() as network:
        serving = server().stream_handler("music", play).quic(keep_alive=0.5, idle_timeout=1.5)
        await network.serve(serving)
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("music", format=format, resume=True)
        for number in range(100):
            await sender.send(np.full((480, 1), number / 100, dtype=np.float32))
            await asyncio.sleep(0.01)
            if number == 50:
                network.impair(connected, up=HOLE, down=HOLE)
                await down(connected)
                network.impair(connected, up=WIRE, down=WIRE)
        await sender.end()
        assert sender.statistics().read == 100
        assert 40 < max(taken) < 60


@pytest.mark.parametrize(
    "options",
    [
        {"resume": b"short", "offset": 0},
        {"resume": 5, "offset": 0},
        {"resume": bytes(16), "offset": -1},
        {"resume": bytes(16), "offset": "0"},
        {"resume": bytes(16), "offset": 1 << 61},
    ],
)
def test_offers_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    @virtual
    async def main() -> None:
        async with raw_client(ServerBuilder().stream_handler("feed", Reader().read)) as (_, raw):
            body = encode({"format": None, "epoch": 0} | options)
            raw.send(encode_frame(frames.STREAM_OPEN, 0, body, 0, "feed"))
            (refusal,) = await raw.expect(frames.ERROR)
            assert refusal.number == Status.INVALID_ARGUMENT

    main()


@virtual
async def test_a_peer_that_acknowledges_what_was_never_sent_or_knows_nothing_of_this() -> None:
    async def talk(session: Session) -> None:
        tasks.append(asyncio.create_task(outcome(open_stream(session))))

    async def open_stream(session: Session) -> Any:
        return await session.create_stream("feed", resume=True)

    tasks: list[asyncio.Task[Any]] = []
    async with raw_client(ServerBuilder().on_connect(talk)) as (_, raw):
        await turns()
        (task,) = tasks
        assert isinstance(await task, ConfigurationError), "it has no event session"
        raw.connection.close()

    async with QuicNetwork() as network:
        await network.serve(server().stream_handler("feed", Reader().read))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)
        with pytest.raises(ProtocolError):
            sender.acknowledged(1, end=False)
        for agreed in ({}, {"resume": True}, {"resume": True, "offset": 5}):
            again = await connected.create_stream("feed", resume=True)
            again.accepted(encode(agreed))
            error = await outcome(again.send(b"x"))
            assert isinstance(error, RpcError | StreamReset)
        sender.abort()


@virtual
async def test_what_cannot_go_on_is_said_at_once() -> None:
    async with QuicNetwork() as network:
        await network.serve(server())
        plain = await network.connect(ClientBuilder(), up=WIRE, down=WIRE)
        with pytest.raises(ConfigurationError, match="reconnect"):
            plain.create_stream("feed", resume=True)
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        with pytest.raises(ConfigurationError, match="reliable"):
            connected.create_stream("feed", resume=True, delivery="realtime")


@virtual
async def test_a_stream_is_opened_in_the_gap_and_waits_for_the_next_connection() -> None:
    reader = Reader()

    async def opened(connected: RpcClient) -> None:
        sender = await connected.create_stream("feed", resume=True)
        await sender.send(b"0")
        await sender.end()

    async with QuicNetwork() as network:
        running = await network.serve(server())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await network.kill(running)
        await down(connected)
        opening = asyncio.create_task(opened(connected))
        await asyncio.sleep(1.0)
        await network.serve(server().stream_handler("feed", reader.read))
        await opening
        assert reader.items == [b"0"]


def test_a_journal_is_bounded_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    journal = StreamJournal()
    kept: list[tuple[int, bytes]] = []
    for _ in range(2000):
        if chance.random() < 0.7 and not journal.full:
            payload = bytes(chance.randrange(20_000))
            kept.append((journal.record(payload, 0, None).number, payload))
        else:
            upto = chance.randint(0, journal.next)
            journal.acknowledge(upto)
            kept = [each for each in kept if each[0] >= upto]
        assert [(item.number, item.payload) for item in journal.items] == kept
        assert journal.size == sum(len(p) + ITEM_OVERHEAD for _, p in kept)
        assert journal.size < STREAM_JOURNAL_BYTES + 20_000 + ITEM_OVERHEAD
    with pytest.raises(ProtocolError):
        journal.acknowledge(journal.next + 1)


def test_places_are_bounded() -> None:
    places = Places()
    first = places.of(b"first")
    first.next = 5
    for number in range(2000):
        places.of(number.to_bytes(16, "big"))
        assert places.of(b"first") is first
    assert len(places) == 256


def test_what_has_ended_gives_way_to_a_stream_that_goes_on() -> None:
    places = Places()
    first = places.of(b"first")
    for number in range(2000):
        places.of(number.to_bytes(16, "big")).ended = True
    assert len(places) == 256
    assert places.of(b"first") is first


@virtual
async def test_a_stream_is_accepted_once() -> None:
    """Else each of a peer's small frames would write again all that was not read."""
    async with QuicNetwork() as network:
        await network.serve(server().stream_handler("feed", forget))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)
        await sender.send(b"x")
        sender.accepted(encode({"resume": True, "offset": 0}))
        assert sender.statistics().resent == 0
        assert isinstance(await outcome(sender.send(b"x")), StreamReset)


async def forget(stream: StreamReceiver) -> None:
    """A handler that reads nothing."""
    await asyncio.sleep(60.0)


@virtual
async def test_a_handler_whose_stream_goes_on_elsewhere_sees_no_clean_end() -> None:
    outcomes: list[list[Any]] = []

    async def slow(stream: StreamReceiver) -> None:
        mine: list[Any] = []
        outcomes.append(mine)
        try:
            async for item in stream:
                mine.append(item)
                await asyncio.sleep(4.0 if len(outcomes) == 1 else 0.0)
        except ConnectionClosed:
            mine.append("closed")
        else:
            mine.append("end")

    serving = server().quic(keep_alive=0.5, idle_timeout=1.5).stream_handler("feed", slow)
    async with QuicNetwork() as network:
        await network.serve(serving)
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        sender = await connected.create_stream("feed", resume=True)
        for item in (b"0", b"1", b"2"):
            await sender.send(item)
        ending = asyncio.create_task(sender.end())
        await asyncio.sleep(0.5)
        network.impair(connected, up=HOLE, down=HOLE)
        await down(connected)
        network.impair(connected, up=WIRE, down=WIRE)
        await ending
        await asyncio.sleep(10.0)
    assert outcomes[-1] == [b"1", b"2", "end"]
    assert outcomes[0] == [b"0", "closed"]
