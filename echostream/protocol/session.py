"""One connection's protocol state: sans-IO, over a :class:`~echostream.protocol.carrier.Carrier`.

Stream bytes and datagrams go into :attr:`ProtocolSession.inbox`, events come out of it; the methods
here queue frames, and :meth:`ProtocolSession.flush` writes them at the end of the loop's turn.
Calls, events and streams are numbered here; who waits for them is the floor above's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echostream.codes import Close, Reset, Status
from echostream.errors import ResourceExhausted
from echostream.protocol import frames
from echostream.protocol import payload as payloads
from echostream.protocol.assembly import Account
from echostream.protocol.carrier import Carrier
from echostream.protocol.frames import encode_frame
from echostream.protocol.hello import SMALLEST_MESSAGE, Hello, Limits
from echostream.protocol.inbox import Inbox
from echostream.protocol.outbox import Outbox

__all__ = ["ProtocolSession"]

MAX_NAME = 255
MAX_METADATA = 16 * 1024
_NEVER = float("inf")


class ProtocolSession:
    """Both halves of one connection.

    ``peer`` is the peer's HELLO, the minimum of version 1 until it came. ``total`` counts the
    unfinished messages of all sessions of a server.
    """

    def __init__(self, carrier: Carrier, limits: Limits, total: Account | None = None) -> None:
        self._carrier = carrier
        self.limits = limits
        self.peer = Hello()
        self.greeted = False
        self.outbox = Outbox(carrier)
        self.inbox = Inbox(carrier, limits, self.fail_call, total)
        self._next_call = 0 if carrier.is_client else 1
        self._next_alias = 0 if carrier.is_client else 1
        self.last_peer_call = -1

    def greet(
        self,
        *,
        auth: Mapping[str, Any] | None = None,
        challenge: bytes | None = None,
        session: bytes | None = None,
    ) -> None:
        """Send our HELLO, a client's with what proves who it is, a server's with what to sign.
        ``session`` is the event session that goes on."""
        hello = Hello(limits=self.limits, auth=auth, challenge=challenge, session=session).encode()
        self.outbox.open_control(encode_frame(frames.HELLO, 1, hello))

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
        self.outbox.call(encode_frame(frames.CANCEL, call_id, b"", 0, None, None, -1, code))

    def answer_call(self, call_id: int, payload: bytes, priority: int = 3) -> None:
        """Queue a RESPONSE. Raises ``ResourceExhausted`` for one above the peer's limit."""
        if len(payload) > SMALLEST_MESSAGE:
            self.check_size(payload, "the result")
        self.outbox.call(encode_frame(frames.RESPONSE, call_id, payload, frames.END), priority)

    def fail_call(
        self,
        call_id: int,
        status: Status | int,
        message: str,
        details: bytes = b"",
        *,
        unserved: bool = False,
    ) -> None:
        """Answer a call with a status. Details above the peer's ``message_size`` are left out.
        ``unserved``: it was not run, and may be made again at once, elsewhere."""
        if len(details) > self.peer.limits.message_size:
            details = b""
        text = clip(message) or None
        retry_us = 0 if unserved else -1
        self.outbox.call(
            encode_frame(
                frames.ERROR, call_id, details, frames.END, text, None, retry_us, int(status)
            )
        )

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
    ) -> None:
        """Queue an event."""
        self.check_size(payload, name)
        self.outbox.event(name, payload, metadata, priority, deadline)

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
        stream_id = self._carrier.open_stream(False)
        self._carrier.send_stream(stream_id, frame, False)
        return alias, stream_id

    def accept_media(self, alias: int, options: bytes) -> None:
        """Queue STREAM_ACCEPT."""
        self.outbox.call(encode_frame(frames.STREAM_ACCEPT, alias, options))

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

    def flush_media(self, alias: int, stream_id: int, epoch: int) -> int:
        """Drop what is queued of a stream of ours and go on with ``epoch``; returns the QUIC stream
        that carries it from now on."""
        if stream_id < 0:
            self.outbox.stream(
                alias, encode_frame(frames.STREAM_FLUSH, alias, b"", 0, None, None, -1, epoch)
            )
            return -1
        self._carrier.reset_stream(stream_id, Reset.FLUSHED)
        stream_id = self._carrier.open_stream(False)
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

    def resume(self, upto: int, ranges: list[int], first: int = -1, *, fresh: bool = False) -> None:
        """Acknowledge events; with ``first`` say that ours come from that number on."""
        payload = payloads.encode(ranges) if ranges else b""
        flags = frames.MARK if fresh else 0
        self.outbox.control(
            encode_frame(frames.RESUME, upto, payload, flags, None, None, -1, first)
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
