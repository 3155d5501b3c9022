"""Another port, another address, a dead path for a while: a pause, and no end."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import numpy as np
import pytest
from full_size import report
from rpc_support import outcome, quic_pair, real, session_of, virtual
from test_reconnect import server

from echostream import AudioFormat, RpcClient, StreamReceiver
from echostream.builder import ClientBuilder
from echostream.testing import Impairment, QuicNetwork
from echostream.transport.endpoint import Endpoint

PATH = Impairment(delay=0.015)
FORMAT = AudioFormat(48_000, 1)


def now() -> float:
    return asyncio.get_running_loop().time()


class Load:
    """Calls every 5 ms and a live stream; notes failures and the longest pause of each."""

    def __init__(self) -> None:
        self.failed: list[Any] = []
        self.longest = 0.0
        self.arrived: list[float] = []

    async def hear(self, stream: StreamReceiver) -> None:
        async for _ in stream:
            self.arrived.append(now())

    async def call(self, client: RpcClient) -> None:
        begun = now()
        answer = await outcome(client.request("echo", 7, timeout=5.0))
        if answer != 7:
            self.failed.append(answer)
        self.longest = max(self.longest, now() - begun)

    async def run(self, client: RpcClient, seconds: float) -> None:
        end = now() + seconds

        async def calls() -> None:
            async with asyncio.TaskGroup() as group:
                while now() < end:
                    group.create_task(self.call(client))
                    await asyncio.sleep(0.005)

        async def audio() -> None:
            stream = await client.create_stream("audio", format=FORMAT, delivery="realtime")
            frame = np.zeros((FORMAT.frame, 1), np.float32)
            while now() < end:
                await stream.send(frame)
                await asyncio.sleep(0.02)
            await stream.end()

        await asyncio.gather(calls(), audio())

    @property
    def gap(self) -> float:
        """The longest pause of the stream."""
        return max(b - a for a, b in zip(self.arrived, self.arrived[1:], strict=False))


def serving(load: Load) -> Any:
    return server().stream_handler("audio", load.hear)


@virtual
async def test_ten_rebindings_one_per_second_under_load() -> None:
    """Row 18: no call fails, none waits for more than 500 ms; stream and clock go on."""
    load = Load()
    async with QuicNetwork() as network:
        running = await network.serve(serving(load))
        client = await network.connect(ClientBuilder(), up=PATH, down=PATH)
        await client.clock.wait_synchronized()
        session = await session_of(running)
        under_load = asyncio.create_task(load.run(client, 11.0))
        ports = set()
        for _ in range(10):
            network.rebind(client)
            await asyncio.sleep(1.0)
            ports.add(session.peer_addr[1])
        await under_load
        assert load.failed == []
        assert load.longest <= 0.5
        assert load.gap <= 0.2
        assert len(ports) == 10
        assert running.context.sessions == (session,)
        assert client.clock.synchronized
        assert client.clock.error_bound_ns < 40_000_000
        report("ten rebindings", longest_call=load.longest, audio_gap=load.gap)


@virtual
async def test_another_network() -> None:
    """Row 19: the client says at once where it is; the audio pauses for less than 200 ms."""
    load = Load()
    async with QuicNetwork() as network:
        running = await network.serve(serving(load))
        client = await network.connect(ClientBuilder(), up=PATH, down=PATH)
        session = await session_of(running)
        under_load = asyncio.create_task(load.run(client, 4.0))
        for _ in range(3):
            await asyncio.sleep(1.0)
            before = session.peer_addr[0]
            network.move(client)
            await asyncio.sleep(0.3)
            assert session.peer_addr[0] != before
        await under_load
        assert load.failed == []
        assert load.gap <= 0.2
        assert running.context.sessions == (session,)
        report("another network", longest_call=load.longest, audio_gap=load.gap)


@pytest.mark.parametrize("seconds", [2.0, 8.0])
def test_a_blackhole_is_a_pause(seconds: float) -> None:
    """Row 20: with the options that a reconnecting client has by default."""

    @virtual
    async def main() -> None:
        async with QuicNetwork() as network:
            await network.serve(server())
            client = await network.connect(ClientBuilder().reconnect(), up=PATH, down=PATH)
            await client.request("echo", 1)
            hole = Impairment(blackhole=True)
            network.impair(client, up=hole, down=hole)
            calls = [asyncio.create_task(client.request("echo", n)) for n in range(10)]
            await asyncio.sleep(seconds)
            network.impair(client, up=PATH, down=PATH)
            assert await asyncio.gather(*calls) == list(range(10))
            assert client.link_statistics().connections == 1

    main()


@real
async def test_a_client_moves_by_itself_when_its_address_is_gone() -> None:
    load = Load()
    async with quic_pair(server().bind("127.0.0.1:0").stream_handler("audio", load.hear)) as (
        running,
        client,
    ):
        session = await session_of(running)
        endpoint = client._peer.connection.move.__self__  # type: ignore[union-attr]
        assert isinstance(endpoint, Endpoint)
        under_load = asyncio.create_task(load.run(client, 0.5))
        await asyncio.sleep(0.1)
        before = session.peer_addr

        class Gone:
            error = errno.EADDRNOTAVAIL
            bytes_sent = bytes_received = 0

            def send(self, datagrams: list[Any], start: int = 0) -> int:
                return start

            def receive(self, limit: int) -> list[Any]:
                return []

        endpoint._io = Gone()
        await under_load
        assert load.failed == []
        assert session.peer_addr != before
        client.move()
        assert await client.request("echo", 1) == 1
        assert running.context.sessions == (session,)
