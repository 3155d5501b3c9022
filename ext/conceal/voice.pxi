"""Voice: the last pitch periods again, mixed with noise of the same colour."""


cdef void begin_voice(Extrapolator c) noexcept nogil:
    cdef Py_ssize_t longest = c._longest, window = c._rate // 50, channel, i, lag
    cdef Py_ssize_t other, d
    cdef const float* history
    cdef double* noise
    cdef double* model
    cdef double power, distance, least = -1.0
    cdef const float* end = c._mono + 2 * longest
    cdef float found = 0.0
    power = mono_reference(
        past(c, 0) + c._size - 2 * longest, 1, 2 * c._size, 2 * longest,
        c._channels, c._mono,
    )
    c._silent = power < 1e-12
    if c._silent:
        return
    lag = other = find_lag(
        c._mono + longest, longest, c._shortest, longest, c._step, c._coarse, &found
    )
    for d in range(max(c._shortest, lag - c._step), min(longest, lag + c._step) + 1):
        distance = 0.0
        for i in range(1, lag + 1):
            distance += fabs(end[-i] - end[-i - d])
        if least < 0.0 or distance < least:
            least = distance
            other = d
    c._lags[0] = lag
    c._lags[1] = (lag + other) // 2
    c._lags[2] = other
    c._overlap = max(1, min(lag, other) // 4)
    c._voicing = min(1.0, max(0.0, (found - 0.3) * 2.0))
    c._loop = c._previous = c._place = 0
    for channel in range(c._channels):
        history = past(c, channel) + c._size - window
        for i in range(window):
            c._forward[i] = history[i]
        model = c._models + channel * LOW_ORDER
        power = burg(c, NOISE_ORDER, model)
        for i in range(NOISE_ORDER):        # what rings in it dies down in 4 ms
            model[i] *= exp((i - NOISE_ORDER) / (0.004 * c._rate))
        c._levels[channel] = HISS * sqrt(3.0 * power)
        noise = c._noise + channel * (NOISE_ORDER + c._total)
        for i in range(NOISE_ORDER):
            noise[i] = history[window - NOISE_ORDER + i]


cdef void extend_voice(Extrapolator c, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i, channel, ramp = max(1, c._rate // 400)
    cdef double rise, voicing, hiss, fade
    cdef double* noise
    for i in range(c._known, last):
        rise = 0.5 - 0.5 * cos(M_PI * (i + 1) / (ramp + 1)) if i < ramp else 1.0
        voicing = c._voicing * max(0.0, 1.0 - 4.0 * i / c._rate)
        hiss = (1.0 - rise) + rise * sqrt(1.0 - voicing * voicing)
        fade = 1.0
        if c._place < c._overlap and c._previous != c._loop:
            fade = 0.5 - 0.5 * cos(M_PI * (c._place + 1) / (c._overlap + 1))
        for channel in range(c._channels):
            if c._silent:
                c._extension[channel * c._total + i] = 0.0
                continue
            noise = c._noise + channel * (NOISE_ORDER + c._total) + i
            noise[NOISE_ORDER] = c._levels[channel] * uniform(c) - es_dot64(
                c._models + channel * LOW_ORDER, noise, NOISE_ORDER
            )
            c._extension[channel * c._total + i] = limited(
                rise * voicing * periodic(c, channel, fade) + hiss * noise[NOISE_ORDER]
            )
        c._place += 1
        if c._place >= c._lags[c._loop]:
            c._previous = c._loop
            c._loop = (c._loop + 1) % 3
            c._place = 0


cdef double periodic(Extrapolator c, Py_ssize_t channel, double fade) noexcept nogil:
    """One sample of the repeated pitch periods, three lags in turn."""
    cdef double value = looped(c, channel, c._lags[c._loop]), old
    if fade < 1.0:
        old = looped(c, channel, c._lags[c._previous])
        value = old + fade * (value - old)
    return value


cdef double looped(Extrapolator c, Py_ssize_t channel, Py_ssize_t lag) noexcept nogil:
    """The last period, whose end leads into its own beginning."""
    cdef const float* x = past(c, channel) + c._size + c._place - lag
    cdef Py_ssize_t tail = c._place - (lag - c._overlap)
    cdef double weight
    if tail < 0:
        return x[0]
    weight = 0.5 - 0.5 * cos(M_PI * (tail + 1) / (c._overlap + 1))
    return x[0] + weight * (x[-lag] - x[0])


cdef double uniform(Extrapolator c) noexcept nogil:
    """xorshift32 (Marsaglia 2003), in [-1, 1)."""
    c._random ^= c._random << 13
    c._random ^= c._random >> 17
    c._random ^= c._random << 5
    return c._random / 2147483648.0 - 1.0
