"""What flow control and loss make of it on real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rpc_support import idle, quic_pair, real, server_builder, session_of

from echostream import RpcClient, StreamReceiver
from echostream.testing import Impairment, UdpRelay


async def echo(value: int) -> int:
    return value


@real
async def test_calls_pass_streams_and_events_that_nobody_takes() -> None:
    gate, all_read = asyncio.Event(), asyncio.Event()
    got = 0

    async def read(stream: StreamReceiver) -> None:
        nonlocal got
        await gate.wait()
        async for item in stream:
            got += len(item)
            if got == 11 * 4_000_000:
                all_read.set()

    async def note(value: bytes) -> None:
        await gate.wait()

    builder = server_builder().handler("echo", echo).stream_handler("read", read)
    async with quic_pair(builder.listener("note", note)) as (server, client):
        sent = 0

        async def push(stream: Any) -> None:
            nonlocal sent
            for _ in range(80):  # twice what both sides hold
                await stream.send(bytes(50_000))
                sent += 50_000
            await stream.end()

        async def emit() -> None:
            for _ in range(150):
                await client.emit("note", bytes(30_000))

        streams = [await client.create_stream("read") for _ in range(11)]
        pushing = [asyncio.create_task(push(stream)) for stream in streams]
        pushing.append(asyncio.create_task(emit()))
        before, held = -1, 0
        while held != before:  # until nothing moves any more
            before = held
            for value in range(20):
                assert await client.request("echo", value, timeout=10) == value
                await asyncio.sleep(0.01)
            held = sent
        assert not any(task.done() for task in pushing)
        assert held > 10 << 20
        gate.set()
        await asyncio.gather(*pushing)
        assert await client.request("echo", 1) == 1
        await all_read.wait()
        session = await session_of(server)
        engine = session._peer.connection.engine
        assert engine._connection._lent == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed_", [1, 2])
@real
async def test_a_rough_network(seed_: int) -> None:
    items: list[bytes] = []
    done = asyncio.Event()

    async def read(stream: StreamReceiver) -> None:
        items.extend([bytes(item) async for item in stream])
        done.set()

    rough = Impairment(delay=0.005, jitter=0.004, loss=0.02, duplicate=0.05)
    builder = server_builder().handler("echo", echo).stream_handler("read", read)
    async with (
        builder.build() as server,
        await UdpRelay.start(server.address, up=rough, down=rough, seed=seed_) as relay,
        RpcClient.connect(relay.address, fingerprint=server.fingerprint) as client,
    ):
        stream = await client.create_stream("read")
        sent = [bytes([n % 256]) * (n * 37 % 5000) for n in range(200)]
        calls = asyncio.gather(*(client.request("echo", n) for n in range(300)))
        for item in sent:
            await stream.send(item)
        await stream.end()
        assert await calls == list(range(300))
        await done.wait()
        assert items == sent
        assert idle(client)
