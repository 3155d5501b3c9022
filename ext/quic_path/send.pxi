"""Short-header packets made and sent."""

cdef enum:
    SMALLEST_STREAM_FRAME = 16  # the first three as in transport/quic/writer.py
    ACK_PING_INTERVAL = 8
    ACK_CAPACITY = 33  # aioquic asks for the largest size that a frame can have
    COUNTS_CAPACITY = 24  # of the three in ACK_ECN
    LIMIT_CAPACITY = 9
    STREAM_LIMIT_CAPACITY = 17
    RESET_CAPACITY = 25
    STOP_CAPACITY = 17
    CRUMB = 32  # as in transport/quic/writer.py
    FAIR_EVERY = 16
    SHORT_OVERHEAD = 19  # of a short-header packet: flags, two bytes of number, the AEAD's tag

cdef class SendPath(ReceivePath):
    """Fills 1-RTT packets as ``ApplicationWriter`` does. A flush for which there is more to say
    (handshake, connection IDs, paths, a new key, a skipped number, a close) is a plain one."""

    # The packet that is being filled.
    cdef size_t at
    cdef size_t header
    cdef int64_t flight_room  # bytes of this packet that the congestion window has room for
    cdef SentPacket filling
    cdef int64_t max_payload  # of a DATAGRAM frame, in this flush
    # What this flush has to send.
    cdef list sendable
    cdef bint mixed  # they are not of one urgency, and stand in its order
    cdef Py_ssize_t first
    cdef list owed

    def datagrams_to_send(self, double now):
        """The UDP datagrams to send now, with their addresses."""
        if not self.sends_typed():
            self.plain_work = True
            return super(SendPath, self).datagrams_to_send(now)
        return self.flush(now)

    @property
    def idle(self):
        """Whether there is nothing to send: no frame waits, and no ACK is late."""
        cdef Stream stream
        cdef StreamLimit limit
        if (
            not self.typed
            or self.plain_work
            or self.recovery.plain_delivery
            or self._state is not CONNECTED
            or self._close_pending
            or self._handshake_done_pending
            or self._streams_blocked_pending
            or self._probe_pending
            or self._ping_pending
            or self._retire_connection_ids
            or self.waiting
        ):
            return False
        limit = self._local_max_data
        if limit.value - limit.sent >= self.credit_step:
            return False
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            if limit.value != limit.sent:
                return False
        for stream in self._streams_queue:
            if (
                not stream.sender.buffer_is_empty
                or stream.sender.reset_pending
                or stream.receiver.stop_pending
                or (stream.sender.is_finished and stream.receiver.is_finished)
                or stream.max_stream_data_local - stream.max_stream_data_local_sent
                >= self.stream_credit_step
            ):
                return False
        return True

    @property
    def max_datagram_payload(self):
        """Largest DATAGRAM that fits a packet and the peer's limit (RFC 9221, section 3)."""
        return self.largest_datagram()

    cdef int64_t largest_datagram(self) except -1:
        cdef int64_t room
        limit = self._remote_max_datagram_frame_size
        if not limit:
            return 0
        room = min(
            self._max_datagram_size - SHORT_OVERHEAD - <int64_t>len(self._peer_cid.cid),
            <int64_t>limit,
        )
        return max(0, room - (2 if room <= 65 else 3))

    cdef bint sends_typed(self) except -1:
        if not self.typed and not self.enter():
            return False
        if self.plain_work or self.recovery.plain_delivery:
            if self.has_plain_frames():
                return False
            self.plain_work = self.recovery.plain_delivery = False
        if (
            self._state is not CONNECTED
            or self._close_pending
            or self._handshake_done_pending
            or self._streams_blocked_pending
            or self._retire_connection_ids
            or self._packet_number >= self._skip_at
            or self._packet_number - self._key_since >= self.key_update_after
            or self.keys._update_key_requested
            or not self.on_path()
        ):
            return False
        if <size_t>self._max_datagram_size > self.capacity:
            self.make_room()
        if self._peer_cid is not self.peer:
            self.cid = self._peer_cid.cid
            self.peer = self._peer_cid
        self.sealer.follow()
        return True

    cdef list flush(self, double now):
        cdef Westwood control = self.recovery._cc
        cdef Pacer pacer = self.recovery._pacer
        cdef PacketSpace space = self.space
        cdef int64_t window = control.congestion_window - control.bytes_in_flight
        cdef int64_t flown = 0
        cdef bint ack_due, has_room, full
        cdef double wait
        cdef list made = []
        cdef object to = self.address
        if self.recovery.ecn_marks:
            if self.marked_for is not to:
                self.marked = self.marked_address(to)
                self.marked_for = to
            to = self.marked
        self._pacing_at = None
        if self._probe_pending and window < self._max_datagram_size:
            window = self._max_datagram_size
        if self.deadlines:
            self._datagrams.expire(now)
        self.survey()
        has_room = window >= self._max_datagram_size
        self.max_payload = self.largest_datagram() if self.waiting else 0
        self.header = 1 + <size_t>len(self.cid) + SENT_NUMBER
        try:
            while True:
                ack_due = space.ack_at is not None and <double>space.ack_at <= now
                if not ack_due:  # acknowledgements are not paced (RFC 9002, section 7.7)
                    wait = pacer.wait(now)
                    if wait >= 0:
                        self._pacing_at = wait
                        break
                self.begin(window - flown)
                full = self.fill(ack_due, has_room, now)
                if self.at > self.header:
                    made.append((self.end(now), to))
                    if self.filling.in_flight:
                        flown += self.filling.sent_bytes
                    self.recovery.sent(self.filling, space, control)
                    if (
                        self.filling.is_ack_eliciting
                        and not self._ack_eliciting_sent_since_receipt
                    ):
                        self._close_at = now + self.idle()
                        self._ack_eliciting_sent_since_receipt = True
                else:
                    break
                if full:
                    break
                pacer.sent(now)
                if self.first == len(self.sendable) and not self.waiting:
                    break
        finally:
            if self.waiting:
                self._datagrams.held_back(now)
            self.filling = self.sendable = self.owed = None
        return made

    cdef int survey(self) except -1:
        """What streams have to send, beginning after the one served last; discards those that
        are finished."""
        cdef Stream stream
        cdef StreamReceiver receiver
        cdef StreamSender sender
        cdef bint finished = False
        cdef list sendable = [], owed = []
        cdef int64_t credit
        cdef Py_ssize_t ahead
        for stream in self._streams_queue:
            sender = stream.sender
            receiver = stream.receiver
            if sender.is_finished and receiver.is_finished:
                finished = True
                self._discard_stream(stream)
                continue
            if stream.is_blocked:
                continue
            if not sender.buffer_is_empty or sender.reset_pending or receiver.stop_pending:
                sendable.append(stream)
            credit = stream.max_stream_data_local - stream.max_stream_data_local_sent
            if credit >= self.stream_credit_step and receiver._final_size is None:
                owed.append(stream)
        if finished:
            self._streams_queue = [s for s in self._streams_queue if s.stream_id in self._streams]
        if len(sendable) > 1:
            for ahead in range(len(sendable)):
                if <int64_t>(<Stream>sendable[ahead]).stream_id > self._last_served:
                    sendable = sendable[ahead:] + sendable[:ahead]
                    break
        self.mixed = False
        if self._urgency and len(sendable) > 1 and self._packet_number % FAIR_EVERY:
            sendable.sort(key=self._urgency_of)
            ahead = len(sendable) - 1
            self.mixed = self._urgency_of(sendable[0]) != self._urgency_of(sendable[ahead])
        self.sendable = sendable
        self.first = 0
        self.owed = owed
        return 0

    cdef int append_by_urgency(self, Stream stream) except -1:
        """Put it behind those that are as urgent."""
        cdef Py_ssize_t at = len(self.sendable)
        urgency = self._urgency_of(stream)
        while at > self.first + 1 and self._urgency_of(self.sendable[at - 1]) > urgency:
            at -= 1
        self.sendable.insert(at, stream)
        return 0

    cdef int begin(self, int64_t window) except -1:
        """Start a packet that may put ``window`` bytes in flight."""
        cdef SentPacket packet = SentPacket.__new__(SentPacket)
        packet.packet_number = self._packet_number
        packet.packet_type = ONE_RTT
        self.filling = packet
        self.at = self.header
        self.flight_room = min(window, self._max_datagram_size)
        return 0

    cdef bytes end(self, double now):
        """Protect the packet, which has frames."""
        cdef SentPacket packet = self.filling
        cdef bytes sealed
        while self.at < self.header + LONGEST_NUMBER - SENT_NUMBER:
            # Header protection samples what lies four bytes after the number's begin.
            self.packet[self.at] = PADDING
            self.at += 1
            packet.in_flight = True
        self.packet[0] = <uint8_t>(
            0x40 | self._spin_bit << 5 | self.sealer.phase << 2 | (SENT_NUMBER - 1)
        )
        memcpy(self.packet + 1, PyBytes_AsString(self.cid), <size_t>len(self.cid))
        put_be16(self.packet + self.header - SENT_NUMBER, <uint16_t>packet.packet_number)
        sealed = self.sealer.seal(self.packet, self.header, self.at, packet.packet_number)
        packet.sent_bytes = len(sealed)
        packet.sent_time = now
        self._packet_number += 1
        return sealed

    cdef int64_t room(self) noexcept:
        """Bytes left in the packet."""
        return self._max_datagram_size - <int64_t>self.at - TAG

    cdef int64_t flight_left(self) noexcept:
        """Bytes left for frames that count as in flight."""
        return self.flight_room - <int64_t>self.at - TAG

    cdef bint start_frame(self, uint8_t kind, int64_t capacity) noexcept:
        """Write the type of a frame that is in flight, where ``capacity`` bytes are left."""
        if self.at == self.header:
            capacity = max(capacity, LONGEST_NUMBER - SENT_NUMBER)
        if self.flight_left() < capacity or self.room() < capacity:
            return False
        self.packet[self.at] = kind
        self.at += 1
        self.filling.is_ack_eliciting = self.filling.in_flight = True
        return True

    cdef int put(self, uint64_t value) noexcept:
        put_varint(self.packet + self.at, value)
        self.at += varint_size(value)
        return 0

    cdef bint fill(self, bint ack_due, bint has_room, double now) except -1:
        """Write frames. True: something did not fit, so that this was the last packet."""
        cdef bint busy = self.first < len(self.sendable)
        if ack_due or (self.space.ack_at is not None and (busy or self.waiting) and has_room):
            # One not yet due travels with what leaves anyway (RFC 9000, section 13.2.1).
            if not self.put_ack(now):
                return True
        if not self.put_limits():
            return True
        if self._ping_pending:
            if not self.start_frame(PING, 1):
                return True
            self.filling.reports_to(self._on_ping_delivery, (tuple(self._ping_pending),))
            self._ping_pending.clear()
        if self._probe_pending:
            if not self.start_frame(PING, 1):
                return True
            self._probe_pending = False
        if self.waiting and (self._datagram_lead < self._max_datagram_size or not busy):
            self.put_datagrams(busy)
        if busy:
            if not self.put_streams():
                return True
            if self.waiting:  # they gave way to streams: what is left of the packet is theirs
                self.put_datagrams(True)
        return False

    cdef bint put_ack(self, double now) except -1:
        cdef PacketSpace space = self.space
        cdef Py_ssize_t ranges = 0
        cdef int64_t delay
        cdef bint counts = space.ect0 or space.ect1 or space.ce
        cdef int64_t spare = COUNTS_CAPACITY if counts else 0
        if not space.ack_queue.count:
            space.ack_at = None
            return True
        if self.room() < ACK_CAPACITY + spare:
            return False
        delay = <int64_t>(max(0.0, now - <double>space.largest_received_time) * 1000000) >> 3
        self.packet[self.at] = ACK_ECN if counts else ACK
        self.at += 1
        self.at += put_ranges(
            self.packet + self.at, space.ack_queue, <uint64_t>delay, self.room() - spare, &ranges
        )
        if counts:
            self.put(<uint64_t>space.ect0)
            self.put(<uint64_t>space.ect1)
            self.put(<uint64_t>space.ce)
        self.filling.acknowledges(space.ack_queue)
        space.ack_at = None
        if (ranges > 1 and self._packet_number % ACK_PING_INTERVAL == 0) or (
            self.recovery.unanswered >= self.ack_ping_after
        ):
            # Have this packet acknowledged (RFC 9000, section 13.2.4).
            return self.start_frame(PING, 1)
        return True

    cdef bint put_limits(self) except -1:
        cdef StreamLimit limit = self._local_max_data
        cdef Stream stream
        if (
            limit.value - limit.sent >= self.credit_step
            and not self.put_limit(limit)
        ):
            return False
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            # Together: when the peer has fewer streams left than it would get.
            if limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent:
                if not self.put_limit(limit):
                    return False
        while self.owed:
            stream = self.owed[len(self.owed) - 1]
            if not self.start_frame(MAX_STREAM_DATA, STREAM_LIMIT_CAPACITY):
                return False
            self.filling.reports_to(self._on_max_stream_data_delivery, (stream,))
            self.put(<uint64_t>stream.stream_id)
            self.put(<uint64_t>stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local
            self.owed.pop()
        return True

    cdef bint put_limit(self, StreamLimit limit) except -1:
        if not self.start_frame(<uint8_t>limit.frame_type, LIMIT_CAPACITY):
            return False
        self.filling.reports_to(self._on_connection_limit_delivery, (limit,))
        self.put(<uint64_t>limit.value)
        limit.sent = limit.value
        return True

    cdef int put_datagrams(self, bint contended) except -1:
        cdef bytes data
        cdef size_t size
        while self.waiting:
            data = self.waiting[0]
            size = <size_t>len(data)
            if <int64_t>size > self.max_payload:
                self._datagrams.drop()  # the peer's new connection ID is longer than the old one
                continue
            if not self.start_frame(
                DATAGRAM_WITH_LENGTH, <int64_t>(1 + varint_size(size) + size)
            ):
                return 0
            self.put(size)
            memcpy(self.packet + self.at, PyBytes_AsString(data), size)
            self.at += size
            self._datagrams.pop()
            if contended:
                self._datagram_lead += <int64_t>size
        return 0

    cdef bint put_streams(self) except -1:
        """Fill the packet from the streams in turn; those with nothing more to send leave."""
        cdef Py_ssize_t turn
        cdef Stream stream
        cdef StreamSender sender
        cdef int64_t room = self.flight_left(), left
        for turn in range(len(self.sendable) - self.first):
            stream = self.sendable[self.first]
            sender = stream.sender
            left = self.flight_left()
            if stream.receiver.stop_pending:
                if not self.start_frame(STOP_SENDING, STOP_CAPACITY):
                    return False
                self.filling.reports_to(stream.receiver.on_stop_sending_delivery, ())
                stream.receiver.stop_pending = False
                self.put(<uint64_t>stream.stream_id)
                self.put(<uint64_t>stream.receiver._stop_error_code)
            if sender.reset_pending:
                if not self.start_frame(RESET_STREAM, RESET_CAPACITY):
                    return False
                self.filling.reports_to(sender.on_reset_delivery, ())
                sender.reset_pending = False
                self.put(<uint64_t>stream.stream_id)
                self.put(<uint64_t>sender._reset_error_code)
                self.put(<uint64_t>sender.highest_offset)
            elif not sender.buffer_is_empty:
                self.put_stream(stream, sender)
            self._last_served = stream.stream_id
            if self.mixed:
                if self.flight_left() == left and left < CRUMB:
                    break
                if (sender._pending_eof or sender._pending.count) and self.flight_left() != left:
                    self.append_by_urgency(stream)  # else the peer gives no credit
            elif sender._pending_eof or sender._pending.count:
                self.sendable.append(stream)
            self.first += 1
            if self.flight_left() < SMALLEST_STREAM_FRAME:
                break
        self._datagram_lead = max(0, self._datagram_lead - (room - self.flight_left()))
        return True

    cdef int put_stream(self, Stream stream, StreamSender sender) except -1:
        cdef uint64_t stream_id = stream.stream_id
        cdef int64_t start = sender.offset_to_send(), stop = 0, before = sender.highest_offset
        cdef int64_t overhead = 3 + <int64_t>varint_size(stream_id), size
        cdef bint fin = False
        if start:
            overhead += <int64_t>varint_size(<uint64_t>start)
        if not sender.choose(
            self.flight_left() - overhead,
            min(
                before + self._remote_max_data - self._remote_max_data_used,
                stream.max_stream_data_remote,
            ),
            &start,
            &stop,
            &fin,
        ):
            return 0
        size = stop - start
        if (
            start < sender._buffer_start
            or stop - sender._buffer_start > PyByteArray_Size(sender._buffer)
        ) and size:
            raise RuntimeError("the data to send is gone")
        self.packet[self.at] = <uint8_t>(STREAM | 2 | (4 if start else 0) | fin)
        self.at += 1
        self.put(stream_id)
        if start:
            self.put(<uint64_t>start)
        put_be16(self.packet + self.at, <uint16_t>(size | 0x4000))
        self.at += 2
        if size:
            memcpy(
                self.packet + self.at,
                PyByteArray_AsString(sender._buffer) + (start - sender._buffer_start),
                <size_t>size,
            )
        self.at += <size_t>size
        self.filling.is_ack_eliciting = self.filling.in_flight = True
        self.filling.carries(sender, start, stop, fin)
        self._remote_max_data_used += sender.highest_offset - before
        return 0
