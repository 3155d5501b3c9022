"""One connection's protocol state: sans-IO, over a :class:`~echostream.protocol.carrier.Carrier`.

Stream bytes and datagrams go into :attr:`ProtocolSession.inbox`, events come out of it; the methods
here queue frames, and :meth:`ProtocolSession.flush` writes them at the end of the loop's turn.
Calls, events and streams are numbered here; who waits for them is the floor above's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from echostream.codes import Close, Reset, Status
from echostream.errors import ResourceExhausted
from echostream.protocol import events as ev
from echostream.protocol import frames
from echostream.protocol import payload as payloads
from echostream.protocol.assembly import Account
from echostream.protocol.carrier import Carrier
from echostream.protocol.flow import ARGUMENT_CREDIT, WINDOW, Flow
from echostream.protocol.frames import encode_frame
from echostream.protocol.hello import SMALLEST_MESSAGE, Hello, Limits
from echostream.protocol.inbox import Inbox
from echostream.protocol.outbox import URGENT_BULK, USUAL, Outbox
from echostream.protocol.resumption import Outcomes

__all__ = ["ProtocolSession"]

MAX_NAME = 255
MAX_METADATA = 16 * 1024
HEAVY = 16 * 1024
"""Unacknowledged bytes of a streaming call above which giving up resets its QUIC stream. Below, it
is ended: resets are rationed, because floods of them are an attack (CVE-2023-44487)."""
_NEVER = float("inf")


class ProtocolSession:
    """Both halves of one connection.

    ``peer`` is the peer's HELLO, the minimum of version 1 until it came. ``total`` counts the
    unfinished messages of all sessions of a server; ``charge`` is told how many bytes more wait to
    be sent.
    """

    def __init__(
        self,
        carrier: Carrier,
        limits: Limits,
        total: Account | None = None,
        charge: Callable[[int], object] = lambda amount: None,
    ) -> None:
        self._carrier = carrier
        self.limits = limits
        self.peer = Hello()
        self.greeted = False
        self.outbox = Outbox(carrier, charge)
        self._charge = charge
        self.inbox = Inbox(carrier, limits, self.fail_call, total)
        self._next_call = 0 if carrier.is_client else 1
        self._next_alias = 0 if carrier.is_client else 1
        self.last_peer_call = -1
        self.flows: dict[int, Flow] = {}

    def greet(
        self,
        *,
        auth: Mapping[str, Any] | None = None,
        challenge: bytes | None = None,
        session: bytes | None = None,
        instance: bytes | None = None,
    ) -> None:
        """Send our HELLO, a client's with what proves who it is, a server's with what to sign.
        ``session`` is the event session that goes on, ``instance`` this run of a server."""
        hello = Hello(
            limits=self.limits,
            auth=auth,
            challenge=challenge,
            session=session,
            instance=instance,
        )
        self.outbox.open_control(encode_frame(frames.HELLO, 1, hello.encode()))

    def flush(self, now: float) -> None:
        """Write what may leave now (seconds, the clock of deadlines given to this session)."""
        self.outbox.flush(now)

    def welcome(self) -> None:
        """Tell the client that it is taken."""
        self.outbox.control(encode_frame(frames.WELCOME, 1, b""))

    # Calls.

    def start_call(
        self,
        method: str,
        payload: bytes,
        metadata: bytes | None = None,
        timeout_s: float | None = None,
        priority: int = -1,
        deadline: float = _NEVER,
        idempotent: bool = False,
    ) -> int:
        """Queue a REQUEST and return its call id. Raises ``ResourceExhausted`` for a payload above
        the peer's ``message_size``."""
        if len(payload) > SMALLEST_MESSAGE:
            self.check_size(payload, method)
        call_id = self._next_call
        self._next_call = call_id + 2
        flags = frames.END | frames.MARK if idempotent else frames.END
        time_us = -1 if timeout_s is None else max(int(timeout_s * 1e6), 0)
        self.outbox.call(
            encode_frame(
                frames.REQUEST, call_id, payload, flags, method, metadata, time_us, -1, priority
            ),
            3 if priority < 0 else priority,
            deadline,
            call_id,
        )
        return call_id

    def cancel_call(self, call_id: int, code: int = Reset.CANCELLED) -> None:
        """Tell the peer that a call of ours is not wanted any more."""
        if self.flows and call_id in self.flows:
            self.close_flow(call_id, code)
        self.outbox.call(encode_frame(frames.CANCEL, call_id, b"", 0, None, None, -1, code))

    def answer_call(
        self, call_id: int, payload: bytes, priority: int = 3, metadata: bytes | None = None
    ) -> None:
        """Queue a RESPONSE. Raises ``ResourceExhausted`` for one above the peer's limit."""
        if len(payload) > SMALLEST_MESSAGE:
            self.check_size(payload, "the result")
        frame = encode_frame(frames.RESPONSE, call_id, payload, frames.END, None, metadata)
        if self.flows and call_id in self.flows:
            self._end_flow(call_id, frame, None)
        else:
            self.outbox.call(frame, priority)

    def fail_call(
        self,
        call_id: int,
        status: Status | int,
        message: str,
        details: bytes = b"",
        metadata: bytes | None = None,
        *,
        unserved: bool = False,
    ) -> None:
        """Answer a call with a status. Details above the peer's ``message_size`` are left out.
        ``unserved``: it was not run, and may be made again at once, elsewhere."""
        if len(details) > self.peer.limits.message_size:
            details = b""
        text = clip(message) or None
        retry_us = 0 if unserved else -1
        frame = encode_frame(
            frames.ERROR, call_id, details, frames.END, text, metadata, retry_us, int(status)
        )
        if self.flows and call_id in self.flows:
            self._end_flow(call_id, frame, _RESET_OF.get(status))
        else:
            self.outbox.call(frame)

    # Streaming calls: a bidirectional QUIC stream each, with a Flow while they last.

    def open_call(
        self,
        method: str,
        payload: bytes,
        metadata: bytes | None,
        timeout_s: float | None,
        priority: int,
        idempotent: bool,
        *,
        sends: bool,
        receives: bool,
    ) -> Flow:
        """Start a streaming call. Raises ``ResourceExhausted`` as :meth:`start_call`."""
        self.check_size(payload, method)
        call_id = self._next_call
        self._next_call = call_id + 2
        stream_id = self._carrier.open_stream(True, _urgency(priority))
        frame = encode_frame(
            frames.REQUEST,
            call_id,
            payload,
            (0 if sends else frames.END) | (frames.MARK if idempotent else 0),
            method,
            metadata,
            -1 if timeout_s is None else max(int(timeout_s * 1e6), 0),
            WINDOW if receives else -1,
            priority,
        )
        self._carrier.send_stream(stream_id, frame, not sends)
        self._charge(len(frame))
        self.inbox.expect(stream_id, call_id)
        flow = Flow(
            call_id,
            stream_id,
            credit=ARGUMENT_CREDIT if sends else 0,
            given=WINDOW if receives else 0,
        )
        flow.over = not sends
        self.flows[call_id] = flow
        return flow

    def take_call(self, event: ev.CallOpened) -> Flow:
        """The peer opened a streaming call; :meth:`answer_call` or :meth:`fail_call` ends it."""
        self._carrier.prioritize(event.stream_id, _urgency(event.priority))
        flow = Flow(
            event.call_id,
            event.stream_id,
            credit=max(event.credit, 0),
            given=ARGUMENT_CREDIT if event.more else 0,
        )
        self.flows[event.call_id] = flow
        return flow

    def send_item(self, flow: Flow, payload: bytes, end: bool = False) -> None:
        """Send one item. Raises ``ResourceExhausted`` for one above the peer's limit."""
        if len(payload) > SMALLEST_MESSAGE:
            self.check_size(payload, "an item")
        flags = frames.END if end else 0
        frame = encode_frame(frames.ITEM, flow.call_id, payload, flags, None, None, -1, flow.sent)
        flow.sent += 1
        flow.credit -= 1
        self._carrier.send_stream(flow.stream_id, frame, False)
        self._charge(len(frame))

    def end_items(self, flow: Flow) -> None:
        """No item of ours follows."""
        if not flow.over:
            flow.over = True
            frame = encode_frame(
                frames.ITEM, flow.call_id, b"", frames.END, None, None, -1, flow.sent
            )
            self._carrier.send_stream(flow.stream_id, frame, True)

    def take_item(self, flow: Flow) -> bytes:
        """The next item that was received."""
        payload, more = flow.take()
        if more:
            self.outbox.call(
                encode_frame(frames.CREDIT, flow.call_id, b"", 0, None, None, -1, more), 0
            )
        return payload

    def close_flow(self, call_id: int, code: int = Reset.CANCELLED) -> None:
        """A streaming call of ours is over for this side: answered, or given up."""
        flow = self.flows.pop(call_id, None)
        if flow is None:
            return
        if not flow.over:
            self._end_half(flow, b"", code)
        flow.end()
        self.inbox.discard(flow.stream_id)

    def _end_flow(self, call_id: int, frame: bytes, code: int | None) -> None:
        """A streaming call of the peer is answered."""
        flow = self.flows.pop(call_id)
        if not flow.over:
            self._end_half(flow, frame, code)
        flow.clear()
        flow.end()
        self.inbox.discard(flow.stream_id)

    def _end_half(self, flow: Flow, frame: bytes, code: int | None) -> None:
        if code is not None and self._carrier.buffered(flow.stream_id) > HEAVY:
            self._carrier.reset_stream(flow.stream_id, code)
        else:
            self._carrier.send_stream(flow.stream_id, frame, True)

    def refuse_media(self, alias: int, status: Status | int, message: str) -> None:
        """Answer STREAM_OPEN with a status."""
        flags = frames.END | frames.MARK
        text = clip(message) or None
        self.outbox.call(encode_frame(frames.ERROR, alias, b"", flags, text, None, -1, int(status)))

    # Events.

    def emit(
        self,
        name: str,
        payload: bytes,
        metadata: bytes | None = None,
        priority: int = -1,
        deadline: float = _NEVER,
        token: int = -1,
    ) -> None:
        """Queue an event; with a ``token`` the peer acknowledges it."""
        self.check_size(payload, name)
        self.outbox.event(name, payload, metadata, priority, deadline, token)

    def acknowledge(self, number: int, status: Status | int = Status.OK) -> None:
        """Tell the peer what came of its event."""
        self.outbox.call(
            encode_frame(frames.EVENT_ACK, number, b"", 0, None, None, -1, int(status))
        )

    def emit_datagram(
        self,
        name: str,
        payload: bytes,
        metadata: bytes | None = None,
        deadline: float | None = None,
    ) -> None:
        """Send an event as one DATAGRAM. Raises ``ResourceExhausted`` if it does not fit."""
        frame = encode_frame(frames.EVENT, 0, payload, 0, name, metadata)
        if len(frame) > self._carrier.max_datagram_payload:
            raise ResourceExhausted(
                f"event {name!r} takes {len(frame)} bytes and one datagram holds "
                f"{self._carrier.max_datagram_payload}: send it with delivery='reliable'"
            )
        self._carrier.send_datagram(frame, deadline)

    # Media streams.

    def open_media(
        self, name: str, options: bytes, metadata: bytes | None, realtime: bool, priority: int
    ) -> tuple[int, int]:
        """Queue STREAM_OPEN; returns the alias and the QUIC stream (-1 for a realtime one)."""
        alias = self._next_alias
        self._next_alias = alias + 2
        flags = frames.MARK if realtime else 0
        frame = encode_frame(
            frames.STREAM_OPEN, alias, options, flags, name, metadata, -1, -1, priority
        )
        if realtime:
            self.outbox.stream(alias, frame)
            return alias, -1
        stream_id = self._carrier.open_stream(False, _urgency(priority))
        self._carrier.send_stream(stream_id, frame, False)
        return alias, stream_id

    def accept_media(self, alias: int, options: bytes) -> None:
        """Queue STREAM_ACCEPT."""
        self.outbox.call(encode_frame(frames.STREAM_ACCEPT, alias, options))

    def acknowledge_media(self, alias: int, upto: int, end: bool) -> None:
        """Items of the peer's stream before ``upto`` were read; with ``end`` its end, too."""
        flags = frames.END if end else 0
        self.outbox.stream(
            alias, encode_frame(frames.STREAM_ACK, alias, b"", flags, None, None, -1, upto)
        )

    def end_media(self, alias: int, stream_id: int, packets: int) -> None:
        """End a stream of ours cleanly."""
        frame = encode_frame(frames.STREAM_END, alias, b"", frames.END, None, None, -1, packets)
        if stream_id < 0:
            self.outbox.stream(alias, frame)
        else:
            self._carrier.send_stream(stream_id, frame, True)

    def abort_media(self, alias: int, stream_id: int, code: int, message: str = "") -> None:
        """Give up a stream: ours (``stream_id`` is its QUIC stream) or the peer's (-1)."""
        text = clip(message) or None
        frame = encode_frame(frames.STREAM_ABORT, alias, b"", 0, text, None, -1, code)
        self.outbox.stream(alias, frame)
        if stream_id >= 0:
            self._carrier.reset_stream(stream_id, code)

    def flush_media(self, alias: int, stream_id: int, epoch: int, priority: int) -> int:
        """Drop what is queued of a stream of ours and go on with ``epoch``; returns the QUIC stream
        that carries it from now on."""
        if stream_id < 0:
            self.outbox.stream(
                alias, encode_frame(frames.STREAM_FLUSH, alias, b"", 0, None, None, -1, epoch)
            )
            return -1
        self._carrier.reset_stream(stream_id, Reset.FLUSHED)
        stream_id = self._carrier.open_stream(False, _urgency(priority))
        self._carrier.send_stream(
            stream_id,
            encode_frame(frames.STREAM_FLUSH, alias, b"", frames.MARK, None, None, -1, epoch),
            False,
        )
        return stream_id

    # Session.

    def go_away(self, drain_s: float, message: str) -> None:
        """Tell the peer that no new call will be served."""
        self.outbox.control(
            encode_frame(
                frames.GOAWAY,
                self.last_peer_call + 1,
                clip(message).encode(),
                0,
                None,
                None,
                max(int(drain_s * 1e6), 0),
                Close.GOING_AWAY,
            )
        )

    def resume(
        self,
        upto: int,
        ranges: list[int],
        first: int = -1,
        *,
        fresh: bool = False,
        outcomes: Outcomes | None = None,
    ) -> None:
        """Acknowledge events; with ``first`` say that ours come from that number on."""
        payload = payloads.encode(ranges) if ranges else b""
        flags = frames.MARK if fresh else 0
        metadata = None if outcomes is None else payloads.encode(outcomes.encode())
        self.outbox.control(
            encode_frame(frames.RESUME, upto, payload, flags, None, metadata, -1, first)
        )

    def check_size(self, payload: bytes, what: str) -> None:
        """Raise ``ResourceExhausted`` for a payload that the peer would refuse."""
        limit = self.peer.limits.message_size
        if len(payload) > limit:
            raise ResourceExhausted(
                f"{what!r}: {len(payload)} bytes of payload, the peer's limit message_size is "
                f"{limit}: send it as a stream, or raise the limit there",
                method=what,
            )


def clip(text: str) -> str:
    """A text for the wire: at most 255 bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:MAX_NAME].decode("utf-8", "ignore")


_RESET_OF: dict[int, Reset] = {
    Status.CANCELLED: Reset.CANCELLED,
    Status.DEADLINE_EXCEEDED: Reset.EXPIRED,
    Status.RESOURCE_EXHAUSTED: Reset.TOO_LARGE,
}
"""How a streaming call ends that still has much to send: its caller does not wait for all that."""


def _urgency(priority: int) -> int:
    """That of the QUIC stream of what has one of its own."""
    return URGENT_BULK + (USUAL if priority < 0 else priority)
