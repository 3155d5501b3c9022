"""Fractional resampling with a polyphase windowed sinc.

The position in the input is an integer plus a fraction in units of 2**-40 sample, so that it
is exact however a stream is cut into blocks and however long it runs. The filter for a
position between two table rows is interpolated linearly.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from echostream._ext.vector cimport es_filter, es_filter_two

cdef enum:
    FRACTION_BITS = 40
    BLOCK = 1024            # input frames held beyond the filter's length

cdef int64_t ONE = <int64_t>1 << FRACTION_BITS


@cython.final
cdef class Polyphase:
    """One stream through the filter of ``table``, ``channels`` wide.

    ``table``: float32 ``(phases, 2, taps)``; per phase the coefficients and their difference to the
    next phase. ``phases`` is a power of two, ``taps`` a multiple of 8. ``step``: input frames per output
    frame, in units of 2**-40; at most 64 frames.

    Output frame k stands at input frame k * step; the filter looks ``taps / 2`` input frames ahead.
    """

    def __cinit__(self, const float[:, :, ::1] table not None, Py_ssize_t channels, int64_t step):
        cdef Py_ssize_t phases = table.shape[0]
        if table.shape[1] != 2 or table.shape[2] < 8 or table.shape[2] % 8:
            raise ValueError("table must have the shape (phases, 2, taps), taps a multiple of 8")
        if phases < 2 or phases & (phases - 1) or phases > 1 << 20:
            raise ValueError("the number of phases must be a power of two")
        if channels < 1:
            raise ValueError("channels must be positive")
        self._table = table
        self._rows = &table[0, 0, 0]
        self._channels = channels
        self._n_taps = table.shape[2]
        self._capacity = self._n_taps + BLOCK
        self._shift = FRACTION_BITS
        while phases > 1:
            phases >>= 1
            self._shift -= 1
        self._held = <float*>calloc(channels * self._capacity, sizeof(float))
        if self._held == NULL:
            raise MemoryError()
        self.step = step
        self.reset()

    def __dealloc__(self):
        free(self._held)

    @property
    def step(self) -> int:
        """Input frames per output frame, in units of 2**-40. Takes effect with the next output."""
        return self._step

    @step.setter
    def step(self, int64_t value):
        if not 0 < value <= ONE * 64:
            raise ValueError("step must be above 0 and at most 64 frames")
        self._step = value

    @property
    def pending(self) -> float:
        """Input frames taken in and not yet passed by the output; below 0 right after reset."""
        return self._pending_frames()

    def reset(self) -> None:
        """Forget the past: the next input frame is frame 0, silence stands before it."""
        self._reset()

    def needed(self, Py_ssize_t frames) -> int:
        """Input frames that the next ``frames`` output frames still ask for."""
        return self._needed(frames)

    def process(self, const float[:, ::1] source not None, float[:, ::1] out not None):
        """Fill ``out`` from ``source``; both ``(frames, channels)``.

        Returns ``(consumed, produced)``. Takes in no more than ``out`` asks for; what was not
        consumed is given again with the next call.
        """
        cdef Py_ssize_t consumed = 0, produced
        if source.shape[1] != self._channels or out.shape[1] != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        with nogil:
            produced = self._process(
                &source[0, 0] if source.shape[0] else NULL, source.shape[0],
                &out[0, 0] if out.shape[0] else NULL, out.shape[0], &consumed,
            )
        return consumed, produced

    cdef void _reset(self) noexcept nogil:
        cdef Py_ssize_t i
        self._filled = self._n_taps // 2 - 1
        self._base = 0
        self._fraction = 0
        for i in range(self._channels * self._capacity):
            self._held[i] = 0.0

    cdef double _pending_frames(self) noexcept nogil:
        cdef Py_ssize_t whole = self._filled - self._base - (self._n_taps // 2 - 1)
        return whole - <double>self._fraction / <double>ONE

    cdef Py_ssize_t _needed(self, Py_ssize_t frames) noexcept nogil:
        # In two parts: fraction + step * (frames - 1) itself may pass 63 bits.
        cdef int64_t whole = (self._step >> FRACTION_BITS) * (frames - 1)
        cdef int64_t part = self._step & (ONE - 1)
        cdef int64_t high = (part >> 20) * (frames - 1)
        cdef int64_t low = (part & 0xFFFFF) * (frames - 1) + self._fraction
        cdef int64_t last = whole + ((high + (low >> 20)) >> 20)
        cdef Py_ssize_t short = self._base + <Py_ssize_t>last + self._n_taps - self._filled
        return short if short > 0 and frames > 0 else 0

    cdef Py_ssize_t _process(
        self, const float* source, Py_ssize_t n_in, float* out, Py_ssize_t n_out,
        Py_ssize_t* consumed,
    ) noexcept nogil:
        cdef Py_ssize_t produced = 0, take, channel, i
        cdef Py_ssize_t channels = self._channels
        cdef float* held
        while True:
            produced += self._produce(out + produced * channels, n_out - produced)
            if produced == n_out:
                return produced
            self._discard()
            take = min(self._needed(n_out - produced), n_in - consumed[0])
            take = min(take, self._capacity - self._filled)
            if take <= 0:
                return produced
            for channel in range(channels):
                held = self._held + channel * self._capacity + self._filled
                for i in range(take):
                    held[i] = source[i * channels + channel]
            source += take * channels
            self._filled += take
            consumed[0] += take

    cdef Py_ssize_t _produce(self, float* out, Py_ssize_t frames) noexcept nogil:
        """Write frames until ``frames`` are done or a window reaches beyond what is held."""
        cdef Py_ssize_t n_taps = self._n_taps, channels = self._channels, base = self._base
        cdef Py_ssize_t produced = 0, channel, filled = self._filled, capacity = self._capacity
        cdef int shift = self._shift
        cdef int64_t fraction = self._fraction, step = self._step
        cdef int64_t mask = (<int64_t>1 << shift) - 1
        cdef const float* row
        cdef const float* held
        cdef float between, scale = 1.0 / <float>(<int64_t>1 << shift)
        while produced < frames and base + n_taps <= filled:
            row = self._rows + (fraction >> shift) * 2 * n_taps
            between = <float>(fraction & mask) * scale
            held = self._held + base
            channel = 0
            while channel + 2 <= channels:
                es_filter_two(
                    row, row + n_taps, between, held, held + capacity, n_taps, out + channel
                )
                held += 2 * capacity
                channel += 2
            if channel < channels:
                out[channel] = es_filter(row, row + n_taps, between, held, n_taps)
            out += channels
            produced += 1
            fraction += step
            base += <Py_ssize_t>(fraction >> FRACTION_BITS)
            fraction &= ONE - 1
        self._base = base
        self._fraction = fraction
        return produced

    cdef void _discard(self) noexcept nogil:
        """Move what the next window still sees to the front."""
        cdef Py_ssize_t gone = min(self._base, self._filled), channel
        cdef float* held
        for channel in range(self._channels):
            held = self._held + channel * self._capacity
            memmove(held, held + gone, (self._filled - gone) * sizeof(float))
        self._filled -= gone
        self._base -= gone
