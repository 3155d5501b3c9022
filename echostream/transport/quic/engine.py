"""The engine over the hardened connection."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode
from cryptography.hazmat.primitives.serialization import Encoding

from echostream.transport.engine import (
    Address,
    Closed,
    ConnectionIdIssued,
    ConnectionIdRetired,
    DatagramReceived,
    Engine,
    EngineEvent,
    EngineInfo,
    HandshakeCompleted,
    MarkedAddress,
    PathChanged,
    PingAcknowledged,
    StopSending,
    StreamData,
    StreamReset,
    TicketReceived,
    unmarked,
)
from echostream.transport.quic.accelerated import connection_class
from echostream.transport.quic.credentials import load_credentials, quic_configuration, trust_in
from echostream.transport.quic.hardened import HardenedConnection
from echostream.transport.quic.logs import printable
from echostream.transport.quic.options import QuicOptions
from echostream.transport.quic.queue_limit import QueueLimit
from echostream.transport.quic.tickets import decode_ticket, encode_ticket

__all__ = ["QuicEngine", "client_engine"]

logger = logging.getLogger("echostream.quic")

KEEP_ALIVE = -1
"""The id of our own PINGs; those of callers are not negative."""


def client_engine(
    options: QuicOptions,
    *,
    server_name: str,
    ca_data: bytes | None = None,
    verify: bool = True,
    ticket: bytes | None = None,
    alpn: Sequence[str] = ("echostream/1",),
    certificate_chain_pem: bytes | None = None,
    private_key_pem: bytes | None = None,
) -> QuicEngine:
    """An engine to call :meth:`~echostream.transport.engine.Engine.connect` on.

    ``server_name`` is a DNS name or an IP address, checked against the certificate, which must
    come from one of ``ca_data`` (PEM), or of the system's authorities. ``verify=False`` checks
    neither: it is for a caller who compares the certificate of
    :class:`~echostream.transport.engine.HandshakeCompleted` with a known fingerprint before
    sending anything. ``ticket`` is what :class:`~echostream.transport.engine.TicketReceived`
    carried before for the same server; one that cannot be read is ignored. A certificate and
    its key (PEM) are for a server that asks for them.

    Raises :class:`~echostream.errors.ConfigurationError` for what cannot be used.
    """
    configuration = quic_configuration(options, is_client=True, alpn=alpn)
    configuration.server_name = server_name
    trust_in(configuration, ca_data, verify)
    if certificate_chain_pem is not None or private_key_pem is not None:
        load_credentials(configuration, certificate_chain_pem or b"", private_key_pem or b"")
    if ticket is not None:
        configuration.session_ticket = decode_ticket(ticket)
    received: deque[bytes] = deque()
    connection = connection_class(options)(
        options,
        configuration=configuration,
        session_ticket_handler=lambda issued: received.append(encode_ticket(issued)),
    )
    return QuicEngine(connection, options, tickets=received)


class QuicEngine:
    """One end of a QUIC connection; see :class:`echostream.transport.engine.Engine`.

    After :class:`Closed` the engine still wants to be fed and flushed until :meth:`timer` is
    ``None``, so that a lost CONNECTION_CLOSE can be repeated (RFC 9000, section 10.2.1).
    """

    def __init__(
        self,
        connection: HardenedConnection,
        options: QuicOptions,
        *,
        tickets: deque[bytes] | None = None,
        on_settled: Callable[[Engine], None] | None = None,
    ) -> None:
        self._connection = connection
        self._options = options
        self._tickets: deque[bytes] = deque() if tickets is None else tickets
        self._on_settled = on_settled
        self._is_client = connection._is_client
        self._ready: deque[EngineEvent] = deque([ConnectionIdIssued(connection.host_cid)])
        self._handshake_deadline: float | None = None
        self._keep_alive_at: float | None = None
        self._started = False
        self._closed = False
        self._address: Address | None = None
        self._queue_limit: QueueLimit | None = None
        self._datagram_bytes = 0  # in this round trip
        self._translate: dict[type, Callable[..., EngineEvent | None]] = {
            events.StreamDataReceived: self._stream_data,
            events.DatagramFrameReceived: lambda event: DatagramReceived(event.data),
            events.StreamReset: lambda event: StreamReset(event.stream_id, event.error_code),
            events.StopSendingReceived: lambda event: StopSending(
                event.stream_id, event.error_code
            ),
            events.PingAcknowledged: self._ping_acknowledged,
            events.HandshakeCompleted: self._handshake_completed,
            events.ConnectionIdIssued: lambda event: ConnectionIdIssued(event.connection_id),
            events.ConnectionIdRetired: lambda event: ConnectionIdRetired(event.connection_id),
        }

    def __repr__(self) -> str:
        side = "client" if self._is_client else "server"
        state = self._connection._state.name.lower()
        return f"<QuicEngine {side} {state} {self._connection.host_cid.hex()}>"

    @property
    def is_client(self) -> bool:
        """Whether this end opened the connection."""
        return self._is_client

    @property
    def connected(self) -> bool:
        """Whether the handshake was completed."""
        return self._connection._handshake_complete

    # Driving

    def connect(self, address: Address, now: float) -> None:
        """Start the handshake towards ``address`` (client only, once)."""
        if not self._is_client or self._started:
            raise ValueError("connect() is for a client, once")
        self._start(address, now)
        if not self._closed and not self._connection.ended:
            self._connection.connect(address, now)

    def feed(self, data: bytes, address: Address, now: float) -> None:
        """Take one UDP datagram that arrived from ``address``."""
        connection = self._connection
        ecn = 0
        if isinstance(address, MarkedAddress):
            ecn = address.ecn if self._options.ecn else 0
            address = self._plain_address(address)
        if not self._started:
            if self._is_client:
                return
            self._start(address, now)
        connection.datagram_ecn = ecn
        received = connection.packets_received
        try:
            connection.receive_datagram(data, address, now)
        except Exception:
            self._broke("a datagram")
            return
        if connection.packets_received != received:
            if self._options.keep_alive:
                self._keep_alive_at = now + self._options.keep_alive
        elif not received and not self._is_client and not connection.ended:
            # The first datagram of a connection was noise: it does not count as half-open.
            connection.abandon(QuicErrorCode.PROTOCOL_VIOLATION, "no Initial packet")
        path = connection._network_paths[0] if connection._network_paths else None
        if path is not None and path.addr != self._address and path.is_validated:
            connection.path_changed(self._address, path.addr)
            self._address = path.addr
            self._ready.append(PathChanged(path.addr))

    def flush(self, now: float) -> list[tuple[bytes, Address]]:
        """The UDP datagrams to send now."""
        connection = self._connection
        limit = self._queue_limit
        if limit is not None and (
            not connection.buffered_total  # nothing that could fill a queue
            or limit.apply(now, connection._loss, self._datagram_bytes)
        ):
            self._datagram_bytes = 0
        try:
            return connection.datagrams_to_send(now)
        except Exception:
            self._broke("a flush")
            return []

    @property
    def idle(self) -> bool:
        """Whether it is known that :meth:`flush` would send nothing now."""
        return self._connection.idle

    def next_event(self) -> EngineEvent | None:
        """The next event, or ``None``."""
        if self._ready:
            return self._ready.popleft()
        if self._closed:
            return None
        connection = self._connection
        queue = connection._events
        while queue:
            event = queue.popleft()
            translate = self._translate.get(type(event))
            translated = translate(event) if translate is not None else None
            if translated is not None:
                return translated
        if self._tickets:
            return TicketReceived(self._tickets.popleft())
        if connection.ended:
            return self._finish()
        return None

    def timer(self) -> float | None:
        """When :meth:`on_timer` wants to be called, or ``None``."""
        connection = self._connection
        if not self._started or connection._close_at is None:
            return None
        at = connection.get_timer()
        if connection.ended:
            return at
        other = self._keep_alive_at
        if other is not None and (at is None or other < at):
            at = other
        other = self._handshake_deadline
        if other is not None and (at is None or other < at):
            at = other
        other = connection.path_search_at
        if other is not None and (at is None or other < at):
            at = other
        return at

    def on_timer(self, now: float) -> None:
        """Time has come: loss detection, probe, idle timeout, pacing."""
        connection = self._connection
        if not self._started or connection._close_at is None:
            return
        if not connection.ended:
            if self._handshake_deadline is not None and now >= self._handshake_deadline:
                connection.abandon(QuicErrorCode.NO_VIABLE_PATH, "handshake timeout")
                return
            if self._keep_alive_at is not None and now >= self._keep_alive_at:
                self._keep_alive_at = now + self._options.keep_alive
                if connection._handshake_complete:
                    connection.send_ping(KEEP_ALIVE)
            search_at = connection.path_search_at
            if search_at is not None and now >= search_at:
                connection.search_path_mtu(now)
        try:
            connection.handle_timer(now)
        except Exception:
            self._broke("a timer")

    # Streams

    def open_stream(self, bidirectional: bool, urgency: int | None = None) -> int:
        """Reserve the next stream of ours. More urgent ones (0 is most) are sent first; without
        one it comes last."""
        connection = self._connection
        stream_id = connection.get_next_available_stream_id(is_unidirectional=not bidirectional)
        connection.send_stream_data(stream_id, b"")
        if urgency is not None:
            connection._urgency[stream_id] = urgency
        return stream_id

    def prioritize(self, stream_id: int, urgency: int) -> None:
        """Give a stream another urgency, also one that the peer opened."""
        if stream_id in self._connection._streams:
            self._connection._urgency[stream_id] = urgency

    def send_stream(self, stream_id: int, data: bytes | bytearray | memoryview, fin: bool) -> None:
        """Append to the sending part; with ``fin`` end it. Dropped when the peer refused it."""
        connection = self._connection
        if connection._close_event is not None or stream_id in connection.refused_by_peer:
            return
        if stream_id not in connection._streams:
            raise ValueError(f"stream {stream_id} is not open")
        if isinstance(data, memoryview):
            data = data.cast("B") if data.c_contiguous else bytes(data)
        try:
            connection.send_stream_data(stream_id, data, fin)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Abort our sending part; what was not acknowledged is dropped. Idempotent."""
        connection = self._connection
        stream = connection._streams.get(stream_id)
        if stream is not None and connection._close_event is None:
            connection.reset_stream(stream_id, code)
            connection.drop_sending_part(stream)

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to abort its sending part. What arrives after that is dropped, and the
        end is reported. Idempotent."""
        connection = self._connection
        stream = connection._streams.get(stream_id)
        if stream is None or stream_id in connection.unwanted or stream.receiver.is_finished:
            return
        connection.stop_stream(stream_id, code)
        connection.unwanted.add(stream_id)

    def consume(self, stream_id: int, count: int) -> None:
        """``count`` received bytes were used up: the peer may send as many more."""
        self._connection.consume(stream_id, count)

    def lend(self, stream_id: int, count: int) -> None:
        """``count`` received bytes stay unused for a while: the peer may send as many more on other
        streams."""
        self._connection.lend(stream_id, count)

    def buffered(self, stream_id: int) -> int:
        """Bytes of our sending part that the peer has not acknowledged; 0 for an unknown one."""
        stream = self._connection._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    def unsent(self, stream_id: int) -> int:
        """Those of them that were never sent."""
        stream = self._connection._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    @property
    def buffered_total(self) -> int:
        """The same over all streams."""
        return self._connection.buffered_total

    # The connection

    @property
    def window_left(self) -> int:
        """Bytes that congestion control lets leave now."""
        loss = self._connection._loss
        return max(loss.congestion_window - loss.bytes_in_flight, 0)

    def send_datagram(self, data: bytes, deadline: float | None = None) -> bool:
        """Queue one DATAGRAM; ``False`` when it is too large for the path or the peer takes
        none. One that has not left by ``deadline`` is dropped and counted."""
        connection = self._connection
        if len(data) > connection.max_datagram_payload or connection._close_event is not None:
            return False
        connection._datagrams.put(data, deadline)
        self._datagram_bytes += len(data)
        return True

    @property
    def max_datagram_payload(self) -> int:
        """Largest payload that :meth:`send_datagram` takes now; 0 when the peer takes none."""
        return self._connection.max_datagram_payload

    def ping(self, uid: int) -> None:
        """Send a PING; :class:`PingAcknowledged` reports back."""
        if uid < 0:
            raise ValueError("a PING's id must not be negative")
        self._connection.send_ping(uid)

    def close(self, code: int, reason: str) -> None:
        """Close with an application code. Unsent stream data is dropped."""
        connection = self._connection
        if connection.ended:
            return
        if self._started and connection._spaces:
            connection.close(code, None, reason)
        else:
            self._ready.append(Closed(code, reason, by_peer=False, application=True))
            connection.abandon(code, reason)
            self._closed = True

    def limit_queue(self, target: float | None) -> None:
        """Keep what waits in the path because of this side near ``target`` s; ``None``: as
        congestion control has it."""
        self._queue_limit = None if target is None else QueueLimit(target)

    def change_connection_id(self) -> None:
        """Use another connection ID of the peer, as before sending from another address (RFC
        9000, section 9.5)."""
        self._connection.change_connection_id()

    def update_key(self) -> None:
        """Change the packet keys as soon as the handshake is confirmed (RFC 9001, section 6)."""
        self._connection.request_key_update()

    def info(self) -> EngineInfo:
        """A snapshot of path and counters."""
        connection = self._connection
        loss = connection._loss
        return EngineInfo(
            smoothed_rtt=loss._rtt_smoothed,
            latest_rtt=loss._rtt_latest,
            min_rtt=loss._rtt_min if loss._rtt_initialized else 0.0,
            congestion_window=loss.congestion_window,
            bytes_in_flight=loss.bytes_in_flight,
            packets_sent=loss.packets_sent,
            packets_received=connection.packets_received,
            packets_lost=loss.packets_lost,
            datagrams_dropped=connection._datagrams.dropped,
            buffered=self.buffered_total,
            ecn=loss.ecn_state,
            ecn_ce=loss.ecn_ce,
            ecn_ce_received=connection.ce_received,
        )

    # Private

    def _plain_address(self, address: Address) -> Address:
        """The path's own object where that is the same one: then nobody compares it again."""
        known = self._address
        return known if known is not None and known == address else unmarked(address)

    def _start(self, address: Address, now: float) -> None:
        self._started = True
        self._address = address
        self._handshake_deadline = now + self._options.handshake_timeout

    def _stream_data(self, event: events.StreamDataReceived) -> StreamData | None:
        connection = self._connection
        stream_id, data = event.stream_id, event.data
        if data:
            connection.delivered(stream_id, len(data))
            if stream_id in connection.unwanted:
                connection.consume(stream_id, len(data))
                data = b""
                if not event.end_stream:
                    return None
        return StreamData(stream_id, data, event.end_stream)

    def _ping_acknowledged(self, event: events.PingAcknowledged) -> PingAcknowledged | None:
        return None if event.uid == KEEP_ALIVE else PingAcknowledged(event.uid)

    def _handshake_completed(self, event: events.HandshakeCompleted) -> HandshakeCompleted:
        self._settle()
        certificate = self._connection.tls._peer_certificate
        return HandshakeCompleted(
            alpn=event.alpn_protocol or "",
            certificate=None if certificate is None else certificate.public_bytes(Encoding.DER),
            resumed=event.session_resumed,
            early_data=event.early_data_accepted,
        )

    def _settle(self) -> None:
        """The handshake is over, one way or the other."""
        self._handshake_deadline = None
        if self._on_settled is not None:
            self._on_settled(self)
            self._on_settled = None

    def _finish(self) -> Closed:
        """aioquic reports the end three probe timeouts after it; here it is known at once."""
        connection = self._connection
        self._closed = True
        self._settle()
        connection._datagrams.clear()
        connection.end_trace()
        event = connection._close_event
        assert event is not None
        return Closed(
            code=int(event.error_code),
            reason=printable(event.reason_phrase),
            by_peer=connection.closed_by_peer,
            application=event.frame_type is None,
        )

    def _broke(self, where: str) -> None:
        """A defect, here or in aioquic, met by what a peer sent: this connection ends, no other."""
        logger.exception("%r failed at %s", self, where)
        self._connection.abandon(QuicErrorCode.INTERNAL_ERROR, "internal error")
