"""What the session's clock knows of the sender's drift goes to the playout of a live stream."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from rpc_support import session_of, virtual

from echostream import AudioFormat, RpcClient, RpcServer
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

FORMAT = AudioFormat(8000, 1)
PPM = 400.0
PATH = Impairment(delay=0.0002)


def sender_clock() -> int:
    return round(asyncio.get_running_loop().time() * 1e9 * (1 + PPM * 1e-6)) + 7_000_000_000


@pytest.mark.parametrize("started", [True, False])
@virtual
async def test_a_measured_drift_is_fed_forward(started: bool) -> None:
    """A sender 400 ppm fast, by its clock and by its samples; its packets alone tell it later."""
    opened = asyncio.get_running_loop().create_future()

    async def on_audio(session, stream):
        opened.set_result(stream.playout(profile="music"))
        await asyncio.sleep(3600)

    client = RpcClient.builder()
    client._now_ns = sender_clock
    server = RpcServer.builder().stream_handler("audio", on_audio)
    async with connected_pair(server, client, up=PATH, down=PATH) as (serving, connected):
        if started:
            await (await session_of(serving)).clock.wait_synchronized(timeout=5.0)
        stream = await connected.create_stream("audio", delivery="realtime", format=FORMAT)
        playout = await opened
        assert math.isnan(playout.feed_forward_ppm)
        loop = asyncio.get_running_loop()
        start, block = loop.time(), np.zeros((160, 1), np.float32)
        out = np.empty((160, 1), np.float32)
        for number in range(400):
            await asyncio.sleep(max(0.0, start + number * 0.02 / (1 + PPM * 1e-6) - loop.time()))
            await stream.send(block)
            playout.pull_into(out, int((start + number * 0.02) * 1e9))
        if not started:
            assert math.isnan(playout.feed_forward_ppm)
            return
        assert playout.feed_forward_ppm == pytest.approx(PPM, abs=5.0)
        assert playout.statistics().drift_ppm == pytest.approx(PPM, abs=30.0)
        assert playout.buffer.ring.drift_ppm == pytest.approx(PPM, abs=30.0)
