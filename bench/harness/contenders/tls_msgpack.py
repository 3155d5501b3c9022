"""What people write themselves: TLS on TCP, each message a 4-byte length and msgpack.

A message is ``[kind, id, body]``: calls carry an id, so that answers may come in any order.
Writers wait when the transport says so (``pause_writing``).
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]

from bench.harness.contract import CHUNK, HOST, Certificate, Client, Connection, Server

__all__ = ["client", "server"]

_LENGTH = struct.Struct(">I")


class _Kind:
    CALL, ANSWER, EVENT, UP, DOWN, LISTEN, FRAME, END = range(8)


def server(certificate: Certificate, variant: str) -> Server:
    """The listening side."""
    return _Server(certificate)


def client(certificate: Certificate, variant: str) -> Client:
    """The connecting side."""
    return _Client(certificate)


class _Protocol(asyncio.Protocol):
    """Cuts the stream into messages, and joins what one turn of the loop writes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._in = bytearray()
        self._out: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._packer = msgpack.Packer()

    def on_message(self, kind: int, number: int, body: Any) -> None:
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._in += data
        start, available = 0, len(self._in)
        with memoryview(self._in) as view:
            while available - start >= 4:
                end = start + 4 + _LENGTH.unpack_from(view, start)[0]
                if end > available:
                    break
                self.on_message(*msgpack.unpackb(view[start + 4 : end]))
                start = end
        del self._in[:start]

    def send(self, kind: int, number: int, body: Any) -> None:
        message = self._packer.pack((kind, number, body))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += (_LENGTH.pack(len(message)), message)

    async def send_waiting(self, kind: int, number: int, body: Any) -> None:
        await self._writable.wait()
        self.send(kind, number, body)

    async def send_chunks(self, kind: int, size: int) -> None:
        chunk = bytes(CHUNK)
        while size > 0:
            await self.send_waiting(kind, 0, chunk[:size])
            await asyncio.sleep(0)
            size -= CHUNK
        self.send(_Kind.END, 0, None)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self.transport.write(b"".join(out))


class _Server(Server):
    def __init__(self, certificate: Certificate) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(certificate.chain, certificate.key)
        self.listeners: set[_ServerProtocol] = set()

    async def start(self) -> int:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _ServerProtocol(self), HOST, 0, ssl=self._context
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def broadcast(self, frame: bytes) -> int:
        for protocol in self.listeners:
            protocol.send(_Kind.FRAME, 0, frame)
        return len(self.listeners)

    async def stop(self) -> None:
        self._server.close()


class _ServerProtocol(_Protocol):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def on_message(self, kind: int, number: int, body: Any) -> None:
        match kind:
            case _Kind.CALL:
                self.send(_Kind.ANSWER, number, body)
            case _Kind.EVENT:
                self._server.received.add(1)
            case _Kind.UP:
                self._server.received.add(len(body))
            case _Kind.DOWN:
                task = asyncio.create_task(self.send_chunks(_Kind.DOWN, body))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _Kind.LISTEN:
                self._server.listeners.add(self)
                self.send(_Kind.ANSWER, number, None)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.listeners.discard(self)


class _Client(Client):
    def __init__(self, certificate: Certificate) -> None:
        self._context = ssl.create_default_context(cafile=str(certificate.ca))
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def connect(self, port: int) -> Connection:
        _, protocol = await asyncio.get_running_loop().create_connection(
            _ClientProtocol, HOST, port, ssl=self._context
        )
        return _Connection(protocol)

    async def close(self) -> None:
        pass


class _ClientProtocol(_Protocol):
    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.on_frame: Callable[[bytes], None] = lambda frame: None
        self.downloaded = 0
        self.download_ended: asyncio.Future[int] | None = None

    def on_message(self, kind: int, number: int, body: Any) -> None:
        match kind:
            case _Kind.ANSWER:
                answered = self.waiting.pop(number)
                if not answered.done():
                    answered.set_result(body)
            case _Kind.FRAME:
                self.on_frame(body)
            case _Kind.DOWN:
                self.downloaded += len(body)
            case _Kind.END:
                assert self.download_ended is not None
                self.download_ended.set_result(self.downloaded)


class _Connection(Connection):
    def __init__(self, protocol: _ClientProtocol) -> None:
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._number = 0

    async def call(self, payload: bytes) -> bytes:
        return cast(bytes, await self._exchange(_Kind.CALL, payload))

    async def emit(self, payload: bytes) -> None:
        await self._protocol.send_waiting(_Kind.EVENT, 0, payload)

    async def send_bulk(self, size: int) -> None:
        await self._protocol.send_chunks(_Kind.UP, size)

    async def receive_bulk(self, size: int) -> int:
        self._protocol.downloaded = 0
        self._protocol.download_ended = self._loop.create_future()
        self._protocol.send(_Kind.DOWN, 0, size)
        return await self._protocol.download_ended

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        self._protocol.on_frame = on_frame
        await self._exchange(_Kind.LISTEN, None)

    async def close(self) -> None:
        self._protocol.transport.close()

    async def _exchange(self, kind: int, body: Any) -> Any:
        self._number += 1
        answered = self._protocol.waiting[self._number] = self._loop.create_future()
        self._protocol.send(kind, self._number, body)
        return await answered
