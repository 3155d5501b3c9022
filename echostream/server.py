"""``RpcServer``: listens, makes sessions, drains."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from echostream.builder import ServerBuilder, ServerConfig
from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed
from echostream.protocol.assembly import Account
from echostream.rpc.authentication import admit, new_challenge
from echostream.rpc.context import ServerContext
from echostream.rpc.event_session import EventSessions
from echostream.rpc.hooks import run_hooks, run_hooks_until_error, run_hooks_while_open
from echostream.rpc.keyed import KeyedAnswers
from echostream.rpc.peer import Peer
from echostream.rpc.send_budget import SendBudget
from echostream.rpc.session import Session, peer_statistics
from echostream.transport.connection import Connection
from echostream.transport.endpoint import Endpoint, EndpointStatistics
from echostream.transport.handler import ConnectionHandler
from echostream.transport.identity import Identity
from echostream.transport.quic.acceptor import QuicAcceptor
from echostream.transport.quic.tickets import TicketStore

if TYPE_CHECKING:
    from echostream.discovery.advertiser import Advertiser
    from echostream.discovery.service import Announcement

__all__ = ["RpcServer", "ServerStatistics"]

logger = logging.getLogger("echostream.server")

DRAIN_S = 5.0
KEPT_TICKETS = 16_384
"""Session tickets, each good once; some 600 bytes each."""
LINGER_S = 0.3
HOOKS_S = 5.0
"""How long the ``on_disconnect`` hooks of all sessions may take when the server stops."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A snapshot of what a server holds. Sizes in bytes.

    ``half_open``: handshakes that have begun and not ended. ``calls_running``, ``tasks``,
    ``queued``, ``buffered``, ``assembling`` and ``streams_stopped`` are sums over the ``sessions``
    that are connected now; see ``SessionStatistics``. ``sending``: what all connections hold for
    sending, of ``sending_limit``; ``sending_waits``: whether somebody has to wait for that.
    ``endpoint``: counters of the socket, ``None`` where there is none (before the start, and in
    tests in memory).
    """

    sessions: int
    half_open: int
    calls_running: int
    tasks: int
    queued: int
    buffered: int
    assembling: int
    streams_stopped: int
    sending: int
    sending_limit: int
    sending_waits: bool
    endpoint: EndpointStatistics | None


class Listener(Protocol):
    """Where connections come from: an endpoint, or a test's memory."""

    @property
    def address(self) -> tuple[str, int]:
        """Where it is bound."""

    async def close(self, code: int = 0, reason: str = "", *, linger: float = 0.0) -> None:
        """Close every connection, and stop."""


class RpcServer:
    """A server, made by :meth:`builder`. Start it with :meth:`run` or ``async with``, once."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._context = ServerContext(config.values)
        self._context._outgoing = config.outgoing
        self._listener: Listener | None = None
        self._started = False
        self._stopped: asyncio.Event | None = None
        self._shutdown: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._identity: Identity | None = None
        self._acceptor: QuicAcceptor | None = None
        self._advertiser: Advertiser | None = None
        self._assembling = Account(config.limits.assembly_total)
        self._sending = SendBudget(config.limits.sending_total)
        self._event_sessions = EventSessions()
        self._keyed = KeyedAnswers()

    @staticmethod
    def builder() -> ServerBuilder:
        """Configure a server."""
        return ServerBuilder()

    @property
    def context(self) -> ServerContext:
        """The server's context."""
        return self._context

    @property
    def address(self) -> tuple[str, int]:
        """Host and port where the server listens; ``ConfigurationError`` before the start."""
        if self._listener is None:
            raise ConfigurationError("the server has no address before it was started")
        return self._listener.address

    @property
    def fingerprint(self) -> str:
        """The fingerprint that clients can pin. Known after the start."""
        if self._identity is None:
            raise ConfigurationError("the server has no identity before it was started")
        return self._identity.fingerprint

    @property
    def announced_as(self) -> str | None:
        """The server's own name in the local network, once it is claimed and announced. Differs
        from the name of ``enable_discovery`` where another server has that one."""
        return None if self._advertiser is None else self._advertiser.instance

    def statistics(self) -> ServerStatistics:
        """A snapshot of what is held for all clients together."""
        listener = self._listener
        sessions = [peer_statistics(session._peer) for session in self._context.sessions]
        return ServerStatistics(
            sessions=len(sessions),
            half_open=0 if self._acceptor is None else self._acceptor.half_open,
            calls_running=sum(s.calls_running for s in sessions),
            tasks=sum(s.tasks for s in sessions),
            queued=sum(s.queued for s in sessions),
            buffered=sum(s.buffered for s in sessions),
            assembling=self._assembling.held,
            streams_stopped=sum(s.streams_stopped for s in sessions),
            sending=self._sending.held,
            sending_limit=self._sending.limit,
            sending_waits=self._sending.tight,
            endpoint=listener.statistics() if isinstance(listener, Endpoint) else None,
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Run the ``on_start`` hooks and listen. Raises what a hook raises, and
        ``ConfigurationError`` when the address is taken, after the ``on_shutdown`` hooks."""
        if self._started:
            raise ConfigurationError("the server was started already: build another one")
        self._started = True
        self._stopped = asyncio.Event()
        config = self._config
        await run_hooks_until_error(config.hooks.start, self._context)
        try:
            self._listener = await self._listen()
        except BaseException:
            await run_hooks("on_shutdown", config.hooks.shutdown, self._context)
            raise
        self._context.serving = True
        logger.info("listening on %s port %d", *self._listener.address)
        if config.announcement is not None and self._identity is not None:
            self._announce(config.announcement)

    def _announce(self, announcement: Announcement) -> None:
        from echostream.discovery.advertiser import Advertiser  # loads zeroconf

        self._advertiser = Advertiser(announcement, *self.address, fingerprint=self.fingerprint)
        self._advertiser.start()

    async def _listen(self) -> Listener:
        config = self._config
        identity = config.identity
        if identity is None:
            identity = await asyncio.to_thread(Identity.self_signed)
        self._identity = identity
        self._acceptor = QuicAcceptor(
            config.quic,
            identity.certificate_pem,
            identity.private_key_pem,
            tickets=TicketStore(capacity=KEPT_TICKETS),
        )
        return await self._bind(self._acceptor)

    async def _bind(self, acceptor: QuicAcceptor) -> Listener:
        return await Endpoint.bind(
            self._config.address, acceptor=acceptor, on_connection=self._accept
        )

    async def run(self) -> None:
        """Serve until cancelled, or until SIGINT or SIGTERM; then drain. Starts the server where
        that was not done before."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        handled = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, stop.set)
                handled.append(number)
            except (NotImplementedError, RuntimeError, ValueError):
                break  # Windows, or not the main thread: cancelling still works
        try:
            if self._listener is None or self._shutdown is not None:
                await self.start()
            assert self._stopped is not None
            waits = [
                asyncio.ensure_future(stop.wait()),
                asyncio.ensure_future(self._stopped.wait()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await self.shutdown()
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    async def shutdown(self, drain: float = DRAIN_S) -> None:
        """Stop: no new calls, running ones finish within ``drain`` s, then connections are closed,
        and ``on_disconnect`` and ``on_shutdown`` hooks run. Idempotent; a second caller waits for
        the first."""
        if not isinstance(drain, int | float) or not 0 <= drain <= 86_400:
            raise ConfigurationError(f"drain={drain!r} must be seconds, from 0 to 86400")
        if self._listener is None:
            return
        if self._shutdown is None:
            self._shutdown = asyncio.create_task(self._shut_down(drain))
        await asyncio.shield(self._shutdown)

    async def _shut_down(self, drain: float) -> None:
        assert self._listener is not None
        assert self._stopped is not None
        self._context.serving = False
        peers = [session._peer for session in self._context.sessions]
        try:
            if self._advertiser is not None:
                await self._advertiser.close()  # first: whoever looks now finds another server
            if peers and drain:
                await asyncio.gather(*(peer.drain(drain) for peer in peers))
            await self._listener.close(Close.GOING_AWAY, "shutting down", linger=LINGER_S)
            await self._keyed.close()
            self._event_sessions.close()
            if self._tasks:
                _, late = await asyncio.wait(tuple(self._tasks), timeout=HOOKS_S)
                for task in late:
                    logger.warning("a session's hooks take more than %g s: cancelled", HOOKS_S)
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await run_hooks("on_shutdown", self._config.hooks.shutdown, self._context)
        finally:
            self._stopped.set()

    def _accept(self, connection: Connection) -> ConnectionHandler:
        session = Session(self._context)
        config = self._config
        session._outgoing = config.outgoing
        peer = Peer(
            connection,
            config.limits,
            config.routes,
            session,
            self._assembling,
            config.now_ns,
            self._sending,
        )
        session._live_peer = peer
        peer.keyed = self._keyed
        peer.successor = partial(self._event_sessions.wait_peer, peer)
        peer.scope = lambda: session.fingerprint or peer.events.token or session.id
        challenge = None if config.authenticator is None else new_challenge()
        if self._shutdown is not None:
            peer.close(Close.GOING_AWAY, "shutting down")
            return peer
        peer.greet(challenge=challenge)
        self._own(self._serve(session, peer, challenge))
        return peer

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resume(self, session: Session, peer: Peer) -> None:
        """The client goes on with its event session."""
        claimed = await self._event_sessions.claim(peer)
        if claimed is None:
            return
        resumption, fresh = claimed
        upto = 0
        resume = self._config.resume
        if fresh and resume is not None:
            try:
                upto = await resume(session)
            except Exception:
                logger.exception("on_resume failed for %s, which is refused", peer.peer_addr)
                peer.close(Close.INTERNAL_ERROR, "the server could not resume the session")
                return
        peer.events.answer(resumption, fresh=fresh, upto=upto)
        self._event_sessions.came(peer)

    async def _serve(self, session: Session, peer: Peer, challenge: bytes | None) -> None:
        """One session from HELLO to the end."""
        try:
            await peer.wait_greeted()
        except ConnectionClosed:
            return
        authenticator = self._config.authenticator
        if authenticator is not None and challenge is not None:
            own = "" if self._identity is None else self._identity.fingerprint
            if not await admit(peer, session, authenticator, own, challenge):
                return
        peer.events.take_offers(lambda: self._own(self._resume(session, peer)))
        hooks = self._config.hooks
        sessions = self._context._sessions
        sessions[session.id] = session
        try:
            try:
                await run_hooks_while_open(hooks.connect, session, peer)
            except Exception as exc:
                if peer.ended is None or not isinstance(exc, ConnectionClosed):
                    logger.exception("on_connect failed for %s, which is refused", peer.peer_addr)
                peer.close(Close.INTERNAL_ERROR, "the server could not accept the session")
            else:
                peer.dispatcher.start()
            await peer.wait_closed()
            del sessions[session.id]
            self._context._forget(session)
            await peer.dispatcher.wait_stopped()
        finally:
            sessions.pop(session.id, None)
            ended = peer.ended
            left = ended is not None and ended.by_peer and ended.code == Close.OK
            self._event_sessions.release(peer, keep=not left)
            self._context._forget(session)
            await run_hooks("on_disconnect", hooks.disconnect, session)
