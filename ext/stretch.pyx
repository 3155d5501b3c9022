"""Take pitch periods out of a block of audio, or put them in (WSOLA)."""

cimport cython
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from echostream._ext.signal cimport (
    MAX_CHANNELS, best_lag, correlation, cross_fade, decimation, find_lag, mono_reference,
)


@cython.final
cdef class Wsola:
    """Stretches blocks of ``channels`` at ``rate`` Hz; where the mean power is below ``silence``
    any cut will do. Lags are 2.5 to 15 ms, a block needs 30 ms."""

    def __cinit__(self, Py_ssize_t rate, Py_ssize_t channels, double silence):
        if not 8000 <= rate <= 192000:
            raise ValueError("rate must be 8000 to 192000 Hz")
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {MAX_CHANNELS}")
        self._channels = channels
        self._shortest = rate // 400
        self._longest = rate * 15 // 1000
        self._step = decimation(rate)
        self._silence = silence
        self._mono = <float*>malloc(4 * self._longest * sizeof(float))
        if self._mono == NULL:
            raise MemoryError()
        self._low = self._mono + 2 * self._longest

    def __dealloc__(self):
        free(self._mono)

    def process(
        self, const float[:, ::1] block not None, float[:, ::1] out not None,
        bint insert, float threshold, bint several,
    ):
        """``block`` with frames inserted or removed, in ``out``; ``(frames changed, correlation)``.

        Nothing is changed where the two sides of the seam correlate less than ``threshold``,
        the block is shorter than 30 ms, or not finite. ``several``: as many periods as fit 15 ms.
        """
        cdef Py_ssize_t frames = block.shape[0], changed
        cdef float found = 0.0
        if block.shape[1] != self._channels or out.shape[1] != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        if out.shape[0] < frames + (self._longest if insert else 0):
            raise ValueError("out is too short for the result")
        if frames == 0:
            return 0, 0.0
        with nogil:
            changed = self._seam(&block[0, 0], frames, threshold, several, &found)
            self._cut(&block[0, 0], frames, &out[0, 0], -changed if insert else changed)
        return changed, found

    cdef Py_ssize_t _seam(
        self, const float* block, Py_ssize_t frames, float threshold, bint several, float* found
    ) noexcept nogil:
        """How many frames can go or come around the seam, 15 ms into the block."""
        cdef Py_ssize_t longest = self._longest, lag, multiple
        cdef const float* seam = self._mono + longest
        cdef float other
        cdef double power
        if frames < 2 * longest:
            return 0
        power = mono_reference(block, self._channels, 1, 2 * longest, self._channels, self._mono)
        if power < self._silence:
            found[0] = correlation(seam, seam - longest, longest)
            return longest
        if not power < 1e20:
            return 0
        lag = find_lag(seam, longest, self._shortest, longest, self._step, self._low, found)
        if several and 2 * lag <= longest:
            # The longest lag is between two multiples of the period: the lower one is in reach.
            multiple = best_lag(seam, longest - lag, longest, lag, &other)
            if other >= threshold:
                found[0] = other
                lag = multiple
        return lag if found[0] >= threshold else 0

    cdef void _cut(
        self, const float* block, Py_ssize_t frames, float* out, Py_ssize_t removed
    ) noexcept nogil:
        """Copy with ``removed`` frames less, or more where it is negative."""
        cdef Py_ssize_t channels = self._channels, fade = removed if removed >= 0 else -removed
        cdef Py_ssize_t old, new
        if removed == 0:
            memcpy(out, block, frames * channels * sizeof(float))
            return
        old = self._longest - (removed if removed > 0 else 0)
        new = old + removed
        memcpy(out, block, old * channels * sizeof(float))
        out += old * channels
        cross_fade(block + old * channels, block + new * channels, out, fade, channels)
        new += fade
        memcpy(
            out + fade * channels, block + new * channels,
            (frames - new) * channels * sizeof(float),
        )
