"""What outlives one connection: the way to a server that a client keeps open.

A :class:`Link` has a current peer or waits for the next one. Calls are at-most-once: one that was
certainly not run goes on with the next connection, one whose fate is unknown ends with
``Unavailable``, unless it is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterable, Callable, Coroutine
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from typing import Any

from echostream.codes import Close
from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    DiscoveryError,
    EchoStreamError,
    IdentityError,
    Unavailable,
)
from echostream.protocol import payload as payloads
from echostream.protocol.hello import Limits
from echostream.protocol.outbox import QUEUE_HIGH
from echostream.protocol.resumption import Entry, Resumption
from echostream.rpc.acks import Emitters
from echostream.rpc.backoff import Backoff, Reconnect
from echostream.rpc.call import Metadata, _current, encode_metadata
from echostream.rpc.caller import Bare
from echostream.rpc.keyed import First, add_key
from echostream.rpc.options import Delivery, check_options
from echostream.rpc.peer import Peer
from echostream.rpc.registry import check_name
from echostream.rpc.scheduled import add_at

__all__ = ["Link", "LinkStatistics", "is_final"]

logger = logging.getLogger("echostream.link")

SETTLED_S = 2.0
"""A connection that lived so long was a good one: the next backoff begins small again."""
CONVICT_S = 0.3
"""How long a peer has to answer after the network said that nobody listens there, at least."""
_FINAL = (Close.IDENTITY_REFUSED, Close.AUTHENTICATION_FAILED, Close.VERSION_MISMATCH)

_opening: ContextVar[Peer | None] = ContextVar("echostream_opening", default=None)


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """A snapshot of a link. ``connections`` that stood since it began, ``failures`` of attempts to
    make one, ``retried``: calls that went on with another connection, ``unknown``: those that ended
    with ``Unavailable`` because nobody knows whether they ran."""

    connections: int
    failures: int
    retried: int
    unknown: int


def is_final(error: BaseException) -> bool:
    """Whether trying again is useless: the server is another one, or refuses this client."""
    if isinstance(error, ConnectionClosed):
        return error.by_peer and error.code in _FINAL
    if isinstance(error, DiscoveryError):
        return False
    return isinstance(error, IdentityError | ConfigurationError)


class Link:
    """Keeps a client connected. ``connect`` makes one connection, and returns its peer once the
    ``on_connect`` hooks are through; it is told whether to try another server than the last time.
    ``limits`` are those of this side.
    """

    def __init__(
        self,
        options: Reconnect,
        connect: Callable[[bool], Coroutine[Any, Any, Peer]],
        limits: Limits,
    ) -> None:
        self._options = options
        self._limits = limits
        self._connect = connect
        self._peer: Peer | None = None
        self._young: Peer | None = None
        self._early: Peer | None = None
        self._error: EchoStreamError | None = None
        self._news: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._backoff = Backoff(options)
        self._suspect: Peer | None = None
        self.resumption = Resumption(secrets.token_bytes(16))
        """The event session, for each connection's peer to take along."""
        self.emitters = Emitters()
        """Those who wait until their event is acknowledged."""
        self.pumps: set[asyncio.Task[None]] = set()
        """Tasks that stand around calls with many results."""
        self._last: Peer | None = None
        self._handover: asyncio.Task[None] | None = None
        self._connections = self._failures = self._retried = self._unknown = 0

    # The connection.

    @property
    def peer(self) -> Peer | None:
        """The peer that new calls go to, ``None`` while there is none."""
        peer = self._peer
        if peer is None or peer.ended is not None or peer.going_away:
            return None
        return peer

    @property
    def error(self) -> EchoStreamError | None:
        """Why no further connection is made."""
        return self._error

    def statistics(self) -> LinkStatistics:
        """A snapshot of the counters."""
        return LinkStatistics(self._connections, self._failures, self._retried, self._unknown)

    async def open(self, timeout: float) -> None:
        """Make the first connection, trying again within ``timeout`` s. Raises why it failed.

        With ``early_data`` it is enough that one can be resumed: calls may then leave with its
        first packet."""
        loop = asyncio.get_running_loop()
        first = loop.create_task(self._first(loop.time() + timeout))
        try:
            while not first.done() and (self._early is None or not self._options.early_data):
                await asyncio.wait((first, self._next_news), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            first.cancel()
            await asyncio.wait((first,))
            raise
        if first.done():
            first.result()
        self._keeper = loop.create_task(self._keep(first))

    async def _first(self, deadline: float) -> Peer:
        while True:
            try:
                peer = await self._connect(self._failures > 0)
                self._stands(peer)
                return peer
            except (ConnectionClosed, OSError) as error:
                if is_final(error):
                    raise
                self._failures += 1
                wait = self._backoff.next()
                if wait is None or asyncio.get_running_loop().time() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)

    def early(self, peer: Peer | None) -> None:
        """Idempotent calls may go to ``peer`` now, whose handshake is not complete."""
        self._early = peer
        self._tell()

    def opening(self, peer: Peer) -> None:
        """The ``on_connect`` hooks run now, in this task: its calls go to ``peer``, those of others
        wait until the hooks are through."""
        self._young = peer
        _opening.set(peer)
        before, self._last = self._last, peer
        self._handover = peer.loop.create_task(self._hand_over(self._handover, before, peer))

    async def _hand_over(
        self, earlier: asyncio.Task[None] | None, before: Peer | None, peer: Peer
    ) -> None:
        """Go on with the events when the connections before can change nothing any more."""
        if earlier is not None:
            await earlier
        if before is not None:
            if before.going_away:
                await before.events.wait_settled()  # calls may run there for a long time yet
            if before.ended is not None or not before.going_away:
                await before.wait_closed()
                await before.dispatcher.wait_stopped()
        peer.events.begin()

    async def close(self) -> None:
        """Make no further connection; who waits for one is told."""
        keeper = self._keeper
        if keeper is not None and keeper is not asyncio.current_task():
            keeper.cancel()
            await asyncio.wait((keeper,))
        self._end(ConnectionClosed("the client was closed"))

    async def wait_ended(self) -> None:
        """Wait until no further connection is made."""
        while self._error is None:
            await self._wait_news()

    async def wait_peer(self, *, idempotent: bool = False) -> Peer:
        """Wait for a peer that takes calls. Raises why there will be none."""
        while (peer := self.peer) is None:
            if idempotent and self._early is not None and self._early.ended is None:
                return self._early
            if self._error is not None:
                error = copy(self._error)
                error.unserved = True
                raise error
            await self._wait_news()
        return peer

    async def _wait_news(self) -> None:
        await asyncio.shield(self._next_news)

    @property
    def _next_news(self) -> asyncio.Future[None]:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _stands(self, peer: Peer) -> None:
        self._peer = peer
        self._young = self._early = None
        self._connections += 1
        peer.events.go_on()
        peer.connection.on_unreachable = lambda: self._unreachable(peer)
        self._tell()

    def _end(self, error: EchoStreamError) -> None:
        if self._error is None:
            self._error = error
            self.emitters.fail(error)
            self._tell()

    async def _keep(self, first: asyncio.Task[Peer]) -> None:
        """Make a connection whenever there is none, or the server is about to leave."""
        loop = asyncio.get_running_loop()
        try:
            peer = await first
            while True:
                since = loop.time()
                await _wait_over(peer)
                if peer.ended is not None:
                    logger.info("connection lost: %s", peer.ended)
                    if is_final(peer.ended):
                        raise copy(peer.ended)
                if loop.time() - since >= SETTLED_S:
                    self._backoff.reset()
                peer = await self._again(leaving=peer.ended is None)
                self._stands(peer)
        except EchoStreamError as error:
            logger.warning("no further connection is made: %s", error)
            self._end(error)
        except OSError as error:
            self._end(ConnectionClosed(f"no connection: {error}"))
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("the link failed")
            self._end(ConnectionClosed("no further connection is made: an internal failure"))
            raise

    async def _again(self, *, leaving: bool) -> Peer:
        """The next connection."""
        if not leaving:
            # All clients of a server that went down come now.
            await asyncio.sleep(random.uniform(0.0, self._backoff.ceiling))
        while True:
            try:
                return await self._connect(leaving)
            except Exception as error:
                if is_final(error):
                    raise
                if not isinstance(error, EchoStreamError | OSError):
                    logger.exception("a hook failed: the connection is made again")
                self._failures += 1
                wait = self._backoff.next()
                if wait is None:
                    raise ConnectionClosed(
                        f"gave up after {self._backoff.failures} attempts: {error}",
                        code=getattr(error, "code", 0),
                    ) from error
                logger.info("attempt %d failed: %s", self._backoff.failures, error)
            await asyncio.sleep(wait)
            leaving = True

    def _unreachable(self, peer: Peer) -> None:
        """The network says that nobody listens there. That may be forged: only silence after a
        probe counts."""
        if self._suspect is peer or peer.ended is not None:
            return
        self._suspect = peer
        info = peer.connection.engine.info()
        peer.connection.engine.ping(0)
        peer.connection.wake()
        wait = max(3 * info.smoothed_rtt, CONVICT_S)
        peer.loop.call_later(wait, self._convict, peer, info.packets_received)

    def _convict(self, peer: Peer, received: int) -> None:
        self._suspect = None
        if peer.ended is None and peer.connection.engine.info().packets_received == received:
            peer.close(Close.TIMEOUT, "nobody listens at the server's address")

    # Calls.

    def decoder(self, annotation: Any) -> Callable[[bytes], Any]:
        """As :meth:`Peer.decoder`, whether there is a connection or not."""
        limits = self._limits
        return payloads.decoder(annotation, max_depth=limits.nesting, max_items=limits.items)

    async def request(
        self,
        method: str,
        payload: Any,
        *,
        timeout: float | None,
        max_age: float | None,
        idempotent: bool,
        metadata: Metadata | None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Any:
        """As :meth:`Caller.request`, over as many connections as it takes. A call with a stream of
        arguments is made again only while none of them was taken, one with a key as often as it
        takes: the server knows it again."""
        if isinstance(payload, AsyncIterable):
            idempotent = False
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = min((each for each in (timeout, max_age) if each is not None), default=None)
        passed = 0.0
        sent: tuple[float, bytes] | None = None
        while True:
            patience = None if limit is None else limit - passed
            peer = await self._next_peer(method, patience, idempotent)
            passed = loop.time() - started
            instance = peer.protocol.peer.instance or b""
            named = options | {"metadata": metadata}
            if idempotency_key is not None:
                named["idempotency_key"] = idempotency_key
                if sent is not None:
                    first = First(loop.time() - sent[0], sent[1])
                    named["metadata"] = add_key(metadata, idempotency_key, first)
            made_at = loop.time()
            try:
                return await Bare(peer).request(
                    method,
                    payload,
                    timeout=None if timeout is None else max(timeout - passed, 1e-6),
                    max_age=None if max_age is None else max(max_age - passed, 1e-6),
                    idempotent=idempotent,
                    **named,
                )
            except ConnectionClosed as error:
                if not error.unserved and idempotency_key is not None and instance:
                    sent = sent or (made_at, instance)
                elif not error.unserved and not idempotent:
                    self._unknown += 1
                    raise Unavailable(
                        f"the connection ended before the answer, and nobody knows whether the "
                        f"call ran ({error}); a call with idempotent=True is made again",
                        method=method,
                    ) from error
            except Unavailable as error:
                if not error.unserved:
                    raise
            self._retried += 1
            passed = loop.time() - started

    async def turn(
        self, method: str, timeout: float | None, max_age: float | None, priority: int
    ) -> tuple[Peer, float | None]:
        """Wait until a streaming call may leave: where to, and what is left of ``timeout``."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        left = timeout
        while True:
            peer = await self._next_peer(method, left, False)
            left = None if end is None else max(end - loop.time(), 1e-6)
            try:
                return peer, await peer.room.wait_turn(method, left, max_age, priority)
            except (ConnectionClosed, Unavailable) as error:
                if not error.unserved:
                    raise

    async def _next_peer(self, method: str, patience: float | None, idempotent: bool) -> Peer:
        peer = self._peer_now()
        if peer is not None:
            return peer
        try:
            async with asyncio.timeout(patience):
                return await self.wait_peer(idempotent=idempotent)
        except TimeoutError:
            raise DeadlineExceeded(
                "not sent: no connection to the server in that time", method=method
            ) from None

    async def emit(
        self,
        event: str,
        payload: Any,
        *,
        delivery: Delivery,
        max_age: float | None,
        metadata: Metadata | None,
        priority: int,
        at: int | None,
        ack: bool,
        timeout: float | None,
    ) -> None:
        """As :meth:`Caller.emit`; between connections a reliable event is kept for the next one,
        and one that goes as a DATAGRAM is lost. With ``ack`` it waits over as many connections as
        it takes, and ends with ``Unavailable`` where one took the acknowledgement with it."""
        check_name(event, "emit")
        check_options(max_age=max_age, priority=priority, delivery=delivery, timeout=timeout)
        if (ack or timeout is not None) and (delivery != "reliable" or not ack):
            raise ConfigurationError("timeout goes with ack=True, and that is reliable")
        try:
            async with asyncio.timeout(timeout):
                await self._emit(event, payload, delivery, max_age, metadata, priority, at, ack)
        except TimeoutError:
            raise DeadlineExceeded(f"not acknowledged within {timeout:g} s", method=event) from None

    async def _emit(
        self,
        event: str,
        payload: Any,
        delivery: Delivery,
        max_age: float | None,
        metadata: Metadata | None,
        priority: int,
        at: int | None,
        ack: bool,
    ) -> None:
        while True:
            peer = self._peer_now()
            if peer is not None:
                try:
                    await Bare(peer).emit(
                        event,
                        payload,
                        delivery=delivery,
                        max_age=max_age,
                        metadata=metadata,
                        priority=priority,
                        at=at,
                        ack=ack,
                    )
                    return
                except (ConnectionClosed, Unavailable) as error:
                    if not error.unserved:
                        raise
                    continue  # it was not queued
            if self._error is not None:
                raise copy(self._error)
            serving = _current.get()
            own_metadata = metadata if at is None else add_at(metadata, at)
            if serving is not None:
                own_metadata = serving.trace(own_metadata)
            extra = encode_metadata(own_metadata)
            data = payloads.encode(payload)
            if delivery == "realtime":
                return
            if self.resumption.pending_bytes <= QUEUE_HIGH:
                now = asyncio.get_running_loop().time()
                deadline = float("inf") if max_age is None else now + max_age
                own = -1 if priority == 3 else priority
                token = self.emitters.token() if ack else -1
                self.resumption.keep(Entry(0, deadline, event, data, extra, own, token))
                if ack:
                    await self.emitters.wait(token, event, None)
                return
            await self._wait_news()

    def _peer_now(self) -> Peer | None:
        """The peer that this task's calls go to."""
        young = self._young
        if young is None or young is not _opening.get() or young.ended or young.going_away:
            return self.peer
        return young


async def _wait_over(peer: Peer) -> None:
    """Wait until a peer takes no more calls."""
    over = asyncio.get_running_loop().create_future()

    def leaving() -> None:
        if not over.done():
            over.set_result(None)

    if peer.going_away or peer.ended is not None:
        return
    peer.on_leaving = leaving
    closed = asyncio.ensure_future(peer.wait_closed())
    try:
        await asyncio.wait((over, closed), return_when=asyncio.FIRST_COMPLETED)
    finally:
        closed.cancel()
