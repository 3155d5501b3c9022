"""The clock of a connection: wiring, bounds, hostile frames, the true offset over real sockets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rpc_support import quic_pair, raw_client, real, server_builder, session_of, turns, virtual

from echostream import (
    ClientContext,
    ConfigurationError,
    ConnectionClosed,
    RpcClient,
    RpcServer,
    StreamReceiver,
    handler,
)
from echostream.protocol.frames import (
    CLOCK_REPLY,
    CLOCK_REPLY_REQUEST,
    CLOCK_REQUEST,
    decode_clock,
    encode_clock,
    encode_media,
)
from echostream.rpc.clock import MAX_REPLIES
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

SECOND = 1_000_000_000
US = 1e3


class Skewed:
    """A local clock that is ahead by ``offset`` and gains ``ppm``, on the running loop's time."""

    def __init__(self, offset: int, ppm: float) -> None:
        self.offset = offset
        self.rate = ppm * 1e-6

    def __call__(self) -> int:
        now = round(asyncio.get_running_loop().time() * 1e9)
        return now + self.offset + round(now * self.rate)


def skewed(offset: int, ppm: float) -> Skewed:
    return Skewed(offset, ppm)


@virtual
async def test_both_sides_map_the_other_ones_clock() -> None:
    ours = skewed(123 * SECOND, 40.0)
    client = RpcClient.builder()
    client._now_ns = ours  # .local_clock() asks it at once, which needs the loop
    path = Impairment(delay=0.001, jitter=0.0005, loss=0.05)
    async with connected_pair(None, client, up=path, down=path) as (server, connected):
        await asyncio.sleep(0.5)
        clock, theirs = connected.clock, (await session_of(server)).clock
        await clock.wait_synchronized(timeout=5.0)
        await theirs.wait_synchronized(timeout=5.0)
        assert connected.context.clock is clock
        for _ in range(100):
            await asyncio.sleep(0.5)
            local, remote = ours(), round(asyncio.get_running_loop().time() * 1e9)
            assert abs(clock.to_remote(local) - remote) <= clock.error_bound_ns
            assert abs(theirs.to_remote(remote) - local) <= theirs.error_bound_ns
            assert abs(clock.to_local(remote) - local) <= clock.error_bound_ns + 1
        assert clock.error_bound_ns < 1_200 * US
        assert clock.drift_ppm == pytest.approx(-40.0, abs=2.0)
        assert theirs.drift_ppm == pytest.approx(40.0, abs=2.0)
    assert 0.0 <= connected.statistics().loop_lag < 1e-9


@virtual
async def test_idle_connection_stays_silent() -> None:
    async with connected_pair() as (server, client):
        session = await session_of(server)
        await asyncio.sleep(1.0)
        before = client.statistics().packets_sent, session.statistics().packets_sent
        await asyncio.sleep(100.0)
        after = client.statistics().packets_sent, session.statistics().packets_sent
        assert after == before
        assert client._peer.clock._schedule is None
        assert client.clock.synchronized is False
        await client.clock.wait_synchronized(timeout=1.0)
        assert session._peer.clock._schedule is None  # the server only answered


@virtual
async def test_waits_end_with_the_connection() -> None:
    client = RpcClient.builder().connect("127.0.0.1:1")
    async with connected_pair(None, client) as (server, connected):
        clock = (await session_of(server)).clock
        wait = asyncio.create_task(clock.wait_synchronized(bound_ns=0.0))
        await turns()
        await connected.close()
        with pytest.raises(ConnectionClosed):
            await wait
        with pytest.raises(ConnectionClosed):
            await connected.clock.wait_synchronized()
        assert connected._peer.clock._timer is None


def test_clock_needs_a_connection() -> None:
    with pytest.raises(ConnectionClosed):
        _ = ClientContext().clock


@virtual
async def test_hostile_frames_are_counted_and_replies_bounded() -> None:
    async with raw_client(RpcServer.builder()) as (server, raw):
        session = await session_of(server)
        driver = session._peer.clock
        bad = [
            encode_clock(CLOCK_REPLY, 7, 1, 2, 3),  # nobody asked
            b"\x41\x09" + bytes(30),  # undefined flags
        ]
        for frame in bad:
            raw.engine.send_datagram(frame)
        raw.connection.wake()
        await asyncio.sleep(0.5)
        assert driver.bad_frames == len(bad)
        for exchange in range(3 * MAX_REPLIES):
            driver.receive(encode_clock(CLOCK_REQUEST, exchange, exchange))
        assert driver.unanswered_requests == 2 * MAX_REPLIES
        assert len(driver._replies) == MAX_REPLIES
        assert session.statistics().clock_refused == len(bad) + 2 * MAX_REPLIES


@virtual
async def test_a_reply_may_be_a_request_and_frames_share_a_datagram() -> None:
    async with connected_pair() as (server, client):
        await asyncio.sleep(1.0)
        peer = (await session_of(server))._peer
        sent: list[bytes] = []
        send = peer.connection.engine.send_datagram
        peer.connection.engine.send_datagram = lambda data, deadline=None: (
            sent.append(data) or send(data, deadline)
        )
        request = encode_clock(CLOCK_REQUEST, 5, 111)
        media = encode_media(77, 0, 0, 0, b"abc")
        client._peer.connection.engine.send_datagram(media + request)
        client._peer.connection.wake()
        await asyncio.sleep(0.1)
        assert [decode_clock(data)[:3] for data in sent] == [(CLOCK_REPLY, 5, 111)]
        driver = peer.clock
        driver._pending[9] = 50, 50
        driver.receive(encode_clock(CLOCK_REPLY_REQUEST, 9, 50, 60, 70))
        assert [entry[:2] for entry in driver._replies] == [(9, 70)]


@virtual
async def test_a_reply_corrects_the_one_before() -> None:
    async with connected_pair() as (_, client):
        driver = client._peer.clock
        taken: list[tuple[int, ...]] = []
        driver._take = lambda *stamps: taken.append(stamps)  # type: ignore[method-assign]
        for exchange, late in (
            (14, 0),
            (15, 0xE003),
            (16, 0xF000 | 4095),
            (17, 0x1005),
            (19, 0x3001),
        ):
            driver._hold(exchange, 1, 2, exchange * 1000, 4, late)
        # 14 left 3 units late, 15 4095; what 17 and 19 say is not about the reply before.
        assert [t3 for _, _, t3, _ in taken] == [14_384, 15_000 + 4095 * 128, 16_000, 17_000]


@virtual
async def test_new_path_and_break_measure_anew() -> None:
    async with connected_pair() as (_, client):
        await client.clock.wait_synchronized()
        driver = client._peer.clock
        await asyncio.sleep(60.0)
        before = client.clock.statistics().accepted
        driver.path_changed()
        driver.path_changed()
        await asyncio.sleep(1.0)
        assert client.clock.statistics().accepted - before >= 30


def test_local_clock_must_tell_ns() -> None:
    with pytest.raises(ConfigurationError, match="whole ns"):
        RpcClient.builder().local_clock(time.monotonic)
    assert RpcClient.builder().local_clock(time.monotonic_ns)._now_ns is time.monotonic_ns


@handler("now")
async def now() -> int:
    """The other process's clock, which is ours too."""
    return time.monotonic_ns()


@real
async def test_bound_covers_the_true_offset_over_quic() -> None:
    """Both ends read one clock: the true offset is 0. Two loops would not change what is tested."""
    async with quic_pair(server_builder().handler(now)) as (server, client):
        clock, theirs = client.clock, (await session_of(server)).clock
        await clock.wait_synchronized(timeout=20.0)
        await theirs.wait_synchronized(timeout=20.0)
        seen = 0
        while clock.statistics().accepted < 40:
            await client.request("now")
            assert abs(clock.offset_ns) <= clock.error_bound_ns
            assert abs(theirs.offset_ns) <= theirs.error_bound_ns
            seen += 1
        assert seen > 0
        assert clock.error_bound_ns < 50e6


def test_bound_covers_the_true_offset_between_processes() -> None:
    """Two processes: no sample of the offset is outside its bound."""
    bench = Path(__file__).parents[2] / "bench" / "bench_clock_loopback.py"
    done = subprocess.run(
        [sys.executable, str(bench), "--runs", "1", "--seconds", "0.5"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "uncovered 0 of" in done.stdout


@pytest.mark.parametrize("seed", range(6))
@virtual
async def test_queueing_one_way_only_is_no_change_of_the_clock(seed: int) -> None:
    """What the other way delivers at once must bear the time at which it came."""
    path = Impairment(delay=0.02, jitter=0.03)  # one packet in six is not delayed at all
    builder = RpcServer.builder().stream_handler("s", _swallow)
    async with connected_pair(builder, up=path, seed=seed) as (server, client):
        session = await session_of(server)
        for peer in (session, client):
            await peer.clock.wait_synchronized(timeout=5.0)
        stream = await client.create_stream("s", delivery="realtime", time_sync=True)
        for number in range(100):
            await asyncio.sleep(0.01)
            await stream.send(b"%d" % number)
        for peer in (client, session):
            seen = peer.clock.statistics()
            assert seen.accepted > 20
            assert seen.changes == seen.refused_rtt == 0
            low, high = peer.clock._hull.interval(peer.clock._hull.at)
            assert low <= 0 <= high


async def _swallow(stream: StreamReceiver) -> None:
    async for _ in stream:
        pass
