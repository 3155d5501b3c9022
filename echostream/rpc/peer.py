"""The other end of a live connection: joins the protocol session to its driven connection.

Every wait that is handed out here ends with the connection: pending calls, streams, listeners.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from echostream.codes import Close, Reset, Status
from echostream.errors import (
    ConnectionClosed,
    Unavailable,
)
from echostream.protocol import events as ev
from echostream.protocol import payload as payloads
from echostream.protocol.assembly import Account
from echostream.protocol.frames import CLOCK
from echostream.protocol.hello import Limits
from echostream.protocol.outbox import QUEUE_HIGH
from echostream.protocol.session import ProtocolSession, clip
from echostream.rpc.acks import Acknowledgements
from echostream.rpc.answers import Answers
from echostream.rpc.clock import ClockDriver
from echostream.rpc.dispatch import Dispatcher, Routes
from echostream.rpc.event_session import EventSession
from echostream.rpc.keyed import KeyedAnswers
from echostream.rpc.room import Room
from echostream.rpc.send_budget import SendBudget, SendShare
from echostream.rpc.serving import FlowEvents
from echostream.rpc.stream_events import StreamEvents
from echostream.transport import engine as en
from echostream.transport.connection import Connection, closed_error
from echostream.transport.quic.budget import Budget

if TYPE_CHECKING:
    from echostream.rpc.receiver import StreamReceiver
    from echostream.rpc.sender import StreamSender

__all__ = ["Peer"]

logger = logging.getLogger("echostream.rpc")

HELLO_TIMEOUT_S = 10.0
UNREAD_LIMIT = 4 * 1024 * 1024
"""Bytes above ``QUEUE_HIGH`` and the largest message: refusals that the peer does not read."""
PROGRESS_S = 1.0
"""How often unfinished messages are looked at, while there are any."""
TURN_EVENTS = 512
"""Events that one connection has handled in one turn of the loop; then the others are served."""
STRAY_BURST, STRAY_RATE = 4096, 1000.0
"""Frames about calls and streams that do not exist: some follow every cancellation."""
_STOPPED: dict[int, str] = {
    Reset.TOO_SLOW: "it grew by less than the peer's limit stall allows",
    Reset.TOO_LARGE: "more was unfinished than the peer's limit assembly allows",
}
CLOCK_SIZE = 32
ENOUGH = 2400
"""Bytes of calls and answers of one turn of the loop that leave before it ends: about two packets
of a usual size. With 64 calls in flight both sides then work at the same time, 1.6 times as many a
second; from one packet on, more sendings cost what that gains."""
_NEVER = float("inf")
QUEUE_TARGET_S = 0.01
"""What a connection with realtime streams may have waiting in the path: at 40 ms of round trip this
still fills a path."""


class Peer:
    """One live connection, as both sides use it. ``context`` is what handlers are given;
    ``now_ns`` this side's clock for timestamps, by default the system's monotonic one;
    ``budget`` is shared by all connections of a server."""

    def __init__(
        self,
        connection: Connection,
        limits: Limits,
        routes: Routes,
        context: Any,
        total: Account | None = None,
        now_ns: Callable[[], int] | None = None,
        budget: SendBudget | None = None,
    ) -> None:
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.budget = budget or SendBudget(limits.sending_total)
        self.sending = SendShare(self.budget, self.loop)
        self.protocol = ProtocolSession(connection.engine, limits, total, self.sending.charge)
        connection.on_acknowledged = self._acknowledged
        self.clock = ClockDriver(connection, self.loop, now_ns)
        self.calls: dict[int, asyncio.Future[bytes] | None] = {}
        self.trailers: dict[int, list[bytes]] = {}
        """Where the metadata of an answer goes, by call: for those who ask for it."""
        self.pumps: set[asyncio.Task[None]] = set()
        """Tasks that send the arguments of streaming calls."""
        self.answers = Answers(self)
        self._flows = FlowEvents(self)
        self.acks = Acknowledgements(self)
        self.senders: dict[int, StreamSender] = {}
        self.receivers: dict[int, StreamReceiver] = {}
        self._streams = StreamEvents(self)
        self.busy = False
        """Whether a call or event has to look at more than the limits: the end, or GOAWAY."""
        self.outbox = self.protocol.outbox
        self.room = Room(self)
        self.call_limit = self.protocol.peer.limits.calls
        self._depth = self._items = 0
        self._take_limits(self.protocol.peer.limits)
        self.decode = self.decoder(Any)
        self.dispatcher = Dispatcher(self, routes, context, limits.calls)
        self.events = EventSession(self)
        self.keyed = KeyedAnswers()
        """Of calls of the peer with an idempotency key; ``scope`` tells whose they are."""
        self.scope: Callable[[], object] = lambda: ""
        self.successor: Callable[[], Coroutine[Any, Any, Peer]] | None = None
        """Waits for the next connection of the same event session, where there are several."""
        self._ended: ConnectionClosed | None = None
        self._going_away = ""
        self.on_handshake: Callable[[en.HandshakeCompleted], None] | None = None
        """Called before anything is sent that was not 0-RTT data."""
        self.on_ticket: Callable[[bytes], None] | None = None
        self.on_leaving: Callable[[], None] | None = None
        """Called once, when the peer says that it takes no new calls."""
        self._greeted: asyncio.Future[None] = self.loop.create_future()
        self._greeted.add_done_callback(_retrieve)
        self._welcomed: asyncio.Future[None] = self.loop.create_future()
        self._welcomed.add_done_callback(_retrieve)
        self.grants: frozenset[str] = frozenset()
        """What the peer may do, of that which some handlers require."""
        self._closed: asyncio.Future[None] = self.loop.create_future()
        self._queue_limited = False
        self._pumping = False
        self._pumped = 0
        self._turn_events: float = TURN_EVENTS
        self._resting: asyncio.Handle | None = None
        self._strays = Budget(STRAY_BURST, STRAY_RATE)
        self._progress_timer: asyncio.TimerHandle | None = None
        self._hello_timer = self.loop.call_later(HELLO_TIMEOUT_S, self._no_hello)
        handlers, listeners = self.dispatcher.handlers, self.dispatcher.listeners
        self._on: dict[type, Callable[[Any], None]] = {
            ev.HelloReceived: self._on_hello,
            ev.RequestReceived: handlers.request,
            ev.ResponseReceived: self.answers.response,
            ev.ErrorReceived: self.answers.error,
            ev.CallCancelled: handlers.cancel,
            ev.CallOpened: self._flows.opened,
            ev.ItemReceived: self._flows.item,
            ev.ItemRefused: self._flows.refused,
            ev.CreditReceived: self._flows.credit,
            ev.CallStreamEnded: self._flows.stream_ended,
            ev.EventReceived: listeners.receive,
            ev.EventSkipped: listeners.skipped,
            ev.EventAcknowledged: self.acks.received,
            ev.ResumeReceived: lambda event: self.events.received(event),
            ev.StreamOpened: self.dispatcher.stream_handlers.opened,
            ev.StreamAccepted: self._streams.accepted,
            ev.StreamAcknowledged: self._streams.acknowledged,
            ev.StreamEnded: self._streams.ended,
            ev.StreamAborted: self._streams.aborted,
            ev.StreamFlushed: self._streams.flushed,
            ev.MediaReceived: self._streams.media,
            ev.ClockReceived: lambda event: self.clock.receive(event.frame),
            ev.GoAwayReceived: self._on_go_away,
            ev.WelcomeReceived: self._on_welcome,
            ev.ProtocolViolation: lambda event: self.violation(event.message),
        }

    # Facts.

    @property
    def peer_addr(self) -> tuple[str, int]:
        """Host and port of the other side."""
        host, port = self.connection.peer_address[:2]
        return host, port

    @property
    def ended(self) -> ConnectionClosed | None:
        """Why the connection ended, ``None`` while it lives."""
        return self._ended

    @property
    def going_away(self) -> bool:
        """Whether the peer takes no new calls."""
        return bool(self._going_away)

    # Payloads, within what was agreed.

    def encode(self, value: Any) -> bytes:
        """A payload for the peer. Raises ``InvalidPayload``, also for what passes its limits."""
        return payloads.encode(value, max_depth=self._depth, max_items=self._items)

    def decoder(self, annotation: Any) -> Callable[[bytes], Any]:
        """What reads a payload of the peer, within our limits."""
        limits = self.protocol.limits
        return payloads.decoder(annotation, max_depth=limits.nesting, max_items=limits.items)

    def expiry(self, max_age: float | None) -> float:
        """When what is sent now is too old, on the clock of the connection."""
        return _NEVER if max_age is None else self.connection.clock() + max_age

    # Begin and end.

    def greet(
        self, *, auth: Mapping[str, Any] | None = None, challenge: bytes | None = None
    ) -> None:
        """Send our HELLO. The client does so once it knows who the server is."""
        is_client = self.connection.engine.is_client
        self.protocol.greet(
            auth=auth,
            challenge=challenge,
            session=self.events.token if is_client else None,
            instance=None if is_client else self.keyed.instance,
        )
        self.connection.wake()

    async def wait_welcome(self) -> None:
        """Wait until a server that asked who we are takes us."""
        await asyncio.shield(self._welcomed)

    def _on_welcome(self, event: ev.WelcomeReceived) -> None:
        if not self._welcomed.done():
            self._welcomed.set_result(None)

    async def wait_greeted(self) -> None:
        """Wait for the peer's HELLO."""
        await asyncio.shield(self._greeted)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await asyncio.shield(self._closed)

    def close(self, code: int = Close.OK, reason: str = "") -> None:
        """Close at once. Every pending wait ends on the loop's next turn."""
        self.connection.close(code, clip(reason))

    async def drain(self, timeout: float, message: str = "shutting down") -> None:
        """Refuse new calls, let running ones finish and queued data leave, within ``timeout`` s."""
        if self._ended is not None:
            return
        self.dispatcher.refuse_calls(message)
        self.protocol.go_away(timeout, message)
        self.connection.wake()
        try:
            async with asyncio.timeout(timeout):
                await self.dispatcher.wait_idle()
                self.events.acknowledge()
                await self.room.wait_drained()
        except (TimeoutError, ConnectionClosed):
            pass

    def _no_hello(self) -> None:
        self.close(Close.TIMEOUT, f"no HELLO within {HELLO_TIMEOUT_S:.0f} s")

    # The transport floor reports.

    def engine_event(self, event: en.EngineEvent) -> None:
        """One event of the engine."""
        inbox = self.protocol.inbox
        if isinstance(event, en.StreamData):
            inbox.receive_stream(event.stream_id, event.data, event.fin)
        elif isinstance(event, en.DatagramReceived):
            data = event.data
            if len(data) == CLOCK_SIZE and data[0] == CLOCK and self.protocol.greeted:
                self.clock.receive(data)
                return
            inbox.receive_datagram(data)
        elif isinstance(event, en.StreamReset):
            inbox.stream_reset(event.stream_id, event.code)
        elif isinstance(event, en.PathChanged):
            self.clock.path_changed()
        elif isinstance(event, en.StopSending):
            self._on_stop_sending(event)
        elif isinstance(event, en.Closed):
            self._on_closed(event)
            return
        elif isinstance(event, en.HandshakeCompleted):
            if self.on_handshake is not None:
                self.on_handshake(event)
            self.dispatcher.confirm()
        elif isinstance(event, en.TicketReceived) and self.on_ticket is not None:
            self.on_ticket(event.ticket)
        self.pump()

    def written(self) -> None:
        """A call or an answer was queued: it leaves when the turn ends, or now, with what was
        queued before it, where that is enough for the other side to begin with."""
        if self.outbox.call_bytes < ENOUGH:
            self.connection.wake()
        else:
            pumped = self._pumped
            self.connection.hurry()
            self._pumped = pumped  # the turn goes on

    def before_flush(self, now: float) -> None:
        """Write what is queued; let those go on who waited for space."""
        self._pumped = 0
        if self.senders or self.receivers or self._queue_limited:
            self._limit_queue()
        outbox = self.outbox
        outbox.flush(now)
        self._acknowledged()
        if outbox.expired_calls:
            self.answers.fail_expired()
        if outbox.expired_acks:
            self.acks.fail_expired()
        if not self.room.idle:
            self.room.release()
        self.clock.before_flush(now)  # last: the stamps are those of the wire

    def _acknowledged(self) -> None:
        """What is held for sending may be less."""
        outbox = self.outbox
        held = outbox.call_bytes + outbox.event_bytes + self.connection.engine.buffered_total
        if held != self.sending.held:
            self.sending.settle(held)

    def _limit_queue(self) -> None:
        """While a realtime stream is open, either way, bulk may not fill the path's buffers."""
        wanted = False
        for sender in self.senders.values():
            wanted = wanted or sender.realtime
        for receiver in self.receivers.values():
            wanted = wanted or receiver.realtime
        if wanted != self._queue_limited:
            self._queue_limited = wanted
            self.connection.engine.limit_queue(QUEUE_TARGET_S if wanted else None)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, and nobody waits for space."""
        return self.outbox.idle and self.room.idle

    def pump(self) -> None:
        """Take out and dispatch what the inbox has; a flood continues on the loop's next turn."""
        if self._pumping or self._ended is not None or self._resting is not None:
            return
        self._pumping = True
        inbox = self.protocol.inbox
        try:
            next_event = inbox.next_event
            on = self._on
            while (event := next_event()) is not None:
                on[type(event)](event)
                self._pumped += 1
                if self._pumped >= self._turn_events:
                    self._resting = self.loop.call_soon(self._go_on)
                    break
        finally:
            self._pumping = False
        if inbox.unfinished and self._progress_timer is None:
            self._progress_timer = self.loop.call_later(PROGRESS_S, self._check_progress)

    def _go_on(self) -> None:
        self._resting = None
        self._pumped = 0
        self.pump()
        self.connection.wake()

    def _check_progress(self) -> None:
        self._progress_timer = None
        self.protocol.inbox.check_progress(self.connection.clock())
        self.pump()
        self.connection.wake()

    def stray(self) -> None:
        """A frame came about what does not exist (any more): a few are normal."""
        if not self._strays.spend(self.connection.clock()):
            self.close(Close.EXCESSIVE_LOAD, "too many frames about calls or streams unknown here")

    def resume(self, stream_id: int) -> None:
        """A consumer has room again for what a stream carries."""
        if self._ended is not None:
            return
        self.protocol.inbox.resume(stream_id)
        self.pump()
        self.connection.wake()

    def check_open(self) -> None:
        """Raise why the connection ended, if it has."""
        if self._ended is not None:
            error = copy(self._ended)
            error.unserved = True
            raise error

    # Calls of ours.

    def cancel_call(self, call_id: int) -> None:
        """The caller waits no more."""
        if self._ended is None:
            self.calls[call_id] = None
            self.protocol.cancel_call(call_id)
            self.connection.wake()

    def drop_expired(self) -> None:
        """Calls with ``max_age`` that could not leave in time end now."""
        self.outbox.drop_expired(self.connection.clock())
        self.answers.fail_expired()

    # Session.

    def _on_hello(self, event: ev.HelloReceived) -> None:
        self._hello_timer.cancel()
        self.protocol.peer = event.hello
        self._take_limits(event.hello.limits)
        self.protocol.greeted = True
        self.events.hello(event.hello)
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _take_limits(self, limits: Limits) -> None:
        self.call_limit = limits.calls
        self._depth, self._items = limits.nesting, limits.items

    def _on_go_away(self, event: ev.GoAwayReceived) -> None:
        self.take_leave(event.message)
        self.answers.refuse_from(event.first_unserved)

    def take_leave(self, message: str) -> None:
        """The peer takes no new calls."""
        self._going_away = self._going_away or message or "going away"
        self.busy = True
        self.room.refuse_slots()
        self.events.leave()
        if self.on_leaving is not None:
            on_leaving, self.on_leaving = self.on_leaving, None
            on_leaving()

    def leaving_error(self) -> Unavailable:
        """What a call ends with that the peer did not take."""
        error = Unavailable(f"the peer takes no new calls: {self._going_away}")
        error.unserved = True
        return error

    def violation(self, message: str) -> None:
        """The peer broke the protocol: the connection ends."""
        logger.warning("peer %s broke the protocol: %.256r", self.peer_addr, message)
        self.close(Close.PROTOCOL_ERROR, message)

    def _on_stop_sending(self, event: en.StopSending) -> None:
        lane = self.outbox.is_lane(event.stream_id)
        if lane or self.outbox.is_large(event.stream_id):
            # Whoever waits for an answer to what it carried would wait for ever.
            what = f"lane {event.stream_id}" if lane else "the stream of a large call"
            why = _STOPPED.get(event.code, f"code {event.code:#x}")
            self.violation(f"{what} was stopped: {why}")
            return
        self.connection.engine.reset_stream(event.stream_id, event.code)
        if not self._flows.stopped(event.stream_id):
            self._streams.stopped(event.stream_id, event.code)

    # The end.

    def _on_closed(self, event: en.Closed) -> None:
        for receiver in list(self.receivers.values()):
            receiver.drain_inbox()
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._turn_events = float("inf")
        self.pump()
        self._ended = error = closed_error(event)
        self.protocol.inbox.close()
        self._hello_timer.cancel()
        if self._progress_timer is not None:
            self._progress_timer.cancel()
        self.clock.stop(copy(error))
        self.busy = True
        self.events.connection_lost()
        self.answers.connection_lost(error)
        self.room.connection_lost(error)
        self._flows.connection_lost()
        self.acks.connection_lost(error)
        self.outbox.clear()
        self.sending.close()
        for sender in list(self.senders.values()):
            sender.connection_lost(copy(error))
        for receiver in list(self.receivers.values()):
            receiver.connection_lost(copy(error))
        self.senders.clear()
        self.receivers.clear()
        if not self._greeted.done():
            self._greeted.set_exception(copy(error))
        if not self._welcomed.done():
            self._welcomed.set_exception(copy(error))
        self.dispatcher.connection_lost(
            orderly=event.by_peer
            and event.application
            and event.code in (Close.OK, Close.GOING_AWAY)
        )
        if not self._closed.done():
            self._closed.set_result(None)

    def refuse(self, call_id: int, status: Status, message: str, *, unserved: bool = False) -> None:
        """Answer a call with a status."""
        self.protocol.fail_call(call_id, status, message, unserved=unserved)
        self.connection.wake()
        unread = QUEUE_HIGH + self.protocol.limits.message_size + UNREAD_LIMIT
        if self.outbox.call_bytes > unread:
            self.close(Close.EXCESSIVE_LOAD, "the peer asks on and does not read the answers")


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting when it fails; that is no error of its own."""
    if not future.cancelled():
        future.exception()
