"""The fields of a connection that packets touch, when the typed path may be used, and timers."""

cdef enum:
    CREDIT_STEP = 4  # as in transport/quic/writer.py


cdef class ConnectionState:
    """Fields with the names that they have in ``QuicConnection`` and ``HardenedConnection``."""

    cdef public bint _ack_eliciting_sent_since_receipt
    cdef public object _application_space
    cdef public object _close_at
    cdef public bint _close_pending
    cdef public int datagram_ecn
    cdef public object _datagrams
    cdef public int64_t _datagram_lead
    cdef public object _events
    cdef public bint _handshake_confirmed
    cdef public bint _handshake_done_pending
    cdef public bytes host_cid
    cdef public bint _is_client
    cdef public int64_t _key_since
    cdef public int64_t _last_served
    cdef public object _local_max_data
    cdef public object _local_max_streams_bidi
    cdef public object _local_max_streams_uni
    cdef public int64_t _local_max_stream_data_bidi_local
    cdef public int64_t _local_max_stream_data_bidi_remote
    cdef public int64_t _local_max_stream_data_uni
    cdef public int64_t _local_next_stream_id_bidi
    cdef public int64_t _local_next_stream_id_uni
    cdef public object _loss
    cdef public object _loss_at
    cdef public int64_t _max_datagram_size
    cdef public list _network_paths
    cdef public object _options
    cdef public object _pacing_at
    cdef public int64_t _packet_number
    cdef public int64_t packets_received
    cdef public object _peer_cid
    cdef public list _ping_pending
    cdef public bint _probe_pending
    cdef public int64_t _remote_ack_delay_exponent
    cdef public int64_t _remote_max_data
    cdef public int64_t _remote_max_data_used
    cdef public int64_t _remote_max_stream_data_bidi_local
    cdef public int64_t _remote_max_stream_data_bidi_remote
    cdef public int64_t _remote_max_stream_data_uni
    cdef public int64_t _remote_max_streams_bidi
    cdef public int64_t _remote_max_streams_uni
    cdef public list _retire_connection_ids
    cdef public int64_t _skip_at
    cdef public bint _spin_bit
    cdef public int64_t _spin_highest_pn
    cdef public object _state
    cdef public dict _streams
    cdef public list _streams_blocked_bidi
    cdef public list _streams_blocked_uni
    cdef public bint _streams_blocked_pending
    cdef public list _streams_queue
    cdef public dict _urgency  # of streams that have one

    # What the typed path found of all this, once the handshake was confirmed.
    cdef readonly bint typed
    """Whether packets take the typed path where they can."""
    cdef bint barred
    cdef bint plain_work  # a plain method ran: it may have left something to send
    cdef PacketSpace space
    cdef RecoveryState recovery
    cdef Keys opener
    cdef Keys sealer
    cdef object keys
    cdef object path
    cdef object address
    cdef object marked_for  # the address that marked belongs to
    cdef object marked  # the same, for datagrams that leave as ECT(0)
    cdef object peer  # the object of the peer's connection ID that cid belongs to
    cdef bytes cid
    cdef double idle_timeout
    cdef int64_t max_datagram_frame_size
    cdef int64_t max_stream_gaps
    cdef int64_t credit_step
    cdef int64_t stream_credit_step
    cdef int64_t key_update_after
    cdef int64_t ack_ping_after
    cdef object report
    cdef object waiting  # the deque of DATAGRAM frames
    cdef object deadlines
    cdef uint8_t *packet
    cdef size_t capacity
    cdef Ranges acked

    def __dealloc__(self):
        PyMem_Free(self.packet)

    cdef bint enter(self) except -1:
        """Whether the typed path is open; opens it once everything that it needs is there."""
        if self.typed:
            return True
        if self.barred or not self._handshake_confirmed:
            return False
        if self.has_early_keys():
            return False  # until the plain method drops them
        keys = self._application_keys
        if not self.may_be_typed():
            self.barred = True
            return False
        self.make_room()
        self.keys = keys
        self.opener = Keys(keys.recv, False)
        self.sealer = Keys(keys.send, True)
        self.space = self._application_space
        self.recovery = self._loss
        self.idle_timeout = self._configuration.idle_timeout
        remote = self._remote_max_idle_timeout
        if remote is not None:
            self.idle_timeout = min(self.idle_timeout, <double>remote)
        largest = self._configuration.max_datagram_frame_size
        self.max_datagram_frame_size = 0 if largest is None else largest
        self.credit_step = self._configuration.max_data // CREDIT_STEP
        self.stream_credit_step = self._configuration.max_stream_data // CREDIT_STEP
        self.max_stream_gaps = self._options.max_stream_gaps
        self.key_update_after = self._options.key_update_after
        self.ack_ping_after = self._options.ack_ping_after
        self.report = self._events.append
        self.waiting = self._datagrams._entries
        self.deadlines = self._datagrams._deadlines
        self.acked = Ranges()
        self.plain_work = True
        self.typed = True
        self.begin_ecn()
        return True

    cdef int make_room(self) except -1:
        """For a packet of the size that is sent now."""
        cdef uint8_t *packet = <uint8_t *>PyMem_Realloc(
            self.packet, <size_t>self._max_datagram_size
        )
        if packet == NULL:
            raise MemoryError
        self.packet = packet
        self.capacity = <size_t>self._max_datagram_size
        return 0

    cdef bint on_path(self) except -1:
        """Whether the path is a validated one; follows a change of it."""
        if not self._network_paths:
            return False
        path = self._network_paths[0]
        if path is not self.path:
            if not path.is_validated:
                return False
            self.path = path
            self.address = path.addr
        return True

    cdef double idle(self) noexcept:
        return max(self.idle_timeout, 3 * self.recovery.probe_timeout(True))

    def get_timer(self):
        """When :meth:`handle_timer` wants to be called."""
        cdef double at, other
        if not self.typed or self._state is not CONNECTED or not self.on_path():
            return super(ConnectionState, self).get_timer()
        at = self._close_at
        if self.space.ack_at is not None:
            at = min(at, <double>self.space.ack_at)
        other = self.recovery.alarm(self.space)
        if other < 0:
            self._loss_at = None
        else:
            self._loss_at = other
            at = min(at, other)
        if self._pacing_at is not None:
            at = min(at, <double>self._pacing_at)
        return at

    # Streams

    @property
    def buffered_total(self):
        """Bytes of all streams that were not acknowledged."""
        cdef Stream stream
        cdef int64_t total = 0
        for stream in self._streams_queue:
            total += stream.sender._buffer_stop - stream.sender._buffer_start
        return total

    def send_stream_data(self, stream_id, data, bint end_stream=False):
        """Append to a stream's sending part."""
        stream = self._streams.get(stream_id)
        if stream is None or (stream_id & 2 and (stream_id & 1) == self._is_client):
            stream = self._get_or_create_stream_for_send(stream_id)
        (<Stream?>stream).sender.write(data, end_stream)

    def _get_or_create_stream(self, frame_type, int64_t stream_id):
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self.accept_stream(stream_id)
        if stream is None:  # the plain method says why
            stream = super(ConnectionState, self)._get_or_create_stream(frame_type, stream_id)
        return stream

    def _get_or_create_stream_for_send(self, int64_t stream_id):
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self.open_stream(stream_id)
        elif stream_id & 2 and (stream_id & 1) == self._is_client:
            stream = None
        if stream is None:  # the plain method says why
            stream = super(ConnectionState, self)._get_or_create_stream_for_send(stream_id)
        return stream

    cdef Stream accept_stream(self, int64_t stream_id):
        """The peer's stream, and all before it (RFC 9000, section 2.1). ``None`` where it may not
        open it, or did already."""
        cdef StreamLimit limit
        cdef bint two_ways = not stream_id & 2
        cdef Stream stream = None
        cdef int64_t each
        if (stream_id & 1) != self._is_client:
            return None
        limit = self._local_max_streams_bidi if two_ways else self._local_max_streams_uni
        if not limit.used <= stream_id >> 2 < limit.value:
            return None
        for each in range(limit.used, (stream_id >> 2) + 1):
            number = each << 2 | (stream_id & 3)
            stream = Stream(
                number,
                self._local_max_stream_data_bidi_remote
                if two_ways
                else self._local_max_stream_data_uni,
                self._remote_max_stream_data_bidi_local if two_ways else 0,
                True,
                two_ways,
            )
            self._streams[number] = stream
            self._streams_queue.append(stream)
        limit.used = (stream_id >> 2) + 1
        return stream

    cdef Stream open_stream(self, int64_t stream_id):
        """A stream of ours. ``None`` where it may not be opened, or was already."""
        cdef bint two_ways = not stream_id & 2
        cdef Stream stream
        if stream_id < 0 or (stream_id & 1) == self._is_client:
            return None
        if stream_id < (
            self._local_next_stream_id_bidi if two_ways else self._local_next_stream_id_uni
        ):
            return None
        stream = Stream(
            stream_id,
            self._local_max_stream_data_bidi_local if two_ways else 0,
            self._remote_max_stream_data_bidi_remote
            if two_ways
            else self._remote_max_stream_data_uni,
            two_ways,
            True,
        )
        self._streams[stream_id] = stream
        self._streams_queue.append(stream)
        if two_ways:
            self._local_next_stream_id_bidi = stream_id + 4
        else:
            self._local_next_stream_id_uni = stream_id + 4
        if stream_id >> 2 >= (
            self._remote_max_streams_bidi if two_ways else self._remote_max_streams_uni
        ):
            stream.is_blocked = True
            (self._streams_blocked_bidi if two_ways else self._streams_blocked_uni).append(stream)
            self._streams_blocked_pending = True
        return stream
