"""What one frame says: checked, and turned into an event."""

from __future__ import annotations

from echostream.codes import Status
from echostream.errors import ProtocolError
from echostream.protocol import events as ev
from echostream.protocol import frames
from echostream.protocol import payload as payloads
from echostream.protocol.frames import FrameParser
from echostream.protocol.incoming import Incoming

__all__ = ["Arrivals"]

_SHAPE = frames.END | frames.NUMBER
"""Of a REQUEST: END alone is a unary call."""


class Arrivals:
    """One method per type of frame that needs to know only the stream that it came on.

    Each raises ``ProtocolError``, or ``InvalidPayload``, for a frame that the peer may not send.
    """

    def __init__(self, *, is_client: bool) -> None:
        self._is_client = is_client
        self._control_id = 3 if is_client else 2
        self._peer_parity = 1 if is_client else 0

    def goaway(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """The peer takes no new calls."""
        if incoming.stream_id != self._control_id:
            raise ProtocolError("GOAWAY outside the control stream")
        text = p.payload_bytes()[:256].decode("utf-8", "replace")
        return ev.GoAwayReceived(p.id, max(p.number, 0), max(p.time_us, 0), text)

    def welcome(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """The server takes us."""
        if incoming.stream_id != self._control_id or not self._is_client:
            raise ProtocolError("WELCOME comes from a server, on its control stream")
        return ev.WelcomeReceived()

    def request(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """The peer makes a call."""
        if p.id & 1 != self._peer_parity:
            raise ProtocolError(f"REQUEST with call id {p.id}, which is not the peer's to choose")
        if not p.name:
            raise ProtocolError(f"REQUEST {p.id} without a name")
        if p.flags & _SHAPE != frames.END:
            return self._open_call(p, incoming)
        return ev.RequestReceived(
            p.id,
            p.name,
            p.payload_bytes(),
            p.metadata,
            p.time_us,
            p.priority,
            bool(p.flags & frames.MARK),
        )

    def _open_call(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        if incoming.stream_id & 3 != self._peer_parity or incoming.call >= 0:
            raise ProtocolError(f"streaming call {p.id} without a bidirectional stream of its own")
        incoming.call = p.id
        return ev.CallOpened(
            p.id,
            p.name or "",
            p.payload_bytes(),
            p.metadata,
            p.time_us,
            p.priority,
            bool(p.flags & frames.MARK),
            not p.flags & frames.END,
            p.number,
            incoming.stream_id,
        )

    def item(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """An argument or a result of a streaming call."""
        if p.id != incoming.call:
            raise ProtocolError(f"ITEM of call {p.id} on a stream that is not its own")
        if p.number != incoming.items:
            raise ProtocolError(f"ITEM {p.number} of call {p.id}, {incoming.items} was next")
        incoming.items += 1
        return ev.ItemReceived(p.id, p.payload_bytes(), bool(p.flags & frames.END))

    def credit(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """More items may be sent."""
        return ev.CreditReceived(p.id, max(p.number, 0))

    def response(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """A call is answered."""
        return ev.ResponseReceived(p.id, p.payload_bytes(), p.metadata)

    def error(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """A call or a stream is answered with a status."""
        status = p.number if p.number > 0 else Status.UNKNOWN
        stream = bool(p.flags & frames.MARK)
        unserved = p.time_us >= 0 and not stream
        return ev.ErrorReceived(
            p.id, status, p.name or "", p.payload_bytes(), stream, unserved, p.metadata
        )

    def cancel(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """A call is not wanted any more."""
        return ev.CallCancelled(p.id)

    def resume(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """What of our events was handled."""
        if incoming.stream_id != self._control_id:
            raise ProtocolError("RESUME outside the control stream")
        ranges: list[int] = []
        if p.payload:
            ranges = payloads.decode(p.payload)
            if not isinstance(ranges, list) or not all(type(n) is int and n > 0 for n in ranges):
                raise ProtocolError("RESUME carries a list of event numbers")
        return ev.ResumeReceived(p.id, ranges, max(p.number, 0), bool(p.flags & frames.MARK))

    def event_ack(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """What came of one event."""
        return ev.EventAcknowledged(p.id, max(p.number, 0))

    def stream_open(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """The peer opens a media stream."""
        if p.id & 1 != self._peer_parity:
            raise ProtocolError(f"STREAM_OPEN with alias {p.id}, which is not the peer's to choose")
        if not p.name:
            raise ProtocolError(f"STREAM_OPEN {p.id} without a name")
        realtime = bool(p.flags & frames.MARK)
        if not realtime:
            if incoming.alias >= 0:
                raise ProtocolError("a second STREAM_OPEN on one QUIC stream")
            incoming.alias = p.id
        stream_id = -1 if realtime else incoming.stream_id
        return ev.StreamOpened(p.id, p.name, p.payload_bytes(), p.metadata, realtime, stream_id)

    def stream_accept(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """It takes one of ours."""
        return ev.StreamAccepted(p.id, p.payload_bytes())

    def stream_end(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """The clean end of a media stream."""
        if incoming.alias >= 0:
            if incoming.alias != p.id:
                raise ProtocolError(f"STREAM_END for alias {p.id} on the stream of another")
            incoming.alias = -1
        return ev.StreamEnded(p.id, max(p.number, 0))

    def stream_abort(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """A media stream is given up."""
        return ev.StreamAborted(p.id, max(p.number, 0), p.name or "")

    def stream_flush(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """What was queued of a media stream is dropped."""
        if not 0 <= p.number <= 0xFFFF:
            raise ProtocolError("STREAM_FLUSH without an epoch")
        if p.flags & frames.MARK:
            if incoming.alias >= 0:
                raise ProtocolError("STREAM_FLUSH takes over the stream of another alias")
            incoming.alias = p.id
        return ev.StreamFlushed(p.id, p.number)

    def media(self, p: FrameParser, incoming: Incoming) -> ev.ProtocolEvent:
        """A packet on a QUIC stream."""
        if p.id != incoming.alias:
            raise ProtocolError(f"media frame of alias {p.id} on a stream that did not open it")
        return self.packet(p, incoming.stream_id)

    def packet(self, p: FrameParser, stream_id: int) -> ev.MediaReceived:
        """A media packet, from the QUIC stream of this id or from a DATAGRAM (-1)."""
        return ev.MediaReceived(
            p.id,
            p.epoch,
            p.sequence_number,
            p.timestamp,
            p.capture_ts if p.has_capture_ts else None,
            p.flags,
            p.payload,
            stream_id,
        )
