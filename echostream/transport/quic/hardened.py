"""aioquic's connection with the guards that it needs before it may face a network.

Every override says what goes wrong without it; ``tests/transport/quic`` shows each on the stock
class. Bounds that aioquic has itself (PATH_CHALLENGE, NEW_CONNECTION_ID, network paths, retired
connection IDs, ACK ranges) are left to it.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    END_STATES,
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    pull_ack_frame,
    pull_quic_transport_parameters,
)
from aioquic.quic.stream import QuicStream

from echostream.codes import Close
from echostream.transport.engine import Ect0Address
from echostream.transport.quic.budget import Budget
from echostream.transport.quic.ecn import CE, count_mark
from echostream.transport.quic.logs import ConnectionLogger
from echostream.transport.quic.options import QuicOptions
from echostream.transport.quic.path_prober import PathProber
from echostream.transport.quic.recovery import AdaptiveRecovery, PacketNumberWindow
from echostream.transport.quic.reset_token import SMALLEST_RESET, reset_token

__all__ = ["HardenedConnection", "shortened"]

_CONNECTED = QuicConnectionState.CONNECTED

MAX_CRYPTO_OFFSET = 1 << 16
"""Bytes of handshake per encryption level, as in quiche. aioquic holds 512 KiB per gap and any
amount of contiguous data for one spoofable packet (RFC 9000, section 7.5)."""

EARLY_BYTES = 1 << 16
"""Bytes of 1-RTT packets that are kept until the handshake is complete."""

LONGEST_REASON = 256
"""Bytes of a close reason. One that does not fit a packet keeps aioquic from ever closing."""

CLOSE_SIZE = 3 * 60 + LONGEST_REASON
"""Bytes that a close takes at most: an Initial and a Handshake packet without a reason (RFC 9000,
section 10.2.3), and one with it."""

CONFIDENTIALITY_LIMIT = 1 << 23
"""Packets that AES-GCM may protect with one key (RFC 9001, section 6.6)."""

INTEGRITY_LIMIT = 1 << 36
"""Forged packets that ChaCha20-Poly1305 may refuse, the stricter of all (RFC 9001, 6.6)."""

SKIP_WITHIN = 1024
"""A packet number is skipped at least once in so many (RFC 9000, section 21.4)."""

CONTROL_PER_PACKET = 0.25
"""Control frames that a peer earns with each packet of ours: it may PING to have its
acknowledgements acknowledged."""


ACK_DELAY = 0.001
"""Seconds after which a second packet to be acknowledged, or one out of order, is (RFC 9000,
section 13.2.1): those of one turn of the loop share an acknowledgement."""

LONE_ACK_DELAY = 0.02
"""The same for a single one: mostly an answer takes the acknowledgement along before that. Below
the ``max_ack_delay`` of 25 ms that aioquic promises, by what timers are late."""


def shortened(reason: str) -> str:
    """``reason`` cut to 256 bytes of UTF-8."""
    encoded = reason.encode("utf-8", "replace")
    return encoded[:LONGEST_REASON].decode("utf-8", "ignore")


class HardenedConnection(PathProber):
    """A ``QuicConnection`` that is safe to open to the Internet.

    ``static_key`` makes the stateless reset tokens of a server.
    """

    recovery_class: type[AdaptiveRecovery] = AdaptiveRecovery

    def __init__(
        self,
        options: QuicOptions,
        *,
        configuration: QuicConfiguration,
        static_key: bytes | None = None,
        request_client_certificate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(configuration=configuration, **kwargs)
        self._prepare_writer(options)
        self._prepare_prober(options)
        self._static_key = static_key
        self._request_client_certificate = request_client_certificate
        self.closed_by_peer = False
        self.packets_received = 0
        self.datagram_ecn = 0
        """How the IP header of the datagram was marked that is being received."""
        self._elicited = False
        """Whether the latest packet is to be acknowledged."""
        self._asked = False
        """Whether the latest datagram had a PING: who sends one waits for the acknowledgement."""
        self.unwanted: set[int] = set()
        """Streams whose data this side asked the peer to stop."""
        self.refused_by_peer: set[int] = set()
        """Streams whose data the peer asked this side to stop."""
        self._unconsumed: dict[int, int] = {}
        self._lent: dict[int, int] = {}
        """Of these, bytes for which the connection's credit was given already."""
        self._resets = Budget(options.reset_burst, options.reset_rate)
        self._controls = Budget(options.control_burst, options.control_rate)
        self._controls_earned_by = 0
        self._key_since = 0
        self._key_phase = 0
        self._refused = 0
        self._skip_at = secrets.randbelow(SKIP_WITHIN)
        self._close_packets: list[tuple[bytes, NetworkAddress]] = []
        self._received_closing = 0
        self._early: list[tuple[bytes, NetworkAddress, int]] = []
        self._early_size = 0
        self._repeat_close = False

        self._logger = ConnectionLogger(self._original_destination_connection_id)  # type: ignore[assignment]
        self._loss = self.recovery_class(
            congestion_control_algorithm=configuration.congestion_control_algorithm,
            initial_rtt=configuration.initial_rtt,
            max_datagram_size=configuration.max_datagram_size,
            path_mtu=self.path_mtu,
            on_black_hole=self._follow_path_mtu,
            peer_completed_address_validation=not self._is_client,
            quic_logger=self._quic_logger,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        # aioquic fixes both at 128.
        for limit, value in (
            (self._local_max_streams_bidi, options.max_streams_bidi),
            (self._local_max_streams_uni, options.max_streams_uni),
        ):
            limit.value = limit.sent = value
        if static_key is not None:
            first = self._host_cids[0]
            first.stateless_reset_token = reset_token(static_key, first.cid)

    # For the engine

    @property
    def idle(self) -> bool:
        """Whether there is nothing to send; only the compiled path knows."""
        return False

    @property
    def buffered_total(self) -> int:
        """Bytes of all streams that were not acknowledged."""
        total = 0
        for stream in self._streams.values():
            total += stream.sender._buffer_stop - stream.sender._buffer_start
        return total

    @property
    def ended(self) -> bool:
        """Whether a close was sent or received, or the connection given up."""
        state = self._state
        return state is not _CONNECTED and state in END_STATES  # enum members hash slowly

    def abandon(self, code: int, reason: str) -> None:
        """End without a word to the peer."""
        self._close_event = events.ConnectionTerminated(
            error_code=code, frame_type=QuicFrameType.PADDING, reason_phrase=shortened(reason)
        )
        self._close_pending = False
        self._close_at = None
        self._set_state(QuicConnectionState.TERMINATED)

    def path_changed(self, old: NetworkAddress, new: NetworkAddress) -> None:
        """The peer's new address was validated. A new port is likely the same path behind
        another mapping of a NAT (RFC 9000, section 9.4)."""
        if old[0] != new[0]:
            self._path_mtu_unknown()
            self._loss.restart(
                self._configuration.congestion_control_algorithm, self._max_datagram_size
            )

    def end_trace(self) -> None:
        """Write the qlog file; aioquic does it three probe timeouts after the end."""
        directory = self._configuration.quic_logger
        if directory is not None and self._quic_logger is not None:
            directory.end_trace(self._quic_logger)
            self._quic_logger = None

    def delivered(self, stream_id: int, count: int) -> None:
        """``count`` bytes of a stream went up to the application."""
        self._unconsumed[stream_id] = self._unconsumed.get(stream_id, 0) + count

    def consume(self, stream_id: int, count: int) -> None:
        """The application used up ``count`` bytes: the peer may send as many more (RFC 9000,
        section 4.1). ``ValueError`` when it did not get that many."""
        left = self._unconsumed.get(stream_id, 0) - count
        if count < 0 or left < 0:
            raise ValueError(f"stream {stream_id}: {count} bytes consumed that were not delivered")
        if left:
            self._unconsumed[stream_id] = left
        elif count:
            del self._unconsumed[stream_id]
        lent = self._lent.pop(stream_id, 0) if self._lent else 0
        if lent > count:
            self._lent[stream_id] = lent - count
        self._local_max_data.value += max(count - lent, 0)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.max_stream_data_local += count

    def lend(self, stream_id: int, count: int) -> None:
        """The application leaves ``count`` delivered bytes for later: the stream's own window goes
        on counting them, the connection's does not."""
        lent = self._lent.get(stream_id, 0) + count
        if count < 0 or lent > self._unconsumed.get(stream_id, 0):
            raise ValueError(f"stream {stream_id}: {count} bytes lent that were not delivered")
        self._lent[stream_id] = lent
        self._local_max_data.value += count

    def drop_sending_part(self, stream: QuicStream) -> None:
        """After a reset nothing of the sending part is needed; aioquic keeps it until the
        stream is discarded."""
        sender = stream.sender
        sender._buffer.clear()
        sender._buffer_start = sender._buffer_stop
        sender._pending.subtract(0, sender._buffer_stop + 1)
        sender._pending_eof = False

    def _discard_stream(self, stream: QuicStream) -> None:
        super()._discard_stream(stream)
        assert stream.stream_id is not None
        self.unwanted.discard(stream.stream_id)
        self.refused_by_peer.discard(stream.stream_id)

    # Closing

    def close(
        self,
        error_code: int = QuicErrorCode.NO_ERROR,
        frame_type: int | None = None,
        reason_phrase: str = "",
    ) -> None:
        super().close(error_code, frame_type, shortened(reason_phrase))

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        super()._close_begin(is_initiator, now)
        self.closed_by_peer = not is_initiator

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        if self._repeat_close:
            # RFC 9000, section 10.2.1: a close that was lost is repeated; aioquic never does.
            self._repeat_close = False
            return self._close_packets
        if not self._network_paths:
            return []
        self._renew_key()
        closing = self._close_pending
        if closing and not self._network_paths[0].can_send(CLOSE_SIZE):
            # The limit of section 8.1 holds for a close too.
            assert self._close_event is not None
            self.abandon(self._close_event.error_code, self._close_event.reason_phrase)
            return []
        if self._packet_number >= self._skip_at and self._handshake_complete and not closing:
            # RFC 9000, section 21.4: whoever acknowledges this number did not see what it
            # acknowledges, but wants us to send faster than the path allows.
            self._loss.skipped = self._packet_number
            self._packet_number += 1
            self._skip_at = self._packet_number + 1 + secrets.randbelow(SKIP_WITHIN)
        if self._handshake_confirmed:
            self.begin_ecn()
        probe = [] if closing or not self._handshake_confirmed else self._size_probe(now)
        datagrams = super().datagrams_to_send(now)
        if self._loss.probe_again and not closing:
            # Two at a time (RFC 9002, section 6.2.4): timeouts double, so few of them fit into a
            # handshake's time, and a burst of losses may take one datagram of each.
            self._loss.probe_again = False
            self._loss.reschedule_data(now=now)
            datagrams = datagrams + super().datagrams_to_send(now)
        if closing:
            self._close_packets = datagrams
        if probe:
            datagrams = probe + datagrams
        return self._marked(datagrams) if self._loss.ecn_marks else datagrams

    def _marked(
        self, datagrams: list[tuple[bytes, NetworkAddress]]
    ) -> list[tuple[bytes, NetworkAddress]]:
        """Mark what goes along the path in use."""
        here = self._network_paths[0].addr
        marked = self.marked_address(here)
        if any(address != here for _, address in datagrams):
            self._loss.begin_ecn()  # with the next packet: these are not all marked
        return [(data, marked if to == here else to) for data, to in datagrams]

    @property
    def ce_received(self) -> int:
        """Packets of application data that met congestion on the way here."""
        return self._application_space.ce if self._spaces else 0  # type: ignore[attr-defined]

    def begin_ecn(self) -> None:
        """Mark packets from now on, if nothing speaks against it. Idempotent."""
        if self._options.ecn and self._loss.ecn_state == "off":
            self._loss.begin_ecn()

    def marked_address(self, address: NetworkAddress) -> NetworkAddress:
        """Where to, for datagrams that are to leave marked."""
        return Ect0Address(address)

    def _renew_key(self) -> None:
        """Update keys by count of packets; aioquic never does by itself."""
        sent = self._packet_number - self._key_since
        if sent < self._options.key_update_after or not self._handshake_confirmed:
            return
        pair = self._cryptos[tls.Epoch.ONE_RTT]
        if pair.recv.key_phase != self._key_phase:  # the peer did it
            self._key_phase = pair.recv.key_phase
            self._key_since = self._packet_number
        elif self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet >= self._key_since:
            # Not before something under the current key was acknowledged (RFC 9001, 6.1).
            self.request_key_update()
            self._key_phase = int(not self._key_phase)
            self._key_since = self._packet_number
        elif sent >= CONFIDENTIALITY_LIMIT:
            self.close(QuicErrorCode.AEAD_LIMIT_REACHED, QuicFrameType.PADDING, "key used up")

    # Receiving

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        if self._state in END_STATES:
            if self._state is QuicConnectionState.CLOSING:
                # Repeated for the 1st, 2nd, 4th, 8th ... packet (RFC 9000, section 10.2.1).
                self._received_closing += 1
                if self._received_closing.bit_count() == 1:
                    self._repeat_close = True
            return
        if not self._handshake_complete and data and not data[0] & 0x80:
            # It overtook the end of the handshake (RFC 9001, section 5.7). aioquic drops it, and
            # the peer takes that for congestion.
            if self._early_size + len(data) <= EARLY_BYTES:
                self._early.append((data, addr, self.datagram_ecn))
                self._early_size += len(data)
            return
        before = self.packets_received
        if self._handshake_confirmed:
            space = self._spaces[tls.Epoch.ONE_RTT]
            ack_at, largest = space.ack_at, space.largest_received_packet
            self._elicited = self._asked = False
            super().receive_datagram(data, addr, now)
            self._delay_ack(ack_at, largest, now)
        else:
            super().receive_datagram(data, addr, now)
        if self.packets_received == before:
            self._undecipherable(data)
        if self._early and self._handshake_complete:
            early, self._early = self._early, []
            for held, sender, self.datagram_ecn in early:
                self.receive_datagram(held, sender, now)

    def _delay_ack(self, ack_at: float | None, largest: int, now: float) -> None:
        """Acknowledge what came with this datagram, before which the two were those of its space,
        in good time: congestion is told of soon. aioquic waits 1 ms for each."""
        space = self._spaces[tls.Epoch.ONE_RTT]
        if not self._elicited or space.ack_at is None:
            return
        if self._asked:
            space.ack_at = now
        elif (
            ack_at is None
            and space.largest_received_packet == largest + 1
            and self.datagram_ecn != CE
        ):
            space.ack_at = now + LONE_ACK_DELAY
        else:
            space.ack_at = min(space.ack_at, now + ACK_DELAY)

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self.packets_received += 1
        received = super()._payload_received(context, plain, crypto_frame_required)
        if context.epoch is tls.Epoch.ONE_RTT:
            self._elicited = received[0]
        if self.datagram_ecn:
            early = context.epoch is tls.Epoch.ZERO_RTT
            space = self._spaces[tls.Epoch.ONE_RTT if early else context.epoch]
            count_mark(space, self.datagram_ecn)
        return received

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._loss.ack_counts = None
        if frame_type == QuicFrameType.ACK_ECN:
            start = buf.tell()
            try:
                pull_ack_frame(buf)
            except ValueError:
                pass  # aioquic says what is wrong
            else:
                self._loss.ack_counts = (
                    buf.pull_uint_var(),
                    buf.pull_uint_var(),
                    buf.pull_uint_var(),
                )
            buf.seek(start)
        super()._handle_ack_frame(context, frame_type, buf)

    def _undecipherable(self, data: bytes) -> None:
        """A stateless reset (RFC 9000, section 10.3.1), or a forgery to be counted. aioquic sees
        neither: after a crash of the peer it waits for the idle timeout."""
        if len(data) < SMALLEST_RESET or data[0] & 0x80:
            return
        tail = data[-16:]
        for cid in (self._peer_cid, *self._peer_cid_available):
            if cid.stateless_reset_token and hmac.compare_digest(cid.stateless_reset_token, tail):
                self.abandon(QuicErrorCode.NO_VIABLE_PATH, "stateless reset")
                self.closed_by_peer = True
                return
        self._refused += 1
        if self._refused >= INTEGRITY_LIMIT:
            self.abandon(QuicErrorCode.AEAD_LIMIT_REACHED, "too many forged packets")

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_CRYPTO_OFFSET:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too much handshake"
            )
        super()._handle_crypto_frame(context, frame_type, buf)
        self._check_gaps(self._crypto_streams[context.epoch])

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_stream_frame(context, frame_type, buf)
        self._check_gaps(self._streams[stream_id])

    def _check_gaps(self, stream: QuicStream) -> None:
        """RFC 9000, section 21.6: every hole costs memory and a step per later frame."""
        if len(stream.receiver._ranges) > self._options.max_stream_gaps:
            raise overload("too many gaps in a stream")

    def _handle_reset_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._spend_reset(context.time)
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        reported = len(self._events)
        super()._handle_reset_stream_frame(context, frame_type, buf)
        if len(self._events) > reported:
            # What was counted of the stream and will never be delivered must not weigh on the
            # connection for ever (RFC 9000, section 4.5).
            receiver = self._streams[stream_id].receiver
            self._local_max_data.value += receiver.highest_offset - receiver._buffer_start
            receiver._buffer.clear()

    def _handle_stop_sending_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._spend_reset(context.time)
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_stop_sending_frame(context, frame_type, buf)
        self.refused_by_peer.add(stream_id)
        self.drop_sending_part(self._streams[stream_id])

    def _spend_reset(self, now: float) -> None:
        """Opening streams and resetting them at once is cheap for a peer and not for us
        (CVE-2023-44487); the limit on open streams does not see it."""
        if not self._resets.spend(now):
            raise overload("too many stream resets")

    def _handle_ping_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._spend_control(context.time)
        self._asked = True
        super()._handle_ping_frame(context, frame_type, buf)

    def _handle_path_challenge_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._spend_control(context.time)
        super()._handle_path_challenge_frame(context, frame_type, buf)

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._spend_control(context.time)
        super()._handle_new_connection_id_frame(context, frame_type, buf)

    def _handle_retire_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._spend_control(context.time)
        super()._handle_retire_connection_id_frame(context, frame_type, buf)

    def _spend_control(self, now: float) -> None:
        """Frames that ask for work and carry nothing: legal, but not without end
        (RFC 9000, section 21.9)."""
        sent = self._loss.eliciting_sent
        self._controls.earn((sent - self._controls_earned_by) * CONTROL_PER_PACKET)
        self._controls_earned_by = sent
        if not self._controls.spend(now):
            raise overload("too many control frames")

    # Handshake

    def _initialize(self, peer_cid: bytes) -> None:
        replaced = list(self._spaces.values())
        super()._initialize(peer_cid)
        for space in self._spaces.values():
            space.received_packets = PacketNumberWindow()  # type: ignore[assignment]
        for space in replaced:
            # After a Retry (RFC 9000, section 17.2.5.3) aioquic forgets the packets that it sent,
            # and with them the 0-RTT data in them, for ever. They are lost, so send it again.
            self._loss._on_packets_lost(
                now=0.0,
                packets=list(space.sent_packets.values()),
                congestion_event=False,
                space=space,
            )
        if self._is_client:
            # The server takes the first share that it knows, so offer the cheapest first; each
            # more costs a key pair.
            self.tls._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]
        else:
            if not self._options.early_data:
                self.tls._max_early_data = None
            self.tls._request_client_certificate = self._request_client_certificate

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        if from_session_ticket or not self._is_client:
            # Streams that were opened before may carry 0-RTT or 0.5-RTT data (RFC 9001, sections
            # 4.6.1 and 5.7); aioquic has them wait for the end of the handshake.
            self._unblock_streams(is_unidirectional=False)
            self._unblock_streams(is_unidirectional=True)
        if from_session_ticket:
            return  # the rest is not remembered (RFC 9000, section 7.4.1)
        if self._remote_max_idle_timeout == 0:
            # "Disabled" (RFC 9000, section 18.2), which aioquic takes for 3 PTO.
            self._remote_max_idle_timeout = None
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        if parameters.max_udp_payload_size is not None:
            self._peer_takes(parameters.max_udp_payload_size)
        if parameters.ack_delay_exponent is not None:
            self._remote_ack_delay_exponent = parameters.ack_delay_exponent

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        if self._static_key is not None:
            for connection_id in self._host_cids:
                if not connection_id.was_sent:
                    connection_id.stateless_reset_token = reset_token(
                        self._static_key, connection_id.cid
                    )


def overload(reason: str) -> QuicConnectionError:
    """The peer asks for more work than is fair."""
    return QuicConnectionError(Close.EXCESSIVE_LOAD, None, reason)  # type: ignore[arg-type]
