"""``StreamReceiver.playout``: from the wire to the loudspeaker, in virtual time and over QUIC."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from rpc_support import WIRE, quic_pair, real, server_builder, virtual

from echostream import AudioFormat, ConfigurationError, RpcServer
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

FORMAT = AudioFormat(16_000, 1)
BLOCK = 160


def tone(seconds, frequency=440.0):
    wave = 0.5 * np.sin(2 * np.pi * frequency / 16_000 * np.arange(int(seconds * 16_000)))
    return wave.astype(np.float32)[:, None]


def receiving(builder=None, **options):
    """A server whose handler plays the stream; what it was given and what it played."""
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def on_audio(session, stream):
        playout = stream.playout(**options)
        opened.set_result((stream, playout))
        await asyncio.sleep(3600)

    builder = builder or RpcServer.builder()
    return builder.stream_handler("audio", on_audio), opened


async def send_live(stream, signal):
    """One packet each 10 ms."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number, at in enumerate(range(0, len(signal), BLOCK)):
        await asyncio.sleep(max(0.0, start + number * 0.01 - loop.time()))
        await stream.send(signal[at : at + BLOCK])


async def heard(playout, into):
    async for block in playout.blocks(160):
        into.append(block)


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@pytest.mark.parametrize("profile", ["voice", "music"])
@virtual
async def test_a_stream_is_played_to_its_end(delivery, profile):
    builder, opened = receiving(profile=profile)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", delivery=delivery, format=FORMAT)
        receiver, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        await send_live(stream, tone(2))
        await stream.end()
        await listening
        out = np.concatenate(blocks)
        stats = receiver.statistics()
        assert stats.packets == 200
        assert stats.queued == 0
        assert stats.playout.buffer.received == 200
        assert stats.playout.buffer.lost == 0
        assert stats.playout.buffer.late <= 2
        assert np.count_nonzero(np.abs(out) > 1e-4) == pytest.approx(32_000, rel=0.02)
        with pytest.raises(ConfigurationError, match="playout"):
            await receiver.recv()
        with pytest.raises(ConfigurationError, match="already"):
            receiver.playout()


@virtual
async def test_loss_is_concealed_and_counted():
    builder, opened = receiving()
    bad = Impairment(delay=0.02, jitter=0.01, loss=0.1)
    async with connected_pair(builder, up=bad, seed=4) as (_, client):
        stream = await client.create_stream("audio", delivery="realtime", format=FORMAT)
        receiver, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        await send_live(stream, tone(4))
        await stream.end()
        await listening
        stats = receiver.statistics()
        assert stats.lost > 0
        assert stats.playout.buffer.lost == pytest.approx(stats.lost, abs=3)
        assert stats.playout.buffer.concealed_frames > 0


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_flush_of_the_sender_empties_the_playout(delivery):
    builder, opened = receiving()
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", delivery=delivery, format=FORMAT)
        receiver, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        await send_live(stream, tone(1))
        await stream.flush()
        await asyncio.sleep(0.1)
        before = len(blocks)
        await asyncio.sleep(0.5)
        quiet = np.concatenate(blocks[before:])
        assert np.max(np.abs(quiet)) == 0.0
        await send_live(stream, tone(1, 880.0))
        await stream.end()
        await listening
        assert np.max(np.abs(np.concatenate(blocks[before + 60 :]))) > 0.4
        assert receiver.statistics().playout.buffer.restarts == 1


@virtual
async def test_a_reliable_stream_that_hurries_is_held_back_and_flushed():
    """Ten seconds of synthesised speech at once: played in ten seconds, nothing is skipped."""
    builder, opened = receiving()
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", delivery="reliable", format=FORMAT)
        receiver, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        signal = tone(10)
        sending = asyncio.create_task(_send_all(stream, signal))
        await asyncio.sleep(3.0)
        assert receiver.statistics().queued > 100
        level = np.sqrt(np.mean(np.concatenate(blocks)[16_000:] ** 2))
        assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
        stats = playout.statistics().buffer
        assert stats.skipped_frames == stats.concealed_frames == stats.late == 0
        await sending
        await stream.flush()
        await asyncio.sleep(0.1)
        before = len(blocks)
        await asyncio.sleep(0.3)
        assert np.max(np.abs(np.concatenate(blocks[before:]))) == 0.0
        assert receiver.statistics().queued == 0
        await stream.end()
        await listening


async def _send_all(stream, signal):
    for at in range(0, len(signal), BLOCK):
        await stream.send(signal[at : at + BLOCK])


@virtual
async def test_an_abort_ends_the_playout():
    builder, opened = receiving()
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", format=FORMAT)
        _, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        await send_live(stream, tone(0.4))
        stream.abort()
        async with asyncio.timeout(2.0):
            await listening


@virtual
async def test_a_stream_of_bytes_has_no_playout():
    faults: list[Exception] = []
    done = asyncio.Event()

    async def on_bytes(session, stream):
        try:
            stream.playout()
        except ConfigurationError as exc:
            faults.append(exc)
        done.set()

    builder = RpcServer.builder().stream_handler("bytes", on_bytes)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        await client.create_stream("bytes")
        await done.wait()
    assert "AudioFormat" in str(faults[0])


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@real
async def test_over_quic(delivery):
    builder, opened = receiving(server_builder())
    async with quic_pair(builder) as (_, client):
        stream = await client.create_stream("audio", delivery=delivery, format=FORMAT)
        receiver, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        await send_live(stream, tone(0.6))
        await stream.end()
        await listening
        assert receiver.statistics().playout.buffer.received == 60
        assert np.count_nonzero(np.concatenate(blocks)) > 8000


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_the_sync_profile_plays_at_the_capture_time_and_the_delay(delivery):
    """A reliable stream that hurries waits, and its sender with it."""
    builder, opened = receiving(profile="sync", output_latency=0.01)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (server, client):
        stream = await client.create_stream(
            "audio", delivery=delivery, format=FORMAT, time_sync=True, playout_delay=0.2
        )
        receiver, playout = await opened
        (session,) = server.context.sessions
        assert session._peer.clock._schedule._sharp
        loop = asyncio.get_running_loop()
        began, signal = round(loop.time() * 1e9), np.ones((32_000, 1), np.float32)
        heard_at: list[tuple[float, np.ndarray]] = []

        async def listen():
            async for block in playout.blocks(160):
                heard_at.append((loop.time(), block))  # noqa: PERF401 - as it comes

        listening = asyncio.create_task(listen())
        for number, at in enumerate(range(0, len(signal), BLOCK)):
            if delivery == "realtime":
                await asyncio.sleep(0.01)
            await stream.send_with_timestamp(signal[at : at + BLOCK], began + number * 10_000_000)
        if delivery == "reliable":
            assert loop.time() - began / 1e9 < 1.5
        await stream.end()
        await listening
        first = next(at for at, block in heard_at if np.abs(block).max() > 0.5)
        assert abs(first - began / 1e9 - 0.19) < 0.011
        assert sum(int((block > 0.5).sum()) for _, block in heard_at) == pytest.approx(
            32_000, abs=60
        )
        stats = receiver.statistics()
        assert stats.playout is None
        assert stats.sync.received == 200
        assert stats.sync.late == stats.sync.jumps == stats.sync.early == 0
        assert stats.sync.output_latency_ns == 10_000_000
        assert not session._peer.clock._schedule._sharp


@virtual
async def test_the_sync_profile_needs_time_sync():
    faults: list[Exception] = []
    done = asyncio.Event()

    async def on_audio(session, stream):
        try:
            stream.playout(profile="sync")
        except ConfigurationError as exc:
            faults.append(exc)
        done.set()

    builder = RpcServer.builder().stream_handler("audio", on_audio)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        await client.create_stream("audio", format=FORMAT)
        await done.wait()
    assert "time_sync=True" in str(faults[0])
