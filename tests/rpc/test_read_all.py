"""Reading the whole of a stream of bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rpc_support import outcome, virtual

from echostream import (
    AudioFormat,
    ConfigurationError,
    ResourceExhausted,
    RpcServer,
    Session,
    StreamReceiver,
    StreamReset,
)
from echostream.testing import connected_pair


@virtual
async def test_read_all() -> None:
    results: list[Any] = []

    async def take(session: Session, stream: StreamReceiver) -> None:
        results.append(await outcome(stream.read_all(100_000)))

    async with connected_pair(RpcServer.builder().stream_handler("take", take)) as (_, client):
        async with await client.create_stream("take") as stream:
            for number in range(50):
                await stream.send(bytes([number]) * 1000)
        await asyncio.sleep(0.1)
        assert results.pop() == b"".join(bytes([number]) * 1000 for number in range(50))
        stream = await client.create_stream("take")
        with pytest.raises(StreamReset):
            while True:
                await stream.send(bytes(10_000))
        assert isinstance(results.pop(), ResourceExhausted)
        stream = await client.create_stream("take")
        await stream.send(b"x")
        stream.abort()
        await asyncio.sleep(0.1)
        assert isinstance(results.pop(), StreamReset)
        await client.create_stream("take", format=AudioFormat(48_000, 1))
        await asyncio.sleep(0.1)
        assert isinstance(results.pop(), ConfigurationError)
