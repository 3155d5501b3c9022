"""Which connection a datagram belongs to (RFC 9000, section 5.2)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from echostream.codes import Close
from echostream.transport.connection import Connection, loop_clock
from echostream.transport.engine import Acceptor, Address, Engine, unmarked
from echostream.transport.handler import ConnectionHandler
from echostream.transport.turns import Send, Turns

__all__ = ["CONNECTION_ID_LENGTH", "OnConnection", "Router"]

logger = logging.getLogger(__name__)

CONNECTION_ID_LENGTH = 8
"""Bytes of every connection ID that this side issues: a short header does not say."""

ACCEPT_BATCH = 2
"""Connections that may begin in one turn of the loop: a handshake's first packet costs a hundred
times what another costs."""

STRANGERS = 32
"""Datagrams of no connection that are looked at in one turn, after those of connections. The others
wait for the next turns."""

POSTPONED = 512
"""Datagrams that wait so; more of them are ignored, and an honest client repeats its own."""

OnConnection: TypeAlias = Callable[[Connection], ConnectionHandler]
"""Called for each accepted connection; what it returns is attached to it."""


class Router:
    """The connections of one endpoint, found by destination connection ID in one look-up."""

    def __init__(
        self,
        send: Send,
        *,
        loop: asyncio.AbstractEventLoop,
        acceptor: Acceptor | None = None,
        on_connection: OnConnection | None = None,
        on_idle: Callable[[], None] | None = None,
        arrival_age: Callable[[], float] | None = None,
    ) -> None:
        if (acceptor is None) != (on_connection is None):
            raise ValueError("acceptor and on_connection go together")
        self.accepted = 0
        self.answered = 0
        self.ignored = 0
        self.unroutable = 0
        self.malformed = 0
        self._send = send
        self._loop = loop
        self._clock = loop_clock(loop)
        self._turns = Turns(send, loop)
        self._acceptor = acceptor
        self._on_connection = on_connection
        self._on_idle = on_idle
        self._arrival_age = arrival_age
        self._routes: dict[bytes, Connection] = {}
        self._connections: dict[Connection, set[bytes]] = {}
        self._strangers: deque[tuple[bytes, Address]] = deque()
        self._next_strangers: asyncio.Handle | None = None

    @property
    def connections(self) -> list[Connection]:
        """All that are not finished: open, closing and draining ones."""
        return list(self._connections)

    @property
    def connection_ids(self) -> int:
        """How many connection IDs lead somewhere."""
        return len(self._routes)

    def connect(self, engine: Engine, address: Address) -> Connection:
        """Start ``engine``'s handshake towards ``address``."""
        connection = self._add(engine, address)
        engine.connect(address, self._clock())
        connection.drain()
        return connection

    def receive(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Feed each datagram to its connection; then, per connection, hand on its events once."""
        now = self._clock()
        routes = self._routes
        touched: dict[Connection, None] = {}
        for datagram in datagrams:
            data, address = datagram
            connection_id = destination_connection_id(data)
            if connection_id is None or not address[1]:
                # Nothing can be sent to port 0: the system calls it invalid, which the sockets take
                # for a sign that it does not know trains or marks.
                self.malformed += 1
                continue
            connection = routes.get(connection_id)
            if connection is not None:
                connection.feed(data, address, now)
                touched[connection] = None
            elif len(self._strangers) < POSTPONED:
                self._strangers.append(datagram)
            else:
                self.ignored += 1
        if self._strangers and self._next_strangers is None:
            self._receive_strangers(now, touched)
        _hand_on(touched)

    def stop_listening(self) -> None:
        """Accept no more; what belongs to no connection is dropped."""
        self._on_connection = None

    def unreachable(self, address: Address) -> None:
        """The network says that nobody listens at ``address``: tell the connections to it."""
        for connection in self.connections:
            if connection.peer_address == address and connection.on_unreachable is not None:
                try:
                    connection.on_unreachable()
                except Exception:
                    logger.exception("the on_unreachable hook of %r failed", connection)

    def moved(self) -> None:
        """What is sent from here on comes from another address: tell every peer, under connection
        IDs that nobody has seen on the path before (RFC 9000, section 9.5)."""
        for connection in self.connections:
            connection.engine.change_connection_id()
            connection.engine.ping(0)
            connection.wake()

    # ConnectionOwner

    def connection_id_issued(self, connection: Connection, connection_id: bytes) -> None:
        if self._routes.setdefault(connection_id, connection) is connection:
            self._connections[connection].add(connection_id)

    def connection_id_retired(self, connection: Connection, connection_id: bytes) -> None:
        if self._routes.get(connection_id) is connection:
            del self._routes[connection_id]
            self._connections[connection].discard(connection_id)

    def connection_finished(self, connection: Connection) -> None:
        for connection_id in self._connections.pop(connection, ()):
            del self._routes[connection_id]
        if self._acceptor is not None and not connection.engine.is_client:
            self._acceptor.released(connection.engine, connection.peer_address)
        if not self._connections and self._on_idle is not None:
            self._on_idle()

    # Private

    def _receive_strangers(self, now: float, touched: dict[Connection, None]) -> None:
        """Look at some datagrams that belonged to no connection when they came."""
        enough = self.accepted + ACCEPT_BATCH
        answers: list[tuple[bytes, Address]] = []
        for _ in range(min(STRANGERS, len(self._strangers))):
            data, address = self._strangers.popleft()
            connection_id = destination_connection_id(data)
            assert connection_id is not None
            connection = self._routes.get(connection_id)
            if connection is None:
                connection = self._unknown(connection_id, data, unmarked(address), now, answers)
            if connection is not None:
                connection.feed(data, address, now)
                touched[connection] = None
                if self.accepted >= enough:
                    break
        if answers:
            self._send(answers)
        if self._strangers:
            self._next_strangers = self._loop.call_soon(self._receive_more)

    def _receive_more(self) -> None:
        self._next_strangers = None
        touched: dict[Connection, None] = {}
        self._receive_strangers(self._clock(), touched)
        _hand_on(touched)

    def _unknown(
        self,
        connection_id: bytes,
        data: bytes,
        address: Address,
        now: float,
        answers: list[tuple[bytes, Address]],
    ) -> Connection | None:
        if self._acceptor is None or self._on_connection is None:
            self.unroutable += 1
            # A stateless reset carries no ID of ours: who sent it tells (RFC 9000, section 10.3).
            owners = (c for c in self._connections if c.peer_address == address)
            return None if data[0] & 0x80 else next(owners, None)
        try:
            answer = self._acceptor.accept(data, address, now)
        except Exception:
            logger.exception("the acceptor failed")
            answer = None
        if answer is None:
            self.ignored += 1
            return None
        if isinstance(answer, bytes):
            self.answered += 1
            answers.append((answer, address))
            return None
        self.accepted += 1
        connection = self._add(answer, address)
        # The client goes on using the ID that it chose until it has seen one of ours.
        self.connection_id_issued(connection, connection_id)
        try:
            connection.attach(self._on_connection(connection))
        except Exception:
            logger.exception("on_connection failed; the connection is closed")
            connection.feed(data, address, now)  # without it there is nobody to tell
            connection.close(Close.INTERNAL_ERROR)
            return None
        return connection

    def _add(self, engine: Engine, address: Address) -> Connection:
        connection = Connection(
            engine,
            self._send,
            peer_address=address,
            loop=self._loop,
            owner=self,
            turns=self._turns,
        )
        connection.arrival_age = self._arrival_age
        self._connections[connection] = set()
        return connection


def _hand_on(touched: dict[Connection, None]) -> None:
    for connection in touched:
        connection.report()
    for connection in touched:  # only now: the tasks of all of them run before their turn ends
        connection.settle()


def destination_connection_id(data: bytes) -> bytes | None:
    """RFC 8999, section 5: byte 5 of a long header is the ID's length; ours have a fixed one."""
    if not data:
        return None
    if data[0] & 0x80:
        if len(data) < 6:
            return None
        end = 6 + data[5]
        return data[6:end] if len(data) >= end else None
    end = 1 + CONNECTION_ID_LENGTH
    return data[1:end] if len(data) >= end else None
