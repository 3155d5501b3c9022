"""Acknowledgements and loss: RFC 9002, appendix A, for the application's packet space."""


cdef class RecoveryState:
    """The fields of aioquic's recovery and of ``AdaptiveRecovery`` that packets touch, and what
    is done per packet. Other packet spaces are left to the plain class."""

    cdef public bint handshake_confirmed
    cdef public double max_ack_delay
    cdef public bint peer_completed_address_validation
    cdef public object spaces
    cdef public object _cc
    cdef public object _pacer
    cdef public int64_t _pto_count
    cdef public double _rtt_initial
    cdef public bint _rtt_initialized
    cdef public double _rtt_latest
    cdef public double _rtt_min
    cdef public double _rtt_smoothed
    cdef public double _rtt_variance
    cdef public double _rtt_first_sample_time
    cdef public double _time_of_last_sent_ack_eliciting_packet
    cdef public int64_t packet_threshold
    cdef public double late_by
    cdef public int64_t packets_sent
    cdef public int64_t packets_lost
    cdef public int64_t eliciting_sent
    cdef public int64_t unanswered
    cdef public int64_t largest_sent
    cdef public object skipped
    cdef public int64_t largest_delivered
    cdef public dict _presumed_lost
    # See ``EcnValidation`` in transport/quic/ecn.py.
    cdef public bint ecn_marks
    cdef public bint ecn_capable
    cdef public int64_t ecn_first
    cdef public int64_t ecn_from
    cdef public int64_t ecn_ect0
    cdef public int64_t ecn_ce
    cdef public object ack_counts
    cdef public bint plain_delivery
    """Whether a handler of aioquic ran: there may be something to send for it."""

    cdef int sent(self, SentPacket packet, PacketSpace space, Westwood control) except -1:
        space.sent_packets[packet.packet_number] = packet
        self.largest_sent = packet.packet_number
        self.packets_sent += 1
        if packet.in_flight:
            if packet.is_ack_eliciting and self.handshake_confirmed:
                self._time_of_last_sent_ack_eliciting_packet = packet.sent_time
            control.bytes_in_flight += packet.sent_bytes
        if packet.is_ack_eliciting:
            space.ack_eliciting_in_flight += 1
            self.eliciting_sent += 1
            self.unanswered = 0
        else:
            self.unanswered += 1
        return 0

    cdef double probe_timeout(self, bint include_max_ack_delay) noexcept:
        cdef double timeout
        if not self._rtt_initialized:
            return 2 * self._rtt_initial
        timeout = self._rtt_smoothed + max(4 * self._rtt_variance, 0.001)
        return timeout + self.max_ack_delay if include_max_ack_delay else timeout

    cdef double alarm(self, PacketSpace space) except? -2.0:
        """When loss detection wants to be called, once only this space is left; below 0: never."""
        if space.loss_time is not None:
            return space.loss_time
        if not space.ack_eliciting_in_flight:
            return -1.0
        return self._time_of_last_sent_ack_eliciting_packet + (
            self.probe_timeout(True) * 2.0 ** min(<double>self._pto_count, 60.0)
        )

    cdef int deliver(self, bint acked, SentPacket packet, PacketSpace space) except -1:
        """Tell what ``packet`` carried whether it arrived."""
        if acked:
            packet.forget_acks(space.ack_queue)
        if packet.sender is not None:
            packet.sender.delivered(acked, packet.start, packet.stop, packet.fin)
            if packet.more is not None:
                for sender, start, stop, fin in packet.more:
                    (<StreamSender>sender).delivered(acked, start, stop, fin)
        if packet.handlers is not None:
            state = ACKED if acked else LOST
            for handler, arguments in packet.handlers:
                handler(state, *arguments)
            self.plain_delivery = True
        return 0

    cdef int acknowledged(
        self, Ranges acked, double ack_delay, double now, PacketSpace space, const int64_t *counts
    ) except -1:
        """An ACK frame arrived. Its numbers were checked. ``counts``: of ECT(0), ECT(1) and CE
        where it has them, else NULL."""
        cdef int64_t largest = acked.items[2 * acked.count - 1] - 1
        cdef int64_t number, newest = -1, marked = 0
        cdef bint newer = largest > space.largest_acked_packet
        cdef Py_ssize_t at = 0
        cdef double newest_time = 0.0
        cdef bint eliciting = False
        cdef SentPacket packet
        cdef Westwood control = self._cc
        cdef list arrived = []
        if largest > space.largest_acked_packet:
            space.largest_acked_packet = largest
        # Both are sorted: what is not acknowledged is passed over once.
        for packet in space.sent_packets.values():
            number = packet.packet_number
            while at < acked.count and acked.items[2 * at + 1] <= number:
                at += 1
            if at == acked.count:
                break
            if number >= acked.items[2 * at]:
                arrived.append(packet)
        if not arrived:
            return 0
        for packet in arrived:
            del space.sent_packets[packet.packet_number]
            if packet.is_ack_eliciting:
                eliciting = True
                space.ack_eliciting_in_flight -= 1
            if packet.in_flight:
                control.acked(packet.sent_bytes, packet.sent_time, now)
                if packet.sent_bytes > self.largest_delivered:
                    self.largest_delivered = packet.sent_bytes
            newest = packet.packet_number
            newest_time = packet.sent_time
            marked += newest >= self.ecn_from
            self.deliver(True, packet, space)
        if newest == largest and eliciting:
            self._measure(now - newest_time, ack_delay, now, control)
        if self.ecn_marks and newer and (counts != NULL or marked):
            self._weigh_marks(counts, marked, newest_time, now)
        lost = self.find_lost(now, space)
        if lost:
            self._declare_lost(lost, now, space)
        if self.peer_completed_address_validation:
            self._pto_count = 0
        return 0

    cdef int _weigh_marks(
        self, const int64_t *counts, int64_t marked, double sent_time, double now
    ) except -1:
        """What the plain method does, where the marks arrived as they were sent."""
        if (
            counts != NULL
            and not counts[1]
            and counts[2] == self.ecn_ce
            and counts[0] - self.ecn_ect0 >= marked
            and counts[0] + counts[2] <= self.largest_sent + 1 - self.ecn_first
        ):
            self.ecn_ect0 = counts[0]
            if marked:
                self.ecn_capable = True
        else:
            self._weigh_ecn(
                None if counts == NULL else (counts[0], counts[1], counts[2]),
                marked,
                sent_time,
                now,
            )
        return 0

    cdef int _measure(self, double rtt, double ack_delay, double now, Westwood control) except -1:
        """RFC 9002, section 5.3, as aioquic reads it."""
        ack_delay = min(ack_delay, self.max_ack_delay)
        self._rtt_latest = max(rtt, 0.001)
        if self._rtt_latest < self._rtt_min:
            self._rtt_min = self._rtt_latest
        if self._rtt_latest > self._rtt_min + ack_delay:
            self._rtt_latest -= ack_delay
        if not self._rtt_initialized:
            self._rtt_first_sample_time = now
            self._rtt_initialized = True
            self._rtt_variance = rtt / 2
            self._rtt_smoothed = rtt
        else:
            self._rtt_variance = 0.75 * self._rtt_variance + 0.25 * fabs(
                self._rtt_min - self._rtt_latest
            )
            self._rtt_smoothed = 0.875 * self._rtt_smoothed + 0.125 * self._rtt_latest
        control.measured(now, min(rtt, self._rtt_latest))  # without the peer's delay
        (<Pacer?>self._pacer).set_rate(control.congestion_window, self._rtt_smoothed)
        return 0

    cpdef list find_lost(self, double now, PacketSpace space):
        """The packets to declare lost; sets when to look again."""
        cdef double delay, before, at, soonest = -1.0
        cdef int64_t largest = space.largest_acked_packet
        cdef int64_t number_before = largest - self.packet_threshold
        cdef SentPacket packet
        cdef list lost = []
        delay = 1.125 * (
            max(self._rtt_latest, self._rtt_smoothed)
            if self._rtt_initialized
            else self._rtt_initial
        )
        delay += self.late_by
        before = now - delay
        for packet in space.sent_packets.values():
            if packet.packet_number > largest:
                break
            if packet.packet_number <= number_before or packet.sent_time <= before:
                lost.append(packet)
            else:
                at = packet.sent_time + delay
                if soonest < 0 or at < soonest:
                    soonest = at
        space.loss_time = None if soonest < 0 else soonest
        return lost

    def note_sent(self, packet, PacketSpace space):
        """aioquic's builder made ``packet``, and it left."""
        self.sent(typed_packet(packet), space, self._cc)

    def note_acknowledged(self, ack_rangeset, double ack_delay, double now, PacketSpace space):
        """The plain class read an ACK frame, and checked it."""
        cdef Ranges acked = Ranges()
        cdef int64_t counts[3]
        for each in ack_rangeset:
            acked.insert(each.start, each.stop)
        if self.ack_counts is None:
            self.acknowledged(acked, ack_delay, now, space, NULL)
            return
        counts[0], counts[1], counts[2] = self.ack_counts
        self.acknowledged(acked, ack_delay, now, space, counts)

    def give_up(self, list packets, PacketSpace space, double now, bint congestion):
        """Stop tracking ``packets``, and send again what was in them. How many were in flight."""
        cdef SentPacket packet
        cdef Westwood control = self._cc
        cdef list counted = []
        for packet in packets:
            del space.sent_packets[packet.packet_number]
            if packet.in_flight:
                counted.append(packet)
            if packet.is_ack_eliciting:
                space.ack_eliciting_in_flight -= 1
            self.deliver(False, packet, space)
        if counted and congestion:
            control.on_packets_lost(now=now, packets=counted)
        elif counted:
            control.on_packets_expired(packets=counted)
        return len(counted)
