"""Sample time and sample values: unwrap, map, mix, convert, interleave, ramp, measure.

Arrays are ``(frames, channels)`` and C-contiguous; the caller gives the output. Nothing here allocates.
The contracts stand in ``echostream/media/samples.py``, which is the door.
"""

cimport cython
from libc.math cimport fabsf, sqrt
from libc.stdint cimport int16_t, int64_t

from echostream._ext.vector cimport es_to_float, es_to_int16

cdef int64_t SECOND = 1_000_000_000
cdef int64_t MAX_SECONDS = 9_223_372_035    # whole seconds that fit an int64 of nanoseconds


@cython.final
cdef class Unwrapper:
    cdef int64_t _half, _mask, _last
    cdef bint _started

    def __cinit__(self, int bits):
        if not 2 <= bits <= 62:
            raise ValueError("bits must be 2 to 62")
        self._half = <int64_t>1 << (bits - 1)
        self._mask = 2 * self._half - 1

    def unwrap(self, int64_t value) -> int:
        value &= self._mask
        if not self._started:
            self._started = True
            self._last = value
        else:
            # Sign-extend the difference (RFC 1982, section 3.2; half way counts as backward).
            self._last += (((value - self._last) & self._mask) ^ self._half) - self._half
        return self._last

    def reset(self) -> None:
        self._started = False
        self._last = 0


def samples_to_ns(int64_t samples, int64_t rate) -> int:
    cdef int64_t seconds, rest
    if not 0 < rate < SECOND:
        raise ValueError("rate must be above 0 and below 1 GHz")
    seconds = samples // rate - (samples % rate < 0)
    rest = samples - seconds * rate
    if not -MAX_SECONDS <= seconds <= MAX_SECONDS:
        raise OverflowError("the time does not fit 64 bits of nanoseconds")
    return seconds * SECOND + (2 * rest * SECOND + rate) // (2 * rate)


def ns_to_samples(int64_t ns, int64_t rate) -> int:
    cdef int64_t seconds, rest
    if not 0 < rate < SECOND:
        raise ValueError("rate must be above 0 and below 1 GHz")
    seconds = ns // SECOND - (ns % SECOND < 0)
    rest = ns - seconds * SECOND
    return seconds * rate + (2 * rest * rate + SECOND) // (2 * SECOND)


def int16_to_float32(const int16_t[:, ::1] source not None, float[:, ::1] out not None) -> None:
    cdef Py_ssize_t n = source.shape[0] * source.shape[1]
    _same_shape(source.shape[0], source.shape[1], out.shape[0], out.shape[1])
    if n:
        with nogil:
            es_to_float(&source[0, 0], &out[0, 0], n)


def float32_to_int16(const float[:, ::1] source not None, int16_t[:, ::1] out not None) -> None:
    cdef Py_ssize_t n = source.shape[0] * source.shape[1]
    _same_shape(source.shape[0], source.shape[1], out.shape[0], out.shape[1])
    if n:
        with nogil:
            es_to_int16(&source[0, 0], &out[0, 0], n)


def interleave(const float[:, ::1] planar not None, float[:, ::1] out not None) -> None:
    cdef Py_ssize_t channels = planar.shape[0], frames = planar.shape[1], i, channel
    _same_shape(frames, channels, out.shape[0], out.shape[1])
    with nogil:
        for channel in range(channels):
            for i in range(frames):
                out[i, channel] = planar[channel, i]


def deinterleave(const float[:, ::1] source not None, float[:, ::1] planar not None) -> None:
    cdef Py_ssize_t channels = source.shape[1], frames = source.shape[0], i, channel
    _same_shape(frames, channels, planar.shape[1], planar.shape[0])
    with nogil:
        for channel in range(channels):
            for i in range(frames):
                planar[channel, i] = source[i, channel]


def mix_into(
    float[:, ::1] out not None, const float[:, ::1] source not None, Py_ssize_t offset, float gain
) -> int:
    cdef Py_ssize_t channels = out.shape[1], first, last, i, n
    cdef const float* x
    cdef float* y
    if source.shape[1] != channels:
        raise ValueError(f"source must have the shape (frames, {channels})")
    first = max(offset, 0)
    last = min(out.shape[0], source.shape[0] + min(offset, out.shape[0]))
    if last <= first or channels == 0:
        return 0
    x = &source[first - offset, 0]
    y = &out[first, 0]
    n = (last - first) * channels
    with nogil:
        for i in range(n):
            y[i] += gain * x[i]
    return last - first


def clip(float[:, ::1] samples not None) -> None:
    cdef Py_ssize_t i, n = samples.shape[0] * samples.shape[1]
    cdef float* x
    cdef float value
    if n == 0:
        return
    x = &samples[0, 0]
    with nogil:
        for i in range(n):
            value = x[i]
            value = value if value == value else <float>0.0
            value = value if value < <float>1.0 else <float>1.0
            x[i] = value if value > <float>-1.0 else <float>-1.0


def gain_ramp(float[:, ::1] samples not None, float start, float stop) -> None:
    cdef Py_ssize_t frames = samples.shape[0], channels = samples.shape[1], i, channel
    cdef float step, gain
    if frames == 0 or channels == 0:
        return
    step = (stop - start) / <float>frames
    with nogil:
        for i in range(frames):
            gain = start + step * <float>i
            for channel in range(channels):
                samples[i, channel] *= gain


def level(const float[:, ::1] samples not None) -> tuple[float, float]:
    cdef Py_ssize_t n = samples.shape[0] * samples.shape[1], i = 0, j
    cdef const float* x
    cdef float peak[4]
    cdef double power[4]
    cdef float value
    if n == 0:
        return 0.0, 0.0
    x = &samples[0, 0]
    with nogil:
        for j in range(4):
            peak[j] = 0.0
            power[j] = 0.0
        while i + 4 <= n:
            for j in range(4):
                value = fabsf(x[i + j])
                peak[j] = value if value > peak[j] else peak[j]
                power[j] += <double>value * <double>value
            i += 4
        while i < n:
            value = fabsf(x[i])
            peak[0] = value if value > peak[0] else peak[0]
            power[0] += <double>value * <double>value
            i += 1
        for j in range(1, 4):
            peak[0] = peak[j] if peak[j] > peak[0] else peak[0]
            power[0] += power[j]
        power[0] = sqrt(power[0] / <double>n)
    return peak[0], power[0]


cdef int _same_shape(
    Py_ssize_t frames, Py_ssize_t channels, Py_ssize_t out_frames, Py_ssize_t out_channels
) except -1:
    if frames != out_frames or channels != out_channels:
        raise ValueError(
            f"out holds {out_frames} frames of {out_channels} channels, "
            f"the source {frames} of {channels}"
        )
    return 0
