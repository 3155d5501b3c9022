"""Two memory engines: what QUIC promises holds over every path."""

import asyncio
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream.testing.virtual_time import run_virtual
from echostream.transport.engine import (
    Closed,
    DatagramReceived,
    HandshakeCompleted,
    PingAcknowledged,
    StopSending,
    StreamData,
    StreamReset,
)
from echostream.transport.impairment import Impairment
from echostream.transport.memory import (
    DATAGRAM_QUEUE,
    MAX_DATAGRAM_PAYLOAD,
    MemoryEngine,
    MemoryLink,
    memory_pair,
)


class Pair:
    """Two engines on a clock that this class moves."""

    def __init__(self, *, consume=True, **options):
        link_options = {key: options.pop(key) for key in ("up", "down", "seed") if key in options}
        self.link = MemoryLink(**link_options)
        self.client, self.server = MemoryEngine.pair(self.link, **options)
        self.engines = (self.client, self.server)
        self.now = 50.0
        self.consume = consume
        self.events = {self.client: [], self.server: []}
        self.notified = False
        for engine in self.engines:
            engine.notify = self.notify
        self.client.connect(("server", 1), self.now)

    def notify(self):
        self.notified = True

    def step(self):
        """One turn of both ends; whether anything happened."""
        happened = self.notified
        self.notified = False
        for engine in self.engines:
            while (event := engine.next_event()) is not None:
                happened = True
                self.events[engine].append(event)
                if type(event) is StreamData and self.consume:
                    engine.consume(event.stream_id, len(event.data))
            engine.flush(self.now)
        return happened or self.notified

    def run(self, limit=3600.0):
        """Until nothing is left to happen."""
        end = self.now + limit
        while True:
            while self.step():
                pass
            deadlines = [t for t in (engine.timer() for engine in self.engines) if t is not None]
            if not deadlines or min(deadlines) > end:
                return
            self.now = max(self.now, min(deadlines))
            for engine in self.engines:
                if engine.timer() is not None and engine.timer() <= self.now:
                    engine.on_timer(self.now)
            self.notified = True

    def of(self, engine, kind):
        return [event for event in self.events[engine] if type(event) is kind]

    def received(self, engine):
        """Bytes per stream, and which of them ended."""
        streams, ended = {}, set()
        for event in self.of(engine, StreamData):
            assert event.stream_id not in ended
            streams.setdefault(event.stream_id, bytearray()).extend(event.data)
            if event.fin:
                ended.add(event.stream_id)
        return streams, ended


PATHS = st.builds(
    Impairment,
    delay=st.sampled_from([0.0, 0.02]),
    jitter=st.sampled_from([0.0, 0.03]),
    loss=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    burst_start=st.sampled_from([0.0, 0.05]),
    corrupt=st.sampled_from([0.0, 0.1]),
    rate=st.sampled_from([0.0, 1e5]),
)
WRITES = st.lists(
    st.tuples(
        st.booleans(),  # by the client
        st.integers(0, 3),  # which of its streams
        st.integers(0, 5000),  # how much
        st.booleans(),  # flush before the next
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    up=PATHS,
    down=PATHS,
    seed=st.integers(0, 1000),
    writes=WRITES,
    window=st.sampled_from([2000, 1 << 20]),
)
def test_every_byte_arrives_once_and_in_order(up, down, seed, writes, window):
    pair = Pair(up=up, down=down, seed=seed, stream_window=window, connection_window=2 * window)
    source = random.Random(seed)
    streams, written = {}, {}
    for by_client, which, size, flush in writes:
        engine = pair.client if by_client else pair.server
        if (engine, which) not in streams:
            streams[engine, which] = engine.open_stream(bidirectional=which % 2 == 0)
        stream_id = streams[engine, which]
        data = source.randbytes(size)
        engine.send_stream(stream_id, data, False)
        written.setdefault((engine, stream_id), bytearray()).extend(data)
        if flush:
            pair.step()
    for (engine, _), stream_id in streams.items():
        engine.send_stream(stream_id, b"", True)
    pair.run()
    for engine, other in (pair.engines, pair.engines[::-1]):
        received, ended = pair.received(other)
        expected = {sid: data for (source_, sid), data in written.items() if source_ is engine}
        assert received == expected
        assert ended == expected.keys()
        assert engine.buffered_total == 0
        assert engine.info().bytes_in_flight == 0
        assert not any(stream.unsent for stream in engine._sending.values())


def test_a_lost_segment_holds_up_its_own_stream_only():
    pair = Pair(up=Impairment(delay=0.01), down=Impairment(delay=0.01))
    pair.run()
    first, second = pair.client.open_stream(False), pair.client.open_stream(False)
    start = pair.now
    pair.link.up = Impairment(delay=0.01, blackhole=True)
    pair.client.send_stream(first, b"a", False)
    pair.client.flush(pair.now)
    pair.link.up = Impairment(delay=0.01)
    pair.client.send_stream(first, b"b", True)
    pair.client.send_stream(second, b"c", True)
    arrived = []
    pair.server.notify = lambda: None
    drain = pair.server.next_event

    def next_event():
        event = drain()
        if event is not None:
            arrived.append((round(pair.now - start, 6), event.stream_id, event.data))
        return event

    pair.server.next_event = next_event
    pair.run()
    late = round(pair.link.retransmission + 0.01, 6)
    assert arrived == [(0.01, second, b"c"), (late, first, b"a"), (late, first, b"b")]


def test_stream_flow_control_holds_the_sender():
    pair = Pair(consume=False, stream_window=1000, connection_window=100_000)
    pair.run()
    stream_id = pair.client.open_stream(True)
    pair.client.send_stream(stream_id, b"x" * 5000, True)
    pair.run()
    received, ended = pair.received(pair.server)
    assert len(received[stream_id]) == 1000
    assert not ended
    assert pair.client.buffered(stream_id) == pair.client.buffered_total == 4000
    pair.server.consume(stream_id, 600)
    pair.run()
    assert len(pair.received(pair.server)[0][stream_id]) == 1600
    consumed = 600
    while not pair.received(pair.server)[1]:
        got = len(pair.received(pair.server)[0][stream_id])
        assert got > consumed
        pair.server.consume(stream_id, got - consumed)
        consumed = got
        pair.run()
    received, ended = pair.received(pair.server)
    assert (len(received[stream_id]), ended) == (5000, {stream_id})
    assert pair.client.buffered_total == 0


def test_connection_flow_control_holds_all_streams_together():
    pair = Pair(consume=False, stream_window=1000, connection_window=2500)
    pair.run()
    streams = [pair.client.open_stream(False) for _ in range(5)]
    for stream_id in streams:
        pair.client.send_stream(stream_id, b"x" * 900, True)
    pair.run()
    assert sum(map(len, pair.received(pair.server)[0].values())) == 2500
    pair.server.consume(streams[0], 900)
    pair.run()
    assert sum(map(len, pair.received(pair.server)[0].values())) == 3400


def test_credit_of_aborted_streams_comes_back():
    """Bytes that nobody will ever consume must not shrink the connection's window."""
    for impairment in (Impairment(), Impairment(delay=0.01, jitter=0.01, loss=0.2)):
        pair = Pair(up=impairment, stream_window=10_000, connection_window=10_000, seed=3)
        pair.run()
        for n in range(50):
            stream_id = pair.client.open_stream(False)
            pair.client.send_stream(stream_id, b"x" * 4000, False)
            pair.run(limit=0.015)  # on the bad path some of it is here, with gaps
            if n % 2:
                pair.client.reset_stream(stream_id, 9)
            else:
                pair.server.stop_stream(stream_id, 9)
            pair.run()
            assert pair.client._data_limit - pair.client._data_sent <= 10_000
        last = pair.client.open_stream(False)
        pair.client.send_stream(last, b"y" * 9000, True)
        pair.run()
        assert pair.received(pair.server)[0][last] == b"y" * 9000


def test_reset_and_stop():
    pair = Pair()
    pair.run()
    stream_id = pair.client.open_stream(True)
    pair.client.send_stream(stream_id, b"hello", False)
    pair.run()
    pair.client.reset_stream(stream_id, 7)
    pair.client.reset_stream(stream_id, 8)
    with pytest.raises(ValueError, match="ended or reset"):
        pair.client.send_stream(stream_id, b"more", False)
    pair.run()
    assert pair.of(pair.server, StreamReset) == [StreamReset(stream_id, 7)]
    pair.server.send_stream(stream_id, b"answer", False)
    pair.run()
    pair.client.stop_stream(stream_id, 9)
    pair.client.stop_stream(stream_id, 9)
    pair.run()
    assert pair.of(pair.server, StopSending) == [StopSending(stream_id, 9)]
    pair.server.send_stream(stream_id, b"dropped", False)  # not an error: it may have crossed
    pair.server.reset_stream(stream_id, 9)
    pair.run()
    assert pair.received(pair.client)[0] == {stream_id: b"answer"}
    assert pair.of(pair.client, StreamReset) == [StreamReset(stream_id, 9)]  # the end is told
    for engine in pair.engines:
        assert engine.buffered_total == 0
        assert not engine._receiving
    with pytest.raises(ValueError):
        pair.client.send_stream(4 * 1000, b"never opened", False)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_stream_limits_hold_streams_back_until_others_are_over(bidirectional):
    pair = Pair(max_streams=2)
    pair.run()
    streams = [pair.client.open_stream(bidirectional) for _ in range(5)]
    for stream_id in streams:
        pair.client.send_stream(stream_id, b"x", True)
    pair.run()
    if bidirectional:
        for done in range(2, 6):
            assert sorted(pair.received(pair.server)[0]) == streams[:done]
            pair.server.send_stream(streams[done - 2], b"", True)
            pair.run()
    assert sorted(pair.received(pair.server)[0]) == streams


def test_datagrams_are_bounded_sized_and_lost():
    pair = Pair()
    pair.run()
    assert not pair.client.send_datagram(b"x" * (MAX_DATAGRAM_PAYLOAD + 1))
    for n in range(DATAGRAM_QUEUE + 3):
        assert pair.client.send_datagram(bytes([n]))
    pair.run()
    got = [event.data[0] for event in pair.of(pair.server, DatagramReceived)]
    assert got == list(range(3, DATAGRAM_QUEUE + 3))
    assert pair.client.info().datagrams_dropped == 3

    pair = Pair(up=Impairment(loss=0.5), seed=4)
    pair.run()
    for n in range(200):
        pair.client.send_datagram(bytes([n]))
        pair.run()
    got = [event.data[0] for event in pair.of(pair.server, DatagramReceived)]
    assert 60 < len(got) < 140
    assert len(set(got)) == len(got)


def test_ping_and_close():
    pair = Pair(up=Impairment(delay=0.5), down=Impairment(delay=0.25))
    assert pair.client.timer() is None
    pair.run()
    for engine in pair.engines:
        assert [type(event) for event in pair.events[engine]] == [HandshakeCompleted]
    start = pair.now
    pair.client.ping(7)
    pair.run()
    assert pair.of(pair.client, PingAcknowledged) == [PingAcknowledged(7)]
    assert pair.now - start == pytest.approx(0.75)
    pair.client.send_stream(pair.client.open_stream(False), b"x" * 100, True)
    pair.server.close(5, "stop")
    pair.server.close(6, "again")
    pair.run()
    assert pair.events[pair.server][-1] == Closed(5, "stop", False, True)
    assert pair.events[pair.client][-1] == Closed(5, "stop", True, True)
    assert pair.client.timer() is None
    assert pair.server.timer() is None
    assert pair.client.buffered_total == 0


def test_a_lost_close_is_repeated_but_not_for_ever():
    pair = Pair(up=Impairment(delay=0.01), idle_timeout=30.0)
    pair.run(limit=1)
    pair.link.up = Impairment(delay=0.01, blackhole=True)
    pair.client.close(1, "")
    pair.run(limit=0.04)
    pair.link.up = Impairment(delay=0.01)
    pair.run(limit=1)
    assert pair.events[pair.server][-1] == Closed(1, "", True, True)

    pair = Pair(up=Impairment(delay=0.01), idle_timeout=30.0)
    pair.run(limit=1)
    pair.link.up = Impairment(blackhole=True)
    pair.client.close(1, "")
    pair.run()
    assert pair.client.timer() is None
    assert pair.events[pair.server][-1] == Closed(1, "Idle timeout", False, False)


def test_a_limited_rate_takes_its_time_and_keeps_the_queue_short():
    pair = Pair(up=Impairment(delay=0.05, rate=1e5), down=Impairment(delay=0.05))
    pair.run()
    start = pair.now
    stream_id = pair.client.open_stream(False)
    pair.client.send_stream(stream_id, b"x" * 500_000, True)
    pair.client.flush(pair.now)
    assert pair.client.info().bytes_in_flight < 50_000
    pair.run()
    assert 5.0 < pair.now - start < 7.0
    assert len(pair.received(pair.server)[0][stream_id]) == 500_000


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        path = Impairment(delay=0.01, jitter=0.01, loss=0.3)
        pair = Pair(up=path, down=path, seed=seed)
        stream_id = pair.client.open_stream(True)
        pair.client.send_stream(stream_id, bytes(50_000), True)
        pair.run()
        return pair.now, pair.client.info(), pair.server.info()

    assert run(1) == run(1)
    assert run(1) != run(2)


class Echo:
    """A handler that sends back what comes."""

    def __init__(self, connection):
        self.connection = connection
        self.events = []

    idle = True

    def before_flush(self, now):
        pass

    def engine_event(self, event):
        self.events.append(event)
        if type(event) is StreamData:
            engine = self.connection.engine
            engine.consume(event.stream_id, len(event.data))
            engine.send_stream(event.stream_id, event.data, event.fin)
            self.connection.wake()


class Collect(Echo):
    def __init__(self, connection):
        super().__init__(connection)
        self.data = bytearray()
        self.done = asyncio.Event()

    def engine_event(self, event):
        if type(event) is StreamData:
            self.connection.engine.consume(event.stream_id, len(event.data))
            self.connection.wake()
            self.data += event.data
            if event.fin:
                self.done.set()


@pytest.mark.parametrize(
    "path",
    [Impairment(), Impairment(delay=0.03, jitter=0.02, loss=0.2), Impairment(loss=0.3, rate=1e6)],
    ids=["perfect", "lossy", "slow"],
)
def test_under_connections_in_virtual_time(path):
    async def main():
        client, server = memory_pair(up=path, down=path)
        echo, collect = Echo(server), Collect(client)
        server.attach(echo)
        client.attach(collect)
        await client.wait_connected()
        stream_id = client.engine.open_stream(True)
        data = random.Random(5).randbytes(300_000)
        client.engine.send_stream(stream_id, data, True)
        client.wake()
        await collect.done.wait()
        assert collect.data == data
        client.close(3, "done")
        assert await server.wait_closed() == Closed(3, "done", True, True)
        await asyncio.sleep(1)
        assert client.finished
        assert server.finished

    run_virtual(main(), limit=600)


def test_it_runs_on_a_real_loop_too():
    async def main():
        client, server = memory_pair()
        collect = Collect(client)
        server.attach(Echo(server))
        client.attach(collect)
        stream_id = client.engine.open_stream(True)
        client.engine.send_stream(stream_id, b"hello", True)
        client.wake()
        async with asyncio.timeout(10):
            await collect.done.wait()
        assert collect.data == b"hello"
        server.close()
        assert (await client.wait_closed()).by_peer

    asyncio.run(main())


def test_what_a_flush_finds_came_just_now():
    """The receiving side's own flush, later in the turn, may be the first to hand it on."""
    ages = []

    class Watch(Echo):
        def engine_event(self, event):
            if type(event) is DatagramReceived:
                ages.append(asyncio.get_running_loop().time() - self.connection.received_at)

    async def main():
        client, server = memory_pair()
        client.attach(Watch(client))
        server.attach(Watch(server))
        await client.wait_connected()
        for ends in ((server, client), (client, server)) * 2:
            await asyncio.sleep(1.0)
            for end in ends:  # the first one's flush comes first
                end.engine.send_datagram(b"at once")
                end.wake()
        await asyncio.sleep(1.0)
        client.close()
        await client.wait_closed()
        assert ages == [0.0] * 8

    run_virtual(main(), limit=600)


def test_stream_ids_are_those_of_quic():
    pair = Pair()
    ids = [
        engine.open_stream(bidirectional)
        for engine, bidirectional, _ in itertools.product(pair.engines, (True, False), range(2))
    ]
    assert ids == [0, 4, 2, 6, 1, 5, 3, 7]
