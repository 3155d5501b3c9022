"""Drives one sans-IO engine on an event loop.

A turn of the loop goes like this: datagrams or a timer feed the engine, the engine's events go to
the handler, the handler wakes tasks, the tasks write; at the end of the turn, once, the flush that
:meth:`Connection.wake` asked for builds datagrams from all of it, so that acknowledgements,
answers and events share packets.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from echostream.codes import Close
from echostream.errors import ConnectionClosed
from echostream.transport.engine import (
    Address,
    Closed,
    ConnectionIdIssued,
    ConnectionIdRetired,
    DatagramReceived,
    Engine,
    EngineEvent,
    HandshakeCompleted,
    PathChanged,
    StreamData,
)
from echostream.transport.handler import ConnectionHandler
from echostream.transport.turns import Send, Turns

__all__ = ["Connection", "ConnectionOwner", "Send", "closed_error", "loop_clock"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TICK = 0.001
"""Seconds. Event loops count in milliseconds: a shorter wait would only spin."""


class ConnectionOwner(Protocol):
    """Who routes datagrams to a connection."""

    def connection_id_issued(self, connection: Connection, connection_id: bytes) -> None:
        """Datagrams to this ID belong to ``connection``."""

    def connection_id_retired(self, connection: Connection, connection_id: bytes) -> None:
        """They no longer do."""

    def connection_finished(self, connection: Connection) -> None:
        """The closing or draining period is over: forget the connection."""


def loop_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The clock to drive engines on ``loop`` with, in seconds, never stepping back.

    For a real loop it is the system's monotonic clock, because uvloop's ``time()`` ticks only once
    a millisecond and stands still while a callback runs; a loop that says ``virtual_time = True``
    is its own clock. Both have the origin of ``loop.time()``, so deadlines fit ``call_at``.
    """
    return loop.time if getattr(loop, "virtual_time", False) else time.monotonic


def closed_error(event: Closed) -> ConnectionClosed:
    """The exception for everybody who waits on a connection that ended with ``event``."""
    who = "the peer" if event.by_peer else "this side"
    kind = "application" if event.application else "transport"
    reason = f": {event.reason[:256]!r}" if event.reason else ""
    return ConnectionClosed(
        f"connection closed by {who} with {kind} code {event.code:#x}{reason}",
        code=event.code,
        reason=event.reason,
        by_peer=event.by_peer,
    )


class Connection:
    """One engine, its timer and its handler. Use it from its loop's thread only.

    The connection is *closed* when :class:`Closed` was handed on: exactly once, and nothing comes
    after it. Closing from this side makes it so on the loop's next turn, without waiting for the
    network. It is *finished* when the engine also needs no more time for its closing or draining
    period (RFC 9000, section 10.2); then its owner forgets it and no timer is left.

    Exceptions of the handler are logged and change nothing. An engine that raises is broken: the
    connection is closed with ``INTERNAL_ERROR``.
    """

    def __init__(
        self,
        engine: Engine,
        send: Send,
        *,
        peer_address: Address,
        loop: asyncio.AbstractEventLoop | None = None,
        owner: ConnectionOwner | None = None,
        turns: Turns | None = None,
    ) -> None:
        """``turns``: those of the endpoint, so that its connections send together."""
        self.engine = engine
        self.peer_address = peer_address
        self.on_unreachable: Callable[[], None] | None = None
        """Called when the network reported that nobody listens at the peer's address. It is a
        hint (ICMP can be forged): probe, do not close."""
        self.move: Callable[[], None] | None = None
        """Goes on from another local port or address; ``None`` where the network has no such
        thing."""
        self._send = send
        self._loop = loop or asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # not that of whichever task wakes us
        self._turns = turns or Turns(send, self._loop)
        self._owner = owner
        self.clock = loop_clock(self._loop)
        self.received_at = 0.0
        """When the datagram was read that events come from now, on :attr:`clock`."""
        self.arrival_age: Callable[[], float] | None = None
        """How long ago that datagram came in (s), 0 where that is not known. To be asked while its
        events are handed on."""
        self.on_acknowledged: Callable[[], None] | None = None
        """Called after datagrams that call for no flush: less may be buffered now."""
        self.on_sending: Callable[[], None] | None = None
        """Called once, right before the next datagrams are handed to the network."""
        self._handler: ConnectionHandler | None = None
        self._held: list[EngineEvent] = []
        self._handshake: _Fact[HandshakeCompleted] = _Fact()
        self._closing: Closed | None = None
        self._closed: Closed | None = None
        self._closed_fact: _Fact[Closed] = _Fact()
        self._finished = False
        self._turn_scheduled = False
        self._hurried = False
        self._poll_scheduled = False
        self._draining = False
        self._reported = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._not_before = 0.0

    def __repr__(self) -> str:
        state = "finished" if self._finished else "closed" if self._closed else "open"
        side = "client" if self.engine.is_client else "server"
        return f"<Connection {side} peer={self.peer_address[:2]} {state}>"

    # For the floor above

    def attach(self, handler: ConnectionHandler) -> None:
        """Set the handler, once. Events that came before are handed to it, in order, on the
        loop's next turn."""
        if self._handler is not None:
            raise RuntimeError("the connection has a handler already")
        self._handler = handler
        if self._held:
            self._loop.call_soon(self._release_held, context=self._context)

    def wake(self) -> None:
        """Something was written to the engine: flush at the end of this turn of the loop."""
        if not self._turn_scheduled and not self._finished:
            self._turn_scheduled = True
            self._turns.add(self)

    def hurry(self) -> None:
        """As :meth:`wake`, for who has written a good part of what one flush sends: it leaves now,
        so that the peer works on it while this turn goes on."""
        self.wake()
        if self._hurried or self._finished:
            return
        datagrams: list[tuple[bytes, Address]] = []
        self.write(datagrams)
        self._turn_scheduled = True
        if datagrams:
            self._send(datagrams)
        else:
            self._hurried = True  # it cannot leave now: not again before the turn ends

    def close(self, code: int = Close.OK, reason: str = "") -> None:
        """Close with an application code. The datagram that says so leaves at once, data that
        was not sent is dropped, and the handler gets nothing more but ``Closed``. Idempotent."""
        if self._closing is not None or self._closed is not None:
            return
        self._closing = Closed(int(code), reason, by_peer=False, application=True)
        try:
            self.engine.close(code, reason)
            datagrams = self.engine.flush(self.clock())
        except Exception:
            self._engine_failed()
            return
        if datagrams:
            self._send(datagrams)
        self.wake()

    @property
    def closed(self) -> Closed | None:
        """How the connection ended, or ``None`` while it is open."""
        return self._closed

    @property
    def finished(self) -> bool:
        """Whether the closing or draining period is over too."""
        return self._finished

    async def wait_connected(self) -> HandshakeCompleted:
        """Wait for the end of the handshake. Raises :class:`ConnectionClosed`."""
        if self._closed is not None:
            raise closed_error(self._closed)
        return await self._handshake.wait(self._loop)

    async def wait_closed(self) -> Closed:
        """Wait until the connection is closed, and say how it ended."""
        return await self._closed_fact.wait(self._loop)

    # For the network below

    def datagram_received(self, data: bytes, address: Address) -> None:
        """Take one UDP datagram, hand on what it brought, flush at the end of the turn."""
        self.feed(data, address, self.clock())
        self.drain()

    def feed_many(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """The same for several that arrived together."""
        now = self.clock()
        for data, address in datagrams:
            self.feed(data, address, now)
        self.drain()

    def feed(self, data: bytes, address: Address, now: float) -> None:
        """Only give the engine a datagram. :meth:`drain` must follow within the turn."""
        if self._finished:
            return
        self.received_at = now
        try:
            self.engine.feed(data, address, now)
        except Exception:
            self._engine_failed()

    def drain(self) -> None:
        """Hand on what the engine reports, and flush at the end of this turn of the loop."""
        self.report()
        self.wake()

    def report(self) -> None:
        """Only hand on what the engine reports. :meth:`settle` must follow within the turn."""
        self._reported = False
        self._drain()

    def settle(self) -> None:
        """Flush at the end of this turn of the loop, unless it was mere acknowledgements that came
        and there is nothing to say."""
        if self._turn_scheduled or self._finished:
            return
        handler = self._handler
        if self._reported or handler is None or not (self.engine.idle and handler.idle):
            self.wake()
        else:
            if self.on_acknowledged is not None:
                self.on_acknowledged()
            self._arm_timer()

    def poll(self) -> None:
        """:meth:`drain` on the loop's next turn: for an engine that got something by itself."""
        self.received_at = self.clock()  # a flush before that turn may hand it on already
        if not self._poll_scheduled and not self._finished:
            self._poll_scheduled = True
            self._loop.call_soon(self._poll, context=self._context)

    def abandon(self) -> None:
        """Finish now, without waiting for the closing period. The network is going away."""
        self.close(Close.GOING_AWAY)
        if self._closed is None and self._closing is not None:
            self._report_closed(self._closing)
        self._finish()

    # The turn

    def write(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """The turn ends: append what is to be sent. :meth:`written` must follow when it was."""
        if self._finished:
            return
        now = self.clock()
        if self._handler is not None and self._closed is None and self._closing is None:
            try:
                self._handler.before_flush(now)
            except Exception:
                logger.exception("the handler failed before a flush of %r", self)
        self._hurried = False
        self._turn_scheduled = False  # only now: what before_flush wrote leaves with this flush
        try:
            made = self.engine.flush(now)
        except Exception:
            self._engine_failed()
            return
        if made and self.on_sending is not None:  # it wants to know when: do not wait for others
            on_sending, self.on_sending = self.on_sending, None
            on_sending()
            self._send(made)
        else:
            datagrams += made

    def written(self) -> None:
        """Hand on what the flush brought about, and wait for time or datagrams."""
        if self._finished:
            return
        self._drain()
        if self._closing is not None and self._closed is None:
            self._report_closed(self._closing)
        self._arm_timer()

    def _poll(self) -> None:
        self._poll_scheduled = False
        self.drain()

    def _drain(self) -> None:
        if self._draining or self._finished:  # a handler that feeds us: the loop below goes on
            return
        self._draining = True
        try:
            next_event = self.engine.next_event
            while (event := next_event()) is not None:
                self._reported = True
                kind = type(event)
                if kind is StreamData or kind is DatagramReceived:
                    self._deliver(event)
                else:
                    self._on_event(event)
        except Exception:
            self._engine_failed()
        finally:
            self._draining = False

    def _on_event(self, event: EngineEvent) -> None:
        if isinstance(event, ConnectionIdIssued):
            if self._owner is not None:
                self._owner.connection_id_issued(self, event.connection_id)
            return
        if isinstance(event, ConnectionIdRetired):
            if self._owner is not None:
                self._owner.connection_id_retired(self, event.connection_id)
            return
        if isinstance(event, Closed):
            self._report_closed(event)
            return
        if isinstance(event, PathChanged):
            self.peer_address = event.address
        elif isinstance(event, HandshakeCompleted) and self._closing is None:
            self._handshake.settle(event)
        self._deliver(event)

    def _deliver(self, event: EngineEvent) -> None:
        if self._closed is None and self._closing is None:
            self._hand_over(event)

    def _hand_over(self, event: EngineEvent) -> None:
        if self._handler is None or self._held:
            self._held.append(event)
            return
        try:
            self._handler.engine_event(event)
        except Exception:
            logger.exception("the handler of %r failed on %s", self, type(event).__name__)

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for event in held:
            if self._closing is None or isinstance(event, Closed):
                self._hand_over(event)
        self.wake()

    # The timer

    def _arm_timer(self) -> None:
        """One timer handle serves many packets: it is set anew only for an earlier deadline. One
        that fires too early looks at the engine's deadline again."""
        if self._finished:
            return
        try:
            deadline = self.engine.timer()
        except Exception:
            self._engine_failed()
            return
        if deadline is None:
            if self._closed is not None:
                self._finish()
            elif self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if deadline < self._not_before:
            deadline = self._not_before
        if self._timer is not None:
            if deadline >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer = None
        now = self.clock()
        try:
            deadline = self.engine.timer()
            if deadline is None or deadline > now:
                self._not_before = now + _TICK
                self._arm_timer()
                return
            self.received_at = now
            self.engine.on_timer(now)
            deadline = self.engine.timer()
        except Exception:
            self._engine_failed()
            return
        if deadline is not None and deadline <= now:  # it made no progress: do not spin
            self._not_before = now + _TICK
        self.received_at = now
        self.drain()

    # The end

    def _report_closed(self, event: Closed) -> None:
        if self._closed is not None:
            return
        self._closed = event
        self._hand_over(event)
        self._handshake.fail(closed_error(event))
        self._closed_fact.settle(event)

    def _engine_failed(self) -> None:
        logger.exception("the engine of %r failed; the connection is given up", self)
        self._report_closed(
            Closed(Close.INTERNAL_ERROR, "the engine failed", by_peer=False, application=True)
        )
        self._finish()

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._owner is not None:
            self._owner.connection_finished(self)


class _Fact(Generic[T]):
    """Something that becomes true once, and those who wait for it."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._waiters: set[asyncio.Future[T]] = set()

    async def wait(self, loop: asyncio.AbstractEventLoop) -> T:
        if self._value is not None:
            return self._value
        waiter: asyncio.Future[T] = loop.create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)

    def settle(self, value: T) -> None:
        if self._value is None:
            self._value = value
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(value)

    def fail(self, error: Exception) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
