"""Two ends and the network between them, on one virtual clock.

:class:`Pair` drives two engines, :class:`StockEngine` puts aioquic's own connection behind the
same methods, so that one scenario runs on both.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from echostream.transport.engine import (
    Closed,
    ConnectionIdIssued,
    ConnectionIdRetired,
    DatagramReceived,
    EngineEvent,
    HandshakeCompleted,
    StreamData,
    StreamReset,
)
from echostream.transport.quic import QuicAcceptor, QuicEngine, QuicOptions, client_engine

CLIENT = ("192.0.2.1", 50000)
SERVER = ("198.51.100.1", 4433)

Fate = Callable[[random.Random, bytes, bool], "list[tuple[float, bytes]]"]
"""From a datagram and whether it goes to the server: each copy with its one-way delay."""


def steady(delay: float) -> Fate:
    return lambda rng, data, to_server: [(delay, data)]


def lossy(delay: float, loss: float) -> Fate:
    def fate(rng: random.Random, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        return [] if rng.random() < loss else [(delay, data)]

    return fate


def jittery(delay: float, jitter: float, loss: float = 0.0) -> Fate:
    def fate(rng: random.Random, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if rng.random() < loss:
            return []
        return [(max(0.0, delay + rng.uniform(-jitter, jitter)), data)]

    return fate


class Side:
    """One end: its engine, and what it reported."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.events: list[EngineEvent] = []
        self.streams: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.datagrams: list[bytes] = []
        self.closed: Closed | None = None
        self.closed_at: float | None = None
        self.handshake: HandshakeCompleted | None = None
        self.connection_ids: set[bytes] = set()
        self.consumes = True
        self.sent = 0
        self.received = 0

    def __repr__(self) -> str:
        return f"<Side {self.engine!r} timer={self.engine.timer()}>"

    def drain(self, now: float) -> None:
        while (event := self.engine.next_event()) is not None:
            assert self.closed is None, f"{event} after Closed"
            self.events.append(event)
            if isinstance(event, StreamData):
                self.streams.setdefault(event.stream_id, bytearray()).extend(event.data)
                if event.fin:
                    self.finished.add(event.stream_id)
                if self.consumes and event.data:
                    self.engine.consume(event.stream_id, len(event.data))
            elif isinstance(event, DatagramReceived):
                self.datagrams.append(event.data)
            elif isinstance(event, HandshakeCompleted):
                self.handshake = event
            elif isinstance(event, ConnectionIdIssued):
                self.connection_ids.add(event.connection_id)
            elif isinstance(event, ConnectionIdRetired):
                self.connection_ids.discard(event.connection_id)
            elif isinstance(event, Closed):
                self.closed = event
                self.closed_at = now

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def resets(self) -> list[StreamReset]:
        return self.of(StreamReset)


class Pair:
    """A client and a server with a network of ``fate`` between them."""

    def __init__(
        self,
        client: Any,
        acceptor: Any,
        *,
        fate: Fate | None = None,
        seed: int = 1,
        start: float = 1000.0,
    ) -> None:
        self.now = start
        self.rng = random.Random(seed)
        self.fate = fate or steady(0.015)
        self.client = Side(client)
        self.acceptor = acceptor
        self.server: Side | None = None
        self.client_address: Any = CLIENT
        self.server_address: Any = SERVER
        self.answers: list[bytes] = []
        self.to_client_before_validation = 0
        self.on_step: Callable[[], None] | None = None
        self._queue: list[tuple[float, int, bool, bytes, Any]] = []
        self._order = itertools.count()
        self._turns_at = 0

    def connect(self) -> None:
        self.client.engine.connect(self.server_address, self.now)
        self._flush()

    def handshake(self, timeout: float = 10.0) -> None:
        self.connect()
        self.run(lambda: self.client.handshake and self.server and self.server.handshake, timeout)
        self.run(None, 0.5)

    def run(self, until: Callable[[], Any] | None, timeout: float) -> bool:
        """Let time pass until ``until()`` or for ``timeout`` seconds. Whether it came true."""
        end = self.now + timeout
        self._flush()
        if until is not None and until():
            return True
        while (at := self._next_time()) is not None and at <= end:
            self._turns_at = 0 if at > self.now else self._turns_at + 1
            assert self._turns_at < 5000, f"time stands still for {self._sides()}"
            self.now = max(self.now + 1e-6, at)  # time always passes
            while self._queue and self._queue[0][0] <= self.now:
                _, _, to_server, data, address = heapq.heappop(self._queue)
                self._deliver(to_server, data, address)
            for side in self._sides():
                timer = side.engine.timer()
                if timer is not None and timer <= self.now:
                    side.engine.on_timer(self.now)
                    side.drain(self.now)
            if self.on_step is not None:
                self.on_step()
            self._flush()
            if until is not None and until():
                return True
        self.now = end
        return until is None

    def _sides(self) -> list[Side]:
        return [self.client] if self.server is None else [self.client, self.server]

    def _next_time(self) -> float | None:
        times = [side.engine.timer() for side in self._sides()]
        if self._queue:
            times.append(self._queue[0][0])
        known = [t for t in times if t is not None]
        return min(known) if known else None

    def _flush(self) -> None:
        for side in self._sides():
            for data, address in side.engine.flush(self.now):
                side.sent += len(data)
                self.send(data, to_server=side is self.client, address=address)
            side.drain(self.now)

    def send(self, data: bytes, *, to_server: bool, address: Any = None) -> None:
        for delay, copy in self.fate(self.rng, data, to_server):
            source = self.client_address if to_server else address
            entry = (self.now + delay, next(self._order), to_server, copy, source)
            heapq.heappush(self._queue, entry)

    def _deliver(self, to_server: bool, data: bytes, address: Any) -> None:
        if not to_server:
            if address == self.client_address:
                self.client.received += len(data)
                self.client.engine.feed(data, self.server_address, self.now)
                self.client.drain(self.now)
            return
        if self.server is not None and self.server.closed and not self.server.handshake:
            # What an endpoint does with an engine that is over: the next Initial starts afresh.
            self.acceptor.released(self.server.engine, address)
            self.server = None
        if self.server is None:
            answer = self.acceptor.accept(data, address, self.now)
            if answer is None:
                return
            if isinstance(answer, bytes):
                self.answers.append(answer)
                self.send(answer, to_server=False, address=address)
                return
            self.server = Side(answer)
        self.server.received += len(data)
        self.server.engine.feed(data, address, self.now)
        self.server.drain(self.now)


def our_client(credentials: Any, options: QuicOptions | None = None, **kwargs: Any) -> QuicEngine:
    kwargs.setdefault("ca_data", credentials.authority)
    return client_engine(options or QuicOptions(), server_name="server.test", **kwargs)


def our_acceptor(
    credentials: Any, options: QuicOptions | None = None, **kwargs: Any
) -> QuicAcceptor:
    return QuicAcceptor(
        options or QuicOptions(), credentials.certificate, credentials.key, **kwargs
    )


def our_pair(
    credentials: Any,
    *,
    options: QuicOptions | None = None,
    client_options: QuicOptions | None = None,
    fate: Fate | None = None,
    seed: int = 1,
    **kwargs: Any,
) -> Pair:
    return Pair(
        our_client(credentials, client_options or options),
        our_acceptor(credentials, options, **kwargs),
        fate=fate,
        seed=seed,
    )
