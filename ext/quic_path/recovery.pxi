"""Sent packets, loss detection, congestion control and pacing of the application's packets.

Mirrors aioquic's recovery, reno and pacer, and what transport/quic/recovery.py changes in them.
"""


@cython.final
@cython.freelist(256)
cdef class SentPacket:
    """A packet in flight; ``QuicSentPacket`` with its usual frames in fields."""

    cdef readonly int64_t packet_number
    cdef public double sent_time
    cdef readonly int64_t sent_bytes
    cdef readonly bint in_flight
    cdef readonly bint is_ack_eliciting
    cdef int64_t ack_start  # the last range that its ACK frame may have, where it has one
    cdef int64_t ack_stop
    cdef Ranges earlier_acks  # the ranges before that, or None
    cdef StreamSender sender  # of its first STREAM frame
    cdef int64_t start
    cdef int64_t stop
    cdef bint fin
    cdef list more  # (sender, start, stop, fin) of further STREAM frames, or None
    cdef list handlers  # (handler, arguments) of other frames, as aioquic keeps them, or None
    cdef readonly bint is_crypto_packet
    cdef readonly object packet_type

    cdef int acknowledges(self, Ranges queue) except -1:
        cdef Py_ssize_t last = queue.count - 1
        self.ack_start = queue.items[2 * last]
        self.ack_stop = queue.items[2 * last + 1]
        if last:
            self.earlier_acks = Ranges()
            self.earlier_acks.reserve(last)
            memcpy(
                self.earlier_acks.items, queue.items, <size_t>last * 2 * sizeof(int64_t)
            )
            self.earlier_acks.count = last
        return 0

    cdef int forget_acks(self, Ranges queue) except -1:
        """The peer knows now that these were received: see ``_on_ranges_delivery``."""
        cdef Py_ssize_t each
        if self.ack_stop:
            queue.remove(self.ack_start, self.ack_stop)
        if self.earlier_acks is not None:
            for each in range(self.earlier_acks.count):
                queue.remove(
                    self.earlier_acks.items[2 * each], self.earlier_acks.items[2 * each + 1]
                )
        return 0

    cdef int carries(self, StreamSender sender, int64_t start, int64_t stop, bint fin) except -1:
        if self.sender is None:
            self.sender = sender
            self.start = start
            self.stop = stop
            self.fin = fin
            return 0
        if self.more is None:
            self.more = []
        self.more.append((sender, start, stop, fin))
        return 0

    cdef int reports_to(self, handler, tuple arguments) except -1:
        if self.handlers is None:
            self.handlers = []
        self.handlers.append((handler, arguments))
        return 0


cdef SentPacket typed_packet(packet):
    """A ``QuicSentPacket`` as a typed one."""
    cdef SentPacket typed = SentPacket.__new__(SentPacket)
    typed.packet_number = packet.packet_number
    typed.sent_time = packet.sent_time
    typed.sent_bytes = packet.sent_bytes
    typed.in_flight = packet.in_flight
    typed.is_ack_eliciting = packet.is_ack_eliciting
    typed.handlers = packet.delivery_handlers
    typed.is_crypto_packet = packet.is_crypto_packet
    typed.packet_type = packet.packet_type
    return typed


cdef enum:
    ECT1 = 1  # two bits of the IP header (RFC 3168, section 5)
    ECT0 = 2
    CE = 3


@cython.final
cdef class PacketSpace:
    """The application's packet numbers; mirrors ``QuicPacketSpace``."""

    cdef public object ack_at
    cdef readonly Ranges ack_queue
    cdef public bint discarded
    cdef public int64_t expected_packet_number
    cdef readonly bint is_application_data
    cdef public int64_t largest_received_packet
    cdef public object largest_received_time
    cdef readonly NumberWindow received_packets
    cdef public int64_t ack_eliciting_in_flight
    cdef public int64_t largest_acked_packet
    cdef public object loss_time
    cdef readonly dict sent_packets
    # Packets received with these marks (RFC 9000, section 13.4.1).
    cdef public int64_t ect0
    cdef public int64_t ect1
    cdef public int64_t ce

    def __cinit__(self):
        self.ack_queue = Ranges()
        self.is_application_data = True
        self.largest_received_packet = -1
        self.received_packets = NumberWindow()
        self.sent_packets = {}

    cdef void count(self, int ecn) noexcept:
        if ecn == ECT0:
            self.ect0 += 1
        elif ecn == CE:
            self.ce += 1
        elif ecn == ECT1:
            self.ect1 += 1


@cython.final
cdef class Pacer:
    """Twin of ``TickPacer`` in transport/quic/recovery.py."""

    cdef public double _max_datagram_size
    cdef double packet  # seconds per packet; below 0 when not known yet
    cdef readonly double bucket_max
    cdef readonly double bucket_time
    cdef readonly double evaluation_time
    cdef double tick
    cdef double gain

    def __cinit__(self, *, int max_datagram_size, double tick, double gain):
        self._max_datagram_size = max_datagram_size
        self.tick = tick
        self.gain = gain
        self.packet = -1.0

    @property
    def packet_time(self):
        """Seconds per packet, or ``None``."""
        return None if self.packet < 0 else self.packet

    cdef void refill(self, double now) noexcept:
        if now > self.evaluation_time:
            self.bucket_time = min(self.bucket_time + (now - self.evaluation_time), self.bucket_max)
            self.evaluation_time = now

    cdef double wait(self, double now) noexcept:
        """When a packet may leave; below 0: at once."""
        if self.packet < 0:
            return -1.0
        self.refill(now)
        return -1.0 if self.bucket_time > 0 else now + max(self.packet, self.tick)

    cdef void sent(self, double now) noexcept:
        if self.packet >= 0:
            self.refill(now)
            self.bucket_time = 0.0 if self.bucket_time < self.packet else (
                self.bucket_time - self.packet
            )

    cdef void set_rate(self, int64_t window, double rtt) noexcept:
        cdef double rate, size = self._max_datagram_size
        window = <int64_t>(<double>window * self.gain)
        rate = <double>window / max(rtt, 1e-6)
        self.packet = max(1e-6, min(size / rate, 1.0))
        self.bucket_max = max(2 * size, min(<double>(window // 4), 16 * size)) / rate
        if self.bucket_time > self.bucket_max:
            self.bucket_time = self.bucket_max
        self.bucket_max = max(self.bucket_max, 2 * self.tick)

    def next_send_time(self, double now):
        """When a packet may leave, or ``None``: at once."""
        cdef double at = self.wait(now)
        return None if at < 0 else at

    def update_after_send(self, double now):
        """A packet left."""
        self.sent(now)

    def update_rate(self, int64_t congestion_window, double smoothed_rtt):
        """The window or the round-trip time changed."""
        self.set_rate(congestion_window, smoothed_rtt)


cdef enum:
    RTT_SAMPLES = 5
    ROUNDS = 8  # these three as in transport/quic/congestion.py

cdef double SHORTEST_ROUND = 0.01
cdef double RTT_MIN_AGE = 10.0


@cython.final
cdef class Westwood:
    """Mirrors ``Westwood`` of transport/quic/congestion.py, and with it ``RenoCongestionControl``
    and ``QuicRttMonitor``."""

    cdef public int64_t bytes_in_flight
    cdef public int64_t congestion_window
    cdef public object ssthresh
    cdef public int64_t _max_datagram_size
    cdef double recovery_start
    cdef int64_t stash
    # What the path delivers, in bytes per second, and its round trip
    cdef double rates[ROUNDS]
    cdef int64_t rounds
    cdef double round_start  # below 0 before the first
    cdef int64_t round_bytes
    cdef double rtt
    cdef double rtt_min
    cdef double rtt_min_at
    # HyStart
    cdef int increases
    cdef int index
    cdef bint ready
    cdef double filtered_min  # below 0 when not known yet
    cdef double sample_time
    cdef double samples[RTT_SAMPLES]

    def __cinit__(self, *, int max_datagram_size):
        self._max_datagram_size = max_datagram_size
        self.congestion_window = 10 * self._max_datagram_size
        self.filtered_min = -1.0
        self.round_start = -1.0
        self.rtt_min = INFINITY

    cdef int acked(self, int64_t sent_bytes, double sent_time, double now) except -1:
        cdef int64_t count
        self.bytes_in_flight -= sent_bytes
        self.delivered(sent_bytes, now)
        if sent_time <= self.recovery_start:
            return 0
        if self.ssthresh is None or self.congestion_window < <int64_t>self.ssthresh:
            self.congestion_window += sent_bytes
            return 0
        self.stash += sent_bytes
        count = self.stash // self.congestion_window
        if count:
            self.stash -= count * self.congestion_window
            self.congestion_window += count * self._max_datagram_size
        return 0

    cdef void delivered(self, int64_t sent_bytes, double now) noexcept:
        self.round_bytes += sent_bytes
        if self.round_start < 0:
            self.round_start = now
            self.round_bytes = 0
        elif now - self.round_start >= max(self.rtt, SHORTEST_ROUND):
            self.rates[self.rounds % ROUNDS] = <double>self.round_bytes / (now - self.round_start)
            self.rounds += 1
            self.round_start = now
            self.round_bytes = 0

    cdef double rate(self) noexcept:
        """The highest of the latest rounds."""
        cdef double highest = 0.0
        cdef int64_t each
        for each in range(min(self.rounds, <int64_t>ROUNDS)):
            highest = max(highest, self.rates[each])
        return highest

    cdef bint slows_down(self, double now, double rtt) noexcept:
        """Whether the round-trip time grows: slow start is to end."""
        cdef double low, high, delta
        cdef int each
        if now <= self.sample_time + 0.001:
            return False
        self.samples[self.index] = rtt
        self.index += 1
        if self.index == RTT_SAMPLES:
            self.index = 0
            self.ready = True
        self.sample_time = now
        if not self.ready:
            return False
        low = high = self.samples[0]
        for each in range(1, RTT_SAMPLES):
            low = min(low, self.samples[each])
            high = max(high, self.samples[each])
        if self.filtered_min < 0 or self.filtered_min > high:
            self.filtered_min = high
        delta = low - self.filtered_min
        if delta * 4 >= self.filtered_min:
            self.increases += 1
            return self.increases >= RTT_SAMPLES
        if delta > 0:
            self.increases = 0
        return False

    cdef int measured(self, double now, double rtt) except -1:
        if self.ssthresh is None and self.slows_down(now, rtt):
            self.ssthresh = self.congestion_window
        self.rtt = rtt
        if rtt <= self.rtt_min:
            self.rtt_min = rtt
            self.rtt_min_at = now
        return 0

    def on_packet_acked(self, *, double now, packet):
        """``packet`` was acknowledged."""
        self.acked(packet.sent_bytes, packet.sent_time, now)

    def on_packet_sent(self, *, packet):
        """``packet`` is in flight."""
        self.bytes_in_flight += <int64_t>packet.sent_bytes

    def on_packets_expired(self, *, packets):
        """``packets`` are no longer counted, which says nothing of the path."""
        for packet in packets:
            self.bytes_in_flight -= <int64_t>packet.sent_bytes

    def on_packets_lost(self, *, double now, packets):
        """``packets`` were lost."""
        cdef double largest_time = 0.0, path
        cdef int64_t before = self.congestion_window
        for packet in packets:
            self.bytes_in_flight -= <int64_t>packet.sent_bytes
            largest_time = packet.sent_time
        if largest_time > self.recovery_start:
            self.recovery_start = now
            self.congestion_window = max(before // 2, 2 * self._max_datagram_size)
            if self.congestion_window < before:
                if now - self.rtt_min_at > RTT_MIN_AGE:
                    self.rtt_min = INFINITY
                elif self.rounds and self.rtt_min < INFINITY:
                    path = self.rate() * self.rtt_min
                    if path > <double>self.congestion_window:
                        self.congestion_window = (
                            <int64_t>path if path < <double>before else before
                        )
            self.ssthresh = self.congestion_window

    def on_persistent_congestion(self):
        """Nothing came through for long."""
        self.congestion_window = 2 * self._max_datagram_size
        self.recovery_start = 0.0
        self.rounds = 0

    def on_rtt_measurement(self, *, double now, double rtt):
        """A round trip took ``rtt``."""
        self.measured(now, rtt)

    def state(self):
        """What losses change, to be given to :meth:`restore`."""
        return self.congestion_window, self.ssthresh, self.recovery_start, self.stash

    def restore(self, tuple state):
        """The losses were none."""
        self.congestion_window, self.ssthresh, self.recovery_start, self.stash = state
