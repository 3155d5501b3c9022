# cython: language_level=3
"""One timeline of packets and sample frames, whatever the sender does to its numbers.

Header-only. Wrapped numbers become 64-bit ones; a restart of the sender is renumbered to follow
what came before. The producer owns it.
"""

from libc.stdint cimport int64_t, uint64_t

from echostream._ext.delay cimport Delay, delay_base, delay_wanted

cdef enum:
    SECOND = 1_000_000_000
    RESTART_RUN = 4
    DAY_S = 86_400  # a timestamp further than this from the last one is another numbering

cdef struct Timeline:
    int64_t rate, capacity
    int sequence_bits, timestamp_bits
    int64_t raw_sequence, raw_timestamp, sequence_shift, timestamp_shift
    int64_t highest, first, expected_before
    int64_t run, run_sequence, run_timestamp, run_arrival


cdef inline int64_t to_ns(int64_t frames, int64_t rate) noexcept nogil:
    return (frames / rate) * SECOND + (frames % rate) * SECOND / rate


cdef inline int64_t to_frames(int64_t ns, int64_t rate) noexcept nogil:
    """Nearest frame; C's division rounds towards zero, which the half added undoes."""
    cdef int64_t rest = ns % SECOND
    cdef int64_t half = SECOND / 2 if rest >= 0 else -(SECOND / 2)
    return (ns / SECOND) * rate + (rest * rate + half) / SECOND


cdef inline int64_t unwrap(int64_t value, int64_t near, int bits) noexcept nogil:
    """The number congruent to ``value`` that lies nearest to ``near``."""
    cdef uint64_t span
    cdef int64_t ahead
    if bits >= 64:
        return value
    span = <uint64_t>1 << bits
    ahead = <int64_t>((<uint64_t>value - <uint64_t>near) & (span - 1))
    return near + (ahead if ahead < <int64_t>(span >> 1) else ahead - <int64_t>span)


cdef inline bint timeline_near(const Timeline* t, int64_t stamp) noexcept nogil:
    cdef int64_t distance = stamp - t.raw_timestamp
    return -DAY_S * t.rate <= distance <= DAY_S * t.rate


cdef inline void timeline_begin(Timeline* t, int64_t sequence, int64_t timestamp) noexcept nogil:
    """The first packet. Timestamps are kept, unless a time in ns could not hold them."""
    t.raw_sequence = sequence
    t.raw_timestamp = timestamp
    t.timestamp_shift = 0 if timestamp / t.rate < SECOND else -timestamp
    t.first = 2 * t.capacity
    t.highest = t.first - 1
    t.sequence_shift = t.first - sequence


cdef inline int64_t timeline_transit(
    const Timeline* t, const Delay* d, int64_t stamp, int64_t arrival
) noexcept nogil:
    """How long after the fastest packets this one came."""
    cdef int64_t send = to_ns(stamp + t.timestamp_shift, t.rate)
    return arrival - send - d.origin_delay - <int64_t>delay_base(d, <double>(send - d.origin_send))


cdef inline bint timeline_run_agrees(
    Timeline* t, int64_t sequence, int64_t timestamp, int64_t arrival
) noexcept nogil:
    """Whether this is the fourth packet in a row of another numbering, sent at our pace."""
    cdef int64_t sent, came
    if t.run == 0 or unwrap(sequence, t.run_sequence, t.sequence_bits) != t.run_sequence + 1:
        t.run = 0
        t.run_timestamp = timestamp
        t.run_arrival = arrival
    t.run += 1
    t.run_sequence = sequence
    if t.run < RESTART_RUN:
        return False
    t.run = 0
    sent = unwrap(timestamp, t.run_timestamp, t.timestamp_bits) - t.run_timestamp
    if not 0 < sent <= DAY_S * t.rate:
        return False
    sent = to_ns(sent, t.rate)
    came = arrival - t.run_arrival
    return sent <= 2 * came and came <= 2 * sent + SECOND / 10


cdef inline void timeline_renumber(
    Timeline* t, const Delay* d, int64_t sequence, int64_t timestamp, int64_t arrival
) noexcept nogil:
    """The sender began again: its next packet follows on the timeline.

    Timestamps that fit the old ones are kept; else this packet becomes one of the fastest.
    """
    cdef int64_t stamp = unwrap(timestamp, t.raw_timestamp, t.timestamp_bits), transit, at
    cdef bint near
    t.expected_before += t.highest - t.first + 1
    t.raw_sequence = sequence
    t.first = t.highest + t.capacity + 1
    t.sequence_shift = t.first - sequence
    t.highest = t.first - 1
    near = timeline_near(t, stamp)
    if not near:
        stamp = t.raw_timestamp
    transit = timeline_transit(t, d, stamp, arrival)
    if near and -SECOND / 20 <= transit <= delay_wanted(d) + SECOND / 20:
        t.raw_timestamp = stamp
        return
    at = stamp + t.timestamp_shift
    t.raw_timestamp = timestamp
    t.timestamp_shift = at + to_frames(transit, t.rate) - timestamp
