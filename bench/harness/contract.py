"""What a contender must be able to do. One module in ``contenders`` implements it per stack.

A module offers ``server(certificate, variant)`` and ``client(certificate, variant)``. It
implements only what the scenarios need that :mod:`bench.harness.registry` lists for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHUNK", "HOST", "Certificate", "Client", "Connection", "Counter", "Server"]

HOST = "127.0.0.1"
CHUNK = 64 * 1024
"""Bulk data is handed over in pieces of this many bytes, by every contender."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of one run: a CA, and a leaf for ``127.0.0.1`` and ``localhost``."""

    ca: Path
    chain: Path
    key: Path


class Counter:
    """What a server received: messages, bytes or frames, by scenario."""

    __slots__ = ("count", "last_ns")

    def __init__(self) -> None:
        self.count = 0
        self.last_ns = 0

    def add(self, amount: int) -> None:
        """Count ``amount`` as received now (``time.monotonic_ns``, one clock for all processes)."""
        self.count += amount
        self.last_ns = time.monotonic_ns()

    def reset(self) -> None:
        """Start again from zero."""
        self.count = 0
        self.last_ns = 0


class Server:
    """The listening side. It echoes calls and counts in :attr:`received` all that is one-way."""

    def __init__(self) -> None:
        self.received = Counter()

    async def start(self) -> int:
        """Listen on :data:`HOST` at a port that the system chooses, and return it."""
        raise NotImplementedError

    async def broadcast(self, frame: bytes) -> int:
        """Send ``frame`` to every listener; return how many there are."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop listening. The process ends soon after."""
        raise NotImplementedError


class Connection:
    """One connection of a client."""

    async def call(self, payload: bytes) -> bytes:
        """Send ``payload``, return the answer (an equal one)."""
        raise NotImplementedError

    async def emit(self, payload: bytes) -> None:
        """Send one message, reliably and without an answer."""
        raise NotImplementedError

    async def send_bulk(self, size: int) -> None:
        """Send ``size`` bytes on one stream, in pieces of :data:`CHUNK`."""
        raise NotImplementedError

    async def receive_bulk(self, size: int) -> int:
        """Ask the server for ``size`` bytes on one stream; return how many came."""
        raise NotImplementedError

    async def send_frame(self, frame: bytes) -> None:
        """Send one frame in a datagram."""
        raise NotImplementedError

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        """Become a listener: ``on_frame`` gets what the server broadcasts."""
        raise NotImplementedError

    async def close(self) -> None:
        """Say goodbye. What the stack does afterwards (draining) may go on in the background."""
        raise NotImplementedError


class Client:
    """Makes connections, all in one process."""

    async def connect(self, port: int) -> Connection:
        """A new connection, ready for its first call."""
        raise NotImplementedError

    async def close(self) -> None:
        """Wait for what closed connections left in the background."""
