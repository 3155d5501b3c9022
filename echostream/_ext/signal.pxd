"""Signal analysis that time-stretch and concealment share. Inline only."""

from libc.math cimport cos, sqrt

from echostream._ext.vector cimport es_dot

cdef enum:
    MAX_CHANNELS = 64
    COARSE_RATE = 4000      # Hz at which lags are searched first
    MAX_COARSE_LAGS = 96    # 15 ms at the highest coarse rate, 5 kHz, is 75
    NEARLY = 92             # percent of the highest peak



cdef inline double mono_reference(
    const float* x, Py_ssize_t frame_step, Py_ssize_t channel_step,
    Py_ssize_t frames, Py_ssize_t channels, float* out,
) noexcept nogil:
    """Sum of the channels, each weighted by its energy; returns the mean power, all channels added.

    A silent channel does not matter, whichever it is, and a channel in opposite phase to the
    loudest is turned round before it is added. ``channels`` is at most MAX_CHANNELS.
    """
    cdef double energy[MAX_CHANNELS]
    cdef double total = 0.0, cross
    cdef float gain
    cdef Py_ssize_t channel, i, loudest = 0
    cdef const float* a
    cdef const float* b
    for channel in range(channels):
        a = x + channel * channel_step
        energy[channel] = 0.0
        for i in range(frames):
            energy[channel] += <double>a[i * frame_step] * a[i * frame_step]
        total += energy[channel]
        if energy[channel] > energy[loudest]:
            loudest = channel
    for i in range(frames):
        out[i] = 0.0
    if not 0.0 < total < 1e30:      # silence, or not finite
        return total / frames
    b = x + loudest * channel_step
    for channel in range(channels):
        a = x + channel * channel_step
        cross = 0.0
        for i in range(frames):
            cross += <double>a[i * frame_step] * b[i * frame_step]
        gain = <float>((energy[channel] if cross >= 0.0 else -energy[channel]) / total)
        for i in range(frames):
            out[i] += gain * a[i * frame_step]
    return total / frames


cdef inline float correlation(const float* a, const float* b, Py_ssize_t n) noexcept nogil:
    """Normalised correlation, -1 to 1; 0 where one of the two is silent."""
    return normalised(es_dot(a, b, n), <double>es_dot(a, a, n) * es_dot(b, b, n))


cdef inline float normalised(float product, double powers) noexcept nogil:
    return <float>(product / sqrt(powers)) if powers > 1e-30 else <float>0.0


cdef inline Py_ssize_t best_lag(
    const float* at, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n, float* found
) noexcept nogil:
    """The lag in [first, last] at which ``at[-lag : n - lag]`` is most like ``at[:n]``."""
    cdef Py_ssize_t lag, best = first
    cdef double power = es_dot(at, at, n)
    cdef const float* old
    cdef float value
    found[0] = -2.0
    for lag in range(first, last + 1):
        old = at - lag
        value = normalised(es_dot(at, old, n), power * es_dot(old, old, n))
        if value > found[0]:
            found[0] = value
            best = lag
    return best


cdef inline Py_ssize_t decimation(Py_ssize_t rate) noexcept nogil:
    return max(1, (rate + COARSE_RATE // 2) // COARSE_RATE)


cdef inline Py_ssize_t first_peak(
    const float* at, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n
) noexcept nogil:
    """The shortest lag with a peak of the correlation of at least NEARLY % of the best."""
    cdef float values[MAX_COARSE_LAGS]
    cdef float best = -2.0
    cdef Py_ssize_t lag
    last = min(last, first + MAX_COARSE_LAGS - 1)
    for lag in range(first, last + 1):
        values[lag - first] = correlation(at, at - lag, n)
        best = max(best, values[lag - first])
    for lag in range(first, last):
        if (
            values[lag - first] >= 0.01 * NEARLY * best
            and values[lag - first] >= values[lag - first + 1]
            and (lag == first or values[lag - first] > values[lag - first - 1])
        ):
            return lag
    return last


cdef inline Py_ssize_t find_lag(
    const float* at, Py_ssize_t n, Py_ssize_t shortest, Py_ssize_t longest,
    Py_ssize_t step, float* low, float* found,
) noexcept nogil:
    """The lag in [shortest, longest] at which the signal before ``at`` is most like ``at[:n]``.

    Coarsely at 1/step of the rate, behind a triangular low-pass, over all n, where the first peak
    that is nearly as high as the highest wins (one period, not two); then at the full rate
    within one coarse step, over one period. Reads ``at[-longest : n]``; ``low`` holds
    (longest + n) / step floats. ``longest`` is at most n.
    """
    cdef Py_ssize_t before = longest // step - 1, after = n // step - 1
    cdef Py_ssize_t low_first = max(1, shortest // step), i, k, coarse, first, last
    cdef const float* x
    for i in range(-before, after):
        x = at + i * step
        low[before + i] = step * x[0]
        for k in range(1, step):
            low[before + i] += (step - k) * (x[k] + x[-k])
    coarse = first_peak(low + before, low_first, before, after) * step
    first = max(shortest, coarse - step)
    last = min(longest, coarse + step)
    return best_lag(at, first, last, min(n, max(coarse, shortest)), found)


cdef inline void cross_fade(
    const float* old, const float* new, float* out, Py_ssize_t frames, Py_ssize_t channels
) noexcept nogil:
    """From ``old`` to ``new`` along a raised cosine; interleaved. ``out`` may be either."""
    cdef double turn = 3.141592653589793 / (frames + 1)
    cdef double this = cos(turn), before = 1.0, double_cos = 2.0 * this, after
    cdef float weight
    cdef Py_ssize_t i, j
    for i in range(frames):
        weight = <float>(0.5 - 0.5 * this)
        for j in range(i * channels, (i + 1) * channels):
            out[j] = old[j] + weight * (new[j] - old[j])
        after = double_cos * this - before
        before = this
        this = after
