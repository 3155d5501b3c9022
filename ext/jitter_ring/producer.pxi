"""The producer's half: number a packet, find its slot, copy it, tell the estimator."""


cdef int ring_push(
    JitterRing r, int64_t sequence, int64_t timestamp, const uint8_t* data, int64_t frames,
    int64_t arrival, int epoch, bint silence,
) noexcept nogil:
    cdef int64_t raw, at, number, slot, send, deadline, stamp
    cdef uint64_t bit
    cdef bint far
    cdef Timeline* line = &r.line
    if r.delay.packets == 0:
        r.epoch = epoch
        timeline_begin(line, sequence, timestamp)
    elif epoch != r.epoch:
        if ((epoch - r.epoch) & 0xFFFF) >= 0x8000:
            atomic_add(&r.n.stale, 1)
            return 2
        r.epoch = epoch
        atomic_add(&r.n.restarts, 1)
        timeline_renumber(line, &r.delay, sequence, timestamp, arrival)
        atomic_store(&r.flushes, r.flushes + 1)
    raw = unwrap(sequence, line.raw_sequence, line.sequence_bits)
    stamp = unwrap(timestamp, line.raw_timestamp, line.timestamp_bits)
    far = (
        raw - line.raw_sequence >= r.capacity or line.raw_sequence - raw >= r.capacity
        or not timeline_near(line, stamp)
    )
    if far or (
        r.delay.packets
        and timeline_transit(line, &r.delay, stamp, arrival) > r.max_delay_ns
    ):
        if timeline_run_agrees(line, sequence, timestamp, arrival):
            atomic_add(&r.n.restarts, 1)
            timeline_renumber(line, &r.delay, sequence, timestamp, arrival)
            if not far:
                delay_relearn(&r.delay)
            raw = line.raw_sequence
            stamp = line.raw_timestamp
        elif far:
            atomic_add(&r.n.rejected, 1)
            return 3
    else:
        line.run = 0
    number = raw + line.sequence_shift
    at = stamp + line.timestamp_shift
    slot = number & (r.capacity - 1)
    if r.tags[slot] >= number:
        if r.tags[slot] == number:
            atomic_add(&r.n.duplicates, 1)
            return 1
        atomic_add(&r.n.stale, 1)
        return 2
    bit = <uint64_t>1 << (slot & 63)
    if atomic_load_bits(&r.presence[slot >> 6]) & bit:
        if atomic_take(&r.presence[slot >> 6], bit):
            atomic_add(&r.n.overflows, 1)
    if atomic_observe(&r.reading) == slot:
        atomic_add(&r.n.overflows, 1)
        return 4
    r.tags[slot] = number
    if number > line.highest:
        line.highest = number
        line.raw_sequence = raw
        line.raw_timestamp = stamp
    line.first = min(line.first, number)
    atomic_store(&r.n.expected, line.expected_before + line.highest - line.first + 1)
    atomic_add(&r.n.received, 1)
    memcpy(r.arena + <size_t>slot * r.slot_bytes, data, <size_t>frames * r.frame_bytes)
    r.slot_at[slot] = at
    r.slot_frames[slot] = frames
    r.slot_silence[slot] = silence
    r.slot_flush[slot] = r.flushes
    send = to_ns(at, r.rate)
    delay_know(&r.delay, atomic_load_real(&r.known_slope))
    deadline = atomic_load(&r.deadline)
    delay_update(
        &r.delay, send, arrival, deadline != INT64_MAX and arrival - send > deadline
    )
    atomic_store_real(&r.slope, r.delay.slope)
    atomic_store(&r.wanted, delay_wanted(&r.delay))
    atomic_store(&r.target, delay_target(&r.delay, send))
    if at < r.earliest:
        atomic_store(&r.earliest, at)
    atomic_store(&r.ready, 1)
    atomic_set(&r.presence[slot >> 6], bit)
    return 0


cdef inline int ring_check(
    JitterRing r, int64_t sequence_number, int64_t timestamp, size_t length, int64_t arrival,
    int64_t epoch, bint silence,
) except -1:
    if r.arena == NULL:
        raise ValueError("JitterRing.__init__ was not called")
    if length % r.frame_bytes or length > r.slot_bytes or not (length or silence):
        raise ValueError(
            f"a payload is 1 to {r.max_frames} sample frames of {r.frame_bytes} bytes, "
            f"not {length} bytes; set max_packet_ms for longer packets"
        )
    if sequence_number < 0 or sequence_number >> r.line.sequence_bits:
        raise ValueError(f"sequence_number {sequence_number} needs more bits than agreed")
    if timestamp < 0 or (
        r.line.timestamp_bits < 63 and timestamp >> r.line.timestamp_bits
    ):
        raise ValueError(f"timestamp {timestamp} is negative or needs more bits than agreed")
    if not -FARTHEST <= arrival <= FARTHEST:
        raise ValueError(f"arrival_ns {arrival} is more than 146 years away")
    if not 0 <= epoch < 65536:
        raise ValueError(f"epoch is from 0 to 65535, not {epoch}")
    return 0


cdef inline int64_t whole(str name, value) except? -1:
    """An integer of 64 bits, or an error that names what it is not."""
    cdef int beyond = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &beyond)
    if beyond:
        raise ValueError(f"{name} needs more than 63 bits")
    return number
