"""The server that ``echostream bench`` measures. For two machines, run it on the other one::

echostream serve echostream.cli.bench_server:make_public
"""

from __future__ import annotations

import asyncio
from typing import cast

from echostream.builder import ServerBuilder
from echostream.cli.child import end_with_stdin
from echostream.rpc.context import ServerContext
from echostream.rpc.receiver import StreamReceiver
from echostream.rpc.registry import handler, listener, stream_handler
from echostream.rpc.session import Session
from echostream.server import RpcServer
from echostream.transport.identity import Identity

__all__ = ["PORT", "make", "make_public"]

PORT = 5055


def make() -> ServerBuilder:
    """On a free port of the loopback interface, with a key of this run alone."""
    return (
        _measured()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral())
        .on_start(end_with_stdin)
        .on_start(_echo_datagrams)
        .on_shutdown(_stop_echo)
        .handler(udp_port)
    )


def make_public() -> ServerBuilder:
    """On all interfaces, with this user's key."""
    return _measured().bind(f"0.0.0.0:{PORT}")


def _measured() -> ServerBuilder:
    return RpcServer.builder().handler(echo).handler(counted).listener(count).stream_handler(drain)


class _Echo(asyncio.DatagramProtocol):
    """The floor: what a datagram there and back costs without any protocol. Never on a public
    interface, where it would answer whoever is named as the sender."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is not its subclass

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data, address)


async def _echo_datagrams(ctx: ServerContext) -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        _Echo, local_addr=("127.0.0.1", 0)
    )
    ctx.set("bench.udp", transport)


async def _stop_echo(ctx: ServerContext) -> None:
    ctx.get("bench.udp").close()


@handler("bench.echo")
async def echo(value: bytes) -> bytes:
    return value


@handler("bench.udp_port")
async def udp_port(session: Session) -> int:
    port: int = session.server_ctx.get("bench.udp").get_extra_info("sockname")[1]
    return port


@listener("bench.event")
async def count(session: Session, value: bytes) -> None:
    session.set("bench.count", session.get("bench.count", int, 0) + 1)


@handler("bench.counted")
async def counted(session: Session) -> int:
    """Events, or frames and bytes of streams, since the last question."""
    found: int = session.get("bench.count", int, 0)
    session.set("bench.count", 0)
    return found


@stream_handler("bench.stream")
async def drain(session: Session, stream: StreamReceiver) -> None:
    async for item in stream:
        assert isinstance(item, bytes)
        amount = 1 if stream.realtime else len(item)
        session.set("bench.count", session.get("bench.count", int, 0) + amount)
