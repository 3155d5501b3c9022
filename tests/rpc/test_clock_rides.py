"""Exchanges of timestamps ride on packets that leave anyway: counted on real QUIC, virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest
from rpc_support import session_of, virtual

from echostream import AudioFormat, RpcClient, RpcServer, Session, StreamReceiver
from echostream.media.clock import SHARP_NS
from echostream.testing import Impairment, QuicNetwork

FORMAT = AudioFormat(16_000, 1, sample_type="int16")
PACKET_S = 0.02
PACKET = np.zeros((320, 1), np.int16)
SPREAD = 10
"""By so many of 2,000 packets two runs differ anyway: what QUIC draws is not seeded."""
PATH = Impairment(delay=0.005, tail=0.0002)


@dataclass
class Cost:
    """Packets that both sides sent, exchanges made, and the largest error (ns), after a start."""

    packets: int
    exchanges: int
    error: float
    bound: float


async def swallow(stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


async def speak(peer: RpcClient | Session) -> None:
    """A packet of sound every 20 ms."""
    stream = await peer.create_stream("sound", format=FORMAT, delivery="realtime")
    while True:
        await stream.send(PACKET)
        await asyncio.sleep(PACKET_S)


async def measure(directions: int, clock: bool, sharp: bool, seconds: float = 20.0) -> Cost:
    """``directions``: 0 for silence, 1 where the server speaks, 2 where both do."""
    async with QuicNetwork(seed=3) as network:
        server = await network.serve(RpcServer.builder().stream_handler("sound", swallow))
        builder = RpcClient.builder().stream_handler("sound", swallow)
        client = await network.connect(builder, up=PATH, down=PATH)
        session = await session_of(server)
        speakers = [asyncio.create_task(speak(p)) for p in (session, client)[:directions]]
        if clock:
            await client.clock.wait_synchronized(timeout=5.0)
            client._peer.clock.sharpen(sharp)
        await asyncio.sleep(8.0)  # past the eager beginning
        before = client.statistics().packets_sent + session.statistics().packets_sent
        made = client.clock.statistics().accepted if clock else 0
        errors, bounds = [0.0], [0.0]
        for _ in range(int(seconds / 0.1)):
            await asyncio.sleep(0.1)
            if clock:
                errors.append(abs(client.clock.offset_ns))  # both read one clock
                bounds.append(client.clock.error_bound_ns)
        packets = client.statistics().packets_sent + session.statistics().packets_sent - before
        made = client.clock.statistics().accepted - made if clock else 0
        for speaker in speakers:
            speaker.cancel()
        ends = await asyncio.gather(*speakers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    return Cost(packets, made, max(errors), max(bounds))


@pytest.mark.parametrize("sharp", [False, True])
@virtual
async def test_no_packet_is_spent_where_media_flow_both_ways(sharp: bool) -> None:
    without, riding = await measure(2, False, sharp), await measure(2, True, sharp)
    assert riding.exchanges > 20
    # By itself an exchange takes three; the sharp one does not always wait for company.
    assert riding.packets - without.packets <= (1.0 if sharp else 0.25) * riding.exchanges + SPREAD
    silent = await measure(0, True, sharp)
    assert silent.exchanges > 20
    assert riding.exchanges >= 0.7 * silent.exchanges
    assert riding.error <= max(2 * silent.error, 5 * SHARP_NS)  # that many standard deviations
    assert riding.error <= riding.bound


@virtual
async def test_one_acknowledgement_is_spent_where_media_flow_one_way() -> None:
    without, riding = await measure(1, False, True), await measure(1, True, True)
    assert riding.exchanges > 20
    assert riding.packets - without.packets <= 1.3 * riding.exchanges
    silent = await measure(0, True, True)
    assert silent.packets >= 2.5 * silent.exchanges
