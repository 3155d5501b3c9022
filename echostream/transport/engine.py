"""The narrow interface to a QUIC engine. Nothing above it knows which engine is below.

An engine is sans-IO: datagrams in, datagrams out, time is a parameter (seconds, monotonic).
It never raises into its driver for what a peer did: it stores the failure and reports
:class:`Closed`. It raises ``ValueError`` for what its own caller did wrong.

Terms are those of RFC 9000 and RFC 9221.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

__all__ = [
    "Acceptor",
    "Address",
    "CeAddress",
    "Closed",
    "ConnectionIdIssued",
    "ConnectionIdRetired",
    "DatagramReceived",
    "Ect0Address",
    "Ect1Address",
    "Engine",
    "EngineEvent",
    "EngineInfo",
    "HandshakeCompleted",
    "MarkedAddress",
    "PathChanged",
    "PingAcknowledged",
    "StopSending",
    "StreamData",
    "StreamReset",
    "TicketReceived",
    "unmarked",
]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""A resolved socket address, in the shape of its socket's family."""


class MarkedAddress(tuple[Any, ...]):
    """An address equal to the plain one, which says in addition how the IP header of a datagram
    from there was marked, or is to be marked on the way there (ECN, RFC 3168). What cannot mark
    takes it for the plain one."""

    __slots__ = ()
    ecn: ClassVar[int]


class Ect1Address(MarkedAddress):
    """ECT(1)."""

    __slots__ = ()
    ecn = 1


class Ect0Address(MarkedAddress):
    """ECT(0): the sender understands marks."""

    __slots__ = ()
    ecn = 2


class CeAddress(MarkedAddress):
    """Congestion was met on the way."""

    __slots__ = ()
    ecn = 3


def unmarked(address: Address) -> Address:
    """The plain address."""
    return address if type(address) is tuple else tuple(address)  # type: ignore[return-value]


class HandshakeCompleted(NamedTuple):
    """The TLS handshake is complete.

    ``certificate`` is the peer's leaf certificate in DER, ``None`` where none was sent (a
    client without one, or a resumed session). ``early_data`` tells whether 0-RTT was accepted.
    """

    alpn: str
    certificate: bytes | None
    resumed: bool
    early_data: bool


class StreamData(NamedTuple):
    """In-order bytes of a stream. The receiver answers with :meth:`Engine.consume`."""

    stream_id: int
    data: bytes
    fin: bool


class StreamReset(NamedTuple):
    """The peer aborted its sending part (RESET_STREAM)."""

    stream_id: int
    code: int


class StopSending(NamedTuple):
    """The peer does not want more of our sending part (STOP_SENDING)."""

    stream_id: int
    code: int


class DatagramReceived(NamedTuple):
    """The payload of one DATAGRAM frame."""

    data: bytes


class PingAcknowledged(NamedTuple):
    """The packet with the PING of this id was acknowledged."""

    uid: int


class PathChanged(NamedTuple):
    """The peer's address changed and was validated (RFC 9000, section 9)."""

    address: Address


class ConnectionIdIssued(NamedTuple):
    """From now on the endpoint routes this connection ID here."""

    connection_id: bytes


class ConnectionIdRetired(NamedTuple):
    """The endpoint forgets this connection ID."""

    connection_id: bytes


class TicketReceived(NamedTuple):
    """A session ticket for resumption, opaque above the engine."""

    ticket: bytes


class Closed(NamedTuple):
    """The connection is over; no further event follows.

    ``application`` tells an application close code from a transport error code.
    """

    code: int
    reason: str
    by_peer: bool
    application: bool


EngineEvent: TypeAlias = (
    HandshakeCompleted
    | StreamData
    | StreamReset
    | StopSending
    | DatagramReceived
    | PingAcknowledged
    | PathChanged
    | ConnectionIdIssued
    | ConnectionIdRetired
    | TicketReceived
    | Closed
)


class EngineInfo(NamedTuple):
    """A snapshot of the connection. Times in seconds, sizes in bytes."""

    smoothed_rtt: float
    latest_rtt: float
    min_rtt: float
    congestion_window: int
    bytes_in_flight: int
    packets_sent: int
    packets_received: int
    packets_lost: int
    datagrams_dropped: int
    buffered: int
    ecn: str = "off"
    """``"testing"``, ``"capable"``, or ``"failed"`` where the path or the peer is not up to it."""
    ecn_ce: int = 0
    """Packets of ours that met congestion, as the peer reports."""
    ecn_ce_received: int = 0
    """Packets of the peer that did."""


class Engine(Protocol):
    """One end of one connection."""

    @property
    def is_client(self) -> bool:
        """Whether this end opened the connection."""

    def connect(self, address: Address, now: float) -> None:
        """Start the handshake towards ``address`` (client only, once)."""

    def feed(self, data: bytes, address: Address, now: float) -> None:
        """Take one UDP datagram that arrived from ``address``, which may be a
        :class:`MarkedAddress`, here and in :meth:`flush`."""

    def flush(self, now: float) -> list[tuple[bytes, Address]]:
        """The UDP datagrams to send now."""

    @property
    def idle(self) -> bool:
        """Whether it is known that :meth:`flush` would send nothing now. ``False`` is always true
        enough: then it is asked."""

    def next_event(self) -> EngineEvent | None:
        """The next event, or ``None``."""

    def timer(self) -> float | None:
        """When :meth:`on_timer` wants to be called, or ``None``."""

    def on_timer(self, now: float) -> None:
        """Time has come: loss detection, probe, idle timeout, pacing."""

    def open_stream(self, bidirectional: bool, urgency: int | None = None) -> int:
        """Reserve the next stream of ours. Its id is valid at once, also past the peer's limit:
        what is written then waits for credit. What is more urgent (0 is most) is sent first, as
        far as its credit goes; streams that are equally urgent take turns, those without an
        ``urgency`` come last."""

    def prioritize(self, stream_id: int, urgency: int) -> None:
        """Give a stream that we send on another urgency. Nothing for one that is not known."""

    def send_stream(self, stream_id: int, data: bytes | bytearray | memoryview, fin: bool) -> None:
        """Append to the sending part; with ``fin`` end it. The engine copies ``data``.

        Raises ``ValueError`` when the sending part was ended or reset before."""

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Abort our sending part; what was not acknowledged is dropped. Idempotent."""

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to abort its sending part. Idempotent."""

    def consume(self, stream_id: int, count: int) -> None:
        """``count`` received bytes were used up: the peer may send as many more."""

    def lend(self, stream_id: int, count: int) -> None:
        """``count`` received bytes stay unused for a while: the peer may send as many more on other
        streams, but not on this one before :meth:`consume`."""

    def send_datagram(self, data: bytes, deadline: float | None = None) -> bool:
        """Queue one DATAGRAM; ``False`` when it is too large for the path or the peer takes
        none. The queue is bounded: the oldest is dropped and counted, and so is one that has not
        left by ``deadline`` (on the clock of :meth:`flush`)."""

    @property
    def max_datagram_payload(self) -> int:
        """Largest payload that :meth:`send_datagram` takes now; 0 when the peer takes none."""

    def buffered(self, stream_id: int) -> int:
        """Bytes of our sending part that the peer has not acknowledged; 0 for an unknown one."""

    def unsent(self, stream_id: int) -> int:
        """Those of them that were never sent."""

    @property
    def buffered_total(self) -> int:
        """The same over all streams."""

    @property
    def window_left(self) -> int:
        """Bytes that congestion control lets leave now."""

    def limit_queue(self, target: float | None) -> None:
        """Keep what waits in the path's buffers because of this side near ``target`` s, where
        congestion control would fill them; ``None``: do not."""

    def ping(self, uid: int) -> None:
        """Send a PING; :class:`PingAcknowledged` reports back."""

    def change_connection_id(self) -> None:
        """Use another connection ID of the peer, as before sending from another address (RFC
        9000, section 9.5)."""

    def close(self, code: int, reason: str) -> None:
        """Close with an application code. Unsent stream data is dropped."""

    def info(self) -> EngineInfo:
        """A snapshot of path and counters."""


class Acceptor(Protocol):
    """What a listening endpoint asks about a datagram that belongs to no connection."""

    def accept(self, data: bytes, address: Address, now: float) -> Engine | bytes | None:
        """A new engine (the caller then feeds it ``data``), or the one datagram to answer with
        (Version Negotiation, Retry, CONNECTION_CLOSE, stateless reset), or ``None``: ignore it.

        ``half_open`` limits, rate limits and Retry are the acceptor's business."""

    def released(self, engine: Engine, address: Address) -> None:
        """The endpoint forgot this engine: whatever was counted for it is given back."""
