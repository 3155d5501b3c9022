"""Servers and clients over real QUIC in one process, on a network without sockets.

The same engines, TLS and congestion control as over UDP, so that what a bad network does to a
program can be tested; on the loop of :func:`~echostream.testing.run_virtual` an hour of it passes
in the time that the packets take to compute.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from echostream.builder import ClientBuilder, ClientConfig, ServerBuilder
from echostream.client import Connecting, RpcClient
from echostream.server import Listener, RpcServer
from echostream.transport.connection import Connection
from echostream.transport.identity import Identity
from echostream.transport.impairment import Impairment, PathStatistics
from echostream.transport.memory_network import MemoryEndpoint, MemoryNetwork
from echostream.transport.quic.acceptor import QuicAcceptor
from echostream.transport.trust import Plan, Trust, decide

__all__ = ["QuicNetwork", "quic_pair"]

SERVER_HOST = "198.51.100.1"  # TEST-NET-2 (RFC 5737)
SERVER_PORT = 4433


class QuicNetwork:
    """One server host, and a host for each client, with a path of its own to the server.

    ::

        async with QuicNetwork(seed=1) as network:
            server = await network.serve(ServerBuilder().handler(echo))
            client = await network.connect(up=Impairment(loss=0.1), down=Impairment(loss=0.1))
            await client.request("echo", 1)

    Everything is closed at the end, clients first. Losses are drawn from ``seed``; what QUIC
    itself draws (keys, connection IDs) is random, so that two runs are alike and not equal.
    """

    def __init__(self, *, seed: int = 1) -> None:
        self.memory = MemoryNetwork(seed=seed)
        """The network, for endpoints of one's own."""
        self._stack = AsyncExitStack()
        self._clients = 0
        self._hosts: dict[RpcClient, str] = {}
        self._endpoints: dict[RpcClient, MemoryEndpoint] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def serve(self, server: ServerBuilder | None = None) -> RpcServer:
        """Start a server at ``198.51.100.1:4433``, with a new identity unless it has one."""
        server = server or ServerBuilder()
        if server._address is None:
            server.bind((SERVER_HOST, SERVER_PORT))
        if server._identity is None:
            server.identity(Identity.ephemeral())
        running = _QuicServer(server, self.memory)
        await self._stack.enter_async_context(running)
        return running

    async def connect(
        self,
        client: ClientBuilder | None = None,
        *,
        up: Impairment | None = None,
        down: Impairment | None = None,
    ) -> RpcClient:
        """Connect a client from a host of its own. ``up`` and ``down`` are the faults of the path
        from and to it, during the handshake already. It does not check who the server is."""
        connecting = self.connecting(client, up=up, down=down)
        connected = await connecting
        self._stack.push_async_callback(connected.close)
        return connected

    def connecting(
        self,
        client: ClientBuilder | None = None,
        *,
        up: Impairment | None = None,
        down: Impairment | None = None,
    ) -> Connecting:
        """What :meth:`connect` awaits, to be used with ``async with`` or ``async for``."""
        client = client or ClientBuilder()
        if client._address is None:
            client.connect((SERVER_HOST, SERVER_PORT))
        self._clients += 1
        host = str(ipaddress.IPv4Address("10.0.0.0") + self._clients)
        self._impair(host, up or Impairment(), down or Impairment())
        endpoint = self.memory.endpoint(host)
        self._stack.push_async_callback(endpoint.close)
        return _QuicConnecting(client, self, host, endpoint)

    async def kill(self, server: RpcServer) -> None:
        """End a server as a power cut does: nobody hears of it. Its address is free again."""
        assert isinstance(server, _QuicServer)
        server.endpoint.vanish()
        await server.shutdown(drain=0)

    def impair(
        self, client: RpcClient, *, up: Impairment | None = None, down: Impairment | None = None
    ) -> None:
        """Set the faults of a client's path from now on; without any it is perfect again."""
        self._impair(self._hosts[client], up or Impairment(), down or Impairment())

    def rebind(self, client: RpcClient) -> None:
        """Give the client another port, as a NAT does that forgot its mapping."""
        self._endpoints[client].rebind()

    def move(self, client: RpcClient) -> None:
        """Take the client to another network: another address, under the same faults."""
        self._clients += 1
        old, host = self._hosts[client], str(ipaddress.IPv4Address("10.0.0.0") + self._clients)
        self.memory.impair(
            self.memory.impairment(old, SERVER_HOST), source=host, destination=SERVER_HOST
        )
        self.memory.impair(
            self.memory.impairment(SERVER_HOST, old), source=SERVER_HOST, destination=host
        )
        self._hosts[client] = host
        self._endpoints[client].move(host)

    def statistics(self, client: RpcClient) -> tuple[PathStatistics, PathStatistics]:
        """What happened to datagrams from and to a client."""
        host = self._hosts[client]
        return (
            self.memory.statistics(host, SERVER_HOST),
            self.memory.statistics(SERVER_HOST, host),
        )

    def _impair(self, host: str, up: Impairment, down: Impairment) -> None:
        self.memory.impair(up, source=host, destination=SERVER_HOST)
        self.memory.impair(down, source=SERVER_HOST, destination=host)


@asynccontextmanager
async def quic_pair(
    server: ServerBuilder | None = None,
    client: ClientBuilder | None = None,
    *,
    up: Impairment | None = None,
    down: Impairment | None = None,
    seed: int = 1,
) -> AsyncIterator[tuple[RpcServer, RpcClient]]:
    """As :func:`~echostream.testing.connected_pair`, over real QUIC engines: dearer, and true to
    what loss, reordering and a limited rate do. See :class:`QuicNetwork` for more than one client.
    """
    async with QuicNetwork(seed=seed) as network:
        running = await network.serve(server)
        yield running, await network.connect(client, up=up, down=down)


class _QuicServer(RpcServer):
    def __init__(self, builder: ServerBuilder, network: MemoryNetwork) -> None:
        super().__init__(builder.build()._config)
        self._network = network

    async def _bind(self, acceptor: QuicAcceptor) -> Listener:
        host, port = self._config.address
        self.endpoint = self._network.endpoint(
            host, port, acceptor=acceptor, on_connection=self._accept
        )
        return self.endpoint


class _QuicConnecting(Connecting):
    def __init__(
        self, builder: ClientBuilder, network: QuicNetwork, host: str, endpoint: MemoryEndpoint
    ) -> None:
        super().__init__(builder.build()._config)
        self._network = network
        self._host = host
        self._endpoint = endpoint

    def _make(self, config: ClientConfig) -> RpcClient:
        client = _QuicClient(config, self._endpoint)
        self._network._hosts[client] = self._host
        self._network._endpoints[client] = self._endpoint
        return client


class _QuicClient(RpcClient):
    def __init__(self, config: ClientConfig, endpoint: MemoryEndpoint) -> None:
        super().__init__(config)
        self._endpoint = endpoint

    async def _plan(self) -> Plan:
        """Without a fingerprint nothing is checked, and never is anything written down."""
        trust = self._config.trust
        host, port = self._target
        if isinstance(trust, Trust) and trust.fingerprint is not None:
            return decide(trust, host, port, host, known=None)
        return Plan(
            rule="insecure",
            host=host,
            port=port,
            server_name=host,
            authorities=None,
            expected=None,
        )

    async def _accept(
        self, plan: Plan, certificate: bytes | None, *, resumed: str | None = None
    ) -> str:
        """Here and now: no time passes."""
        return plan.accept(certificate, resumed=resumed)

    async def _dial(self, plan: Plan) -> Connection:
        connection = self._endpoint.connect(self._engine(plan), self._target)
        try:
            await connection.wait_connected()
        except BaseException:
            connection.close()
            raise
        return connection

    async def _dial_resumed(self, plan: Plan, ticket: bytes) -> Connection:
        return self._endpoint.connect(self._engine(plan, ticket), self._target)
