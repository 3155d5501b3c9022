# cython: auto_pickle=False, autotestdict=False
"""One pull of a playout, from the jitter ring to the loudspeaker's buffer, in one call.

The mechanism of ``echostream.media.playout``: take in what arrived, hold to the target by
time-stretch or by the resampler, conceal what is missing, convert. Nothing is allocated, and all
of it runs without the GIL. What decides, the rules, comes from Python once. Its twin, function for
function, is ``echostream/media/playout_py.py``.

**Threads.** One consumer at a time calls ``fill`` and ``flush``; the ring's producer is another
thread and shares nothing with it but the ring. ``end``, ``feed_forward_ppm`` and what is for
display are single atomic words, for any thread.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.math cimport NAN, ceil, isnan, llrint
from libc.stdint cimport int16_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from echostream._ext.atomic cimport (
    atomic_add, atomic_load, atomic_load_real, atomic_store, atomic_store_real,
)
from echostream._ext.conceal cimport Extrapolator, conceal, end_gap, merge_into, remember
from echostream._ext.drift cimport Drift, drift_forward, drift_start, drift_update
from echostream._ext.jitter_ring cimport (
    JitterRing, ring_buffered, ring_drop, ring_hold, ring_is_silence, ring_pass_over,
    ring_schedule, ring_skip, ring_take,
)
from echostream._ext.pcm cimport pcm_gap, pcm_read, pcm_run
from echostream._ext.resample cimport Polyphase
from echostream._ext.stretch cimport Wsola
from echostream._ext.timeline cimport SECOND
from echostream._ext.vector cimport es_to_int16

cdef double ONE = 1099511627776.0           # 2**40: the unit of a resampler's step


@cython.final
cdef class PlayoutLoop:
    """Ring, concealment, time-stretch (voice) or resampler (music; else ``None``), and the rules.

    ``rules`` has the attributes of ``echostream.media.playout_rules.PlayoutRules``.
    """

    cdef:
        JitterRing ring
        Extrapolator concealer
        Wsola stretcher
        Polyphase resampler
        bint music
        # rules, in frames and ns
        int64_t rate, channels, largest, step, fade, block, seam, patience, spare, margin
        int64_t low_ns, high_ns, fast_ns, loose_low_ns, loose_high_ns
        float normal, poor
        # (room, channels) each: what goes into a filter, what came out and waits, what is dropped
        int64_t room
        float* source
        float* made
        float* scrap
        int64_t at, ready           # frames of `made`: pulled, and left
        # the consumer's
        Drift drift
        bint cut, sounding
        int64_t flushes, rest, tail, span
        double target, moved
        # for any thread: one word each
        int64_t over, error, pulled, stretches
        double forward, shown_ratio, shown_drift

    def __init__(
        self, JitterRing ring not None, Extrapolator concealer not None, Wsola stretcher not None,
        Polyphase resampler, rules,
    ):
        if self.source != NULL:
            raise RuntimeError("a PlayoutLoop is made once")
        self.ring = ring
        self.concealer = concealer
        self.stretcher = stretcher
        self.resampler = resampler
        self.music = resampler is not None
        self.rate = ring.rate
        self.channels = ring.channels
        self.largest = rules.largest
        self.step = rules.step
        self.fade = rules.fade
        self.block = rules.block
        self.seam = rules.seam
        self.patience = rules.patience
        self.spare = rules.spare
        self.margin = rules.margin
        self.low_ns = rules.low_ns
        self.high_ns = rules.high_ns
        self.fast_ns = rules.fast_ns
        self.loose_low_ns = rules.loose_low_ns
        self.loose_high_ns = rules.loose_high_ns
        self.normal = rules.normal_likeness
        self.poor = rules.poor_likeness
        drift_start(
            &self.drift, <double>self.rate, rules.max_ppm * 1e-6, rules.max_slew_ppm * 1e-6
        )
        self.tail = -1
        self.forward = NAN
        self.shown_ratio = 1.0
        cdef int64_t room = self.largest + self.block + 4 * self.fade + 256
        if min(self.largest, self.block, self.fade, self.seam) < 1 or room > ring.max_pull:
            raise ValueError("the rules do not fit the ring")
        self.room = room
        self.source = <float*>calloc(<size_t>(3 * room * self.channels), sizeof(float))
        if self.source == NULL:
            raise MemoryError
        self.made = self.source + room * self.channels
        self.scrap = self.made + room * self.channels

    def __dealloc__(self):
        free(self.source)

    def fill(self, out, int64_t now_ns):
        """Fill ``out``, float32 or int16 ``(frames, channels)``; how many frames the stream had."""
        cdef Py_buffer view
        cdef int64_t done
        cdef bint int16
        if self.source == NULL:
            raise ValueError("PlayoutLoop.__init__ was not called")
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_STRIDES)
        try:
            int16 = loop_is_int16(self, &view)
            with nogil:
                done = loop_fill(self, &view, int16, now_ns)
        finally:
            PyBuffer_Release(&view)
        return done

    def flush(self):
        """Drop what waits; the timestamp of the first frame that was not played."""
        cdef double unplayed
        self.cut = True
        if not self.ring.started:
            return ring_drop(self.ring)
        unplayed = <double>self.ring.cursor
        if self.music:
            unplayed -= self.resampler._pending_frames()
        ring_drop(self.ring)
        return <int64_t>ceil(unplayed - self.ready - 1e-6)

    def end(self):
        """Behind the last frame is the end, not a gap."""
        atomic_store(&self.over, 1)

    @property
    def feed_forward_ppm(self):
        """The sender's drift as somebody measured it; NaN while nobody has."""
        return atomic_load_real(&self.forward) * 1e6

    @feed_forward_ppm.setter
    def feed_forward_ppm(self, double value):
        if not (isnan(value) or -1e6 < value < 1e6):
            raise ValueError("feed_forward_ppm must be a finite number of ppm")
        atomic_store_real(&self.forward, value * 1e-6)

    @property
    def error_ns(self):
        """How much later than now it should play; negative: earlier."""
        return atomic_load(&self.error)

    @property
    def pulled_frames(self):
        return atomic_load(&self.pulled)

    @property
    def stretched(self):
        return atomic_load(&self.stretches)

    @property
    def ratio(self):
        """Of the resampler; 1.0 for voice."""
        return atomic_load_real(&self.shown_ratio)

    @property
    def drift_ppm(self):
        """The sender's clock against the one that pulls, as far as it is known."""
        return atomic_load_real(&self.shown_drift) * 1e6


include "playout_loop/pieces.pxi"
include "playout_loop/output.pxi"
