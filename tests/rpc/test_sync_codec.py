"""An encoded stream by the shared clock, over a path that loses and reorders: sync playout."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from rpc_support import session_of, virtual
from test_stream_codec import needs_opus

from echostream import AudioFormat, RpcServer
from echostream.protocol import frames
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

FORMAT = AudioFormat(48_000, 1)
BLOCK, BLOCKS = 480, 500
LOST = 12
"""Of so many media packets, one is lost: never two in a row, which nobody can conceal."""


def wave(first: int, count: int) -> np.ndarray:
    n = np.arange(first, first + count)
    return (0.4 * np.sin(2 * np.pi * 440 / 48_000 * n))[:, None].astype(np.float32)


async def played(codec: str, lossy: bool):
    """Five seconds of a tone: what was heard, at the time at which it was sent plus the agreed
    delay, beside what should have been; statistics of stream and playout."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future = loop.create_future()

    async def on_audio(session, stream):
        opened.set_result((stream, stream.playout(profile="sync")))
        await asyncio.sleep(3600)

    path = Impairment(delay=0.02, jitter=0.03)  # more than a packet: they overtake
    builder = RpcServer.builder().stream_handler("audio", on_audio)
    async with connected_pair(builder, up=path, seed=3) as (server, client):
        await (await session_of(server)).clock.wait_synchronized(timeout=5.0)
        await client.clock.wait_synchronized(timeout=5.0)
        if lossy:
            lose_media(client._peer.connection.engine)
        stream = await client.create_stream(
            "audio", delivery="realtime", format=FORMAT, codec=codec, time_sync=True
        )
        receiver, playout = await opened
        start, begin = loop.time(), playout.now()
        heard = np.zeros((BLOCK * BLOCKS, 1), np.float32)
        for number in range(BLOCKS):
            await asyncio.sleep(max(0.0, start + number * 0.01 - loop.time()))
            at = number * BLOCK
            await stream.send_with_timestamp(wave(at, BLOCK), round(loop.time() * 1e9))
            playout.pull_into(heard[at : at + BLOCK], begin + number * 10_000_000)
        seen = receiver.statistics()
        assert seen.sync is not None
        delay = round(seen.sync.playout_delay_ns * 48e-6)
        wanted = wave(-delay, BLOCK * BLOCKS)
        settled = slice(BLOCKS * BLOCK // 10, None)
        return heard[settled, 0], wanted[settled, 0], seen


def lose_media(engine) -> None:
    """Whatever else leaves in between: how much the clock asks is no matter of these tests."""
    send, numbers = engine.send_datagram, itertools.count(1)

    def send_most(data, deadline=None):
        lost = data[0] == frames.MEDIA and next(numbers) % LOST == 0
        return True if lost else send(data, deadline)

    engine.send_datagram = send_most


def ratio_db(heard: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(wanted**2.0) / np.mean((heard - wanted) ** 2.0)))


@needs_opus
@virtual
async def test_packets_that_overtake_each_other_are_decoded_in_order():
    """Decoded as they came, a tone was 7 dB above its own distortion, and clicked."""
    heard, wanted, seen = await played("opus", False)
    assert ratio_db(heard, wanted) > 35
    assert np.abs(np.diff(heard, 2)).max() < 0.003
    assert seen.sync.codec.decoded == seen.sync.received
    assert seen.sync.codec.concealed_frames == seen.sync.concealed_frames == seen.lost == 0


@needs_opus
@virtual
async def test_the_codec_fills_the_gaps_in_time():
    heard, wanted, seen = await played("opus", True)
    assert seen.lost > 10
    assert ratio_db(heard, wanted) > 20
    assert np.abs(np.diff(heard, 2)).max() < 0.01  # no click at any seam
    codec = seen.sync.codec
    assert seen.lost * 960 <= codec.concealed_frames <= (seen.lost + 3) * 960
    assert codec.concealed_frames == seen.sync.concealed_frames
    assert seen.sync.late == codec.dropped <= 3
    assert seen.sync.jumps == seen.undecodable == 0


@pytest.mark.parametrize("lossy", [False, True])
@virtual
async def test_pcm_needs_none_of_it(lossy):
    heard, wanted, seen = await played("pcm", lossy)
    assert ratio_db(heard, wanted) > 40
    assert (seen.sync.concealed_frames > 0) == lossy
