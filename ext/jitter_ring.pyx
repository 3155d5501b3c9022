# cython: auto_pickle=False, autotestdict=False
"""The jitter buffer's mechanism: packets in by sequence number, audio out by the clock.

**Two threads, no lock.** One producer calls ``push``, one consumer everything that pulls. A packet
is copied into slot ``sequence & mask`` and its bit set in a presence map; a set bit makes the slot
the consumer's, a cleared one the producer's. The consumer announces in ``reading`` which slot it
is about to claim, then claims it by fetch-and-clear. The producer of a packet for an occupied slot
claims it the same way (the old packet is dropped, never the whole buffer) and then looks at
``reading``: these two compare different locations, therefore they are sequentially consistent;
everything else is a release store read by an acquire load (the bit publishes the slot's content).
A tag in each slot holds the sequence number it was last used for, so that duplicates and stale
packets are found in O(1) and nothing is ever cleared.

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
from libc.math cimport fabs
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from echostream._ext.atomic cimport (
    atomic_add, atomic_load, atomic_load_bits, atomic_observe, atomic_publish, atomic_set,
    atomic_store, atomic_take, lowest_bit,
)
from echostream._ext.delay cimport (
    Control, Delay, control_step, control_watch, delay_relearn, delay_restart, delay_target,
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

cdef struct Counters:
    # written by the producer
    int64_t expected, received, duplicates, stale, rejected, overflows, restarts
    # written by the consumer
    int64_t late, played, played_frames, concealed, events, silent, raised, lowered, skipped
    int64_t flushed


@cython.final
cdef class JitterRing:
    """Slots, PCM ring, estimator and control of one stream. Policy is in ``media/jitter.py``.

    ``capacity`` and ``ring_frames`` are powers of two. ``raise_rate`` and ``lower_rate`` say how
    fast the playout point may move while audio is played (seconds per second), ``hold_ns`` how
    long it may wait on an empty buffer beyond its target.
    """

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

    def __cinit__(self):
        self.reading = -1
        self.frame_bytes = self.rate = self.channels = 1  # nothing divides by 0 without __init__

    def __init__(
        self, int64_t sample_rate, int64_t channels, bint int16, int64_t capacity,
        int64_t max_packet_frames, int64_t ring_frames, int sequence_bits, int timestamp_bits,
        double late, double start_ns, double minimum_ns, double maximum_ns, double raise_rate,
        double lower_rate, int64_t hold_ns, int64_t max_pull,
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
        self, int64_t sequence_number, int64_t timestamp, payload, int64_t arrival_ns,
        int epoch=0, bint silence=False,
    ):
        """Take in one packet; returns what became of it (ACCEPTED, DUPLICATE, STALE, ...).

        ``payload`` is C-contiguous, whole sample frames in the stream's format; it may be empty
        only with ``silence``, which says that nothing follows it for a while (DTX).
        """
        cdef Py_buffer view
        cdef int outcome
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self._check(sequence_number, timestamp, <size_t>view.len, epoch, silence)
            with nogil:
                outcome = self._push(
                    sequence_number, timestamp, <const uint8_t*>view.buf,
                    <int64_t>(<size_t>view.len / self.frame_bytes), arrival_ns, epoch, silence,
                )
        finally:
            PyBuffer_Release(&view)
        return outcome

    def push_late(
        self, int64_t sequence_number, int64_t timestamp, int64_t arrival_ns, int epoch=0
    ):
        """A packet whose audio nobody wants any more, for a caller that decodes it himself: it is
        counted as late, and learned from. Returns what became of it."""
        cdef int outcome
        self._check(sequence_number, timestamp, 0, epoch, True)
        with nogil:
            outcome = self._push(
                sequence_number, timestamp, self.arena, 0, arrival_ns, epoch, False
            )
            if outcome == 0:
                atomic_add(&self.n.late, 1)
        return outcome

    def push_many(
        self, const int64_t[::1] sequence_numbers, const int64_t[::1] timestamps,
        const uint8_t[:, ::1] payloads, const int64_t[::1] arrivals_ns, int epoch=0,
    ):
        """Take in a block of packets of one size, a row each; returns how many were accepted."""
        cdef Py_ssize_t count = payloads.shape[0], row
        cdef int64_t frames
        cdef Py_ssize_t accepted = 0
        if not count == sequence_numbers.shape[0] == timestamps.shape[0] == arrivals_ns.shape[0]:
            raise ValueError("sequence_numbers, timestamps, payloads and arrivals_ns have one length")
        for row in range(count):
            self._check(
                sequence_numbers[row], timestamps[row], <size_t>payloads.shape[1], epoch, False
            )
        frames = <int64_t>(<size_t>payloads.shape[1] / self.frame_bytes)
        with nogil:
            for row in range(count):
                accepted += self._push(
                    sequence_numbers[row], timestamps[row], &payloads[row, 0], frames,
                    arrivals_ns[row], epoch, False,
                ) == 0
        return accepted

    cdef inline int _check(
        self, int64_t sequence_number, int64_t timestamp, size_t length, int epoch, bint silence
    ) except -1:
        if self.arena == NULL:
            raise ValueError("JitterRing.__init__ was not called")
        if length % self.frame_bytes or length > self.slot_bytes or not (length or silence):
            raise ValueError(
                f"a payload is 1 to {self.max_frames} sample frames of {self.frame_bytes} bytes, "
                f"not {length} bytes; set max_packet_ms for longer packets"
            )
        if sequence_number < 0 or sequence_number >> self.line.sequence_bits:
            raise ValueError(f"sequence_number {sequence_number} needs more bits than agreed")
        if timestamp < 0 or (
            self.line.timestamp_bits < 63 and timestamp >> self.line.timestamp_bits
        ):
            raise ValueError(f"timestamp {timestamp} is negative or needs more bits than agreed")
        if not 0 <= epoch < 65536:
            raise ValueError(f"epoch is from 0 to 65535, not {epoch}")
        return 0

    cdef int _push(
        self, int64_t sequence, int64_t timestamp, const uint8_t* data, int64_t frames,
        int64_t arrival, int epoch, bint silence,
    ) noexcept nogil:
        cdef int64_t raw, at, number, slot, send, deadline, stamp
        cdef uint64_t bit
        cdef bint far
        cdef Timeline* line = &self.line
        if self.delay.packets == 0:
            self.epoch = epoch
            timeline_begin(line, sequence, timestamp)
        elif epoch != self.epoch:
            if ((epoch - self.epoch) & 0xFFFF) >= 0x8000:
                atomic_add(&self.n.stale, 1)
                return 2
            self.epoch = epoch
            atomic_add(&self.n.restarts, 1)
            timeline_renumber(line, &self.delay, sequence, timestamp, arrival)
            atomic_store(&self.flushes, self.flushes + 1)
        raw = unwrap(sequence, line.raw_sequence, line.sequence_bits)
        stamp = unwrap(timestamp, line.raw_timestamp, line.timestamp_bits)
        far = (
            raw - line.raw_sequence >= self.capacity or line.raw_sequence - raw >= self.capacity
            or not timeline_near(line, stamp)
        )
        if far or (
            self.delay.packets
            and timeline_transit(line, &self.delay, stamp, arrival) > self.max_delay_ns
        ):
            if timeline_run_agrees(line, sequence, timestamp, arrival):
                atomic_add(&self.n.restarts, 1)
                timeline_renumber(line, &self.delay, sequence, timestamp, arrival)
                if not far:
                    delay_relearn(&self.delay)
                raw = line.raw_sequence
                stamp = line.raw_timestamp
            elif far:
                atomic_add(&self.n.rejected, 1)
                return 3
        else:
            line.run = 0
        number = raw + line.sequence_shift
        at = stamp + line.timestamp_shift
        slot = number & (self.capacity - 1)
        if self.tags[slot] >= number:
            if self.tags[slot] == number:
                atomic_add(&self.n.duplicates, 1)
                return 1
            atomic_add(&self.n.stale, 1)
            return 2
        bit = <uint64_t>1 << (slot & 63)
        if atomic_load_bits(&self.presence[slot >> 6]) & bit:
            if atomic_take(&self.presence[slot >> 6], bit):
                atomic_add(&self.n.overflows, 1)
        if atomic_observe(&self.reading) == slot:
            atomic_add(&self.n.overflows, 1)
            return 4
        self.tags[slot] = number
        if number > line.highest:
            line.highest = number
            line.raw_sequence = raw
            line.raw_timestamp = stamp
        line.first = min(line.first, number)
        atomic_store(&self.n.expected, line.expected_before + line.highest - line.first + 1)
        atomic_add(&self.n.received, 1)
        memcpy(self.arena + <size_t>slot * self.slot_bytes, data, <size_t>frames * self.frame_bytes)
        self.slot_at[slot] = at
        self.slot_frames[slot] = frames
        self.slot_silence[slot] = silence
        self.slot_flush[slot] = self.flushes
        send = to_ns(at, self.rate)
        deadline = atomic_load(&self.deadline)
        delay_update(
            &self.delay, send, arrival, deadline != INT64_MAX and arrival - send > deadline
        )
        atomic_store(&self.wanted, delay_wanted(&self.delay))
        atomic_store(&self.target, delay_target(&self.delay, send))
        if at < self.earliest:
            atomic_store(&self.earliest, at)
        atomic_store(&self.ready, 1)
        atomic_set(&self.presence[slot >> 6], bit)
        return 0

    # -- consumer

    cdef void _flush(self, int64_t number) noexcept nogil:
        cdef int64_t frames = min(max(self.newest - self.cursor, 0), self.pcm.size)
        atomic_add(&self.n.flushed, frames)
        pcm_clear(&self.pcm, self.cursor, self.pcm.size)
        self.newest = self.cursor
        self.silence_from = self.cursor
        self.flushes_seen = number

    cdef void _place(self, int64_t slot) noexcept nogil:
        cdef int64_t at = self.slot_at[slot], frames = self.slot_frames[slot], end = at + frames
        cdef int64_t passed, jump
        if self.slot_flush[slot] != self.flushes_seen:
            if self.slot_flush[slot] < self.flushes_seen:
                atomic_add(&self.n.flushed, frames)
                return
            self._flush(self.slot_flush[slot])
        if self.slot_silence[slot]:
            self.silence_from = end
        passed = self.cursor - at
        if passed > 0:
            if frames:
                atomic_add(&self.n.late, 1)
            if passed >= frames:
                return
        else:
            passed = 0
        if end - self.cursor > self.pcm.size:  # further ahead than anything may wait
            jump = end - self.cursor - to_frames(self.max_delay_ns, self.rate)
            self._skip(jump)
            passed = max(self.cursor - at, 0)
        pcm_write(
            &self.pcm, at + passed, frames - passed,
            self.arena + <size_t>slot * self.slot_bytes + <size_t>passed * self.frame_bytes,
            self.int16, passed == 0,
        )
        self.newest = max(self.newest, end)

    cdef void _skip(self, int64_t frames) noexcept nogil:
        """Go forward at once: what lies between is dropped."""
        cdef int64_t real = min(max(self.newest - self.cursor, 0), frames)
        pcm_clear(&self.pcm, self.cursor, min(frames, self.pcm.size))
        atomic_add(&self.n.skipped, real)
        self.cursor += frames
        self.newest = max(self.newest, self.cursor)
        self.reference -= <double>to_ns(frames, self.rate)

    cdef bint _ingest(self) noexcept nogil:
        cdef int64_t word
        cdef uint64_t bits
        cdef int index
        cdef bint any = False
        cdef int64_t flushes = atomic_load(&self.flushes)
        if flushes != self.flushes_seen:
            self._flush(flushes)
        for word in range(self.capacity >> 6):
            bits = atomic_load_bits(&self.presence[word])
            while bits:
                index = lowest_bit(bits)
                bits &= bits - 1
                atomic_publish(&self.reading, (word << 6) + index)
                if atomic_take(&self.presence[word], <uint64_t>1 << index):
                    self._place((word << 6) + index)
                any = True
        if any:
            atomic_store(&self.reading, -1)
        return any

    cdef int64_t _schedule(self, int64_t now) noexcept nogil:
        """Take in what arrived; how far (ns) the playout point is before its target."""
        cdef double offset
        if not self.started:
            if not atomic_load(&self.ready):
                return 0
            self.started = True
            self.cursor = min(
                to_frames(now - atomic_load(&self.target), self.rate), atomic_load(&self.earliest)
            )
            self.newest = self.cursor
            self.reference = <double>(now - to_ns(self.cursor, self.rate))
        self._ingest()
        offset = <double>(now - to_ns(self.cursor, self.rate))
        self.deviation = offset - self.reference
        if fabs(self.deviation) > SECOND / 2:  # the consumer paused
            self.reference = offset
            self.deviation = 0.0
        self.reference += self.deviation / 32.0
        atomic_store(&self.deadline, <int64_t>(self.reference - self.earliness))
        return <int64_t>(atomic_load(&self.target) + self.earliness - self.reference)

    cdef int64_t _take(self, float* out, int64_t frames) noexcept nogil:
        """Play ``frames`` (at most the PCM ring's size) from the cursor on; how many are real."""
        cdef int64_t done = 0, run, real = 0, start, where
        cdef double early
        start = pcm_next_packet(&self.pcm, self.cursor, frames)
        while start < frames:
            atomic_add(&self.n.played, 1)
            early = <double>to_ns(start, self.rate) - self.deviation
            if early > self.earliness:
                self.earliness = early
            else:
                self.earliness += (early - self.earliness) / 512.0
            start += 1
            start += pcm_next_packet(&self.pcm, self.cursor + start, frames - start)
        pcm_read(&self.pcm, self.cursor, frames, out)
        while done < frames:
            run = pcm_run(&self.pcm, self.cursor + done, frames - done)
            if run:
                real += run
                self.concealing = False
                self.heard = True
                self.held = 0
                if self.cursor + done + run > self.silence_from:
                    self.silence_from = INT64_MAX
                done += run
            else:
                run = pcm_gap(&self.pcm, self.cursor + done, frames - done)
                self._missing(self.cursor + done, run)
                done += run
        pcm_clear(&self.pcm, self.cursor, frames)
        atomic_add(&self.n.played_frames, real)
        self.cursor += frames
        return real

    cdef void _missing(self, int64_t at, int64_t frames) noexcept nogil:
        if not self.heard or at >= self.silence_from:
            atomic_add(&self.n.silent, frames)
            return
        atomic_add(&self.n.concealed, frames)
        if not self.concealing:
            self.concealing = True
            atomic_add(&self.n.events, 1)

    cdef void _hold(self, int64_t frames) noexcept nogil:
        """Let the clock go on and the cursor not: the delay grows."""
        self._missing(self.cursor, frames)
        self.reference += <double>to_ns(frames, self.rate)

    cdef int64_t _pull(self, float* out, int64_t frames, int64_t now) noexcept nogil:
        cdef int64_t error = self._schedule(now), held = 0, rest, take, tail, gap, real
        cdef double grain = <double>SECOND / self.rate, span = <double>to_ns(frames, self.rate), move
        cdef int64_t wanted = atomic_load(&self.wanted)
        if not self.started:
            memset(out, 0, <size_t>(frames * self.channels) * sizeof(float))
            atomic_add(&self.n.silent, frames)
            return 0
        if -error > max(SECOND, 4 * wanted):
            self._skip(to_frames(-error, self.rate))
            error = 0
        move = 0.0
        control_watch(&self.control, <double>error, span, <double>wanted)
        if self.pcm.marks[self.cursor & self.pcm.mask]:
            move = control_step(&self.control, <double>error, span, grain)
        elif error > BAND:
            held = min(frames, to_frames(error, self.rate))
        elif error < -BAND and self.newest > self.cursor and (
            self.control.falling or self.held or error < -FAR
        ):
            gap = pcm_gap(&self.pcm, self.cursor, min(to_frames(-error, self.rate), self.pcm.size))
            self.cursor += gap
            self.newest = max(self.newest, self.cursor)
            self.reference -= <double>to_ns(gap, self.rate)
        if held:
            self._hold(held)
            memset(out, 0, <size_t>(held * self.channels) * sizeof(float))
            out += held * self.channels
        rest = frames - held
        tail = rest - (self.newest - self.cursor)
        if tail > 0 and self.held < self.hold_ns and self.heard and self.silence_from == INT64_MAX:
            # Nothing newer stands behind: wait where the audio ends instead of passing it.
            tail = min(tail, rest)
            real = self._take(out, rest - tail)
            self._hold(tail)
            self.held += to_ns(tail, self.rate)
            memset(out + (rest - tail) * self.channels, 0, <size_t>(tail * self.channels) * 4)
            return real
        take = rest - <int64_t>(move / grain + (0.5 if move > 0.0 else -0.5))
        if take == rest:
            return self._take(out, rest)
        real = self._take(self.scratch, take)
        pcm_read(&self.pcm, self.cursor, 1, self.scratch + take * self.channels)
        pcm_stretch(self.scratch, take, out, rest, self.channels)
        self.reference += move
        if move > 0.0:
            atomic_add(&self.n.raised, rest - take)
        else:
            atomic_add(&self.n.lowered, take - rest)
        return min(real, rest) if real < take else rest

    cdef int64_t _frames_of(self, Py_buffer* view) except -1:
        cdef int64_t width = view.itemsize * self.channels
        if view.format == NULL or view.format[0] != b"f" or view.len % width:
            raise ValueError(f"out is a C-contiguous float32 array of frames of {self.channels}")
        if view.len // width > self.max_pull:
            raise ValueError(f"one pull is at most {self.max_pull} frames, not {view.len // width}")
        return view.len // width

    def pull_into(self, out, int64_t now_ns):
        """Fill ``out`` (float32, ``(frames, channels)``) with what is due from ``now_ns`` on.

        Returns how many of its frames came from packets; the others are zero. Never blocks and
        never allocates. ``now_ns`` is on the clock of the arrivals and does not step back.
        """
        cdef Py_buffer view
        cdef int64_t real, frames
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT)
        try:
            frames = self._frames_of(&view)
            with nogil:
                real = self._pull(<float*>view.buf, frames, now_ns)
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
            frames = self._frames_of(&view)
            with nogil:
                for number in range(cursors.shape[0]):
                    self._pull(<float*>view.buf, frames, now_ns + to_ns(number * frames, self.rate))
                    cursors[number] = self.cursor
        finally:
            PyBuffer_Release(&view)

    def schedule(self, int64_t now_ns):
        """Take in what arrived. Returns how much later (ns; negative: earlier) to play."""
        return self._schedule(now_ns)

    def peek_into(self, out, int64_t ahead=0):
        """Copy from ``ahead`` frames after the cursor, without playing; how many are real at once."""
        cdef Py_buffer view
        cdef int64_t frames
        if not 0 <= ahead <= self.pcm.size - self.max_pull:
            raise ValueError(f"ahead is from 0 to {self.pcm.size - self.max_pull}, not {ahead}")
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE | PyBUF_FORMAT)
        try:
            frames = self._frames_of(&view)
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
            frames = self._frames_of(&view)
            if not self.started:
                raise ValueError("nothing has arrived yet: call schedule first")
            real = self._take(<float*>view.buf, frames)
        finally:
            PyBuffer_Release(&view)
        self.reference += <double>to_ns(instead_of - frames, self.rate)
        atomic_add(&self.n.raised, max(instead_of - frames, 0))
        atomic_add(&self.n.lowered, max(frames - instead_of, 0))
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
            self._check(0, timestamp, <size_t>view.len, 0, False)
            frames = <int64_t>(<size_t>view.len / self.frame_bytes)
            passed = max(self.cursor - at, 0)
            if not self.started or passed >= frames or at + frames - self.cursor > self.pcm.size:
                return 0
            frames -= passed
            pcm_write(
                &self.pcm, at + passed, frames,
                <const uint8_t*>view.buf + <size_t>passed * self.frame_bytes, self.int16, False,
            )
            self.newest = max(self.newest, at + passed + frames)
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
        self._ingest()
        self._flush(self.flushes_seen)
        if self.started:
            return self.cursor
        return atomic_load(&self.earliest) if atomic_load(&self.ready) else 0

    def pass_over(self, int64_t frames):
        """Go forward over a gap at the cursor, at most ``frames``; how many it were."""
        cdef int64_t gap
        if not 0 <= frames <= self.max_pull:
            raise ValueError(f"frames is from 0 to {self.max_pull}, not {frames}")
        gap = pcm_gap(&self.pcm, self.cursor, frames)
        self.cursor += gap
        self.newest = max(self.newest, self.cursor)
        self.reference -= <double>to_ns(gap, self.rate)
        return gap

    def skip(self, int64_t frames):
        """Go forward at once; what lies between is dropped."""
        if frames < 0:
            raise ValueError(f"frames is 0 or more, not {frames}")
        self._skip(frames)

    def hold(self, int64_t frames):
        """``frames`` were played that are not from packets, and the cursor stays: delay grows."""
        if not 0 <= frames <= self.max_pull:
            raise ValueError(f"frames is from 0 to {self.max_pull}, not {frames}")
        self._hold(frames)

    # -- either side, for display

    @property
    def playing(self):
        """Whether the first packet was taken in, and the playout point is set."""
        return self.started

    @property
    def cursor_timestamp(self):
        """Timestamp of the next frame to be played, on the timeline that restarts do not break."""
        return self.cursor

    @property
    def flushes(self):
        """How often a new epoch made what is here void."""
        return atomic_load(&self.flushes)

    def is_silence(self, int64_t ahead=0):
        """Whether a gap there is silence: nothing was played yet, or it was announced."""
        return not self.heard or self.cursor + ahead >= self.silence_from

    @property
    def buffered_frames(self):
        """From the cursor to the end of the newest packet that was taken in."""
        return max(self.newest - self.cursor, 0) if self.started else 0

    @property
    def target_ns(self):
        """What is added to a send time to have the moment of its playout."""
        return atomic_load(&self.target)

    @property
    def wanted_ns(self):
        """Delay above the fastest packets that the estimator asks for."""
        return atomic_load(&self.wanted)

    @property
    def consumer_ns(self):
        """How much earlier than its nominal moment the consumer asks for a packet."""
        return <int64_t>self.earliness

    def counters(self):
        """(expected, received, duplicates, stale, rejected, overflows, restarts, late, played,
        played_frames, concealed, events, silent, raised, lowered, skipped, flushed)"""
        cdef const int64_t* value = <const int64_t*>&self.n
        return tuple([
            atomic_load(value + i) for i in range(<int>(sizeof(Counters) / sizeof(int64_t)))
        ])
