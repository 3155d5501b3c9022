"""A bad network between real sockets: a UDP relay in user space."""

from __future__ import annotations

import asyncio
import heapq
import socket
from typing import Self

from echostream.transport.addresses import resolve
from echostream.transport.connection import loop_clock
from echostream.transport.engine import Address
from echostream.transport.impairment import Impairer, Impairment, PathStatistics

__all__ = ["UdpRelay"]

_BATCH = 128
_BUFFER = 4 << 20


class UdpRelay:
    """Clients send to :attr:`address`; each gets an upstream socket of its own to the server.

    ::

        async with await UdpRelay.start(server.address, up=Impairment(loss=0.1)) as relay:
            client = await RpcClient.connect(relay.address)
            relay.up = Impairment(blackhole=True)

    ``up`` (towards the server) and ``down`` may be set at any time. Losses depend on the seed and
    on the order in which datagrams come. It needs ``loop.add_reader``, as the endpoint does.
    """

    def __init__(
        self,
        front: socket.socket,
        server: Address,
        up: Impairment,
        down: Impairment,
        seed: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = loop_clock(self._loop)
        self._front = front
        self._server = server
        self._up = Impairer(up, f"{seed} up")
        self._down = Impairer(down, f"{seed} down")
        self._flows: dict[Address, _Flow] = {}
        self._delayed: list[tuple[float, int, bytes, _Flow, bool]] = []
        self._order = 0
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self.address: tuple[str, int] = front.getsockname()[:2]
        self._loop.add_reader(front.fileno(), self._from_clients)

    @classmethod
    async def start(
        cls,
        server: tuple[str, int],
        *,
        up: Impairment | None = None,
        down: Impairment | None = None,
        seed: int = 1,
        host: str | None = None,
        port: int = 0,
    ) -> Self:
        """Relay to ``server`` from ``host`` (by default the loopback address of the server's
        family) and ``port``."""
        family, resolved = (await resolve(*server))[0]
        if host is None:
            host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        front = _open(family)
        try:
            front.bind((host, port))
        except BaseException:
            front.close()
            raise
        return cls(front, resolved, up or Impairment(), down or Impairment(), seed)

    @property
    def up(self) -> Impairment:
        """Faults towards the server."""
        return self._up.impairment

    @up.setter
    def up(self, impairment: Impairment) -> None:
        self._up.impairment = impairment

    @property
    def down(self) -> Impairment:
        """Faults towards the clients."""
        return self._down.impairment

    @down.setter
    def down(self, impairment: Impairment) -> None:
        self._down.impairment = impairment

    def statistics(self) -> tuple[PathStatistics, PathStatistics]:
        """Snapshots of up and down."""
        return self._up.statistics(), self._down.statistics()

    @property
    def upstream_ports(self) -> list[int]:
        """The ports under which the server sees the clients, oldest client first."""
        return [flow.upstream.getsockname()[1] for flow in self._flows.values()]

    def rebind(self) -> None:
        """NAT rebinding: every client gets another port towards the server, at once; what still
        comes to the old one is lost."""
        for flow in self._flows.values():
            old = flow.upstream
            flow.upstream = self._open_upstream(flow)  # first, so that the port is another one
            self._loop.remove_reader(old.fileno())
            old.close()

    def close(self) -> None:
        """Stop; what is on its way is lost. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._delayed.clear()
        for sock in [self._front, *(flow.upstream for flow in self._flows.values())]:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()
        self._flows.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    # Private

    def _from_clients(self) -> None:
        for data, client in _receive(self._front):
            flow = self._flows.get(client)
            if flow is None:
                flow = self._flows[client] = _Flow(client)
                flow.upstream = self._open_upstream(flow)
            self._carry(data, flow, up=True)

    def _from_server(self, flow: _Flow) -> None:
        for data, _ in _receive(flow.upstream):
            self._carry(data, flow, up=False)

    def _open_upstream(self, flow: _Flow) -> socket.socket:
        upstream = _open(socket.AddressFamily(self._front.family))
        upstream.bind(("", 0))
        self._loop.add_reader(upstream.fileno(), self._from_server, flow)
        return upstream

    def _carry(self, data: bytes, flow: _Flow, *, up: bool) -> None:
        now = self._clock()
        for arrival, arrived in (self._up if up else self._down).datagram(data, now):
            if arrival <= now:
                self._emit(arrived, flow, up)
            else:
                self._order += 1
                heapq.heappush(self._delayed, (arrival, self._order, arrived, flow, up))
        self._arm()

    def _arm(self) -> None:
        if not self._delayed:
            return
        at = self._delayed[0][0]
        if self._timer is not None:
            if at >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            _, _, data, flow, up = heapq.heappop(self._delayed)
            self._emit(data, flow, up)
        self._arm()

    def _emit(self, data: bytes, flow: _Flow, up: bool) -> None:
        try:
            if up:
                flow.upstream.sendto(data, self._server)
            else:
                self._front.sendto(data, flow.client)
        except OSError:  # a full buffer, too large: a network loses datagrams
            pass


class _Flow:
    """One client."""

    upstream: socket.socket

    def __init__(self, client: Address) -> None:
        self.client = client


def _open(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        except OSError:
            pass
    return sock


def _receive(sock: socket.socket) -> list[tuple[bytes, Address]]:
    received: list[tuple[bytes, Address]] = []
    while len(received) < _BATCH:
        try:
            received.append(sock.recvfrom(65535))
        except BlockingIOError:
            break
    return received
