"""Calls, events and streams over a bad network: real QUIC, virtual time, seeds."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from full_size import report, resident_bytes, sized

from echostream import Session, StreamReceiver, handler, listener, stream_handler
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.errors import ConfigurationError, ConnectionClosed, InternalError, RpcError
from echostream.testing import Impairment, QuicNetwork, VirtualTimeLoop, quic_pair, run_virtual

MBIT = 1e6 / 8


@handler("echo")
async def echo(value: Any) -> Any:
    return value


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]


# --- calls ---


@pytest.mark.parametrize("seed", range(1, sized(2, 20) + 1))
def test_every_call_is_accounted_for_and_none_runs_twice(seed: int) -> None:
    """Row 10: 10 % loss and 30 ms of jitter each way."""
    count = sized(1500, 10_000)
    executed: Counter[int] = Counter()
    outcomes: dict[int, str] = {}
    took: list[float] = []
    path = Impairment(delay=0.03, jitter=0.03, loss=0.1)

    @handler("count")
    async def counted(number: int) -> int:
        executed[number] += 1
        return number

    async def one(client: RpcClient, number: int) -> None:
        start = asyncio.get_running_loop().time()
        try:
            answer = await client.request("count", number, timeout=5.0)
            outcomes[number] = "ok" if answer == number else "wrong"
        except (RpcError, ConnectionClosed) as error:
            outcomes[number] = type(error).__name__
        took.append(asyncio.get_running_loop().time() - start)

    async def main() -> None:
        builder = ServerBuilder().handler(counted)
        async with (
            quic_pair(builder, up=path, down=path, seed=seed) as (_, client),
            asyncio.TaskGroup() as group,
        ):
            for number in range(count):
                group.create_task(one(client, number))
                await asyncio.sleep(0.005)

    run_virtual(main())
    found = Counter(outcomes.values())
    report("calls", seed=seed, p50=quantile(took, 0.5), p99=quantile(took, 0.99), **found)
    assert len(outcomes) == count
    assert max(executed.values()) == 1
    assert found["wrong"] == 0
    assert found["ok"] >= 0.999 * count
    assert quantile(took, 0.99) <= 1.0


def test_duplicates_and_reordering_repeat_nothing() -> None:
    """Row 13, the first half: 20 % duplicated, 50 ms of jitter."""
    count = sized(500, 10_000)
    path = Impairment(delay=0.05, jitter=0.05, duplicate=0.2, loss=0.01)
    executed: Counter[int] = Counter()
    heard: list[int] = []

    @handler("count")
    async def counted(number: int) -> int:
        executed[number] += 1
        return number

    @listener("tell")
    async def tell(session: Session, number: int) -> None:
        heard.append(number)

    async def main() -> None:
        builder = ServerBuilder().handler(counted).listener(tell)
        async with quic_pair(builder, up=path, down=path) as (_, client):
            calls = []
            for number in range(count):
                calls.append(asyncio.ensure_future(client.request("count", number)))
                await client.emit("tell", number)
                await asyncio.sleep(0.002)
            assert await asyncio.gather(*calls) == list(range(count))

    run_virtual(main())
    assert set(executed.values()) == {1}
    assert heard == list(range(count))


def test_handshakes_through_burst_loss() -> None:
    """Row 11: 30 % of the datagrams lost, in bursts of two on average and without an upper bound.
    The interop runner's bursts end after three; here one may swallow every retransmission that
    fits the 10 s."""
    path = Impairment(delay=0.015, burst_start=0.214, burst_end=0.5)
    seeds = range(1, sized(20, 200) + 1)
    took: list[float] = []

    async def main(seed: int) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with quic_pair(ServerBuilder().handler(echo), up=path, down=path, seed=seed) as (
            _,
            client,
        ):
            took.append(loop.time() - start)
            assert await client.request("echo", 1) == 1

    for seed in seeds:
        try:
            run_virtual(main(seed))
        except ConnectionClosed:
            continue
    report("burst loss", handshakes=len(seeds), completed=len(took), p90=quantile(took, 0.9))
    assert len(took) >= 0.98 * len(seeds)


@pytest.mark.parametrize("seed", range(1, sized(2, 20) + 1))
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(Impairment(delay=0.015, corrupt=0.02, truncate=0.005), id="transfer"),
        pytest.param(Impairment(delay=0.015, corrupt=0.2), id="handshake"),
    ],
)
def test_corruption_delivers_no_wrong_byte(path: Impairment, seed: int) -> None:
    """Row 12."""
    data = random.Random(seed).randbytes(sized(300_000, 3_000_000))
    digest = hashlib.sha256(data).digest()
    received: asyncio.Queue[bytes] = asyncio.Queue()

    @handler("digest")
    async def digest_of(value: bytes) -> bytes:
        return hashlib.sha256(value).digest()

    @stream_handler("bytes")
    async def take(session: Session, stream: StreamReceiver) -> None:
        await received.put(b"".join([bytes(item) async for item in stream]))

    async def main() -> None:
        builder = ServerBuilder().handler(digest_of).handler(echo).stream_handler(take)
        async with quic_pair(builder, up=path, down=path, seed=seed) as (_, client):
            assert await client.request("digest", data) == digest
            assert await client.request("echo", data[:100_000]) == data[:100_000]
            async with await client.create_stream("bytes") as stream:
                for at in range(0, len(data), 10_000):
                    await stream.send(data[at : at + 10_000])
            assert await received.get() == data

    run_virtual(main())


# --- throughput ---


def transfer_seconds(path: Impairment, size: int, seed: int = 1) -> float:
    done: asyncio.Queue[float] = asyncio.Queue()

    @stream_handler("bytes")
    async def take(session: Session, stream: StreamReceiver) -> None:
        got = 0
        async for item in stream:
            got += len(item)
        assert got == size
        await done.put(asyncio.get_running_loop().time())

    async def main() -> float:
        async with quic_pair(
            ServerBuilder().stream_handler(take), up=path, down=path, seed=seed
        ) as (_, client):
            start = asyncio.get_running_loop().time()
            async with await client.create_stream("bytes") as stream:
                for at in range(0, size, 10_000):
                    await stream.send(bytes(min(10_000, size - at)))
            return await done.get() - start

    return run_virtual(main())


@pytest.mark.parametrize("seed", range(1, sized(2, 10) + 1))
def test_jitter_costs_a_transfer_less_than_twice_its_time(seed: int) -> None:
    """1.5 MB at 30 ms of RTT, on 20 Mbit/s; +-15 ms each way, nothing lost. And row 13: 50 ms."""
    rate = 20 * MBIT
    steady = transfer_seconds(Impairment(delay=0.015, rate=rate), 1_500_000, seed)
    jittery = transfer_seconds(Impairment(delay=0.015, jitter=0.015, rate=rate), 1_500_000, seed)
    report("transfer", steady=steady, jittery=jittery, ratio=jittery / steady)
    assert jittery <= 2 * steady
    wide = Impairment(delay=0.05, rate=rate)
    steady = transfer_seconds(wide, 1_500_000, seed)
    wide = Impairment(delay=0.05, jitter=0.05, duplicate=0.2, rate=rate)
    jittery = transfer_seconds(wide, 1_500_000, seed)
    report("wide transfer", steady=steady, jittery=jittery, ratio=jittery / steady)
    assert jittery <= 2 * steady


# --- what a path does for seconds ---


def test_black_holes() -> None:
    """Row 20: 2 s and 8 s do nothing to a connection; silence beyond the idle timeout ends it."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        path = Impairment(delay=0.015)
        async with QuicNetwork(seed=1) as network:
            server = await network.serve(ServerBuilder().handler(echo))
            client = await network.connect(up=path, down=path)
            for seconds in (2.0, 8.0):
                call = asyncio.ensure_future(client.request("echo", seconds))
                hole = Impairment(blackhole=True)
                network.impair(client, up=hole, down=hole)
                await asyncio.sleep(seconds)
                network.impair(client, up=path, down=path)
                start = clock()
                assert await call == seconds
                report("black hole", seconds=seconds, recovered_after=clock() - start)
            network.impair(client, up=hole, down=hole)
            start = clock()
            with pytest.raises(ConnectionClosed):
                await client.request("echo", 1)
            assert clock() - start <= 25
            await asyncio.sleep(15)
            assert server.statistics().sessions == 0

    run_virtual(main())


def test_a_stalled_loop_costs_no_connection() -> None:
    """Row 41: nothing runs in the process for 2 s; then everything goes on within a second."""

    @handler("stall")
    async def stall() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop._virtual_now += 2.0

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        path = Impairment(delay=0.015)
        async with quic_pair(ServerBuilder().handler(echo).handler(stall), up=path, down=path) as (
            _,
            client,
        ):
            calls = [asyncio.ensure_future(client.request("echo", n)) for n in range(100)]
            await client.request("stall")
            start = clock()
            assert await asyncio.gather(*calls) == list(range(100))
            assert await client.request("echo", 1) == 1
            assert clock() - start <= 1.0

    run_virtual(main())


def test_on_disconnect_follows_a_close_at_once() -> None:
    """Row 15: not three probe timeouts later."""
    ended: asyncio.Queue[float] = asyncio.Queue()

    async def on_disconnect(session: Session) -> None:
        await ended.put(asyncio.get_running_loop().time())

    async def main() -> None:
        path = Impairment(delay=0.2)
        builder = ServerBuilder().handler(echo).on_disconnect(on_disconnect)
        async with quic_pair(builder, up=path, down=path) as (_, client):
            await client.request("echo", 1)
            start = asyncio.get_running_loop().time()
            client._peer.close()
            assert await ended.get() - start - 0.2 <= 0.05

    run_virtual(main())


def test_keys_are_renewed_and_nothing_is_lost() -> None:
    """Row 39, with a limit of 50 packets per key."""

    async def main() -> None:
        path = Impairment(delay=0.005, loss=0.02)
        server = ServerBuilder().handler(echo).quic(key_update_after=50)
        async with quic_pair(
            server, ClientBuilder().quic(key_update_after=50), up=path, down=path
        ) as (
            _,
            client,
        ):
            for number in range(20):
                data = random.Random(number).randbytes(50_000)
                assert await client.request("echo", data) == data
            connection: Any = client._peer.connection.engine
            assert connection._connection._key_since > 500

    run_virtual(main())


def test_calls_and_streams_survive_a_path_that_shrinks() -> None:
    """Packets have grown to 1452 bytes when the path stops to carry more than 1250."""
    received: asyncio.Queue[int] = asyncio.Queue()
    taken: list[int] = []

    @stream_handler("bytes")
    async def take(session: Session, stream: StreamReceiver) -> None:
        await received.put(sum([len(item) async for item in stream]))

    @stream_handler("audio")
    async def audio(session: Session, stream: StreamReceiver) -> None:
        taken.extend([len(item) async for item in stream])

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        path = Impairment(delay=0.015, rate=20 * MBIT)
        small = replace(path, mtu=1250)
        async with QuicNetwork(seed=1) as network:
            await network.serve(
                ServerBuilder().handler(echo).stream_handler(take).stream_handler(audio)
            )
            client = await network.connect(up=path, down=path)
            await asyncio.sleep(1)
            realtime = await client.create_stream("audio", delivery="realtime")
            await realtime.send(bytes(1350))
            start = clock()
            async with await client.create_stream("bytes") as stream:
                for number in range(200):
                    if number == 50:
                        network.impair(client, up=small, down=small)
                    await stream.send(bytes(10_000))
            assert await received.get() == 2_000_000
            report("shrinking path", seconds=clock() - start)
            assert clock() - start <= 5.0
            assert len(await client.request("echo", bytes(50_000))) == 50_000
            with pytest.raises(RpcError, match="datagram"):
                await realtime.send(bytes(1350))
            await realtime.send(bytes(1100))
            await realtime.end()
            await asyncio.sleep(1)
            assert taken == [1350, 1100]

    run_virtual(main())


# --- slow readers and full paths ---


def test_a_stream_fills_a_long_fat_path() -> None:
    """More is under way there (375 KB) than a short one ever needs."""
    path = Impairment(delay=0.015, rate=100 * MBIT, queue=500)
    got = 0
    over = asyncio.Event()

    @stream_handler("up")
    async def take(session: Session, stream: StreamReceiver) -> None:
        nonlocal got
        async for piece in stream:
            got += len(piece)
        over.set()

    async def main() -> float:
        server = ServerBuilder().stream_handler(take)
        async with quic_pair(server, up=path, down=path) as (_, client):
            stream = await client.create_stream("up")
            start = asyncio.get_running_loop().time()
            for _ in range(1000):
                await stream.send(bytes(1 << 14))
            await stream.end()
            await over.wait()
            return asyncio.get_running_loop().time() - start

    took = run_virtual(main())
    assert got == 1000 << 14
    report(f"16 MB at 100 Mbit/s and 30 ms: {took:.2f} s, {got / took / MBIT:.0f} Mbit/s")
    assert got / took > 70 * MBIT


def test_a_slow_reader_holds_the_sender_and_memory_is_bounded() -> None:
    """Rows 6 and 7, a reliable stream to a reader that sleeps, and a path of 1 Mbit/s."""
    size = sized(4 << 20, 1 << 30)
    chunk = 64 * 1024

    @stream_handler("bytes")
    async def take(session: Session, stream: StreamReceiver) -> None:
        got = 0
        async for item in stream:
            got += len(item)
            if not got % (1 << 20):
                await asyncio.sleep(0.5)

    async def main() -> None:
        path = Impairment(delay=0.01, rate=sized(10, 100) * MBIT)
        async with quic_pair(ServerBuilder().stream_handler(take), up=path, down=path) as (
            _,
            client,
        ):
            before = 0
            async with await client.create_stream("bytes") as stream:
                for sent in range(0, size, chunk):
                    await stream.send(bytes(chunk))
                    found = client.statistics()
                    assert found.queued + found.buffered <= (1 << 20) + chunk
                    if sent == size // 8:
                        before = resident_bytes()
            grown = resident_bytes() - before
            report("slow reader", bytes=size, rss_growth=grown)
            assert grown <= 32 << 20

    run_virtual(main(), limit=1e9)


def test_large_calls_on_a_thin_path_keep_the_send_buffer_short() -> None:
    """Row 7 for calls: what waits for the path, waits in the callers."""

    async def main() -> None:
        path = Impairment(delay=0.01, rate=1 * MBIT)
        async with quic_pair(ServerBuilder().handler(echo), up=path, down=path) as (server, client):
            calls = [
                asyncio.ensure_future(client.request("echo", bytes(100_000))) for _ in range(60)
            ]
            while not all(call.done() for call in calls):
                await asyncio.sleep(0.5)
                for found in (client.statistics(), server.statistics()):
                    assert found.queued <= (1 << 20) + 110_000
                    assert found.buffered <= (1 << 20) + 110_000

    run_virtual(main())


def test_a_million_events_to_a_slow_listener() -> None:
    """Row 6: the emitter waits, nothing is lost, order is kept, memory is bounded."""
    count = sized(30_000, 1_000_000)
    heard = 0
    all_heard = asyncio.Event()

    @listener("tick")
    async def tick(session: Session, number: int) -> None:
        nonlocal heard
        assert number == heard
        heard += 1
        if heard == count:
            all_heard.set()
        if not heard % 1000:
            await asyncio.sleep(0.1)

    async def main() -> None:
        path = Impairment(delay=0.01)
        async with quic_pair(ServerBuilder().listener(tick), up=path, down=path) as (_, client):
            before = 0
            for number in range(count):
                await client.emit("tick", number)
                if number == count // 4:
                    before = resident_bytes()
            await all_heard.wait()
            grown = resident_bytes() - before
            report("events", count=count, rss_growth=grown)
            assert grown <= 32 << 20

    run_virtual(main(), limit=1e9)


def test_a_listener_of_datagrams_holds_nothing() -> None:
    """Only one side sends, in DATAGRAMs, for hours: memory is flat on both."""
    count = sized(6000, 1_000_000)

    @stream_handler("audio")
    async def take(session: Session, stream: StreamReceiver) -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        path = Impairment(delay=0.01)
        async with quic_pair(ServerBuilder().stream_handler(take), up=path, down=path) as (
            server,
            client,
        ):
            stream = await client.create_stream("audio", delivery="realtime")
            before = 0
            for number in range(count):
                await stream.send(bytes(160))
                await asyncio.sleep(0.005)
                if number == count // 4:
                    before = resident_bytes()
            grown = resident_bytes() - before
            report("datagrams", count=count, rss_growth=grown)
            assert grown <= 2 << 20
            (session,) = server.context.sessions
            assert session._peer.receivers[stream.alias].statistics().packets >= 0.99 * count
            engine: Any = session._peer.connection.engine
            space = engine._connection._spaces[list(engine._connection._spaces)[-1]]
            assert len(space.sent_packets) <= 100

    run_virtual(main(), limit=1e9)


def test_realtime_is_not_held_up_by_bulk() -> None:
    """Row 32: 10 Mbit/s, 30 ms of RTT, a bulk stream at full speed: p99 <= RTT + 30 ms."""
    seconds = sized(3, 60)
    delays: list[float] = []

    @stream_handler("audio")
    async def audio(session: Session, stream: StreamReceiver) -> None:
        async for item in stream:
            sent = int.from_bytes(bytes(item)[:8], "big") / 1e6
            delays.append(asyncio.get_running_loop().time() - sent)

    @stream_handler("bulk")
    async def bulk(session: Session, stream: StreamReceiver) -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        # The queue of the interop runner's link: 25 packets.
        path = Impairment(delay=0.015, rate=10 * MBIT, queue=25)
        builder = ServerBuilder().stream_handler(audio).stream_handler(bulk)
        async with quic_pair(builder, up=path, down=path) as (_, client):
            stream = await client.create_stream("audio", delivery="realtime")

            async def load() -> None:
                sink = await client.create_stream("bulk")
                while True:
                    await sink.send(bytes(10_000))

            loading = asyncio.ensure_future(load())
            await asyncio.sleep(2)
            delays.clear()
            loop = asyncio.get_running_loop()
            sent = seconds * 100
            for _ in range(sent):
                await stream.send(int(loop.time() * 1e6).to_bytes(8, "big") + bytes(152))
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            loading.cancel()
            got = len(delays)
            report(
                "realtime under bulk",
                p50=quantile(delays, 0.5),
                p99=quantile(delays, 0.99),
                lost=sent - got,
            )
            assert quantile(delays, 0.99) <= 0.030 + 0.030
            assert got >= 0.9 * sent

    run_virtual(main())


def test_what_is_too_old_is_not_sent() -> None:
    """Events with ``max_age`` on a path that is too thin for them: the old ones stay at home."""
    heard: list[int] = []
    total = 4000

    @listener("tick")
    async def tick(session: Session, number: int) -> None:
        heard.append(number)

    async def main() -> None:
        path = Impairment(delay=0.01, rate=0.2 * MBIT)
        async with quic_pair(ServerBuilder().listener(tick), up=path, down=path) as (_, client):
            for number in range(total):  # of 200 bytes each: 32 s of the path
                await client.emit("tick", number, metadata={"pad": "x" * 200}, max_age=2.0)
            await asyncio.sleep(60)
            expired = client.statistics().expired
            report("expired", sent=total, expired=expired, heard=len(heard))
            assert expired > 0
            assert len(heard) + expired == total
            assert heard == sorted(heard)

    run_virtual(main())


def test_datagrams_never_block() -> None:
    """Row 31: too large is an error of the caller, a thin path drops the oldest, and a peer that
    takes none says so at once."""
    taken: list[bytes] = []

    @stream_handler("audio")
    async def take(session: Session, stream: StreamReceiver) -> None:
        taken.extend([bytes(item) async for item in stream])

    async def main() -> None:
        thin = Impairment(delay=0.01, rate=0.1 * MBIT)
        async with quic_pair(ServerBuilder().stream_handler(take), up=thin, down=thin) as (
            _,
            client,
        ):
            stream = await client.create_stream("audio", delivery="realtime")
            with pytest.raises(RpcError, match="datagram"):
                await stream.send(bytes(3000))
            for number in range(500):
                await stream.send(number.to_bytes(1000, "big"))
                await asyncio.sleep(0.002)
            await asyncio.sleep(2)
            dropped = client.statistics().datagrams_dropped
            assert dropped > 300
            await stream.send((501).to_bytes(1000, "big"))
            await asyncio.sleep(1)
            await stream.end()
            await asyncio.sleep(1)
            assert taken[-1] == (501).to_bytes(1000, "big")
            assert client._peer.ended is None

    run_virtual(main())


# --- programs that fail ---


def test_exceptions_of_user_code_stay_where_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """Row 40: every callback raises; the caller gets INTERNAL, the connection lives."""

    @handler("bad")
    async def bad() -> None:
        raise ZeroDivisionError("a secret")

    @listener("bad")
    async def bad_listener(session: Session) -> None:
        raise KeyError("a secret")

    @stream_handler("bad")
    async def bad_stream(session: Session, stream: StreamReceiver) -> None:
        await stream.recv()
        raise OSError("a secret")

    async def bad_hook(_: object) -> None:
        raise RuntimeError("a secret")

    async def main() -> None:
        builder = ServerBuilder().handler(echo).handler(bad).listener(bad_listener)
        builder.stream_handler(bad_stream).on_disconnect(bad_hook)
        async with quic_pair(builder) as (server, client):
            for number in range(20):
                with pytest.raises(InternalError) as caught:
                    await client.request("bad")
                assert "secret" not in str(caught.value)
                await client.emit("bad")
                stream = await client.create_stream("bad")
                await stream.send(b"x")
                assert await client.request("echo", number) == number
            await asyncio.sleep(1)
            found = server.statistics()
            assert (found.tasks, found.calls_running) == (0, 0)

    run_virtual(main())
    assert "a secret" in caplog.text  # where it happened, it is logged


def test_a_wrong_option_is_refused_before_it_is_used() -> None:
    with pytest.raises(ConfigurationError, match="stall"):
        ServerBuilder().limits(stall=0)
