"""grpc.aio with TLS: generic handlers without generated code, bytes in and bytes out.

Events are the messages of one client-streaming call, bulk data those of one streaming call in
the direction of the data, a listener is a server-streaming call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from bench.harness.contract import CHUNK, HOST, Certificate, Client, Connection, Server

__all__ = ["client", "server"]

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # one TCP connection per channel
    ("grpc.so_reuseport", 0),
]


def server(certificate: Certificate, variant: str) -> Server:
    """The listening side."""
    return _Server(certificate)


def client(certificate: Certificate, variant: str) -> Client:
    """The connecting side."""
    return _Client(certificate)


class _Server(Server):
    def __init__(self, certificate: Certificate) -> None:
        super().__init__()
        self._credentials = grpc.ssl_server_credentials(
            [(certificate.key.read_bytes(), certificate.chain.read_bytes())]
        )
        self._listeners: set[Any] = set()

    async def start(self) -> int:
        self._server = grpc.aio.server(options=_OPTIONS)
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(self._echo),
            "Events": grpc.stream_unary_rpc_method_handler(self._events),
            "Up": grpc.stream_unary_rpc_method_handler(self._up),
            "Down": grpc.unary_stream_rpc_method_handler(self._down),
            "Listen": grpc.unary_stream_rpc_method_handler(self._listen),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("Bench", handlers),)
        )
        port = self._server.add_secure_port(f"{HOST}:0", self._credentials)
        await self._server.start()
        return int(port)

    async def broadcast(self, frame: bytes) -> int:
        await asyncio.gather(*(context.write(frame) for context in self._listeners))
        return len(self._listeners)

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def _events(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in requests:
            self.received.add(1)
        return b""

    async def _up(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for request in requests:
            self.received.add(len(request))
        return b""

    async def _down(self, request: bytes, context: Any) -> None:
        size = int.from_bytes(request, "big")
        chunk = bytes(CHUNK)
        while size > 0:
            await context.write(chunk[:size])
            size -= CHUNK

    async def _listen(self, request: bytes, context: Any) -> None:
        await context.write(b"")
        self._listeners.add(context)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._listeners.discard(context)


class _Client(Client):
    def __init__(self, certificate: Certificate) -> None:
        self._credentials = grpc.ssl_channel_credentials(certificate.ca.read_bytes())

    async def connect(self, port: int) -> Connection:
        channel = grpc.aio.secure_channel(f"{HOST}:{port}", self._credentials, options=_OPTIONS)
        await channel.channel_ready()
        return _Connection(channel)

    async def close(self) -> None:
        pass


class _Connection(Connection):
    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._echo = channel.unary_unary("/Bench/Echo")
        self._events: Any = None
        self._listening: asyncio.Task[None] | None = None

    async def call(self, payload: bytes) -> bytes:
        answer: bytes = await self._echo(payload)
        return answer

    async def emit(self, payload: bytes) -> None:
        if self._events is None:
            self._events = self._channel.stream_unary("/Bench/Events")()
        await self._events.write(payload)

    async def send_bulk(self, size: int) -> None:
        call = self._channel.stream_unary("/Bench/Up")()
        chunk = bytes(CHUNK)
        while size > 0:
            await call.write(chunk[:size])
            size -= CHUNK
        await call.done_writing()
        await call

    async def receive_bulk(self, size: int) -> int:
        count = 0
        async for chunk in self._channel.unary_stream("/Bench/Down")(size.to_bytes(8, "big")):
            count += len(chunk)
        return count

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        frames = self._channel.unary_stream("/Bench/Listen")(b"")
        await frames.read()  # the server's word that it listens

        async def deliver() -> None:
            while (frame := await frames.read()) is not grpc.aio.EOF:
                on_frame(frame)

        self._listening = asyncio.create_task(deliver())

    async def close(self) -> None:
        if self._events is not None:
            await self._events.done_writing()
            await self._events
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._channel.close()
