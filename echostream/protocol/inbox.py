"""What arrives: stream bytes and datagrams become events, one frame at a time.

Flow-control credit is given back as frames are taken out, and a stream whose consumer is full is
paused: its bytes stay unparsed and unacknowledged to flow control, so the peer stops. Messages that
have begun and do not end are bounded in bytes and in time; see ``assembly``.
Before the peer's HELLO only its control stream is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from echostream.codes import Reset, Status
from echostream.errors import InvalidPayload, ProtocolError
from echostream.protocol import events as ev
from echostream.protocol import frames
from echostream.protocol.arrivals import Arrivals
from echostream.protocol.assembly import Account
from echostream.protocol.carrier import Carrier
from echostream.protocol.frames import FrameParser
from echostream.protocol.hello import MAX_HELLO, Hello, Limits
from echostream.protocol.incoming import Incoming
from echostream.protocol.ordering import EventOrder

__all__ = ["Inbox"]

FIELDS_ALLOWANCE = 32 * 1024
DATAGRAM_BACKLOG = 2048
"""Events that wait to be taken above which DATAGRAMs are dropped: they have no flow control."""


class Inbox:
    """The receiving half of a protocol session."""

    def __init__(
        self,
        carrier: Carrier,
        limits: Limits,
        refuse: Callable[[int, Status, str], None],
        total: Account | None = None,
    ) -> None:
        self._carrier = carrier
        self._max_length = limits.message_size + FIELDS_ALLOWANCE
        self._refuse = refuse
        self._control_id = 3 if carrier.is_client else 2
        self._peer_parity = 1 if carrier.is_client else 0
        self._incoming: dict[int, Incoming] = {}
        self._ready: deque[Incoming] = deque()
        self._events: deque[ev.ProtocolEvent] = deque()
        self._datagrams = FrameParser(64 * 1024)
        self._stall = limits.stall
        self._account = Account(limits.assembly, total)
        self._unfinished: dict[int, Incoming] = {}
        self._order = EventOrder()
        self._deferred: list[tuple[ev.EventReceived, int, bool]] | None = None
        self._greeted = False
        self._failed = False
        self.frames = 0
        self.oversize = 0
        self.stopped_slow = 0
        self.stopped_large = 0
        self.repeated_events = 0
        self.bad_datagrams = 0
        self.overrun_datagrams = 0
        self._arrivals = arrivals = Arrivals(is_client=carrier.is_client)
        self._on: dict[int, Callable[[FrameParser, Incoming], ev.ProtocolEvent | None]] = {
            frames.HELLO: self._on_hello,
            frames.GOAWAY: arrivals.goaway,
            frames.RESUME: arrivals.resume,
            frames.WELCOME: arrivals.welcome,
            frames.REQUEST: arrivals.request,
            frames.RESPONSE: arrivals.response,
            frames.ERROR: arrivals.error,
            frames.CANCEL: arrivals.cancel,
            frames.ITEM: arrivals.item,
            frames.CREDIT: arrivals.credit,
            frames.EVENT: self._on_event,
            frames.EVENT_ACK: arrivals.event_ack,
            frames.STREAM_OPEN: arrivals.stream_open,
            frames.STREAM_ACCEPT: arrivals.stream_accept,
            frames.STREAM_END: arrivals.stream_end,
            frames.STREAM_ABORT: arrivals.stream_abort,
            frames.STREAM_FLUSH: arrivals.stream_flush,
            frames.MEDIA: arrivals.media,
        }

    @property
    def assembling(self) -> int:
        """Bytes held of messages that are not complete."""
        return self._account.held

    @property
    def unfinished(self) -> bool:
        """Whether some message is: :meth:`check_progress` then wants to be called now and then."""
        return bool(self._unfinished)

    def check_progress(self, now: float) -> None:
        """Stop the streams whose message has stalled. Call it once a second or so."""
        for incoming in tuple(self._unfinished.values()):
            if incoming.progress.stalled(now):
                self.stopped_slow += 1
                self._refuse_rest(incoming, Reset.TOO_SLOW)

    def close(self) -> None:
        """The connection ended: give back what was counted for it."""
        self._unfinished.clear()
        self._account.close()

    def defer_events(self) -> None:
        """Where the peer's numbers begin will be known from its RESUME: until then, the first event
        of each stream waits, and what follows it."""
        if self._deferred is None:
            self._deferred = []

    def begin_events(self, upto: int, beyond: Iterable[int]) -> None:
        """The peer's events are those after ``upto``, but for what is in ``beyond``; the caller
        then polls :meth:`next_event`."""
        self._order = EventOrder(upto, beyond)
        deferred, self._deferred = self._deferred or [], None
        for event, predecessor, stale in deferred:
            if stale:
                self._skip(event.number, event.ack, Status.DEADLINE_EXCEEDED)
            elif (ready := self._order.accept(event, predecessor)) is not None:
                self._events.extend(ready)
            else:
                self._repeated(event)
            self.resume(event.stream_id)

    def receive_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        """In-order bytes of a QUIC stream."""
        incoming = self._incoming.get(stream_id)
        if incoming is None:
            incoming = self._incoming[stream_id] = Incoming(
                stream_id,
                MAX_HELLO if stream_id == self._control_id else self._max_length,
                self._stall,
            )
        if data:
            incoming.owed += len(data)
            if not incoming.ended:
                incoming.parser.feed(data)
                incoming.progress.grew(len(data))
        incoming.fin = incoming.fin or fin
        if not incoming.queued:
            incoming.queued = True
            self._ready.append(incoming)

    def stream_reset(self, stream_id: int, code: int) -> None:
        """The peer aborted a stream: what it carried half is dropped."""
        incoming = self._incoming.pop(stream_id, None)
        if stream_id == self._control_id:
            self._fail("the control stream was reset")
        elif incoming is not None:
            stopped = incoming.ended
            self._drop(incoming)
            if incoming.alias >= 0 and not stopped and code != Reset.FLUSHED:
                self._events.append(ev.StreamAborted(incoming.alias, code, ""))
            self._stream_over(incoming, code)
        else:
            self._close_half(stream_id)

    def receive_datagram(self, data: bytes) -> None:
        """One DATAGRAM: media packets, events with ``delivery="realtime"``, clock frames that share
        it with others. Dropped, and counted, where too much waits already."""
        if len(self._events) >= DATAGRAM_BACKLOG:
            self.overrun_datagrams += 1
            return
        parser = self._datagrams
        try:
            more = parser.parse_datagram(data)
            while more:
                self._take_datagram(parser)
                more = parser.next()
        except ValueError:
            self.bad_datagrams += 1
            self._datagrams = FrameParser(64 * 1024)

    def _take_datagram(self, parser: FrameParser) -> None:
        self.frames += 1
        if not self._greeted:
            return
        if parser.type == frames.MEDIA:
            self._events.append(self._arrivals.packet(parser, -1))
        elif parser.type == frames.EVENT and parser.name and parser.id == 0:
            self._events.append(
                ev.EventReceived(0, parser.name, parser.payload_bytes(), parser.metadata, -1)
            )
        elif parser.type == frames.CLOCK:
            self._events.append(
                ev.ClockReceived(
                    frames.encode_clock(parser.flags, parser.id, parser.t1, parser.t2, parser.t3)
                )
            )
        else:
            self.bad_datagrams += 1

    def pause(self, stream_id: int) -> None:
        """Take nothing more out of this stream: its consumer is full."""
        incoming = self._incoming.get(stream_id)
        if incoming is not None:
            incoming.paused = True
            self._hold(incoming, incoming.held)

    def resume(self, stream_id: int) -> None:
        """The consumer has room again; the caller then polls :meth:`next_event`."""
        incoming = self._incoming.get(stream_id)
        if incoming is not None and incoming.paused:
            incoming.paused = False
            if not incoming.queued:
                incoming.queued = True
                self._ready.append(incoming)

    def stop(self, alias: int, code: int) -> None:
        """The media stream is not wanted any more: STOP_SENDING, and drop what comes."""
        for incoming in list(self._incoming.values()):
            if incoming.alias == alias and not incoming.ended:
                self._carrier.stop_stream(incoming.stream_id, code)
                self._drop(incoming)
                if incoming.fin:
                    del self._incoming[incoming.stream_id]

    def expect(self, stream_id: int, call_id: int) -> None:
        """A bidirectional stream of ours will bring the answer to a streaming call."""
        incoming = Incoming(stream_id, self._max_length, self._stall)
        incoming.call = call_id
        self._incoming[stream_id] = incoming

    def discard(self, stream_id: int) -> None:
        """Take the rest of a streaming call's stream without reading it."""
        incoming = self._incoming.get(stream_id)
        if incoming is None or incoming.ended:
            return
        self._drop(incoming)
        if incoming.fin and not incoming.queued:
            incoming.queued = True
            self._ready.append(incoming)

    def next_event(self) -> ev.ProtocolEvent | None:
        """The next event, or ``None`` when nothing more can be taken out now."""
        if self._events:
            return self._events.popleft()
        while self._ready and not self._failed:
            incoming = self._ready[0]
            event = self._take(incoming)
            if event is not None:
                return event
        return self._events.popleft() if self._events else None

    def _take(self, incoming: Incoming) -> ev.ProtocolEvent | None:
        """One event of this stream, or ``None`` after it was put aside."""
        parser = incoming.parser
        if not self._greeted and incoming.stream_id != self._control_id:
            incoming.paused = True
        try:
            while not incoming.paused and not incoming.ended:
                if not parser.next():
                    self._exhausted(incoming)
                    return None
                self.frames += 1
                if incoming.held:
                    incoming.progress.restart()
                if not self._greeted and parser.type != frames.HELLO:
                    raise ProtocolError(f"frame of type {parser.type:#x} before HELLO")
                if parser.oversize:
                    self._on_oversize(parser, incoming)
                elif (handle := self._on.get(parser.type)) is not None:
                    event = handle(parser, incoming)
                    if event is not None:
                        return event
                if self._events:
                    return self._events.popleft()
        except (ValueError, InvalidPayload, ProtocolError) as exc:
            self._fail(f"stream {incoming.stream_id}: {exc}")
            return None
        self._ready.popleft()
        incoming.queued = False
        if incoming.ended:
            self._give_credit(incoming)
            if incoming.fin and self._incoming.pop(incoming.stream_id, None) is not None:
                self._stream_over(incoming, -1)
        elif (incoming.alias >= 0 or incoming.call >= 0) and incoming.owed > incoming.lent:
            # A paused stream of media or items: its own window stops it, and must not stop others.
            self._carrier.lend(incoming.stream_id, incoming.owed - incoming.lent)
            incoming.lent = incoming.owed
        return None

    def _drop(self, incoming: Incoming) -> None:
        """Nothing more is taken out of this stream; what it holds is let go."""
        incoming.ended = True
        incoming.parser = FrameParser(0)
        self._hold(incoming, 0)
        self._give_credit(incoming)

    def _hold(self, incoming: Incoming, held: int) -> bool:
        """Count what is held of an unfinished message; ``False`` when that is too much."""
        more = held - incoming.held
        within = self._account.change(more) or more <= 0
        incoming.held = held
        if held and not incoming.paused:
            self._unfinished[incoming.stream_id] = incoming
        elif self._unfinished.pop(incoming.stream_id, None) is not None:
            incoming.progress.restart()
        return within

    def _refuse_rest(self, incoming: Incoming, code: Reset) -> None:
        """Give a stream up in the middle of a message."""
        if incoming.stream_id == self._control_id:
            self._fail("the control stream stalled inside a frame")
            return
        self._carrier.stop_stream(incoming.stream_id, code)
        self._drop(incoming)
        if incoming.alias >= 0:
            self._events.append(
                ev.StreamAborted(incoming.alias, code, "stopped here inside a packet")
            )
        elif incoming.call >= 0:
            self._events.append(ev.ItemRefused(incoming.call, "an item did not come to its end"))

    def _exhausted(self, incoming: Incoming) -> None:
        self._ready.popleft()
        incoming.queued = False
        self._give_credit(incoming)
        held = incoming.parser.buffered
        if not incoming.fin:
            if held != incoming.held and not self._hold(incoming, held):
                self.stopped_large += 1
                self._refuse_rest(incoming, Reset.TOO_LARGE)
            return
        self._incoming.pop(incoming.stream_id, None)
        if incoming.held:
            self._hold(incoming, 0)
        if held:
            raise ProtocolError("ended inside a frame")
        if incoming.stream_id == self._control_id:
            raise ProtocolError("the control stream was ended")
        if incoming.alias >= 0:
            self._events.append(
                ev.StreamAborted(incoming.alias, Reset.CANCELLED, "ended without STREAM_END")
            )
        self._stream_over(incoming, -1)

    def _stream_over(self, incoming: Incoming, code: int) -> None:
        if incoming.call >= 0:
            self._events.append(ev.CallStreamEnded(incoming.call, code))
        else:
            self._close_half(incoming.stream_id)

    def _close_half(self, stream_id: int) -> None:
        """End our half of a bidirectional stream of the peer that carried no streaming call, or
        was reset before that could be seen."""
        if stream_id & 3 == self._peer_parity:
            self._carrier.send_stream(stream_id, b"", True)

    def _give_credit(self, incoming: Incoming) -> None:
        if incoming.owed:
            self._carrier.consume(incoming.stream_id, incoming.owed)
            incoming.lent = 0
            incoming.owed = 0

    def _fail(self, message: str) -> None:
        if not self._failed:
            self._failed = True
            self._events.append(ev.ProtocolViolation(message))

    # Frames that say something about this side.

    def _on_hello(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        if incoming.stream_id != self._control_id or self._greeted:
            raise ProtocolError("HELLO must be the first frame on the control stream, once")
        event = ev.HelloReceived(Hello.decode(p.payload))
        self._greeted = True
        if event.hello.session is not None:
            self.defer_events()
        for other in self._incoming.values():
            if other.paused:
                self.resume(other.stream_id)
        return event

    def _on_event(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent | None:
        if not p.name or not p.id:
            raise ProtocolError("EVENT without a name or number on a stream")
        event = ev.EventReceived(
            p.id,
            p.name,
            p.payload_bytes(),
            p.metadata,
            incoming.stream_id,
            p.flags & frames.MARK != 0,
        )
        if self._deferred is not None:
            self._deferred.append((event, p.number, p.time_us == 0))
            incoming.paused = True
            return None
        if p.time_us == 0:
            self._skip(p.id, event.ack, Status.DEADLINE_EXCEEDED)
            return None
        ready = self._order.accept(event, p.number)
        if ready is None:
            self._repeated(event)
            return None
        if len(ready) == 1:
            return ready[0]
        self._events.extend(ready)
        return None  # the caller looks into _events

    def _skip(self, number: int, ack: bool, status: Status) -> None:
        self._events.append(ev.EventSkipped(number, ack, status))
        self._events.extend(self._order.skip(number))

    def _repeated(self, event: ev.EventReceived) -> None:
        """An event came that was handled before; what came of it is not known any more."""
        self.repeated_events += 1
        if event.ack:
            self._events.append(ev.EventSkipped(event.number, True, Status.UNAVAILABLE))

    def _on_oversize(self, p: FrameParser, incoming: Incoming) -> None:
        self.oversize += 1
        limit = f"message_size of {self._max_length - FIELDS_ALLOWANCE} bytes"
        if p.type == frames.REQUEST:
            self._refuse(
                p.id,
                Status.RESOURCE_EXHAUSTED,
                f"the request is larger than the receiver's {limit}",
            )
        elif p.type in (frames.RESPONSE, frames.ERROR):
            self._events.append(
                ev.ErrorReceived(
                    p.id,
                    Status.RESOURCE_EXHAUSTED,
                    f"the answer is larger than this side's {limit}",
                    b"",
                    p.type == frames.ERROR and bool(p.flags & frames.MARK),
                )
            )
        elif p.type == frames.EVENT:
            if self._deferred is not None:
                raise ProtocolError("an event above the limit message_size before RESUME")
            self._skip(p.id, p.flags & frames.MARK != 0, Status.RESOURCE_EXHAUSTED)
        elif p.type == frames.MEDIA and p.id == incoming.alias:
            self.stop(p.id, Reset.TOO_LARGE)
            self._events.append(
                ev.StreamAborted(
                    p.id, Reset.TOO_LARGE, f"an item is larger than this side's {limit}"
                )
            )
        elif p.type == frames.ITEM and p.id == incoming.call:
            self._events.append(
                ev.ItemRefused(p.id, f"an item is larger than the receiver's {limit}")
            )
            self._drop(incoming)
        else:
            raise ProtocolError(f"frame of type {p.type:#x} is larger than {limit}")
