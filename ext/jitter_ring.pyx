# cython: auto_pickle=False, autotestdict=False
"""The jitter buffer's mechanism: packets in by sequence number, audio out by the clock.

**Two threads, no lock.** One producer pushes, one consumer does everything that pulls; anybody may
look at what is for display, and set ``known_drift_ppm``. Every field has an owner, who alone writes
it and may read it plainly (``jitter_ring.pxd`` lists them): the configuration nobody any more, the
producer its numbering and the estimator, the consumer the PCM ring and the control. What the other
side reads too is one atomic word for each fact: the producer's ``target``, ``wanted``, ``slope``,
``earliest``, ``ready`` and ``flushes``, the consumer's ``deadline``, ``started``, ``cursor``,
``newest`` and ``earliness``, and the counters, each with one writer. Several of them read together
from outside may be of two moments, a pull apart.

Slots change hands. A packet is copied into slot ``sequence & mask`` and its bit set in a presence
map; a set bit makes the slot the consumer's, a cleared one the producer's. The consumer announces
in ``reading`` which slot it is about to claim, then claims it by fetch-and-clear. The producer of a
packet for an occupied slot claims it the same way (the old packet is dropped, never the whole
buffer) and then looks at ``reading``: these two compare different locations, therefore they are
sequentially consistent; everything else is a release store read by an acquire load (the bit
publishes the slot's content). A tag in each slot, the producer's own, holds the sequence number it
was last used for, so that duplicates and stale packets are found in O(1) and nothing is ever
cleared. ``make races`` runs all of it under ThreadSanitizer.

**Time.** Sequence numbers and timestamps are unwrapped to 64 bits. A *timeline* of sample frames
goes on across restarts of the sender: a new epoch, or four packets in a row that agree with each
other and not with the old numbering, are renumbered to follow. The consumer moves packets into a
ring of PCM addressed by timestamp and reads it at a cursor that follows the clock; it never waits
for a sequence number. Where the estimator (``delay_estimator``) wants another delay, the cursor is
played towards it: by interpolation here, by time-stretch where :class:`Playout` takes the pieces
(``schedule``, ``peek_into``, ``take_into``, ``hold``), and for nothing while nothing is there to
be played.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.math cimport NAN, fabs, isnan
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from echostream._ext.atomic cimport (
    atomic_add, atomic_load, atomic_load_bits, atomic_load_real, atomic_observe, atomic_publish,
    atomic_set, atomic_store, atomic_store_real, atomic_take, lowest_bit,
)
from echostream._ext.delay cimport (
    Control, Delay, control_step, control_watch, delay_know, delay_relearn, delay_restart, delay_target,
    delay_update, delay_wanted,
)
from echostream._ext.pcm cimport (
    Pcm, pcm_clear, pcm_close, pcm_gap, pcm_next_packet, pcm_open, pcm_read, pcm_run, pcm_stretch,
    pcm_write,
)
from echostream._ext.timeline cimport (
    SECOND, Timeline, timeline_begin, timeline_near, timeline_renumber, timeline_run_agrees,
    timeline_transit, to_frames, to_ns, unwrap,
)

ACCEPTED = 0
DUPLICATE = 1
STALE = 2
REJECTED = 3
OVERFLOW = 4

cdef enum:
    BAND = 20_000  # ns; smaller errors of the playout point are left alone
    FAR = 60_000_000  # ns; more than this too late, a gap is passed over without waiting

cdef int64_t FARTHEST = <int64_t>1 << 62  # ns; sums of two such times fit 64 bits

include "jitter_ring/producer.pxi"
include "jitter_ring/consumer.pxi"


@cython.final
cdef class JitterRing:
    """Slots, PCM ring, estimator and control of one stream. Policy is in ``media/jitter.py``.

    ``capacity`` and ``ring_frames`` are powers of two. ``raise_rate`` and ``lower_rate`` say how
    fast the playout point may move while audio is played (seconds per second), ``hold_ns`` how
    long it may wait on an empty buffer beyond its target.
    """

    def __cinit__(self):
        self.reading = -1
        self.known_slope = self.delay.known = NAN
        self.frame_bytes = self.rate = self.channels = 1  # nothing divides by 0 without __init__

    def __init__(
        self, int64_t sample_rate, int64_t channels, bint int16, int64_t capacity,
        int64_t max_packet_frames, int64_t ring_frames, int sequence_bits, int timestamp_bits,
        double late, double start_ns, double minimum_ns, double maximum_ns, double raise_rate,
        double lower_rate, int64_t hold_ns, int64_t max_pull,
        double start_share=0.5, double settle_s=2.0,
    ):
        if self.arena != NULL:
            raise RuntimeError("a JitterRing is made once")
        for name, value in (("capacity", capacity), ("ring_frames", ring_frames)):
            if value < 64 or value & (value - 1):
                raise ValueError(f"{name} is a power of two from 64 on, not {value}")
        if not (0 < sample_rate <= 768_000 and 0 < channels <= 64 and max_packet_frames > 0):
            raise ValueError("sample_rate, channels and max_packet_frames are positive")
        self.rate = sample_rate
        self.channels = channels
        self.int16 = int16
        self.capacity = capacity
        self.max_frames = max_packet_frames
        self.frame_bytes = <size_t>channels * (2 if int16 else 4)
        self.slot_bytes = self.frame_bytes * <size_t>max_packet_frames
        self.line.rate = sample_rate
        self.line.capacity = capacity
        self.line.sequence_bits = sequence_bits
        self.line.timestamp_bits = timestamp_bits
        self.max_delay_ns = <int64_t>maximum_ns
        self.hold_ns = hold_ns
        self.max_pull = max_pull
        self.control.raise_rate = raise_rate
        self.control.lower_rate = lower_rate
        self.delay.late = late
        self.delay.start = start_ns
        self.delay.minimum = minimum_ns
        self.delay.maximum = maximum_ns
        self.delay.start_share = start_share
        self.delay.settle = settle_s * 1e9
        delay_restart(&self.delay)
        self.deadline = INT64_MAX
        self.earliest = INT64_MAX
        self.silence_from = INT64_MAX
        cdef size_t slots = <size_t>capacity
        self.arena = <uint8_t*>calloc(slots, self.slot_bytes)
        self.tags = <int64_t*>calloc(slots, 8)
        self.slot_at = <int64_t*>calloc(slots, 8)
        self.slot_frames = <int64_t*>calloc(slots, 8)
        self.slot_flush = <int64_t*>calloc(slots, 8)
        self.slot_silence = <bint*>calloc(slots, sizeof(bint))
        self.presence = <uint64_t*>calloc(slots / 64, 8)
        self.scratch = <float*>calloc(<size_t>(2 * max_pull + 2) * <size_t>channels, 4)
        if (
            pcm_open(&self.pcm, ring_frames, <size_t>channels) < 0 or self.arena == NULL
            or self.tags == NULL or self.slot_at == NULL or self.slot_frames == NULL
            or self.slot_flush == NULL or self.slot_silence == NULL or self.presence == NULL
            or self.scratch == NULL
        ):
            raise MemoryError

    def __dealloc__(self):
        pcm_close(&self.pcm)
        free(self.arena)
        free(self.tags)
        free(self.slot_at)
        free(self.slot_frames)
        free(self.slot_flush)
        free(self.slot_silence)
        free(self.presence)
        free(self.scratch)

    # -- producer

    def push(
        self, sequence_number, timestamp, payload, arrival_ns, epoch=0, bint silence=False
    ):
        """Take in one packet; returns what became of it (ACCEPTED, DUPLICATE, STALE, ...).

        ``payload`` is C-contiguous, whole sample frames in the stream's format; it may be empty
        only with ``silence``, which says that nothing follows it for a while (DTX). Raises
        ``ValueError`` for what cannot be a packet of this stream.
        """
        cdef int64_t sequence = whole("sequence_number", sequence_number)
        cdef int64_t stamp = whole("timestamp", timestamp)
        cdef int64_t arrival = whole("arrival_ns", arrival_ns), number = whole("epoch", epoch)
        cdef Py_buffer view
        cdef int outcome
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            ring_check(self, sequence, stamp, <size_t>view.len, arrival, number, silence)
            with nogil:
                outcome = ring_push(
                    self, sequence, stamp, <const uint8_t*>view.buf,
                    <int64_t>(<size_t>view.len / self.frame_bytes), arrival, <int>number, silence,
                )
        finally:
            PyBuffer_Release(&view)
        return outcome

    def push_late(self, sequence_number, timestamp, arrival_ns, epoch=0):
        """A packet whose audio nobody wants any more, for a caller that decodes it himself: it is
        counted as late, and learned from. Only for one thread that both pushes and pulls, because
        it is the consumer that counts those. Returns what became of it."""
        cdef int64_t sequence = whole("sequence_number", sequence_number)
        cdef int64_t stamp = whole("timestamp", timestamp)
        cdef int64_t arrival = whole("arrival_ns", arrival_ns), number = whole("epoch", epoch)
        cdef int outcome
        ring_check(self, sequence, stamp, 0, arrival, number, True)
        with nogil:
            outcome = ring_push(self, sequence, stamp, self.arena, 0, arrival, <int>number, False)
            if outcome == 0:
                atomic_add(&self.n.late, 1)
        return outcome

    def push_many(
        self, const int64_t[::1] sequence_numbers, const int64_t[::1] timestamps,
        const uint8_t[:, ::1] payloads, const int64_t[::1] arrivals_ns, epoch=0,
    ):
        """Take in a block of packets of one size, a row each; returns how many were accepted."""
        cdef Py_ssize_t count = payloads.shape[0], row
        cdef int64_t frames, number = whole("epoch", epoch)
        cdef Py_ssize_t accepted = 0
        if not count == sequence_numbers.shape[0] == timestamps.shape[0] == arrivals_ns.shape[0]:
            raise ValueError("sequence_numbers, timestamps, payloads and arrivals_ns have one length")
        for row in range(count):
            ring_check(
                self, sequence_numbers[row], timestamps[row], <size_t>payloads.shape[1],
                arrivals_ns[row], number, False,
            )
        frames = <int64_t>(<size_t>payloads.shape[1] / self.frame_bytes)
        with nogil:
            for row in range(count):
                accepted += ring_push(
                    self, sequence_numbers[row], timestamps[row], &payloads[row, 0], frames,
                    arrivals_ns[row], <int>number, False,
                ) == 0
        return accepted

    # -- consumer

    def pull_into(self, out, int64_t now_ns):
        """Fill ``out`` (float32, ``(frames, channels)``) with what is due from ``now_ns`` on.

        Returns how many of its frames came from packets; the others are zero. Never blocks and
        never allocates. ``now_ns`` is on the clock of the arrivals and does not step back.
        """
        cdef Py_buffer view
        cdef int64_t real, frames
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT)
        try:
            frames = ring_frames_of(self, &view)
            with nogil:
                real = ring_pull(self, <float*>view.buf, frames, now_ns)
        finally:
            PyBuffer_Release(&view)
        return real

    def pull_many_into(self, out, int64_t now_ns, int64_t[::1] cursors):
        """Pull ``out`` again and again, without a pause, ``len(cursors)`` times from ``now_ns`` on.

        Each time the timestamp after it is written to ``cursors``: for replaying a trace in fine
        steps.
        """
        cdef Py_buffer view
        cdef int64_t frames, number
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT)
        try:
            frames = ring_frames_of(self, &view)
            with nogil:
                for number in range(cursors.shape[0]):
                    ring_pull(self, <float*>view.buf, frames, now_ns + to_ns(number * frames, self.rate))
                    cursors[number] = self.cursor
        finally:
            PyBuffer_Release(&view)

    def schedule(self, int64_t now_ns):
        """Take in what arrived. Returns how much later (ns; negative: earlier) to play."""
        return ring_schedule(self, now_ns)

    def peek_into(self, out, int64_t ahead=0):
        """Copy from ``ahead`` frames after the cursor, without playing; how many are real at once."""
        cdef Py_buffer view
        cdef int64_t frames
        if not 0 <= ahead <= self.pcm.size - self.max_pull:
            raise ValueError(f"ahead is from 0 to {self.pcm.size - self.max_pull}, not {ahead}")
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT)
        try:
            frames = ring_frames_of(self, &view)
            pcm_read(&self.pcm, self.cursor + ahead, frames, <float*>view.buf)
            return pcm_run(&self.pcm, self.cursor + ahead, frames)
        finally:
            PyBuffer_Release(&view)

    def take_into(self, out, int64_t instead_of):
        """Play the frames of ``out`` in the time of ``instead_of`` frames; how many are real."""
        cdef Py_buffer view
        cdef int64_t frames, real
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT)
        try:
            frames = ring_frames_of(self, &view)
            if not self.started:
                raise ValueError("nothing has arrived yet: call schedule first")
            real = ring_take(self, <float*>view.buf, frames, instead_of)
        finally:
            PyBuffer_Release(&view)
        return real

    def position(self, int64_t timestamp):
        """Where a packet's timestamp lies on the timeline of ``cursor_timestamp``. Only for one
        thread that both pushes and pulls."""
        return timestamp + self.line.timestamp_shift

    def patch(self, int64_t timestamp, payload):
        """Put what a codec made up in place of a lost packet, counted as concealed. Only for one
        thread that both pushes and pulls. Returns how many of its frames are still to be played."""
        cdef Py_buffer view
        cdef int64_t frames, passed, at = timestamp + self.line.timestamp_shift
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            ring_check(self, 0, timestamp, <size_t>view.len, 0, 0, False)
            frames = <int64_t>(<size_t>view.len / self.frame_bytes)
            passed = max(self.cursor - at, 0)
            if not self.started or passed >= frames or at + frames - self.cursor > self.pcm.size:
                return 0
            frames -= passed
            pcm_write(
                &self.pcm, at + passed, frames,
                <const uint8_t*>view.buf + <size_t>passed * self.frame_bytes, self.int16, False,
            )
            atomic_store(&self.newest, max(self.newest, at + passed + frames))
        finally:
            PyBuffer_Release(&view)
        atomic_add(&self.n.concealed, frames)
        atomic_add(&self.n.played_frames, -frames)
        if at > self.patched:
            atomic_add(&self.n.events, 1)
        self.patched = at + passed + frames
        return frames

    def gap(self, int64_t frames, int64_t ahead=0):
        """How many frames are missing from ``ahead`` frames after the cursor on, at most ``frames``."""
        if not 0 <= ahead <= self.pcm.size - self.max_pull or not 0 <= frames <= self.max_pull:
            raise ValueError(f"frames is from 0 to {self.max_pull}, ahead not beyond the ring")
        return pcm_gap(&self.pcm, self.cursor + ahead, frames)

    def drop(self):
        """Drop what arrived and was not played; the timestamp of its first frame."""
        return ring_drop(self)

    def pass_over(self, int64_t frames):
        """Go forward over a gap at the cursor, at most ``frames``; how many it were."""
        if not 0 <= frames <= self.max_pull:
            raise ValueError(f"frames is from 0 to {self.max_pull}, not {frames}")
        return ring_pass_over(self, frames)

    def skip(self, int64_t frames):
        """Go forward at once; what lies between is dropped."""
        if frames < 0:
            raise ValueError(f"frames is 0 or more, not {frames}")
        ring_skip(self, frames)

    def hold(self, int64_t frames):
        """``frames`` were played that are not from packets, and the cursor stays: delay grows."""
        if not 0 <= frames <= self.max_pull:
            raise ValueError(f"frames is from 0 to {self.max_pull}, not {frames}")
        ring_hold(self, frames)

    def is_silence(self, int64_t ahead=0):
        """Whether a gap there is silence: nothing was played yet, or it was announced."""
        return ring_is_silence(self, ahead)

    # -- anybody, for display

    @property
    def playing(self):
        """Whether the first packet was taken in, and the playout point is set."""
        return atomic_load(&self.started) != 0

    @property
    def cursor_timestamp(self):
        """Timestamp of the next frame to be played, on the timeline that restarts do not break."""
        return atomic_load(&self.cursor)

    @property
    def flushes(self):
        """How often a new epoch made what is here void."""
        return atomic_load(&self.flushes)

    @property
    def buffered_frames(self):
        """From the cursor to the end of the newest packet that was taken in."""
        return ring_buffered(self)

    @property
    def target_ns(self):
        """What is added to a send time to have the moment of its playout."""
        return atomic_load(&self.target)

    @property
    def wanted_ns(self):
        """Delay above the fastest packets that the estimator asks for."""
        return atomic_load(&self.wanted)

    @property
    def known_drift_ppm(self):
        """The sender's clock against that of the arrivals, where somebody measured it (positive:
        the sender is fast), else NaN. May be set at any time, by any thread."""
        return -atomic_load_real(&self.known_slope) * 1e6

    @known_drift_ppm.setter
    def known_drift_ppm(self, double value):
        atomic_store_real(&self.known_slope, -value * 1e-6)

    @property
    def drift_ppm(self):
        """The same as the arrivals tell it; 0 while they tell nothing."""
        return -atomic_load_real(&self.slope) * 1e6

    @property
    def consumer_ns(self):
        """How much earlier than its nominal moment the consumer asks for a packet."""
        return <int64_t>atomic_load_real(&self.earliness)

    def counters(self):
        """(expected, received, duplicates, stale, rejected, overflows, restarts, late, played,
        played_frames, concealed, events, silent, raised, lowered, skipped, flushed)"""
        cdef const int64_t* value = <const int64_t*>&self.n
        return tuple([
            atomic_load(value + i) for i in range(<int>(sizeof(Counters) / sizeof(int64_t)))
        ])
