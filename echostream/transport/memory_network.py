"""A network without sockets that carries UDP datagrams between endpoints of one process.

Real engines run over it unchanged, in virtual time or real time, through the same faults as the
relay in ``echostream.testing`` puts in front of real sockets.
"""

from __future__ import annotations

import asyncio
import heapq
import random

from echostream.codes import Close
from echostream.errors import ConfigurationError
from echostream.transport.connection import Connection, loop_clock
from echostream.transport.engine import (
    Acceptor,
    Address,
    CeAddress,
    Ect0Address,
    Ect1Address,
    Engine,
    MarkedAddress,
)
from echostream.transport.impairment import Impairer, Impairment, PathStatistics
from echostream.transport.routing import OnConnection, Router

__all__ = ["MemoryEndpoint", "MemoryNetwork"]

_SEEN = {kind.ecn: kind for kind in (Ect1Address, Ect0Address, CeAddress)}


class MemoryNetwork:
    """Endpoints with addresses, and a path with its own faults for each ordered pair of hosts.

    The same seed and the same traffic give the same losses. Everything between two hosts that no
    :meth:`impair` names has the network's default.
    """

    def __init__(
        self,
        impairment: Impairment | None = None,
        *,
        seed: int = 1,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.seed = seed
        self._default = impairment or Impairment()
        self._loop = loop or asyncio.get_running_loop()
        self._clock = loop_clock(self._loop)
        self._random = random.Random(f"{seed} ports")
        self._endpoints: dict[tuple[str, int], MemoryEndpoint] = {}
        self._paths: dict[tuple[str, str], Impairer] = {}
        self._in_flight: list[tuple[float, int, bytes, Address, Address]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._timer_at = 0.0

    def endpoint(
        self,
        host: str,
        port: int = 0,
        *,
        acceptor: Acceptor | None = None,
        on_connection: OnConnection | None = None,
    ) -> MemoryEndpoint:
        """A new endpoint. Port 0 takes a free one. Raises :class:`ConfigurationError`."""
        while port == 0 or (host, port) in self._endpoints:
            if port:
                raise ConfigurationError(f"{host}:{port} is in use on this network")
            candidate = self._random.randrange(49152, 65536)
            port = candidate if (host, candidate) not in self._endpoints else 0
        endpoint = MemoryEndpoint(self, self._loop, (host, port), acceptor, on_connection)
        self._endpoints[host, port] = endpoint
        return endpoint

    def impair(
        self, impairment: Impairment, *, source: str | None = None, destination: str | None = None
    ) -> None:
        """Set the faults from host ``source`` to host ``destination``; of all paths, present and
        future, when both are left out."""
        if source is None and destination is None:
            self._default = impairment
            for path in self._paths.values():
                path.impairment = impairment
        elif source is None or destination is None:
            raise ValueError("give both source and destination, or neither")
        else:
            self._path(source, destination).impairment = impairment

    def impairment(self, source: str, destination: str) -> Impairment:
        """The faults from one host to another."""
        return self._path(source, destination).impairment

    def statistics(self, source: str, destination: str) -> PathStatistics:
        """What happened to the datagrams from one host to another."""
        return self._path(source, destination).statistics()

    # For the endpoints

    def carry(self, datagrams: list[tuple[bytes, Address]], source: tuple[str, int]) -> None:
        """Put datagrams on their way."""
        now = self._clock()
        for data, destination in datagrams:
            path = self._path(source[0], destination[0])
            ecn = path.mark(destination.ecn) if isinstance(destination, MarkedAddress) else 0
            if ecn < 0:
                continue
            seen: Address = _SEEN[ecn](source) if ecn else source
            for arrival, arrived in path.datagram(data, now):
                self._order += 1
                item = (arrival, self._order, arrived, seen, destination)
                heapq.heappush(self._in_flight, item)
        self._arm(now)

    def rebound(
        self, endpoint: MemoryEndpoint, old: tuple[str, int], host: str | None = None
    ) -> tuple[str, int]:
        """Give ``endpoint`` another port, of its host or of another; the old one leads nowhere."""
        del self._endpoints[old]
        while (new := (host or old[0], self._random.randrange(49152, 65536))) in self._endpoints:
            pass
        self._endpoints[new] = endpoint
        return new

    def removed(self, address: tuple[str, int]) -> None:
        """The endpoint at ``address`` is closed."""
        self._endpoints.pop(address, None)
        if not self._endpoints and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._in_flight.clear()

    # Private

    def _path(self, source: str, destination: str) -> Impairer:
        path = self._paths.get((source, destination))
        if path is None:
            path = Impairer(self._default, f"{self.seed} {source} {destination}")
            self._paths[source, destination] = path
        return path

    def _arm(self, now: float) -> None:
        if not self._in_flight:
            return
        at = self._in_flight[0][0]
        if self._timer is not None:
            if at >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = at
        # Never from within the sender's turn, however short the path.
        self._timer = (
            self._loop.call_soon(self._deliver)
            if at <= now
            else self._loop.call_at(at, self._deliver)
        )

    def _deliver(self) -> None:
        self._timer = None
        now = self._clock()
        batches: dict[tuple[str, int], list[tuple[bytes, Address]]] = {}
        while self._in_flight and self._in_flight[0][0] <= now:
            _, _, data, source, destination = heapq.heappop(self._in_flight)
            batches.setdefault((destination[0], destination[1]), []).append((data, source))
        for address, batch in batches.items():
            endpoint = self._endpoints.get(address)
            if endpoint is not None:
                endpoint.receive(batch)
        self._arm(now)


class MemoryEndpoint:
    """Has the use of :class:`echostream.transport.endpoint.Endpoint`, on a memory network."""

    def __init__(
        self,
        network: MemoryNetwork,
        loop: asyncio.AbstractEventLoop,
        address: tuple[str, int],
        acceptor: Acceptor | None,
        on_connection: OnConnection | None,
    ) -> None:
        self.address = address
        self._network = network
        self._loop = loop
        self._closed = False
        self._idle_waiter: asyncio.Future[None] | None = None
        self._router = Router(
            self._send,
            loop=loop,
            acceptor=acceptor,
            on_connection=on_connection,
            on_idle=self._idle,
        )

    @property
    def connections(self) -> list[Connection]:
        """All that are not finished: open, closing and draining ones."""
        return self._router.connections

    @property
    def closed(self) -> bool:
        """Whether the endpoint left the network."""
        return self._closed

    def connect(self, engine: Engine, address: Address) -> Connection:
        """Start a handshake."""
        connection = self._router.connect(engine, address)
        connection.move = self.move
        return connection

    def receive(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Take datagrams; also for tests that play the attacker."""
        self._router.receive(datagrams)

    def rebind(self) -> None:
        """Move to another port, as behind a NAT that forgot its mapping."""
        self.address = self._network.rebound(self, self.address)

    def move(self, host: str | None = None) -> None:
        """Go on from another port, and another host where one is given, and tell the peers."""
        self.address = self._network.rebound(self, self.address, host)
        self._router.moved()

    def vanish(self) -> None:
        """Leave the network without a word: what is sent from here on goes nowhere."""
        if not self._closed:
            self._closed = True
            self._network.removed(self.address)
            for connection in self._router.connections:
                connection.abandon()

    async def close(
        self, code: int = Close.GOING_AWAY, reason: str = "", *, linger: float = 0.0
    ) -> None:
        """As :meth:`echostream.transport.endpoint.Endpoint.close`."""
        if self._closed:
            return
        self._router.stop_listening()
        for connection in self._router.connections:
            connection.close(code, reason)
        try:
            await asyncio.sleep(0)
            if linger > 0 and self._router.connections:
                self._idle_waiter = self._loop.create_future()
                await asyncio.wait([self._idle_waiter], timeout=linger)
        finally:
            for connection in self._router.connections:
                connection.abandon()
            self._closed = True
            self._network.removed(self.address)

    def _send(self, datagrams: list[tuple[bytes, Address]]) -> None:
        if not self._closed:
            self._network.carry(datagrams, self.address)

    def _idle(self) -> None:
        if self._idle_waiter is not None and not self._idle_waiter.done():
            self._idle_waiter.set_result(None)
