"""Events that outlive a connection: acknowledged, and after a loss sent again (wire format, 7)."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from echostream.codes import Close, Status
from echostream.errors import ConnectionClosed, ProtocolError
from echostream.protocol import events as ev
from echostream.protocol.hello import Hello
from echostream.protocol.resumption import Delivered, Entry, Journal, Outcomes, Resumption
from echostream.protocol.stream_journal import Place

if TYPE_CHECKING:
    from echostream.rpc.acks import Emitters
    from echostream.rpc.peer import Peer

__all__ = ["EventSession", "EventSessions"]

logger = logging.getLogger("echostream.rpc")

ACKNOWLEDGE_EVERY = 64
ACKNOWLEDGE_S = 0.05
"""So many events, or so long after the first of them, are acknowledged together."""
KEPT = 4096
KEPT_S = 300.0
"""Sessions without a connection that a server keeps, and for how long."""
KEPT_BYTES = 64 * 1024 * 1024
"""What it keeps for all of them together: the oldest give way."""
REMEMBERED = 256
"""Bytes that the place of a stream counts, or what a failed event came to."""


class EventSession:
    """The part that one connection has in an event session. Without one, nothing here does
    anything: events are numbered from 1 and end with the connection."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._resumption: Resumption | None = None
        self._delivered: Delivered | None = None
        self._acknowledged = 0
        self._unacknowledged = 0
        self._timer: asyncio.TimerHandle | None = None
        self._settled: asyncio.Future[None] | None = None
        self.token: bytes | None = None
        """The session's name, from this side's HELLO or the peer's."""
        self.offer: ev.ResumeReceived | None = None
        """What the client offered, on the server."""
        self._on_offer: Callable[[], None] | None = None
        self.unwritten: list[Entry] = []
        """Events of a connection that ended before both sides agreed where to go on."""

    @property
    def kept(self) -> bool:
        """Whether what is not handled when the connection ends will come again."""
        return self._delivered is not None

    @property
    def awaited(self) -> bool:
        """Whether both sides are still to agree where the session goes on."""
        if self._delivered is not None:
            return False
        if self._peer.connection.engine.is_client:
            return self._resumption is not None
        return self.token is not None

    def place(self, stream: bytes) -> Place:
        """How far a stream of the peer was read over earlier connections."""
        return Place() if self._resumption is None else self._resumption.places.of(stream)

    @property
    def journal(self) -> Journal | None:
        """What was written and is not acknowledged, for the next connection; ``None`` where this
        session does not go on."""
        return None if self._resumption is None else self._resumption.journal

    @property
    def leaves_behind(self) -> bool:
        """Whether events go to the next connection when the peer is going away."""
        return self._resumption is not None and self._peer.connection.engine.is_client

    # The client's side.

    def take_along(self, resumption: Resumption, emitters: Emitters) -> None:
        """Before HELLO: this session is to go on; ``emitters`` wait for acknowledgements."""
        self._peer.acks.take_along(emitters)
        self._resumption = resumption
        self.token = resumption.token
        self._peer.outbox.events_held = True
        self._peer.protocol.inbox.defer_events()

    def begin(self) -> None:
        """The connection before this one is over: say what was handled, and where we go on."""
        resumption = self._resumption
        if resumption is None or self._peer.ended is not None:
            return
        delivered, journal = resumption.delivered, resumption.journal
        self._peer.protocol.resume(delivered.upto, delivered.ranges, journal.first)
        self._peer.connection.wake()

    def go_on(self) -> None:
        """Write what came while the ``on_connect`` hooks ran."""
        resumption = self._resumption
        if resumption is not None and self._delivered is not None and resumption.pending:
            self._peer.outbox.extend(self._fitting(resumption, resumption.take_pending()))
            self._peer.connection.wake()

    async def wait_settled(self) -> None:
        """Wait until the peer has handled all that was written, or the connection has ended."""
        resumption = self._resumption
        if resumption is not None and len(resumption.journal) and self._peer.ended is None:
            if self._settled is None:
                self._settled = self._peer.loop.create_future()
            await asyncio.shield(self._settled)

    # The server's side.

    def take_offers(self, on_offer: Callable[[], None]) -> None:
        """The client is who it says: from now on, tell when it offers to go on with a session."""
        self._on_offer = on_offer
        if self.offer is not None:
            on_offer()

    def answer(self, resumption: Resumption, *, fresh: bool, upto: int) -> None:
        """Go on with the session that was offered. ``fresh``: nothing is known of it here, but that
        its events up to ``upto`` were handled by a server before this one."""
        offer = self.offer
        if offer is None or self._peer.ended is not None:
            return
        self._resumption = resumption
        resumption.known = True
        if fresh:
            resumption.delivered = Delivered(max(upto, offer.first - 1))
            resumption.outcomes = Outcomes(resumption.delivered.upto + 1)
        else:
            self._report(resumption.delivered.begin(offer.first))
            if not self._acknowledge(offer):
                return
        delivered = resumption.delivered
        self._peer.protocol.resume(
            delivered.upto,
            delivered.ranges,
            resumption.journal.first,
            fresh=fresh,
            outcomes=resumption.outcomes,
        )
        self._start(resumption)

    # Both.

    def hello(self, hello: Hello) -> None:
        """The peer's HELLO came."""
        if self._peer.connection.engine.is_client:
            if self._resumption is not None and not hello.resumes:
                self._give_up(self._resumption)
        elif hello.session is not None:
            self.token = hello.session
            self._peer.outbox.events_held = True

    def received(self, event: ev.ResumeReceived) -> None:
        """The peer acknowledges events, and perhaps goes on with the session."""
        resumption = self._resumption
        if not event.first:
            if self._delivered is not None:
                self._acknowledge(event)
                self._peer.connection.wake()
        elif self._peer.connection.engine.is_client:
            if resumption is None or self._delivered is not None:
                self._violated("RESUME that nobody asked for")
            elif not event.fresh or event.first == 1:
                self._answered(resumption, event)
            else:
                self._violated("a fresh session begins with event 1")
        elif self.token is None or self.offer is not None:
            self._violated("RESUME without a session in HELLO, or twice")
        else:
            self.offer = event
            if self._on_offer is not None:
                self._on_offer()

    def _answered(self, resumption: Resumption, event: ev.ResumeReceived) -> None:
        if event.fresh:
            resumption.delivered = Delivered()
        else:
            self._report(resumption.delivered.begin(event.first))
        if self._acknowledge(event):
            self._start(resumption)

    def _start(self, resumption: Resumption) -> None:
        self._delivered = delivered = resumption.delivered
        self._acknowledged = delivered.upto
        peer = self._peer
        peer.outbox.adopt(self._fitting(resumption, resumption.take()), resumption.journal)
        peer.outbox.events_held = False
        peer.protocol.inbox.begin_events(delivered.upto, delivered.beyond)
        peer.dispatcher.stream_handlers.start()
        peer.pump()
        peer.connection.wake()

    def _fitting(self, resumption: Resumption, entries: list[Entry]) -> list[Entry]:
        """Those that the peer takes."""
        limit = self._peer.protocol.peer.limits.message_size
        fit = []
        for entry in entries:
            if len(entry.payload) <= limit:
                fit.append(entry)
            else:
                resumption.lost += 1
                self._peer.acks.settle(entry, Status.RESOURCE_EXHAUSTED)
        return fit

    def _give_up(self, resumption: Resumption) -> None:
        """The server cannot resume: what was written before may be lost."""
        resumption.lost += len(resumption.journal)
        self._peer.acks.settle_handled(resumption.journal.entries, Outcomes(1 << 62))
        resumption.journal = Journal()
        self._resumption = None
        self._peer.outbox.adopt(resumption.take(), None)
        self._peer.outbox.events_held = False
        self._peer.protocol.inbox.begin_events(0, ())
        self._peer.dispatcher.stream_handlers.start()

    def handled(self, number: int) -> None:
        """The listener of an event has ended, or nobody wanted it."""
        delivered = self._delivered
        if delivered is None or not number:
            return
        try:
            delivered.add(number)
        except ProtocolError as exc:
            self._violated(str(exc))
            return
        self._unacknowledged += 1
        if self._unacknowledged >= ACKNOWLEDGE_EVERY:
            self.acknowledge()
        elif self._timer is None:
            self._timer = self._peer.loop.call_later(ACKNOWLEDGE_S, self.acknowledge)

    def note(self, number: int, status: int) -> None:
        """This came of an event that wanted to be acknowledged."""
        if self._resumption is not None and number:
            self._resumption.outcomes.note(number, status)

    def outcome(self, number: int) -> int:
        """What came of an event that was handled before, and came again."""
        if self._resumption is None:
            return Status.UNAVAILABLE
        return self._resumption.outcomes.of(number)

    def acknowledge(self) -> None:
        """Tell the peer what was handled since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delivered = self._delivered
        if delivered is None or not self._unacknowledged or self._peer.ended is not None:
            return
        self._unacknowledged = 0
        ranges = delivered.ranges if delivered.beyond else []
        self._peer.protocol.resume(delivered.upto, ranges)
        self._peer.connection.wake()

    def leave(self) -> None:
        """The peer takes nothing new: what it did not get waits for the next connection."""
        resumption = self._resumption
        if resumption is not None and self.leaves_behind:
            outbox = self._peer.outbox
            outbox.events_held = True
            for entry in outbox.surrender():
                resumption.keep(entry)

    def connection_lost(self) -> None:
        """The connection has ended: what it did not write waits for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unwritten = self._peer.outbox.surrender()
        if self._resumption is None:
            self.unwritten = unwritten
        else:
            for entry in unwritten:
                self._resumption.keep(entry)
        self._settle()

    def _settle(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _acknowledge(self, event: ev.ResumeReceived) -> bool:
        assert self._resumption is not None
        journal = self._resumption.journal
        try:
            handled = journal.acknowledge(event.upto, event.ranges)
        except ProtocolError as exc:
            self._violated(str(exc))
            return False
        if event.first:  # handled over an earlier connection, which took the EVENT_ACK with it
            self._peer.acks.settle_handled(handled, event.outcomes or Outcomes(event.upto + 1))
        if not len(journal):
            self._settle()
        return True

    def _report(self, missing: int) -> None:
        if missing:
            assert self._resumption is not None
            self._resumption.lost += missing
            logger.warning("%d events of %s were lost", missing, self._peer.peer_addr)

    def _violated(self, message: str) -> None:
        self._peer.violation(message)


class _Live:
    def __init__(self, peer: Peer, resumption: Resumption) -> None:
        self.peer = peer
        self.resumption = resumption
        self.over: asyncio.Future[None] = peer.loop.create_future()


class EventSessions:
    """The event sessions of a server: those of connected clients, and for a while of others."""

    def __init__(self) -> None:
        self._live: dict[bytes, _Live] = {}
        self._kept: OrderedDict[bytes, tuple[Resumption, float]] = OrderedDict()
        self._kept_bytes = 0
        self._coming: dict[bytes, asyncio.Future[None]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._live) + len(self._kept)

    async def claim(self, peer: Peer) -> tuple[Resumption, bool] | None:
        """The session that ``peer`` names, for it alone, and whether it is a new one; ``None`` when
        the connection ended. A connection that has it still is closed, and waited for."""
        token = peer.events.token
        assert token is not None
        while (holder := self._live.get(token)) is not None:
            holder.peer.close(Close.GOING_AWAY, "the client came over another connection")
            await asyncio.shield(holder.over)
        if peer.ended is not None:
            return None
        resumption = self._take(token, peer.loop.time())
        self._live[token] = _Live(peer, resumption)
        return resumption, not resumption.known

    async def wait_peer(self, before: Peer) -> Peer:
        """The next connection of the session that ``before`` had. Raises ``ConnectionClosed`` when
        none comes within ``KEPT_S``."""
        token = before.events.token
        assert token is not None
        try:
            async with asyncio.timeout(KEPT_S):
                while not self._closed:
                    live = self._live.get(token)
                    if live is not None:
                        peer = live.peer
                        if peer.ended is None and peer.events.kept and not peer.going_away:
                            return peer
                    loop = asyncio.get_running_loop()
                    await asyncio.shield(self._coming.setdefault(token, loop.create_future()))
        except TimeoutError:
            raise ConnectionClosed(f"the client did not come back within {KEPT_S:g} s") from None
        finally:
            self._wake(token)  # others look again, and wait on
        raise ConnectionClosed("the server stops")

    def came(self, peer: Peer) -> None:
        """A client is back, and both sides know where to go on."""
        self._wake(peer.events.token or b"")

    def _wake(self, token: bytes) -> None:
        coming = self._coming.pop(token, None)
        if coming is not None:
            coming.set_result(None)

    def close(self) -> None:
        """Nobody comes back any more."""
        self._closed = True
        coming, self._coming = self._coming, {}
        for each in coming.values():
            each.set_result(None)

    def _gone(self, token: bytes) -> None:
        coming = self._coming.pop(token, None)
        if coming is not None:
            coming.set_exception(ConnectionClosed("the client has left"))
            coming.exception()  # perhaps nobody waits any more

    def release(self, peer: Peer, *, keep: bool) -> None:
        """The connection is over, and so are its listeners."""
        token = peer.events.token
        if token is None:
            return
        now = peer.loop.time()
        holder = self._live.get(token)
        if holder is not None and holder.peer is not peer:  # the client is back already
            for entry in peer.events.unwritten:
                holder.resumption.keep(entry)
            holder.peer.events.go_on()
            return
        if holder is None:
            resumption = self._take(token, now)
        else:
            resumption = holder.resumption
            del self._live[token]
            holder.over.set_result(None)
        for entry in peer.events.unwritten:
            resumption.keep(entry)
        if not keep:
            self._gone(token)
        if keep and (resumption.known or resumption.pending):
            self._kept[token] = resumption, now + KEPT_S
            self._kept_bytes += _size(resumption)
            while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
                self._forget()

    def _take(self, token: bytes, now: float) -> Resumption:
        while self._kept and next(iter(self._kept.values()))[1] <= now:
            self._forget()
        if token not in self._kept:
            return Resumption(token)
        resumption, _ = self._kept.pop(token)
        self._kept_bytes -= _size(resumption)
        return resumption

    def _forget(self) -> None:
        _, (resumption, _) = self._kept.popitem(last=False)
        self._kept_bytes -= _size(resumption)
        unsent = len(resumption.journal) + len(resumption.pending)
        if unsent:
            logger.warning("%d events for a client that did not come back are dropped", unsent)


def _size(resumption: Resumption) -> int:
    remembered = len(resumption.places) + len(resumption.outcomes.failures)
    return resumption.journal.size + resumption.pending_bytes + REMEMBERED * remembered
