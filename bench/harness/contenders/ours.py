"""EchoStream, through its public API only.

Both processes run with a home directory of their own, so the first contact over loopback pins
the server's certificate there (trust on first use) and every later one verifies it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench.harness.contract import CHUNK, HOST, Certificate, Client, Connection, Server
from echostream import (
    ClientContext,
    ConnectionClosed,
    RpcClient,
    RpcServer,
    Session,
    StreamReceiver,
    StreamSender,
)

__all__ = ["client", "server"]


def server(certificate: Certificate, variant: str) -> Server:
    """The listening side."""
    return _Server(certificate)


def client(certificate: Certificate, variant: str) -> Client:
    """The connecting side."""
    return _Client()


async def _send_bulk(stream: StreamSender, size: int) -> None:
    chunk = bytes(CHUNK)
    while size > 0:
        await stream.send(chunk[:size])
        size -= CHUNK
    await stream.end()


class _Server(Server):
    def __init__(self, certificate: Certificate) -> None:
        super().__init__()
        self._listeners: dict[Session, StreamSender] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = (
            RpcServer.builder()
            .bind(f"{HOST}:0")
            .tls(str(certificate.chain), str(certificate.key))
            .handler("bench.echo", self._echo)
            .handler("bench.down", self._down)
            .handler("bench.listen", self._listen)
            .listener("bench.event", self._event)
            .stream_handler("bench.up", self._up)
            .stream_handler("bench.frames", self._frames)
            .on_disconnect(self._gone)
            .build()
        )

    async def start(self) -> int:
        await self._server.__aenter__()
        return int(self._server.address[1])

    async def broadcast(self, frame: bytes) -> int:
        for session, stream in list(self._listeners.items()):
            try:
                await stream.send(frame)
            except ConnectionClosed:
                self._listeners.pop(session, None)
        return len(self._listeners)

    async def stop(self) -> None:
        await self._server.shutdown(drain=0.5)

    async def _echo(self, session: Session, payload: bytes) -> bytes:
        return payload

    async def _event(self, session: Session, payload: bytes) -> None:
        self.received.add(1)

    async def _up(self, session: Session, stream: StreamReceiver) -> None:
        async for item in stream:
            self.received.add(len(item))

    async def _frames(self, session: Session, stream: StreamReceiver) -> None:
        async for _ in stream:
            self.received.add(1)

    async def _down(self, session: Session, size: int) -> None:
        stream = await session.create_stream("bench.down")
        task = asyncio.create_task(_send_bulk(stream, size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, session: Session) -> None:
        stream = await session.create_stream("bench.frames", delivery="realtime")
        self._listeners[session] = stream

    async def _gone(self, session: Session) -> None:
        self._listeners.pop(session, None)


class _Client(Client):
    async def connect(self, port: int) -> Connection:
        connection = _Connection()
        await connection.open(port)
        return connection

    async def close(self) -> None:
        pass


class _Connection(Connection):
    def __init__(self) -> None:
        self._frames: StreamSender | None = None
        self._on_frame: Callable[[bytes], None] = lambda frame: None
        self._downloaded: asyncio.Queue[int] = asyncio.Queue()

    async def open(self, port: int) -> None:
        self._client = await (
            RpcClient.builder()
            .connect(f"{HOST}:{port}")
            .stream_handler("bench.down", self._down)
            .stream_handler("bench.frames", self._listened)
            .build()
        )

    async def call(self, payload: bytes) -> bytes:
        answer: bytes = await self._client.request("bench.echo", payload)
        return answer

    async def emit(self, payload: bytes) -> None:
        await self._client.emit("bench.event", payload)

    async def send_bulk(self, size: int) -> None:
        await _send_bulk(await self._client.create_stream("bench.up"), size)

    async def receive_bulk(self, size: int) -> int:
        await self._client.request("bench.down", size)
        return await self._downloaded.get()

    async def send_frame(self, frame: bytes) -> None:
        if self._frames is None:
            self._frames = await self._client.create_stream("bench.frames", delivery="realtime")
        await self._frames.send(frame)

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        self._on_frame = on_frame
        await self._client.request("bench.listen")

    async def close(self) -> None:
        await self._client.close()

    async def _down(self, context: ClientContext, stream: StreamReceiver) -> None:
        count = 0
        async for item in stream:
            count += len(item)
        self._downloaded.put_nowait(count)

    async def _listened(self, context: ClientContext, stream: StreamReceiver) -> None:
        async for item in stream:
            self._on_frame(bytes(item))
