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
        # configuration
        int64_t rate, channels, capacity, max_frames, max_delay_ns, hold_ns, max_pull
        bint int16
        size_t frame_bytes, slot_bytes
        # slots: written by the producer while the bit is clear, read by the consumer after a claim
        uint8_t* arena
        int64_t* tags
        int64_t* slot_at
        int64_t* slot_frames
        int64_t* slot_flush
        bint* slot_silence
        uint64_t* presence
        # shared
        int64_t reading, target, wanted, deadline, flushes, ready, earliest
        double known_slope, slope
        Counters n
        # producer
        Delay delay
        Timeline line
        int epoch
        # consumer
        Pcm pcm
        Control control
        float* scratch
        bint started, concealing, heard
        int64_t cursor, newest, silence_from, held, flushes_seen, patched
        double reference, deviation, earliness

cdef int64_t ring_schedule(JitterRing r, int64_t now) noexcept nogil
cdef int64_t ring_take(JitterRing r, float* out, int64_t frames, int64_t instead_of) noexcept nogil
cdef int64_t ring_pass_over(JitterRing r, int64_t frames) noexcept nogil
cdef void ring_skip(JitterRing r, int64_t frames) noexcept nogil
cdef void ring_hold(JitterRing r, int64_t frames) noexcept nogil
cdef int64_t ring_drop(JitterRing r) noexcept nogil
cdef bint ring_is_silence(JitterRing r, int64_t ahead) noexcept nogil
cdef int64_t ring_buffered(JitterRing r) noexcept nogil
