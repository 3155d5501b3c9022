"""aioquic or qh3 as their own ``asyncio`` modules offer them: ``connect`` and ``serve``.

Above them there is next to nothing, so that the figures are those of the engine and its driver.
The variant names the package, and ``streams`` where every call has a stream of its own.
The first byte of a stream: ``e`` echo what follows as it comes, ``r`` echo it at the end,
``v`` and ``u`` count what follows, ``d`` send as many bytes as the next 8 say, ``l`` I listen.
Frames are in DATAGRAMs. All data of a stream is handed to the engine without waiting: neither
package can say when to wait.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from bench.harness.contract import CHUNK, HOST, Certificate, Client, Connection, Server
from bench.harness.scenarios import MESSAGE_SIZE

__all__ = ["client", "server"]

_ALPN = "bench"
_SOCKET_BUFFER = 4 * 1024 * 1024
_NO_STREAM_LEFT_S = 0.0005
"""qh3 refuses a stream past the peer's limit; so long we wait before the next try."""


def server(certificate: Certificate, variant: str) -> Server:
    """The listening side."""
    return _Server(certificate, variant.split()[0])


def client(certificate: Certificate, variant: str) -> Client:
    """The connecting side."""
    package, *options = variant.split()
    return _Client(certificate, package, "streams" in options)


def _configuration(package: str, certificate: Certificate, is_client: bool) -> Any:
    module = importlib.import_module(f"{package}.quic.configuration")
    configuration = module.QuicConfiguration(
        alpn_protocols=[_ALPN], is_client=is_client, max_datagram_frame_size=65536
    )
    if is_client:
        configuration.load_verify_locations(cafile=str(certificate.ca))
    else:
        configuration.load_cert_chain(str(certificate.chain), str(certificate.key))
    return configuration


def _protocol_class(package: str) -> Any:
    """The package's protocol with three hooks of ours."""
    base: Any = importlib.import_module(f"{package}.asyncio").QuicConnectionProtocol
    events: Any = importlib.import_module(f"{package}.quic.events")

    class Protocol(base):  # type: ignore[misc]
        on_stream: Callable[[int, bytes, bool], None]
        on_datagram: Callable[[bytes], None]
        on_closed: Callable[[], None] = staticmethod(lambda: None)

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, events.StreamDataReceived):
                self.on_stream(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, events.DatagramFrameReceived):
                self.on_datagram(event.data)
            elif isinstance(event, events.ConnectionTerminated):
                self.on_closed()

        def write(self, stream_id: int, data: bytes, end: bool = False) -> None:
            self._quic.send_stream_data(stream_id, data, end)
            self._transmit_soon()

        def write_datagram(self, data: bytes) -> None:
            self._quic.send_datagram_frame(data)
            self._transmit_soon()

    return Protocol


def _enlarge_buffers(transport: Any) -> None:
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)


async def _send_bulk(protocol: Any, stream_id: int, size: int) -> None:
    chunk = bytes(CHUNK)
    while size > 0:
        protocol.write(stream_id, chunk[:size], size <= CHUNK)
        size -= CHUNK
        await asyncio.sleep(0)


class _Server(Server):
    def __init__(self, certificate: Certificate, package: str) -> None:
        super().__init__()
        self._package = package
        self._configuration = _configuration(package, certificate, is_client=False)
        self._protocol = _protocol_class(package)
        self._listeners: set[Any] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        module: Any = importlib.import_module(f"{self._package}.asyncio")
        self._endpoint = await module.serve(
            HOST, 0, configuration=self._configuration, create_protocol=self._accept
        )
        transport = self._endpoint._transport
        _enlarge_buffers(transport)
        return int(transport.get_extra_info("sockname")[1])

    async def broadcast(self, frame: bytes) -> int:
        for protocol in self._listeners:
            protocol.write_datagram(frame)
        return len(self._listeners)

    async def stop(self) -> None:
        self._endpoint.close()

    def _accept(self, quic: Any, stream_handler: Any = None) -> Any:
        protocol = self._protocol(quic, stream_handler)
        modes: dict[int, bytes] = {}
        kept: dict[int, bytes] = {}

        def on_stream(stream_id: int, data: bytes, end: bool) -> None:
            mode = modes.get(stream_id)
            if mode is None:
                mode, data = data[:1], data[1:]
                modes[stream_id] = mode
            match mode:
                case b"e":
                    quic.send_stream_data(stream_id, data, end)  # the caller transmits
                case b"r":
                    if not end:
                        kept[stream_id] = kept.get(stream_id, b"") + data
                        return
                    quic.send_stream_data(stream_id, kept.pop(stream_id, b"") + data, True)
                case b"v":
                    kept[stream_id] = data = kept.get(stream_id, b"") + data
                    kept[stream_id] = data[len(data) - len(data) % MESSAGE_SIZE :]
                    self.received.add(len(data) // MESSAGE_SIZE)
                case b"u":
                    self.received.add(len(data))
                case b"d":
                    size = int.from_bytes(data, "big")
                    task = asyncio.create_task(_send_bulk(protocol, stream_id, size))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case b"l":
                    self._listeners.add(protocol)
                    quic.send_stream_data(stream_id, b"l", end)
            if end:
                modes.pop(stream_id)

        protocol.on_stream = on_stream
        protocol.on_datagram = lambda data: self.received.add(1)
        protocol.on_closed = lambda: self._listeners.discard(protocol)
        return protocol


class _Client(Client):
    def __init__(self, certificate: Certificate, package: str, stream_per_call: bool) -> None:
        self._certificate = certificate
        self._package = package
        self._stream_per_call = stream_per_call
        self._protocol = _protocol_class(package)
        self._draining: set[asyncio.Task[bool | None]] = set()

    async def connect(self, port: int) -> Connection:
        module: Any = importlib.import_module(f"{self._package}.asyncio")
        context: AbstractAsyncContextManager[Any] = module.connect(
            HOST,
            port,
            configuration=_configuration(self._package, self._certificate, is_client=True),
            create_protocol=self._protocol,
        )
        protocol = await context.__aenter__()
        _enlarge_buffers(protocol._transport)

        def drain() -> None:
            task = asyncio.ensure_future(context.__aexit__(None, None, None))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

        return _Connection(protocol, self._stream_per_call, drain)

    async def close(self) -> None:
        await asyncio.gather(*self._draining)


class _Connection(Connection):
    def __init__(self, protocol: Any, stream_per_call: bool, drain: Callable[[], None]) -> None:
        self._protocol = protocol
        self._stream_per_call = stream_per_call
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._on_data: dict[int, Callable[[bytes, bool], None]] = {}
        self._calls_stream: int | None = None
        self._events_stream: int | None = None
        self._waiting: deque[tuple[asyncio.Future[bytes], int]] = deque()
        self._answers = b""
        protocol.on_stream = lambda stream_id, data, end: self._on_data[stream_id](data, end)
        protocol.on_datagram = lambda data: None

    async def call(self, payload: bytes) -> bytes:
        answered: asyncio.Future[bytes] = self._loop.create_future()
        if self._stream_per_call:
            await self._call_on_new_stream(payload, answered)
            return await answered
        if self._calls_stream is None:
            self._calls_stream = self._open(b"e", self._on_answers)
        self._waiting.append((answered, len(payload)))
        self._protocol.write(self._calls_stream, payload)
        return await answered

    async def emit(self, payload: bytes) -> None:
        if self._events_stream is None:
            self._events_stream = self._open(b"v", lambda data, end: None)
        self._protocol.write(self._events_stream, payload)

    async def send_bulk(self, size: int) -> None:
        stream_id = self._open(b"u", lambda data, end: None)
        await _send_bulk(self._protocol, stream_id, size)

    async def receive_bulk(self, size: int) -> int:
        ended: asyncio.Future[int] = self._loop.create_future()
        count = 0

        def on_data(data: bytes, end: bool) -> None:
            nonlocal count
            count += len(data)
            if end:
                ended.set_result(count)

        self._open(b"d" + size.to_bytes(8, "big"), on_data)
        return await ended

    async def send_frame(self, frame: bytes) -> None:
        self._protocol.write_datagram(frame)

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        self._protocol.on_datagram = on_frame
        listening: asyncio.Future[None] = self._loop.create_future()
        self._open(b"l", lambda data, end: listening.set_result(None))
        await listening

    async def close(self) -> None:
        self._protocol.close()
        self._drain()

    def _open(self, first: bytes, on_data: Callable[[bytes, bool], None]) -> int:
        stream_id = int(self._protocol._quic.get_next_available_stream_id())
        self._on_data[stream_id] = on_data
        self._protocol.write(stream_id, first)
        return stream_id

    async def _call_on_new_stream(self, payload: bytes, answered: asyncio.Future[bytes]) -> None:
        stream_id = int(self._protocol._quic.get_next_available_stream_id())
        parts: list[bytes] = []

        def on_data(data: bytes, end: bool) -> None:
            parts.append(data)
            if end:
                del self._on_data[stream_id]
                if not answered.done():
                    answered.set_result(b"".join(parts))

        self._on_data[stream_id] = on_data
        while True:
            try:
                self._protocol.write(stream_id, b"r" + payload, True)
            except ValueError:
                await asyncio.sleep(_NO_STREAM_LEFT_S)
            else:
                return

    def _on_answers(self, data: bytes, end: bool) -> None:
        data = self._answers + data
        start = 0
        while self._waiting:
            answered, size = self._waiting[0]
            if len(data) - start < size:
                break
            self._waiting.popleft()
            if not answered.done():
                answered.set_result(data[start : start + size])
            start += size
        self._answers = data[start:]
