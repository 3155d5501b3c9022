"""One gap: into it, through it, and back to what is heard."""


cdef float* past(Extrapolator c, Py_ssize_t channel) noexcept nogil:
    """The last ``_size`` frames of a channel."""
    return c._history + 2 * channel * c._size + c._start


cdef void advance(Extrapolator c, Py_ssize_t n) noexcept nogil:
    """The oldest ``n`` frames (at most ``_size``) go, room for as many is at the end."""
    cdef Py_ssize_t channel
    cdef float* row
    if c._start + n <= c._size:
        c._start += n
        return
    for channel in range(c._channels):
        row = past(c, channel)
        memmove(row - c._start, row + n, (c._size - n) * sizeof(float))
    c._start = 0


cdef void remember(Extrapolator c, const float* samples, Py_ssize_t frames) noexcept nogil:
    cdef Py_ssize_t n = min(frames, c._size), i, channel
    cdef float* new
    advance(c, n)
    samples += (frames - n) * c._channels
    for channel in range(c._channels):
        new = past(c, channel) + c._size - n
        for i in range(n):
            new[i] = clean(samples[i * c._channels + channel])


cdef void end_gap(Extrapolator c) noexcept nogil:
    """What was played in the gap becomes history; until then the history stands still."""
    cdef Py_ssize_t n = min(c._at, c._size), i, channel
    cdef float* new
    cdef const float* x
    if not c._concealing:
        return
    c._concealing = False
    advance(c, n)
    for channel in range(c._channels):
        new = past(c, channel) + c._size - n
        x = c._extension + channel * c._total
        for i in range(c._at - n, c._at):
            new[0] = <float>gain_at(c, i) * x[i] if i < c._total else <float>0.0
            new += 1


cdef double gain_at(Extrapolator c, Py_ssize_t frame) noexcept nogil:
    cdef double ms = frame * 1000.0 / c._rate
    cdef double gain = 1.0 - SLOW_PER_MS * max(0.0, ms - FULL_MS)
    return max(0.0, gain - (FAST_PER_MS - SLOW_PER_MS) * max(0.0, ms - SLOW_MS))


cdef void conceal(Extrapolator c, float* out, Py_ssize_t frames) noexcept nogil:
    cdef Py_ssize_t channels = c._channels, i, channel, n
    cdef float gain
    if not c._concealing:
        c._concealing = True
        c._known = c._at = 0
        if c._voice:
            begin_voice(c)
        else:
            begin_music(c)
    n = max(0, min(frames, c._total - c._at))
    extend(c, c._at + n)
    for i in range(n):
        gain = <float>gain_at(c, c._at + i)
        for channel in range(channels):
            out[i * channels + channel] = (
                gain * c._extension[channel * c._total + c._at + i]
            )
    for i in range(n * channels, frames * channels):
        out[i] = 0.0
    c._at = min(c._at + frames, 2 * c._total)


cdef void extend(Extrapolator c, Py_ssize_t last) noexcept nogil:
    """Compute the extension up to ``last``; behind its end all is silent."""
    last = min(last, c._total)
    if last <= c._known:
        return
    if c._voice:
        extend_voice(c, last)
    else:
        extend_music(c, last)
    c._known = last


cdef void merge_into(Extrapolator c, float* samples, Py_ssize_t frames) noexcept nogil:
    cdef Py_ssize_t channels = c._channels, n = min(frames, c._merge), i, channel
    cdef float gain
    for i in range(frames * channels):
        samples[i] = clean(samples[i])
    align(c, samples, n)
    for i in range(n):
        gain = <float>gain_at(c, c._at + i)
        for channel in range(channels):
            c._bent[i * channels + channel] *= gain
    cross_fade(c._bent, samples, samples, n, channels)


cdef void align(Extrapolator c, const float* samples, Py_ssize_t n) noexcept nogil:
    """The extension where ``samples`` stand, bent so that it meets them in phase."""
    cdef Py_ssize_t channels = c._channels, at = c._at, i, channel, whole
    cdef Py_ssize_t reach = min(c._longest // 4 if c._voice else 0, at), shift = 0
    cdef double bend, place, part
    cdef const float* x
    if at + n + reach > c._total:
        reach = 0
    extend(c, at + n + reach)
    if reach:
        shift = best_shift(c, samples, n, reach)
    for i in range(n):
        # Half of the way runs the shift from nothing to all of it.
        bend = min(1.0, i * 2.0 / n)
        place = at + i + shift * (3.0 - 2.0 * bend) * bend * bend
        whole = min(<Py_ssize_t>place, at + n + reach - 2)
        part = place - whole
        for channel in range(channels):
            x = c._extension + channel * c._total
            if shift == 0:
                c._bent[i * channels + channel] = x[at + i] if at + i < c._total else 0.0
            else:
                c._bent[i * channels + channel] = <float>(
                    x[whole] + part * (x[whole + 1] - x[whole])
                )


cdef Py_ssize_t best_shift(
    Extrapolator c, const float* samples, Py_ssize_t n, Py_ssize_t reach
) noexcept nogil:
    """The shift within ``reach`` at which the extension is most like ``samples``, else 0."""
    cdef Py_ssize_t channels = c._channels, i, channel, shift, best_shift = 0
    cdef double here = 0.0, best = -2.0, cross, power, other, found
    cdef const float* x
    cdef const float* y
    power = 0.0
    for channel in range(channels):
        for i in range(n):
            c._planar[channel * n + i] = samples[i * channels + channel]
        power += es_dot(c._planar + channel * n, c._planar + channel * n, n)
    for shift in range(-reach, reach + 1):
        cross = other = 0.0
        for channel in range(channels):
            x = c._extension + channel * c._total + c._at + shift
            y = c._planar + channel * n
            cross += es_dot(x, y, n)
            other += es_dot(x, x, n)
        found = cross / sqrt(power * other) if power * other > 1e-20 else 0.0
        if shift == 0:
            here = found
        if found > best:
            best = found
            best_shift = shift
    return best_shift if best >= max(0.5, here + 0.1) else 0
