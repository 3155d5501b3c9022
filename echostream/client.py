"""``RpcClient``: connects, verifies who answered, and calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self, overload

from echostream.builder import ClientBuilder, ClientConfig
from echostream.codes import Close
from echostream.discovery.service import Service
from echostream.errors import ConfigurationError, ConnectionClosed, IdentityError
from echostream.finding import find, find_all, find_one
from echostream.rpc.authentication import introduce
from echostream.rpc.backoff import Backoff, Reconnect
from echostream.rpc.caller import Caller
from echostream.rpc.context import ClientContext
from echostream.rpc.hooks import run_hooks, run_hooks_while_open
from echostream.rpc.link import SETTLED_S, Link, LinkStatistics, is_final
from echostream.rpc.peer import Peer
from echostream.rpc.session import SessionStatistics, peer_statistics
from echostream.transport.addresses import resolve
from echostream.transport.connection import Connection
from echostream.transport.dial import dial, dial_first
from echostream.transport.engine import Engine, HandshakeCompleted
from echostream.transport.identity import Identity, fingerprint_of
from echostream.transport.quic.engine import client_engine
from echostream.transport.ticket import Ticket
from echostream.transport.ticket_cache import TicketCache
from echostream.transport.trust import Plan

__all__ = ["Connecting", "RpcClient"]

logger = logging.getLogger("echostream.client")

CRYPTO_ERROR = 0x100
RESUME_S = 3.0
"""How long a server may take to resume a session before a full handshake is tried."""


class Connecting:
    """A client that is not connected yet: await it, or use it with ``async with``.

    ``async for client in connecting`` yields a client that is connected, and another one whenever
    the body goes on (``continue``, or its end) because that connection is over. It does not end by
    itself, unless the server refuses this client; leave it with ``break``.
    """

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

    async def __aiter__(self) -> AsyncIterator[RpcClient]:
        if self._client is not None:
            raise ConfigurationError("this client was connected already: build another one")
        config = replace(self._config, reconnect=None)
        backoff = Backoff(self._config.reconnect or Reconnect())
        loop = asyncio.get_running_loop()
        while True:
            self._client = client = self._make(config)
            try:
                await client._open()
            except (ConnectionClosed, OSError) as error:
                wait = None if is_final(error) else backoff.next()
                if wait is None:
                    raise
                await asyncio.sleep(wait)
                continue
            since = loop.time()
            try:
                yield client
            finally:
                await client.close()
            if loop.time() - since >= SETTLED_S:
                backoff.reset()
            else:
                await asyncio.sleep(backoff.ceiling)

    async def _connect(self) -> RpcClient:
        if self._client is not None:
            raise ConfigurationError("this client was connected already: build another one")
        if self._config.search is not None and self._config.reconnect is None:
            self._client = client = await find(self._config)
            return client
        self._client = client = self._make(self._config)
        await client._open()
        return client

    def _make(self, config: ClientConfig) -> RpcClient:
        return RpcClient(config)


class RpcClient(Caller):
    """A connected client, from :meth:`connect` or :meth:`builder`; ``async with`` closes it."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._context = ClientContext(config.values)
        self._outgoing = self._context._outgoing = config.outgoing
        self._lifetimes: dict[asyncio.Task[None], Peer] = {}
        self._deadline = 0.0
        self._target = config.address
        self._proved: tuple[Plan, str] | None = None
        self._tickets: TicketCache | None = None
        if config.reconnect is not None:
            kept = config.reconnect.early_data
            self._tickets = TicketCache(TicketCache.default_path() if kept else None)
            self._link = Link(config.reconnect, self._establish, config.limits)
            self._context._link = self._link
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
        reconnect: bool = False,
        token: str | None = None,
        identity: Identity | None = None,
        **trust: Any,
    ) -> Connecting:
        """Connect to a server, by address or ticket: ``await`` the result, or ``async with`` it.
        ``reconnect``: come back after every loss of the connection, as ``ClientBuilder.reconnect``
        describes.

        ``trust``: ``fingerprint=``, ``ca=``, ``known_hosts=`` or ``insecure=True``. Without any,
        the server's key is checked against the known hosts, a public name against the system's
        authorities, and a private address is trusted on first use and remembered.

        ``token`` and ``identity`` tell the server who this client is.

        Raises ``ConnectionClosed`` when nobody answers within ``timeout`` s (it says what was
        tried), ``IdentityError`` when the server is not who it should be, or refuses this client.
        """
        builder = ClientBuilder().connect(address, timeout=timeout, server_name=server_name)
        if reconnect:
            builder.reconnect()
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

    def move(self) -> None:
        """Go on from another port or address of this machine, as when it has joined another
        network. Sessions, streams and the clock stay. A client whose address disappears does so by
        itself; where the operating system tells of a change before, this is quicker."""
        move = self._peer.connection.move
        if move is not None:
            move()

    @property
    def connected(self) -> bool:
        """Whether a call would leave now."""
        if self._link is not None:
            return self._link.peer is not None
        return self._live_peer is not None and self._live_peer.ended is None

    async def wait_connected(self) -> None:
        """Wait until a call would leave at once. Raises why no connection will come."""
        if self._link is not None:
            await self._link.wait_peer()
        else:
            self._peer.check_open()

    def link_statistics(self) -> LinkStatistics:
        """How often the connection was made and lost. Only with ``reconnect``."""
        if self._link is None:
            raise ConfigurationError("this client does not reconnect: build it with .reconnect()")
        return self._link.statistics()

    async def close(self) -> None:
        """Let queued data leave (1 s at most), then close. Idempotent."""
        if self._link is not None:
            await self._link.close()
        peer = self._live_peer
        if peer is None:
            return
        if peer.ended is None:
            await peer.drain(1.0, "the client closes")
        for peer in self._lifetimes.values():
            peer.close(Close.OK)
        others = [task for task in self._lifetimes if task is not asyncio.current_task()]
        if others:
            await asyncio.shield(asyncio.gather(*others))

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, from either side; with ``reconnect``, until no other
        will be made."""
        if self._link is not None:
            await self._link.wait_ended()
        else:
            await self._peer.wait_closed()

    async def _open(self) -> None:
        if self._link is not None:
            await self._link.open(self._config.timeout)
        else:
            await self._establish(False)

    async def _establish(self, elsewhere: bool) -> Peer:
        """One connection, from its first packet until the ``on_connect`` hooks are through.
        ``elsewhere``: to the next one of several servers."""
        config = self._config
        self._deadline = asyncio.get_running_loop().time() + config.timeout
        if config.search is not None:
            found, connection = await find_one(replace(config, reconnect=None))
            self._target, self._server_key = found._target, found._server_key
            return await self._open_on(connection)
        if elsewhere:
            servers = (config.address, *config.further)
            self._target = servers[(servers.index(self._target) + 1) % len(servers)]
        plan = await self._plan()
        peer = None if self._tickets is None else await self._resumed(plan, self._tickets)
        if peer is None:
            return await self._open_on(await self._verified(plan))
        return await self._ready(peer)

    async def _reach(self) -> Connection:
        """A connection to a server that is who it should be. Nothing was said yet."""
        self._deadline = asyncio.get_running_loop().time() + self._config.timeout
        return await self._verified(await self._plan())

    async def _open_on(self, connection: Connection) -> Peer:
        return await self._ready(await self._greeted(connection))

    async def _ready(self, peer: Peer) -> Peer:
        """Run the ``on_connect`` hooks, and serve."""
        config = self._config
        loop = asyncio.get_running_loop()
        self._live_peer = self._context._live_peer = peer
        lifetime = loop.create_task(self._live(peer))
        self._lifetimes[lifetime] = peer
        lifetime.add_done_callback(self._lifetimes.pop)
        if self._link is not None:
            self._link.opening(peer)
        try:
            await run_hooks_while_open(config.hooks.connect, self._context, peer)
        except BaseException:
            peer.close(Close.OK, "the client's on_connect failed")
            await asyncio.shield(lifetime)
            raise
        peer.dispatcher.start()
        return peer

    async def _live(self, peer: Peer) -> None:
        await peer.wait_closed()
        await peer.dispatcher.wait_stopped()
        await run_hooks("on_disconnect", self._config.hooks.disconnect, self._context)

    async def _plan(self) -> Plan:
        """By what the server will be trusted."""
        config = self._config
        host, port = self._target
        try:
            async with asyncio.timeout_at(self._deadline):
                address = await _first_address(host, port)
        except TimeoutError:
            raise ConnectionClosed(
                f"{host!r} could not be looked up within {config.timeout:g} s", code=Close.TIMEOUT
            ) from None
        return await asyncio.to_thread(config.trust.plan, config.server_name or host, port, address)

    async def _resumed(self, plan: Plan, tickets: TicketCache) -> Peer | None:
        """A connection that resumes an earlier session, ``None`` where that is not possible.

        Idempotent calls leave before the handshake is complete. They are readable for the server
        that gave the ticket only; where another one answers, it is found out before they, or
        anything else, are sent again."""
        kept = await asyncio.to_thread(tickets.take, plan)
        if kept is None:
            return None
        assert self._link is not None
        try:
            connection = await self._dial_resumed(plan, kept.ticket)
        except (ConnectionClosed, OSError):
            return None
        peer = self._peer_on(connection)
        identity = [kept.fingerprint]

        def compare(completed: HandshakeCompleted) -> None:
            if completed.certificate is not None:
                identity[0] = fingerprint_of(completed.certificate)
                if identity[0] != kept.fingerprint and plan.authorities is None:
                    peer.close(Close.IDENTITY_REFUSED)

        peer.on_handshake = compare
        peer.on_ticket = lambda ticket: tickets.put_soon(plan, identity[0], ticket)
        connection.on_unreachable = lambda: peer.close(Close.TIMEOUT)
        config = self._config
        assert config.reconnect is not None
        if config.credentials.identity is None and (
            config.reconnect.early_data or not config.hooks.connect
        ):
            self._link.early(peer)  # whoever waits goes on when HELLO is written
        try:
            async with asyncio.timeout(min(RESUME_S, config.timeout)):
                await introduce(peer, config.credentials, kept.fingerprint)
                completed = await connection.wait_connected()
                await self._accept(plan, completed.certificate, resumed=kept.fingerprint)
        except (ConnectionClosed, TimeoutError):
            peer.close(Close.OK)
            self._link.early(None)
            return None
        except BaseException:
            peer.close(Close.IDENTITY_REFUSED)
            self._link.early(None)
            raise
        return peer

    async def _verified(self, plan: Plan) -> Connection:
        """A connection to a server that is who it should be."""
        connection = await self._dial(plan)
        try:
            completed = await connection.wait_connected()
            fingerprint = await self._accept(plan, completed.certificate)
        except BaseException as exc:
            connection.close(Close.IDENTITY_REFUSED if isinstance(exc, IdentityError) else Close.OK)
            raise
        self._server_key = fingerprint
        self._proved = plan, fingerprint
        return connection

    async def _accept(
        self, plan: Plan, certificate: bytes | None, *, resumed: str | None = None
    ) -> str:
        """Whether this is the server; it may be written down, away from the loop."""
        return await asyncio.to_thread(plan.accept, certificate, resumed=resumed)

    async def _greeted(self, connection: Connection) -> Peer:
        """Exchange HELLO."""
        config = self._config
        peer = self._peer_on(connection)
        if self._tickets is not None and self._proved is not None:
            peer.on_ticket = partial(self._tickets.put_soon, *self._proved)
        try:
            async with asyncio.timeout_at(self._deadline):
                await introduce(peer, self._config.credentials, self._server_key)
        except BaseException as exc:
            peer.close(Close.OK)
            if not isinstance(exc, TimeoutError):
                raise
            host, port = self._target
            raise ConnectionClosed(
                f"{host!r} port {port} answered, but did not say HELLO and take this client within "
                f"{config.timeout:g} s: is it an EchoStream server?",
                code=Close.TIMEOUT,
            ) from None
        return peer

    def _peer_on(self, connection: Connection) -> Peer:
        config = self._config
        peer = Peer(connection, config.limits, config.routes, self._context, None, config.now_ns)
        connection.attach(peer)
        if self._link is not None:
            peer.events.take_along(self._link.resumption, self._link.emitters)
        return peer

    async def _dial(self, plan: Plan) -> Connection:
        host, port = self._target
        try:
            return await dial(
                host,
                port,
                lambda: self._engine(plan),
                timeout=max(self._deadline - asyncio.get_running_loop().time(), 1e-3),
                others=self._config.others,
                check=plan.check,
            )
        except ConnectionClosed as exc:
            if CRYPTO_ERROR <= exc.code < CRYPTO_ERROR + 0x100:
                raise plan.refused(exc.reason or str(exc)) from None
            raise

    async def _dial_resumed(self, plan: Plan, ticket: bytes) -> Connection:
        """A connection whose handshake has only begun."""
        return await dial_first(*self._target, self._engine(plan, ticket))

    def _engine(self, plan: Plan, ticket: bytes | None = None) -> Engine:
        return client_engine(
            self._config.quic,
            server_name=plan.server_name,
            ca_data=None if plan.authorities is None else plan.authorities.pem,
            verify=plan.authorities is not None,
            ticket=ticket,
        )


async def _first_address(host: str, port: int) -> str:
    """What trust on first use is judged by."""
    try:
        return str((await resolve(host, port))[0][1][0])
    except OSError as exc:
        raise ConnectionClosed(f"{host!r} cannot be resolved: {exc.strerror or exc}") from exc
