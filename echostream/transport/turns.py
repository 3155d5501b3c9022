"""The end of the loop's turn, once for all connections of an endpoint, so that what they send
leaves together."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from echostream.transport.engine import Address

if TYPE_CHECKING:
    from echostream.transport.connection import Connection

__all__ = ["Send", "Turns"]

Send: TypeAlias = Callable[[list[tuple[bytes, Address]]], None]
"""Hands datagrams to the network. It does not raise: a network may always lose them."""

AT_ONCE = 32
"""Connections whose datagrams leave together: with more, the first would wait for the last."""


class Turns:
    """Which connections want to write when the loop's turn ends."""

    def __init__(self, send: Send, loop: asyncio.AbstractEventLoop) -> None:
        self._send = send
        self._loop = loop
        self._context = contextvars.copy_context()  # not that of whichever task wakes a connection
        self._due: list[Connection] = []

    def add(self, connection: Connection) -> None:
        """Have ``connection`` write at the end of this turn. It adds itself once until then."""
        if not self._due:
            self._loop.call_soon(self._end, context=self._context)
        self._due.append(connection)

    def _end(self) -> None:
        due, self._due = self._due, []
        for start in range(0, len(due), AT_ONCE):
            part = due[start : start + AT_ONCE]
            datagrams: list[tuple[bytes, Address]] = []
            for connection in part:
                connection.write(datagrams)
            if datagrams:
                self._send(datagrams)
            for connection in part:
                connection.written()
