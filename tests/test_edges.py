"""Edges where parts meet: leaving right after an event, running what runs, nobody there."""

from __future__ import annotations

import asyncio
import socket

import pytest

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed
from echostream.rpc.registry import listener
from echostream.rpc.session import Session
from echostream.server import RpcServer
from echostream.testing import connected_pair, run_virtual
from echostream.transport.identity import Identity


def listening() -> tuple[list[int], ServerBuilder]:
    heard: list[int] = []

    @listener("number")
    async def number(value: int) -> None:
        await asyncio.sleep(0.1)
        heard.append(value)

    return heard, ServerBuilder().listener(number)


def test_events_that_arrived_before_the_client_left_are_handled() -> None:
    heard, server = listening()

    async def main() -> None:
        async with connected_pair(server) as (_, client):
            for value in range(5):
                await client.emit("number", value)
            await client._peer.room.wait_event()
            await asyncio.sleep(0.05)
            client._peer.close(Close.OK)
            await asyncio.sleep(2)

    run_virtual(main())
    assert heard == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("welcome", [True, False])
def test_events_wait_for_the_hooks_also_when_the_client_has_left(welcome: bool) -> None:
    heard, server = listening()

    async def on_connect(session: Session) -> None:
        await asyncio.sleep(1)
        if not welcome:
            raise ConnectionClosed("not you")

    async def main() -> None:
        async with connected_pair(server.on_connect(on_connect)) as (_, client):
            await client.emit("number", 1)
            await client.emit("number", 2)
            await client.close()
            await asyncio.sleep(3)

    run_virtual(main())
    assert heard == ([1, 2] if welcome else [])


def test_events_of_a_client_that_failed_are_dropped() -> None:
    heard, server = listening()

    async def main() -> None:
        async with connected_pair(server) as (_, client):
            for value in range(5):
                await client.emit("number", value)
            await asyncio.sleep(0.25)
            client._peer.close(Close.INTERNAL_ERROR)
            await asyncio.sleep(2)

    run_virtual(main())
    assert 0 < len(heard) < 5


def test_a_listener_may_not_go_on_for_ever() -> None:
    ended: list[bool] = []

    @listener("sleep")
    async def sleep() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(True)

    async def main() -> None:
        async with connected_pair(ServerBuilder().listener(sleep)) as (_, client):
            await client.emit("sleep")
            await asyncio.sleep(0.1)
            client._peer.close(Close.OK)
            await asyncio.sleep(1)
            assert not ended
            await asyncio.sleep(10)
            assert ended

    run_virtual(main())


def test_run_goes_on_with_a_server_that_was_started() -> None:
    async def main() -> None:
        server = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral()).build()
        async with server:
            running = asyncio.create_task(server.run())
            async with RpcClient.connect(server.address, fingerprint=server.fingerprint):
                pass
            await server.shutdown()
            await running
        with pytest.raises(ConfigurationError, match="started already"):
            await server.run()

    asyncio.run(main())


def test_a_connected_client_is_a_context_manager() -> None:
    async def main() -> None:
        server = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral()).build()
        async with server:
            client = await RpcClient.connect(server.address, fingerprint=server.fingerprint)
            async with client as same:
                assert same is client
            with pytest.raises(ConnectionClosed):
                await client.emit("anything")

    asyncio.run(main())


def test_silence_is_not_taken_for_an_answer() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionClosed, match="no answer") as raised:
                await RpcClient.connect(silent.getsockname(), timeout=0.2, insecure=True)
        assert raised.value.code == Close.TIMEOUT

    asyncio.run(main())


@pytest.mark.parametrize("host", ["a..b", "x" * 80])  # refused before anybody is asked
def test_a_name_that_does_not_exist(host: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionClosed, match="cannot be resolved"):
            await ClientBuilder().connect(f"{host}:5000").build()

    asyncio.run(main())
