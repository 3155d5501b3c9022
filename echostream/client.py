"""``RpcClient``: connects, verifies who answered, and calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Literal, Self, overload

from echostream.builder import ClientBuilder, ClientConfig
from echostream.codes import Close
from echostream.discovery.service import Service
from echostream.errors import ConfigurationError, ConnectionClosed, IdentityError
from echostream.finding import find, find_all
from echostream.rpc.authentication import introduce
from echostream.rpc.caller import Caller
from echostream.rpc.context import ClientContext
from echostream.rpc.hooks import run_hooks, run_hooks_while_open
from echostream.rpc.peer import Peer
from echostream.rpc.session import SessionStatistics, peer_statistics
from echostream.transport.addresses import resolve
from echostream.transport.connection import Connection
from echostream.transport.dial import dial
from echostream.transport.identity import Identity
from echostream.transport.quic.engine import client_engine
from echostream.transport.ticket import Ticket
from echostream.transport.trust import Plan

__all__ = ["Connecting", "RpcClient"]

logger = logging.getLogger("echostream.client")

CRYPTO_ERROR = 0x100


class Connecting:
    """A client that is not connected yet: await it, or use it with ``async with``."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._client: RpcClient | None = None

    def __await__(self) -> Generator[Any, None, RpcClient]:
        return self._connect().__await__()

    async def __aenter__(self) -> RpcClient:
        self._client = await self._connect()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    async def _connect(self) -> RpcClient:
        if self._client is not None:
            raise ConfigurationError("this client was connected already: build another one")
        if self._config.search is not None:
            self._client = client = await find(self._config)
            return client
        self._client = client = RpcClient(self._config)
        await client._open()
        return client


class RpcClient(Caller):
    """A connected client, from :meth:`connect` or :meth:`builder`; ``async with`` closes it."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._context = ClientContext(config.values)
        self._outgoing = self._context._outgoing = config.outgoing
        self._lifetime: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._server_key = ""

    def __repr__(self) -> str:
        return f"<RpcClient {self._config.address[0]}:{self._config.address[1]}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @staticmethod
    def builder() -> ClientBuilder:
        """Configure a client with handlers, listeners, hooks and plugins."""
        return ClientBuilder()

    @staticmethod
    def connect(
        address: str | tuple[str, int] | Ticket,
        *,
        timeout: float = 10.0,
        server_name: str | None = None,
        token: str | None = None,
        identity: Identity | None = None,
        **trust: Any,
    ) -> Connecting:
        """Connect to a server, by address or ticket: ``await`` the result, or ``async with`` it.

        ``trust``: ``fingerprint=``, ``ca=``, ``known_hosts=`` or ``insecure=True``. Without any,
        the server's key is checked against the known hosts, a public name against the system's
        authorities, and a private address is trusted on first use and remembered.

        ``token`` and ``identity`` tell the server who this client is.

        Raises ``ConnectionClosed`` when nobody answers within ``timeout`` s (it says what was
        tried), ``IdentityError`` when the server is not who it should be, or refuses this client.
        """
        builder = ClientBuilder().connect(address, timeout=timeout, server_name=server_name)
        return builder.credentials(token=token, identity=identity).trust(**trust).build()

    @overload
    @staticmethod
    def discover(
        name: str,
        *,
        timeout: float = 3.0,
        where: Callable[[Service], bool] | None = None,
        addresses: Sequence[str | tuple[str, int]] = (),
        all: Literal[False] = False,
        token: str | None = None,
        identity: Identity | None = None,
        **trust: Any,
    ) -> Connecting: ...

    @overload
    @staticmethod
    def discover(
        name: str,
        *,
        timeout: float = 3.0,
        where: Callable[[Service], bool] | None = None,
        addresses: Sequence[str | tuple[str, int]] = (),
        all: Literal[True],
        token: str | None = None,
        identity: Identity | None = None,
        **trust: Any,
    ) -> Coroutine[Any, Any, list[RpcClient]]: ...

    @staticmethod
    def discover(
        name: str,
        *,
        timeout: float = 3.0,
        where: Callable[[Service], bool] | None = None,
        addresses: Sequence[str | tuple[str, int]] = (),
        all: bool = False,
        token: str | None = None,
        identity: Identity | None = None,
        **trust: Any,
    ) -> Connecting | Coroutine[Any, Any, list[RpcClient]]:
        """Find a server by name and connect to it: ``await`` the result, or ``async with`` it.

        Looked for at ``addresses``, where the environment variable ``ECHOSTREAM_SERVICES`` says,
        and by multicast DNS; the first that proves its key wins. ``where`` chooses among announced
        services. ``all=True`` waits for ``timeout`` s and returns a client for each one found.

        The other options are those of :meth:`connect`. Without any of ``trust``, the key must be
        one that is known for this name; where none is, a server in one's own network is trusted on
        first use and remembered. Raises ``DiscoveryError`` that says what was tried, and
        ``IdentityError`` when servers answered and none could be trusted.
        """
        builder = ClientBuilder().discover(name, timeout=timeout, where=where, addresses=addresses)
        builder.credentials(token=token, identity=identity).trust(**trust)
        connecting = builder.build()
        return find_all(connecting._config) if all else connecting

    @property
    def context(self) -> ClientContext:
        """The client's context."""
        return self._context

    @property
    def server_addr(self) -> tuple[str, int]:
        """Host and port of the server."""
        return self._peer.peer_addr

    def statistics(self) -> SessionStatistics:
        """A snapshot of the connection's counters."""
        return peer_statistics(self._peer)

    async def close(self) -> None:
        """Let queued data leave (1 s at most), then close. Idempotent."""
        peer = self._live_peer
        if peer is None:
            return
        if peer.ended is None:
            await peer.drain(1.0, "the client closes")
            peer.close(Close.OK)
        if self._lifetime is not None and self._lifetime is not asyncio.current_task():
            await asyncio.shield(self._lifetime)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, from either side."""
        await self._peer.wait_closed()

    async def _open(self) -> None:
        await self._open_on(await self._reach())

    async def _reach(self) -> Connection:
        """A connection to a server that is who it should be. Nothing was said yet."""
        self._deadline = asyncio.get_running_loop().time() + self._config.timeout
        return await self._verified()

    async def _open_on(self, connection: Connection) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._deadline):
                peer = await self._greet(connection)
        except TimeoutError:
            host, port = config.address
            raise ConnectionClosed(
                f"{host!r} port {port} answered, but did not say HELLO and take this client within "
                f"{config.timeout:g} s: is it an EchoStream server?",
                code=Close.TIMEOUT,
            ) from None
        self._live_peer = self._context._live_peer = peer
        self._lifetime = loop.create_task(self._live(peer))
        try:
            await run_hooks_while_open(config.hooks.connect, self._context, peer)
        except BaseException:
            peer.close(Close.OK, "the client's on_connect failed")
            await asyncio.shield(self._lifetime)
            raise
        peer.dispatcher.start()

    async def _live(self, peer: Peer) -> None:
        await peer.wait_closed()
        await peer.dispatcher.wait_stopped()
        await run_hooks("on_disconnect", self._config.hooks.disconnect, self._context)

    async def _verified(self) -> Connection:
        """A connection to a server that is who it should be."""
        config = self._config
        host, port = config.address
        try:
            async with asyncio.timeout_at(self._deadline):
                address = await _first_address(host, port)
        except TimeoutError:
            raise ConnectionClosed(
                f"{host!r} could not be looked up within {config.timeout:g} s", code=Close.TIMEOUT
            ) from None
        name = config.server_name or host
        plan = await asyncio.to_thread(config.trust.plan, name, port, address)
        connection = await self._dial(plan)
        try:
            completed = await connection.wait_connected()
            self._server_key = await asyncio.to_thread(plan.accept, completed.certificate)
        except BaseException as exc:
            connection.close(Close.IDENTITY_REFUSED if isinstance(exc, IdentityError) else Close.OK)
            raise
        return connection

    async def _greet(self, connection: Connection) -> Peer:
        """Exchange HELLO."""
        config = self._config
        peer = Peer(connection, config.limits, config.routes, self._context, None, config.now_ns)
        connection.attach(peer)
        try:
            await introduce(peer, config.credentials, self._server_key)
        except BaseException:
            peer.close(Close.OK)
            raise
        return peer

    async def _dial(self, plan: Plan) -> Connection:
        config = self._config
        host, port = config.address
        try:
            return await dial(
                host,
                port,
                lambda: client_engine(
                    config.quic,
                    server_name=plan.server_name,
                    ca_data=None if plan.authorities is None else plan.authorities.pem,
                    verify=plan.authorities is not None,
                ),
                timeout=max(self._deadline - asyncio.get_running_loop().time(), 1e-3),
                others=config.others,
                check=plan.check,
            )
        except ConnectionClosed as exc:
            if CRYPTO_ERROR <= exc.code < CRYPTO_ERROR + 0x100:
                raise plan.refused(exc.reason or str(exc)) from None
            raise


async def _first_address(host: str, port: int) -> str:
    """What trust on first use is judged by."""
    try:
        return str((await resolve(host, port))[0][1][0])
    except OSError as exc:
        raise ConnectionClosed(f"{host!r} cannot be resolved: {exc.strerror or exc}") from exc
