"""The floor: an echo in one ``asyncio.DatagramProtocol`` on each side. Nothing is repeated.

The first byte of a datagram: ``e`` echo, ``f`` frame to count, ``l`` I listen, ``b`` broadcast.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from bench.harness.contract import HOST, Certificate, Client, Connection, Server

__all__ = ["client", "server"]

_SOCKET_BUFFER = 4 * 1024 * 1024


def server(certificate: Certificate, variant: str) -> Server:
    """The listening side."""
    return _Server()


def client(certificate: Certificate, variant: str) -> Client:
    """The connecting side."""
    return _Client()


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    sock.bind((HOST, 0))
    sock.setblocking(False)
    return sock


class _Server(Server, asyncio.DatagramProtocol):
    def __init__(self) -> None:
        super().__init__()
        self._listeners: set[Any] = set()

    async def start(self) -> int:
        sock = _socket()
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=sock)
        return int(sock.getsockname()[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        match data[:1]:
            case b"e":
                self._transport.sendto(data, address)
            case b"f":
                self.received.add(1)
            case b"l":
                self._listeners.add(address)
                self._transport.sendto(data, address)
            case b"x":
                self._listeners.discard(address)

    async def broadcast(self, frame: bytes) -> int:
        for address in self._listeners:
            self._transport.sendto(b"b" + frame, address)
        return len(self._listeners)

    async def stop(self) -> None:
        self._transport.close()


class _Client(Client):
    async def connect(self, port: int) -> Connection:
        sock = _socket()
        sock.connect((HOST, port))
        _, connection = await asyncio.get_running_loop().create_datagram_endpoint(
            _Connection, sock=sock
        )
        return connection

    async def close(self) -> None:
        pass


class _Connection(Connection, asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._on_frame: Callable[[bytes], None] = lambda frame: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        if data[:1] == b"b":
            self._on_frame(data[1:])
            return
        answered = self._waiting.popleft()
        if not answered.done():
            answered.set_result(data[1:])

    async def call(self, payload: bytes) -> bytes:
        return await self._exchange(b"e" + payload)

    async def send_frame(self, frame: bytes) -> None:
        self._transport.sendto(b"f" + frame)

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        self._on_frame = on_frame
        await self._exchange(b"l")

    async def close(self) -> None:
        self._transport.sendto(b"x")
        self._transport.close()

    async def _exchange(self, data: bytes) -> bytes:
        answered: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(answered)
        self._transport.sendto(data)
        return await answered
