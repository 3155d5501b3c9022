"""Short-header packets received."""

cdef enum:
    MOST_ACK_RANGES = 64  # MAX_ACK_RANGES in aioquic's recovery

cdef double ACK_DELAY = 0.001  # as in transport/quic/hardened.py
cdef double LONE_ACK_DELAY = 0.02


cdef class ReceivePath(ConnectionState):
    """Takes 1-RTT packets. ACK, STREAM and DATAGRAM frames are typed; the other usual frames go
    one by one to their guarded plain handlers; a packet with anything else goes whole to the
    plain method, which opens it once more."""

    def receive_datagram(self, data, addr, double now):
        """Take one UDP datagram that arrived from ``addr``."""
        if not self.take(data, addr, now):
            self.plain_work = True
            super(ReceivePath, self).receive_datagram(data, addr, now)

    cdef bint take(self, data, addr, double now) except -1:
        """Whether ``data`` was a packet for the typed path."""
        cdef Frame frames[MOST_FRAMES]
        cdef PacketSpace space
        cdef const uint8_t *p
        cdef const uint8_t *p_plain
        cdef size_t size, cid_length
        cdef Py_ssize_t count
        cdef int64_t number = 0
        cdef bint eliciting = False, spin, in_order
        cdef bytes plain
        if not self.typed and not self.enter():
            return False
        if (
            self._state is not CONNECTED
            or self._close_pending
            or not PyBytes_CheckExact(data)
            or not self.on_path()
            or not (addr is self.address or addr == self.address)
        ):
            return False
        p = <const uint8_t *>PyBytes_AsString(data)
        size = <size_t>PyBytes_Size(data)
        cid_length = <size_t>len(self.host_cid)
        if (
            size < 1 + cid_length
            or cid_length > LONGEST_ID
            or p[0] & 0xC0 != 0x40
            or memcmp(p + 1, PyBytes_AsString(self.host_cid), cid_length)
        ):
            return False
        space = self.space
        self.opener.follow()
        plain = self.opener.open(p, size, 1 + cid_length, space.expected_packet_number, &number)
        if plain is None or space.received_packets.holds(number):
            return False
        p_plain = <const uint8_t *>PyBytes_AsString(plain)
        count = scan(p_plain, <size_t>len(plain), frames, &eliciting)
        if count < 0 or not self.honest(p_plain, <size_t>len(plain), frames, count):
            return False

        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            spin = self.opener.spin
            self._spin_bit = not spin if self._is_client else spin
            self._spin_highest_pn = number
        self.packets_received += 1
        try:
            self.apply(plain, frames, count, now)
        except QuicConnectionError as error:
            self._logger.warning(error)
            self.close(
                error_code=error.error_code,
                frame_type=error.frame_type,
                reason_phrase=error.reason_phrase,
            )
        if self._state is not CONNECTED or self._close_pending:
            return True

        self._close_at = now + self.idle()
        self._ack_eliciting_sent_since_receipt = False
        in_order = number == space.largest_received_packet + 1
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.ack_queue.insert(number, number + 1)
        space.received_packets.insert(number)
        if self.datagram_ecn:
            space.count(self.datagram_ecn)
        if space.ack_queue.count > MOST_ACK_RANGES:
            space.ack_queue._close(0, 1)
        if eliciting:
            if self.asks(frames, count):
                space.ack_at = now
            elif space.ack_at is not None:
                space.ack_at = min(<double>space.ack_at, now + ACK_DELAY)
            else:
                space.ack_at = now + (
                    LONE_ACK_DELAY if in_order and self.datagram_ecn != CE else ACK_DELAY
                )
        return True

    cdef bint asks(self, const Frame *frames, Py_ssize_t count) noexcept:
        """Whether there is a PING: who sends one waits for the acknowledgement."""
        cdef Py_ssize_t each
        for each in range(count):
            if frames[each].type == PING:
                return True
        return False

    cdef bint honest(
        self, const uint8_t *p, size_t size, const Frame *frames, Py_ssize_t count
    ) except -1:
        """Whether no ACK frame names a packet that was not sent, and no DATAGRAM is larger than
        was allowed. The plain methods close the connection for it."""
        cdef const Frame *frame
        cdef Py_ssize_t each
        for each in range(count):
            frame = frames + each
            if frame.type == ACK or frame.type == ACK_ECN:
                if <int64_t>frame.number > self.recovery.largest_sent:
                    return False
                if self.recovery.skipped is not None:
                    pull_ranges(p, size, frame, self.acked)
                    if self.acked.holds(self.recovery.skipped):
                        return False
            elif frame.type == DATAGRAM or frame.type == DATAGRAM_WITH_LENGTH:
                if <int64_t>(frame.stop - frame.start) >= self.max_datagram_frame_size:
                    return False
        return True

    cdef int apply(self, bytes plain, const Frame *frames, Py_ssize_t count, double now) except -1:
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AsString(plain)
        cdef const Frame *frame
        cdef Py_ssize_t each
        cdef int64_t counts[3]
        for each in range(count):
            frame = frames + each
            if STREAM <= frame.type <= LAST_STREAM:
                if not self.take_stream(p, frame):
                    self.hand_over(plain, frame, now)
            elif frame.type == DATAGRAM or frame.type == DATAGRAM_WITH_LENGTH:
                self.report(
                    DatagramFrameReceived(
                        PyBytes_FromStringAndSize(
                            <const char *>p + frame.body, <Py_ssize_t>(frame.stop - frame.body)
                        )
                    )
                )
            elif frame.type == ACK or frame.type == ACK_ECN:
                pull_ranges(p, <size_t>len(plain), frame, self.acked)
                if self.recovery._presumed_lost:
                    self.recovery._recognise_late(self.acked, now, self.space)
                self.recovery.acknowledged(
                    self.acked,
                    <double>frame.offset * <double>(1 << self._remote_ack_delay_exponent) / 1e6,
                    now,
                    self.space,
                    pull_counts(p, <size_t>len(plain), frame, counts),
                )
            else:
                self.hand_over(plain, frame, now)
        return 0

    cdef bint take_stream(self, const uint8_t *p, const Frame *frame) except -1:
        """False, before any effect, where the plain handler has to say what is wrong."""
        cdef int64_t stream_id = <int64_t>frame.number
        cdef int64_t end = <int64_t>(frame.offset + (frame.stop - frame.body)), fresh
        cdef StreamLimit limit = self._local_max_data
        cdef Stream stream
        found = self._streams.get(stream_id)
        if found is None:
            stream = self.accept_stream(stream_id)
            if stream is None:
                return False
        else:
            stream = <Stream?>found
            if stream_id & 2 and (stream_id & 1) != self._is_client:
                return False  # a stream that only we may send on
        fresh = end - stream.receiver.highest_offset
        if fresh < 0:
            fresh = 0
        if end > stream.max_stream_data_local or limit.used + fresh > limit.value:
            return False
        try:
            event = stream.receiver.take(
                <int64_t>frame.offset,
                PyBytes_FromStringAndSize(
                    <const char *>p + frame.body, <Py_ssize_t>(frame.stop - frame.body)
                ),
                frame.type & 1,
            )
        except FinalSizeError:
            return False
        if event is not None:
            self.report(event)
        limit.used += fresh
        if stream.receiver._ranges.count > self.max_stream_gaps:
            self._check_gaps(stream)
        return True

    cdef int hand_over(self, bytes plain, const Frame *frame, double now) except -1:
        """Let aioquic's handler, with its guards, take a frame."""
        context = QuicReceiveContext(
            epoch=APPLICATION,
            host_cid=self.host_cid,
            network_path=self.path,
            quic_logger_frames=None,
            time=now,
            version=None,
        )
        cdef uint8_t kind = frame.type
        body = Buffer(data=plain[frame.start : frame.stop])
        if kind == PING:
            handler = self._handle_ping_frame
        elif kind == RESET_STREAM:
            handler = self._handle_reset_stream_frame
        elif kind == STOP_SENDING:
            handler = self._handle_stop_sending_frame
        elif kind == 0x10:
            handler = self._handle_max_data_frame
        elif kind == 0x11:
            handler = self._handle_max_stream_data_frame
        elif kind == 0x12:
            handler = self._handle_max_streams_bidi_frame
        elif kind == 0x13:
            handler = self._handle_max_streams_uni_frame
        elif kind == 0x14:
            handler = self._handle_data_blocked_frame
        elif kind == 0x15:
            handler = self._handle_stream_data_blocked_frame
        elif kind == 0x16 or kind == 0x17:
            handler = self._handle_streams_blocked_frame
        else:
            handler = self._handle_stream_frame
        try:
            handler(context, kind, body)
        except StreamFinishedError:
            pass  # a late frame of a stream that is over
        return 0
