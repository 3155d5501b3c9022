"""What one flush puts into 0-RTT and 1-RTT packets, and in which order."""

from __future__ import annotations

from collections import deque

from aioquic import tls
from aioquic.quic.connection import (
    ACK_FRAME_CAPACITY,
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicNetworkPath,
    stream_is_client_initiated,
)
from aioquic.quic.packet import QuicFrameType, QuicPacketType, push_ack_frame
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
)
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from echostream.transport.quic.datagram_queue import DatagramQueue
from echostream.transport.quic.ecn import COUNTS_CAPACITY
from echostream.transport.quic.options import QuicOptions
from echostream.transport.quic.recovery import AdaptiveRecovery

__all__ = ["ApplicationWriter"]

CREDIT_STEP = 4
"""New credit is announced when it is this part of the window: seldom enough to be cheap, soon
enough that a sender one round trip away never stops for it."""

ACK_PING_INTERVAL = 8
"""While there are gaps, one in this many packets with an ACK asks for one itself."""

SMALLEST_STREAM_FRAME = 16
"""Less room than this in a packet is not worth a frame."""

CRUMB = 32
"""Where less is left and nothing was written, it was for want of room and not of credit."""

FAIR_EVERY = 16
"""In one flush of so many streams take turns whatever their urgency, so that none starves."""

LEAST_URGENT = 256
"""Of a stream that was given no urgency."""


class ApplicationWriter(QuicConnection):
    """aioquic's ``_write_application``, rewritten. Frame formats and their bookkeeping stay
    aioquic's; what differs:

    - Streams are walked once per flush, not twice per packet.
    - Credit follows consumption. aioquic doubles a window when half of it was *seen*: eight
      packets with sparse offsets open 134 MB.
    - DATAGRAM frames come from a queue with bounds, one that can never fit is dropped instead of
      blocking all later ones, and they share a full congestion window evenly with streams.
    - A stream beyond the peer's limit sends nothing at all, no RESET_STREAM either
      (RFC 9000, section 4.6).
    - A connection that only acknowledges asks for an acknowledgement now and then.
    """

    _loss: AdaptiveRecovery
    _options: QuicOptions

    def _prepare_writer(self, options: QuicOptions) -> None:
        self._options = options
        self._datagrams = DatagramQueue(options.datagram_queue_length, options.datagram_max_age)
        self._datagram_lead = 0
        """Bytes that DATAGRAM frames are ahead of streams while both had something to send."""
        self._last_served = -1
        self._urgency: dict[int, int] = {}
        """Of streams that have one, from 0: lower ones are sent first."""
        self._mixed = False
        """Whether the streams of this flush are not equally urgent."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        for space in self._spaces.values():
            # Packets received with these marks (RFC 9000, section 13.4.1).
            space.ect0 = space.ect1 = space.ce = 0  # type: ignore[attr-defined]
        # Looked up per packet otherwise, by keys whose hash is computed in Python.
        self._application_keys = self._cryptos[tls.Epoch.ONE_RTT]
        self._application_space = self._spaces[tls.Epoch.ONE_RTT]
        self._application_crypto = self._crypto_streams[tls.Epoch.ONE_RTT]

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        crypto = self._application_keys
        one_rtt = crypto.send.aead is not None
        if not one_rtt:
            crypto = self._cryptos[tls.Epoch.ZERO_RTT]
            if not crypto.send.is_valid():
                return
        packet_type = QuicPacketType.ONE_RTT if one_rtt else QuicPacketType.ZERO_RTT
        space = self._application_space
        handshake = self._application_crypto.sender
        datagrams = self._datagrams
        datagrams.expire(now)
        sendable, owed = self._survey_streams()
        has_room = (builder.max_flight_bytes or 0) >= self._max_datagram_size
        try:
            while True:
                ack_at = space.ack_at if one_rtt else None
                ack_due = ack_at is not None and ack_at <= now
                if not ack_due:  # acknowledgements are not paced (RFC 9002, section 7.7)
                    self._pacing_at = self._loss._pacer.next_send_time(now=now)
                    if self._pacing_at is not None:
                        break
                builder.start_packet(packet_type, crypto)
                # One not yet due travels with what leaves anyway (RFC 9000, section 13.2.1).
                if ack_due or (ack_at is not None and (sendable or datagrams) and has_room):
                    self._write_ack_frame(builder=builder, space=space, now=now)
                if self._handshake_complete:
                    self._write_path_frames(builder, network_path, now)
                    self._write_connection_limits(builder=builder, space=space)
                while owed:
                    self._write_stream_limits(builder=builder, space=space, stream=owed[-1])
                    owed.pop()
                if self._ping_pending:
                    self._write_ping_frame(builder, self._ping_pending)
                    self._ping_pending.clear()
                if self._probe_pending:
                    self._write_ping_frame(builder, comment="probe")
                    self._probe_pending = False
                if one_rtt and not handshake.buffer_is_empty:
                    self._write_crypto_frame(
                        builder=builder, space=space, stream=self._application_crypto
                    )
                if datagrams and (self._datagram_lead < self._max_datagram_size or not sendable):
                    self._write_datagrams(builder, contended=bool(sendable))
                if sendable:
                    self._write_streams(builder, space, sendable)
                    if datagrams:  # they gave way to streams: what is left of the packet is theirs
                        self._write_datagrams(builder, contended=True)
                if builder.packet_is_empty:
                    break
                self._loss._pacer.update_after_send(now=now)
                if not sendable and not datagrams and handshake.buffer_is_empty:
                    break
        finally:
            if datagrams:
                datagrams.held_back(now)

    def _survey_streams(self) -> tuple[deque[QuicStream], list[QuicStream]]:
        """Discard what is finished. Returns the streams with something to send, beginning after
        the one that was served last, and those whose credit is to be announced."""
        self._mixed = False
        sendable: deque[QuicStream] = deque()
        owed = []
        finished = False
        step = self._configuration.max_stream_data // CREDIT_STEP
        for stream in self._streams_queue:
            sender, receiver = stream.sender, stream.receiver
            if sender.is_finished and receiver.is_finished:
                finished = True
                self._discard_stream(stream)
                continue
            if stream.is_blocked:
                continue
            if not sender.buffer_is_empty or sender.reset_pending or receiver.stop_pending:
                sendable.append(stream)
            if (
                stream.max_stream_data_local - stream.max_stream_data_local_sent >= step
                and receiver._final_size is None
            ):
                owed.append(stream)
        if finished:
            streams = self._streams
            self._streams_queue = [s for s in self._streams_queue if s.stream_id in streams]
        if len(sendable) > 1:
            last = self._last_served
            ahead = next((i for i, s in enumerate(sendable) if (s.stream_id or 0) > last), 0)
            sendable.rotate(-ahead)
            if self._urgency and self._packet_number % FAIR_EVERY:
                sendable = deque(sorted(sendable, key=self._urgency_of))
                most, least = self._urgency_of(sendable[0]), self._urgency_of(sendable[-1])
                self._mixed = most != least
        return sendable, owed

    def _urgency_of(self, stream: QuicStream) -> int:
        return self._urgency.get(stream.stream_id or 0, LEAST_URGENT)

    def _append_by_urgency(self, sendable: deque[QuicStream], stream: QuicStream) -> None:
        """Put it behind those that are as urgent."""
        urgency, at = self._urgency_of(stream), len(sendable)
        while at and self._urgency_of(sendable[at - 1]) > urgency:
            at -= 1
        sendable.insert(at, stream)

    def _discard_stream(self, stream: QuicStream) -> None:
        stream_id = stream.stream_id
        assert stream_id is not None
        del self._streams[stream_id]
        self._urgency.pop(stream_id, None)
        if stream_is_client_initiated(stream_id) != self._is_client:
            # The peer may open another one for it (RFC 9000, section 4.6).
            self._stream_limit(stream_id).value += 1

    def _write_path_frames(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        if not (network_path.is_validated or network_path.local_challenge_sent):
            # The client migrated (RFC 9000, sections 8.2 and 9.3).
            self._write_path_challenge_frame(builder=builder, network_path=network_path)
            if network_path.validation_deadline is None:
                network_path.validation_deadline = now + 3 * max(
                    self._loss.get_probe_timeout(), 2 * self._configuration.initial_rtt
                )
        if self._handshake_done_pending:
            self._write_handshake_done_frame(builder=builder)
            self._handshake_done_pending = False
        challenges = network_path.remote_challenges
        while challenges:
            self._write_path_response_frame(builder=builder, challenge=challenges[0])
            challenges.popleft()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                self._write_new_connection_id_frame(builder=builder, connection_id=connection_id)
        while self._retire_connection_ids:
            self._write_retire_connection_id_frame(
                builder=builder, sequence_number=self._retire_connection_ids[0]
            )
            self._retire_connection_ids.pop(0)
        if self._streams_blocked_pending:
            if self._streams_blocked_bidi:
                self._write_streams_blocked_frame(
                    builder, QuicFrameType.STREAMS_BLOCKED_BIDI, self._remote_max_streams_bidi
                )
            if self._streams_blocked_uni:
                self._write_streams_blocked_frame(
                    builder, QuicFrameType.STREAMS_BLOCKED_UNI, self._remote_max_streams_uni
                )
            self._streams_blocked_pending = False

    def _write_ack_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float
    ) -> None:
        delay = now - (space.largest_received_time or now)
        counts = space.ect0, space.ect1, space.ce  # type: ignore[attr-defined]
        spare = COUNTS_CAPACITY if any(counts) else 0
        buf = builder.start_frame(
            QuicFrameType.ACK_ECN if spare else QuicFrameType.ACK,
            capacity=ACK_FRAME_CAPACITY + spare,
            handler=self._on_ranges_delivery,
            handler_args=(space, tuple(space.ack_queue)),
        )
        written = push_ack_frame(
            buf,
            space.ack_queue,
            int(delay * 1_000_000) >> self._local_ack_delay_exponent,
            builder.remaining_buffer_space - spare,
        )
        if spare:
            for count in counts:
                buf.push_uint_var(count)
        space.ack_at = None
        if self._quic_logger is not None:
            assert builder.quic_logger_frames is not None
            builder.quic_logger_frames.append(
                self._quic_logger.encode_ack_frame(list(space.ack_queue)[-written:], delay)
            )
        if (written > 1 and builder.packet_number % ACK_PING_INTERVAL == 0) or (
            space.is_application_data and self._loss.unanswered >= self._options.ack_ping_after
        ):
            # Have this packet acknowledged (RFC 9000, section 13.2.4). Nothing of a side that
            # only acknowledges is, so both would keep it all: 683 bytes per packet, for as long
            # as a listener listens.
            self._write_ping_frame(builder, comment="so that ACKs are acknowledged")

    def _on_ranges_delivery(
        self, delivery: QuicDeliveryState, space: QuicPacketSpace, ranges: tuple[range, ...]
    ) -> None:
        """Forget what the peer knows that we received, and only that. aioquic forgets everything
        below the largest, also a late packet that came since: it is never acknowledged then."""
        if delivery is QuicDeliveryState.ACKED:
            for span in ranges:
                space.ack_queue.subtract(span.start, span.stop)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        if limit.value - limit.sent >= self._configuration.max_data // CREDIT_STEP:
            self._write_limit(builder, limit)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            # Together: when the peer has fewer streams left than it would get.
            if limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent:
                self._write_limit(builder, limit)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        buf = builder.start_frame(
            limit.frame_type,
            capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buf.push_uint_var(limit.value)
        limit.sent = limit.value
        if self._quic_logger is not None:
            assert builder.quic_logger_frames is not None
            builder.quic_logger_frames.append(
                self._quic_logger.encode_connection_limit_frame(
                    frame_type=limit.frame_type, maximum=limit.value
                )
            )

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        assert stream.stream_id is not None
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(stream.stream_id)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
        if self._quic_logger is not None:
            assert builder.quic_logger_frames is not None
            builder.quic_logger_frames.append(
                self._quic_logger.encode_max_stream_data_frame(
                    maximum=stream.max_stream_data_local, stream_id=stream.stream_id
                )
            )

    def _write_datagrams(self, builder: QuicPacketBuilder, contended: bool) -> None:
        datagrams = self._datagrams
        while datagrams:
            data = datagrams.head
            if len(data) > self.max_datagram_payload:
                datagrams.drop()  # the peer's new connection ID is longer than the old one
                continue
            try:
                self._write_datagram_frame(
                    builder=builder, data=data, frame_type=QuicFrameType.DATAGRAM_WITH_LENGTH
                )
            except QuicPacketBuilderStop:
                return
            datagrams.pop()
            if contended:
                self._datagram_lead += len(data)

    @property
    def max_datagram_payload(self) -> int:
        """Largest DATAGRAM that fits a packet and the peer's limit (RFC 9221, section 3)."""
        peer_limit = self._remote_max_datagram_frame_size
        if not peer_limit:
            return 0
        # Short header: flags, connection ID, two bytes of packet number; the AEAD's tag.
        room = min(self._max_datagram_size - 19 - len(self._peer_cid.cid), peer_limit)
        return max(0, room - (2 if room - 2 <= 63 else 3))

    def _write_streams(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, sendable: deque[QuicStream]
    ) -> None:
        """Fill the packet from the streams in turn; those with nothing more to send leave
        ``sendable``."""
        room = builder.remaining_flight_space
        mixed = self._mixed
        for _ in range(len(sendable)):
            stream = sendable[0]
            sender = stream.sender
            left = builder.remaining_flight_space
            if stream.receiver.stop_pending:
                self._write_stop_sending_frame(builder=builder, stream=stream)
            if sender.reset_pending:
                self._write_reset_stream_frame(builder=builder, stream=stream)
            elif not sender.buffer_is_empty:
                self._remote_max_data_used += self._write_stream_frame(
                    builder=builder,
                    space=space,
                    stream=stream,
                    max_offset=min(
                        sender.highest_offset + self._remote_max_data - self._remote_max_data_used,
                        stream.max_stream_data_remote,
                    ),
                )
            assert stream.stream_id is not None
            self._last_served = stream.stream_id
            if mixed:
                written = builder.remaining_flight_space != left
                if not written and left < CRUMB:
                    break
                sendable.popleft()
                if written and (sender._pending_eof or len(sender._pending)):
                    self._append_by_urgency(sendable, stream)  # else the peer gives no credit
            elif sender._pending_eof or len(sender._pending):
                sendable.rotate(-1)
            else:
                sendable.popleft()
            if builder.remaining_flight_space < SMALLEST_STREAM_FRAME:
                break
        sent = room - builder.remaining_flight_space
        self._datagram_lead = max(0, self._datagram_lead - sent)
