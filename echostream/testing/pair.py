"""A connected client and server in one process, without sockets: for tests of programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.server import Listener, RpcServer
from echostream.transport.connection import Connection
from echostream.transport.impairment import Impairment
from echostream.transport.memory import memory_pair
from echostream.transport.trust import Plan, Trust, decide

__all__ = ["connected_pair"]


@asynccontextmanager
async def connected_pair(
    server: ServerBuilder | None = None,
    client: ClientBuilder | None = None,
    *,
    up: Impairment | None = None,
    down: Impairment | None = None,
    seed: int = 1,
) -> AsyncIterator[tuple[RpcServer, RpcClient]]:
    """Yield a started server and a client that is connected to it through memory.

    ``up`` and ``down`` are the faults of the path from and to the client, drawn from ``seed``. On
    the loop of :func:`~echostream.testing.run_virtual` time is virtual: a delay costs nothing, and
    every run is the same. What handlers see is what they see over QUIC, except for identities.
    """
    server = server or ServerBuilder()
    client = client or ClientBuilder()
    if server._address is None:
        server.bind("127.0.0.1:0")
    if client._address is None:
        client.connect("127.0.0.1:1")
    memory_server = _MemoryServer(server)
    async with memory_server:
        ours, theirs = memory_pair(up=up, down=down, seed=seed)
        memory_server.take(theirs)
        connected = _MemoryClient(client, ours)
        await connected._open()
        try:
            yield memory_server, connected
        finally:
            await connected.close()


class _MemoryListener:
    """Stands where an endpoint stands."""

    address = ("memory", 0)

    def __init__(self) -> None:
        self.connections: list[Connection] = []

    async def close(self, code: int = 0, reason: str = "", *, linger: float = 0.0) -> None:
        for connection in self.connections:
            connection.close(code, reason)
            await connection.wait_closed()


class _MemoryServer(RpcServer):
    def __init__(self, builder: ServerBuilder) -> None:
        super().__init__(builder.build()._config)
        self._memory = _MemoryListener()

    async def _listen(self) -> Listener:
        return self._memory

    def take(self, connection: Connection) -> None:
        """What an endpoint does for a new connection."""
        self._memory.connections.append(connection)
        connection.attach(self._accept(connection))


class _MemoryClient(RpcClient):
    def __init__(self, builder: ClientBuilder, connection: Connection) -> None:
        super().__init__(builder.build()._config)
        self._memory = connection

    async def _plan(self) -> Plan:
        return decide(Trust(), "127.0.0.1", 1, "127.0.0.1", known=None)

    async def _verified(self, plan: Plan) -> Connection:
        await self._memory.wait_connected()
        return self._memory
