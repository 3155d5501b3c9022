"""What other compiled modules may do with a jitter ring: the consumer's half, without Python.

One consumer at a time calls these; see ``ext/jitter_ring.pyx``.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t

from echostream._ext.delay cimport Control, Delay
from echostream._ext.pcm cimport Pcm
from echostream._ext.timeline cimport Timeline

cdef struct Counters:
    # written by the producer
    int64_t expected, received, duplicates, stale, rejected, overflows, restarts
    # written by the consumer
    int64_t late, played, played_frames, concealed, events, silent, raised, lowered, skipped
    int64_t flushed

@cython.final
cdef class JitterRing:
    cdef:
        # configuration: written by __init__ alone
        int64_t rate, channels, capacity, max_frames, max_delay_ns, hold_ns, max_pull
        bint int16
        size_t frame_bytes, slot_bytes
        # slots: the producer's while the bit in `presence` is clear, the consumer's after its claim
        uint8_t* arena
        int64_t* slot_at
        int64_t* slot_frames
        int64_t* slot_flush
        bint* slot_silence
        uint64_t* presence              # atomic, written by both
        # atomic, written by the producer
        int64_t target, wanted, flushes, ready, earliest
        double slope
        # atomic, written by the consumer
        int64_t reading, deadline, started, cursor, newest
        double earliness
        # atomic, written by anybody
        double known_slope
        # atomic, one writer each
        Counters n
        # the producer's own
        int64_t* tags
        Delay delay
        Timeline line
        int epoch
        # the consumer's own
        Pcm pcm
        Control control
        float* scratch
        bint concealing, heard
        int64_t silence_from, held, flushes_seen, patched
        double reference, deviation

cdef int64_t ring_schedule(JitterRing r, int64_t now) noexcept nogil
cdef int64_t ring_take(JitterRing r, float* out, int64_t frames, int64_t instead_of) noexcept nogil
cdef int64_t ring_pass_over(JitterRing r, int64_t frames) noexcept nogil
cdef void ring_skip(JitterRing r, int64_t frames) noexcept nogil
cdef void ring_hold(JitterRing r, int64_t frames) noexcept nogil
cdef int64_t ring_drop(JitterRing r) noexcept nogil
cdef bint ring_is_silence(JitterRing r, int64_t ahead) noexcept nogil
cdef int64_t ring_buffered(JitterRing r) noexcept nogil
