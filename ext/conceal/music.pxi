"""Music: a low band by autoregression of high order, and the rest by one of low order."""


cdef void begin_music(Extrapolator c) noexcept nogil:
    cdef Py_ssize_t split = c._split, channel, i, k, taps = 2 * c._delay + 1
    cdef const float* x
    cdef double* low
    cdef double* high
    cdef double value
    for channel in range(c._channels):
        low = c._low + channel * c._low_size
        for i in range(LOW_WINDOW):
            x = past(c, channel) + i * split
            value = 0.0
            for k in range(taps):
                value += c._filter[k] * x[k]
            low[i] = value
        value = DITHER * sqrt(es_dot64(low, low, LOW_WINDOW) / LOW_WINDOW)
        for i in range(LOW_WINDOW):     # pure tones alone leave the model undetermined
            c._forward[i] = low[i] + value * uniform(c)
        burg(c, c._order, c._models + channel * LOW_ORDER)
    c._low_known = LOW_WINDOW
    if split == 1:
        return
    extend_low(c, 0)
    for channel in range(c._channels):
        x = past(c, channel) + c._size - LOW_WINDOW
        high = c._high + channel * c._high_size
        for i in range(LOW_WINDOW):
            high[i] = x[i] - low_band(c, channel, i - LOW_WINDOW)
            c._forward[i] = high[i]
        burg(c, HIGH_ORDER, c._high_models + channel * HIGH_ORDER)
    c._high_known = LOW_WINDOW


cdef void extend_music(Extrapolator c, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i, channel
    cdef float* out
    cdef double* high
    extend_low(c, last)
    if c._split > 1:
        predict(
            c._high, c._high_size, c._channels, c._high_known, LOW_WINDOW + last,
            c._high_models, HIGH_ORDER, HIGH_ORDER,
        )
        c._high_known = LOW_WINDOW + last
    for channel in range(c._channels):
        out = c._extension + channel * c._total
        high = c._high + channel * c._high_size + LOW_WINDOW
        if c._split == 1:
            for i in range(c._known, last):
                out[i] = <float>c._low[channel * c._low_size + LOW_WINDOW + i]
        else:
            for i in range(c._known, last):
                out[i] = limited(high[i] + low_band(c, channel, i))


cdef void extend_low(Extrapolator c, Py_ssize_t last) noexcept nogil:
    """Predict what the low band needs up to frame ``last``."""
    cdef Py_ssize_t known = (last + 2 * c._delay) // c._split + LOW_WINDOW
    if known > c._low_known:
        predict(
            c._low, c._low_size, c._channels, c._low_known, known,
            c._models, LOW_ORDER, c._order,
        )
        c._low_known = known


cdef double low_band(Extrapolator c, Py_ssize_t channel, Py_ssize_t frame) noexcept nogil:
    """The low band at the full rate; frame 0 is the first that is lost.

    Low sample j stands at frame (j - LOW_WINDOW + 1) * split - 1 - delay.
    """
    cdef Py_ssize_t place = frame + 1 + 2 * c._delay + (LOW_WINDOW - 1) * c._split
    cdef Py_ssize_t newest = place // c._split, tap = place - newest * c._split
    cdef const double* low = c._low + channel * c._low_size + newest
    cdef double value = 0.0
    while tap <= 2 * c._delay:
        value += c._filter[tap] * low[0]
        low -= 1
        tap += c._split
    return value * c._split


cdef void predict(
    double* x, Py_ssize_t size, Py_ssize_t channels, Py_ssize_t known, Py_ssize_t last,
    const double* models, Py_ssize_t stride, Py_ssize_t order,
) noexcept nogil:
    """Continue every row of ``x`` from ``known`` to ``last`` by its model."""
    cdef Py_ssize_t channel, i
    for channel in range(channels):
        for i in range(known, last):
            x[i] = min(max(-es_dot64(models, x + i - order, order), -LIMIT), LIMIT)
        x += size
        models += stride


cdef void split_filter(double* taps, Py_ssize_t split, Py_ssize_t delay) noexcept nogil:
    """Windowed sinc (Blackman) that passes the band of a rate ``split`` times lower; gain 1."""
    cdef Py_ssize_t at
    cdef double turn, x, total = 0.0
    for at in range(-delay, delay + 1):
        turn = M_PI * at / (delay + 1)
        x = M_PI * 0.9 * at / split
        taps[delay + at] = 0.42 + 0.5 * cos(turn) + 0.08 * cos(2.0 * turn)
        if at != 0:
            taps[delay + at] *= sin(x) / x
        total += taps[delay + at]
    for at in range(2 * delay + 1):
        taps[at] /= total
