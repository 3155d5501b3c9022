"""What the protocol session reports upwards: immutable tuples with named fields.

Named tuples and not frozen dataclasses: one is made per received frame, and they cost half.
``payload`` is msgpack (calls, events) or raw bytes (media).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from echostream.protocol.hello import Hello
from echostream.protocol.resumption import Outcomes

__all__ = [
    "CallCancelled",
    "CallOpened",
    "CallStreamEnded",
    "ClockReceived",
    "CreditReceived",
    "ErrorReceived",
    "EventAcknowledged",
    "EventReceived",
    "EventSkipped",
    "GoAwayReceived",
    "HelloReceived",
    "ItemReceived",
    "ItemRefused",
    "MediaReceived",
    "ProtocolEvent",
    "ProtocolViolation",
    "RequestReceived",
    "ResponseReceived",
    "ResumeReceived",
    "StreamAborted",
    "StreamAccepted",
    "StreamAcknowledged",
    "StreamEnded",
    "StreamFlushed",
    "StreamOpened",
    "WelcomeReceived",
]


class HelloReceived(NamedTuple):
    """The peer's HELLO."""

    hello: Hello


class RequestReceived(NamedTuple):
    """The peer calls. ``timeout_us`` is the time that remains, -1 for none."""

    call_id: int
    method: str
    payload: bytes
    metadata: bytes | None
    timeout_us: int
    priority: int
    idempotent: bool


class CallOpened(NamedTuple):
    """The peer makes a streaming call, on a bidirectional QUIC stream of its own: with ``more``
    items follow, with ``credit`` (-1 for none) it takes so many items back."""

    call_id: int
    method: str
    payload: bytes
    metadata: bytes | None
    timeout_us: int
    priority: int
    idempotent: bool
    more: bool
    credit: int
    stream_id: int


class ItemReceived(NamedTuple):
    """One item of a streaming call of either side; the last one (``end``) may be empty."""

    call_id: int
    payload: bytes
    end: bool


class ItemRefused(NamedTuple):
    """An item was larger than the limit; nothing more is taken from its QUIC stream."""

    call_id: int
    message: str


class CreditReceived(NamedTuple):
    """The peer takes ``credit`` items more."""

    call_id: int
    credit: int


class CallStreamEnded(NamedTuple):
    """The peer's half of a streaming call's QUIC stream is over; ``code`` of its reset, or -1."""

    call_id: int
    code: int


class ResponseReceived(NamedTuple):
    """The result of a call of ours."""

    call_id: int
    payload: bytes
    metadata: bytes | None


class ErrorReceived(NamedTuple):
    """A call of ours, or with ``stream`` a media stream, was answered with a status. ``unserved``:
    the call was not run."""

    id: int
    status: int
    message: str
    details: bytes
    stream: bool
    unserved: bool = False
    metadata: bytes | None = None


class CallCancelled(NamedTuple):
    """The peer no longer wants the result of its call."""

    call_id: int


class EventReceived(NamedTuple):
    """The peer tells something. ``number`` is 0 for one that came in a DATAGRAM; ``stream_id``
    is -1 then, else what :meth:`Inbox.pause` takes. ``ack``: it wants to know what came of it."""

    number: int
    name: str
    payload: bytes
    metadata: bytes | None
    stream_id: int
    ack: bool = False


class EventAcknowledged(NamedTuple):
    """What came of an event of ours."""

    number: int
    status: int


class EventSkipped(NamedTuple):
    """An event will not be delivered: it was too large, too old, or had come before. ``ack``: its
    sender wants to know, and is to be told ``status``."""

    number: int
    ack: bool
    status: int


class ResumeReceived(NamedTuple):
    """The peer has handled our events up to ``upto`` and in ``ranges``. With ``first`` above 0 it
    begins to send its own from that number; ``fresh``: it knows nothing of earlier connections;
    ``outcomes``: what came of events of ours that it has handled."""

    upto: int
    ranges: list[int]
    first: int
    fresh: bool
    outcomes: Outcomes | None = None


class StreamOpened(NamedTuple):
    """The peer opens a media stream. ``options`` is the msgpack map of STREAM_OPEN.

    ``stream_id`` is what :meth:`Inbox.pause` takes, -1 for a realtime stream.
    """

    alias: int
    name: str
    options: bytes
    metadata: bytes | None
    realtime: bool
    stream_id: int


class StreamAccepted(NamedTuple):
    """A media stream of ours was taken; ``options`` is what was agreed."""

    alias: int
    options: bytes


class StreamAcknowledged(NamedTuple):
    """The other side's program has read all items of a stream of ours before ``upto``; with ``end``
    its end, too."""

    alias: int
    upto: int
    end: bool


class StreamEnded(NamedTuple):
    """The opener ended the stream cleanly after ``packets`` packets."""

    alias: int
    packets: int


class StreamAborted(NamedTuple):
    """Either side gave the stream up."""

    alias: int
    code: int
    message: str


class StreamFlushed(NamedTuple):
    """The opener dropped what was queued; packets of epochs before ``epoch`` are stale."""

    alias: int
    epoch: int


class MediaReceived(NamedTuple):
    """One packet of a media stream. ``capture_ts`` in ns on the sender's clock, or ``None``.

    ``stream_id`` is what :meth:`Inbox.pause` takes, -1 for a DATAGRAM.
    """

    alias: int
    epoch: int
    sequence_number: int
    timestamp: int
    capture_ts: int | None
    flags: int
    payload: memoryview
    stream_id: int


class ClockReceived(NamedTuple):
    """A clock frame that did not fill a DATAGRAM of its own."""

    frame: bytes


class WelcomeReceived(NamedTuple):
    """The server knows who we are, and takes us."""


class GoAwayReceived(NamedTuple):
    """The peer serves no call from ``first_unserved`` on, and closes after ``drain_us``."""

    first_unserved: int
    reason: int
    drain_us: int
    message: str


class ProtocolViolation(NamedTuple):
    """The peer broke the wire format; the connection has to be closed."""

    message: str


ProtocolEvent: TypeAlias = (
    HelloReceived
    | RequestReceived
    | CallOpened
    | ItemReceived
    | ItemRefused
    | CreditReceived
    | CallStreamEnded
    | ResponseReceived
    | ErrorReceived
    | CallCancelled
    | EventReceived
    | EventSkipped
    | ResumeReceived
    | EventAcknowledged
    | StreamOpened
    | StreamAccepted
    | StreamAcknowledged
    | StreamEnded
    | StreamAborted
    | StreamFlushed
    | MediaReceived
    | ClockReceived
    | GoAwayReceived
    | WelcomeReceived
    | ProtocolViolation
)
