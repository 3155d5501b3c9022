"""Continue audio that was lost: by its pitch periods (voice), or by its spectrum (music).

Both write an *extension* of what was heard, planar and at full level, as far as it is asked for;
what is played of it is faded. Voice repeats the last periods, mixed with noise of the same colour. Music
is split into a low band at about 11 kHz, which autoregression of high order follows through chords,
and the rest, for which a low order at the full rate does.
"""

cimport cython
from libc.math cimport M_PI, cos, exp, fabs, sin, sqrt
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from echostream._ext.signal cimport (
    MAX_CHANNELS, cross_fade, decimation, find_lag, mono_reference,
)
from echostream._ext.vector cimport es_dot, es_dot64, es_lattice

cdef enum:
    NOISE_ORDER = 16
    HIGH_ORDER = 32
    LOW_ORDER = 192
    LOW_WINDOW = 1024
    LOW_RATE = 11000                        # Hz, about
    WORK = 2 * LOW_ORDER * LOW_WINDOW       # multiply-adds per model of all channels together
    SIDE_LOBES = 4                          # half length of the band filter, in low samples
    FULL_MS = 20
    SLOW_MS = 60
    LONGEST_GAP_MS = 105                    # by then all is silent

cdef double LIMIT = 16.0                    # full scale is 1; what is louder is not audio
cdef double HISS = 0.5                      # of the prediction error's amplitude
cdef double DITHER = 1e-4                   # of the low band's level
cdef double SLOW_PER_MS = 0.008
cdef double FAST_PER_MS = 0.016


@cython.final
cdef class Extrapolator:
    """Contract: ``echostream.media.conceal.Concealer``."""

    cdef Py_ssize_t _rate, _channels, _shortest, _longest, _step, _merge
    cdef Py_ssize_t _split, _delay, _size, _total, _low_size, _high_size, _order
    cdef Py_ssize_t _known, _at             # frames of the extension: computed, played
    cdef bint _voice, _concealing, _silent
    cdef float* _history                    # (channels, _size): what was played
    cdef float* _extension                  # (channels, _total)
    cdef float* _planar                     # (channels, _merge)
    cdef float* _bent                       # (_merge, channels)
    cdef float* _mono                       # (2 * _longest)
    cdef float* _coarse                     # (2 * _longest)
    cdef double* _noise                     # (channels, NOISE_ORDER + _total)
    cdef double* _low                       # (channels, _low_size)
    cdef double* _high                      # (channels, LOW_WINDOW + _total)
    cdef double* _models                    # (channels, LOW_ORDER), coefficients last to first
    cdef double* _high_models               # (channels, HIGH_ORDER)
    cdef double* _levels                    # (channels)
    cdef double* _forward                   # (_window): what _burg fits, then its scratch
    cdef double* _backward                  # (_window)
    cdef double* _weights                   # (_window)
    cdef double* _filter                    # (2 * _delay + 1)
    cdef float* _floats
    cdef double* _doubles
    cdef Py_ssize_t _lags[3]
    cdef Py_ssize_t _overlap, _loop, _previous, _place
    cdef double _voicing
    cdef Py_ssize_t _window, _low_known, _high_known
    cdef uint32_t _random

    def __cinit__(self, Py_ssize_t rate, Py_ssize_t channels, bint voice):
        if not 8000 <= rate <= 192000:
            raise ValueError("rate must be 8000 to 192000 Hz")
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {MAX_CHANNELS}")
        self._rate = rate
        self._channels = channels
        self._voice = voice
        self._window = rate // 50 if voice else <Py_ssize_t>LOW_WINDOW
        self._shortest = rate // 400
        self._longest = rate * 15 // 1000
        self._step = decimation(rate)
        self._merge = rate // 200
        self._split = max(1, (rate + LOW_RATE // 2) // LOW_RATE)
        self._delay = SIDE_LOBES * self._split if self._split > 1 else 0
        self._size = (
            self._longest * 5 // 2 if voice else (LOW_WINDOW - 1) * self._split + 2 * self._delay + 1
        )
        self._total = rate * LONGEST_GAP_MS // 1000 + self._longest
        self._order = min(<Py_ssize_t>LOW_ORDER, WORK // (LOW_WINDOW * channels))
        self._order = max(<Py_ssize_t>NOISE_ORDER, self._order)
        self._low_size = (
            0 if voice else LOW_WINDOW + self._total // self._split + 2 * SIDE_LOBES + 2
        )
        self._high_size = 0 if voice else LOW_WINDOW + self._total
        self._random = 0x9E3779B9
        self._carve()

    cdef int _carve(self) except -1:
        """One block of floats and one of doubles, cut up; nothing else is ever allocated."""
        cdef Py_ssize_t channels = self._channels, window = self._window, i
        cdef Py_ssize_t noise = NOISE_ORDER + self._total if self._voice else 0
        cdef float* floats
        cdef double* doubles
        self._floats = floats = <float*>calloc(
            channels * (self._size + self._total + 2 * self._merge) + 4 * self._longest, sizeof(float)
        )
        self._doubles = doubles = <double*>calloc(
            channels * (noise + self._low_size + self._high_size + LOW_ORDER + HIGH_ORDER + 1)
            + 3 * window + 2 * self._delay + 1, sizeof(double),
        )
        if floats == NULL or doubles == NULL:
            raise MemoryError()
        self._history = floats
        self._extension = self._history + channels * self._size
        self._planar = self._extension + channels * self._total
        self._bent = self._planar + channels * self._merge
        self._mono = self._bent + channels * self._merge
        self._coarse = self._mono + 2 * self._longest
        self._noise = doubles
        self._low = self._noise + channels * noise
        self._high = self._low + channels * self._low_size
        self._models = self._high + channels * self._high_size
        self._high_models = self._models + channels * LOW_ORDER
        self._levels = self._high_models + channels * HIGH_ORDER
        self._forward = self._levels + channels
        self._backward = self._forward + window
        self._weights = self._backward + window
        self._filter = self._weights + window
        for i in range(window):
            self._weights[i] = 0.54 - 0.46 * cos(2.0 * M_PI * i / (window - 1))
        split_filter(self._filter, self._split, self._delay)
        return 0

    def __dealloc__(self):
        free(self._floats)
        free(self._doubles)

    @property
    def concealing(self) -> bool:
        return self._concealing

    @property
    def gain(self) -> float:
        return self._gain(self._at) if self._concealing else 1.0

    def heard(self, const float[:, ::1] samples not None) -> None:
        self._check(samples.shape[1])
        with nogil:
            self._end_gap()
            if samples.shape[0]:
                self._remember(&samples[0, 0], samples.shape[0])

    def conceal(self, float[:, ::1] out not None) -> None:
        self._check(out.shape[1])
        if out.shape[0]:
            with nogil:
                self._conceal(&out[0, 0], out.shape[0])

    def merge(self, float[:, ::1] samples not None) -> None:
        self._check(samples.shape[1])
        with nogil:
            if self._concealing and samples.shape[0]:
                self._merge_into(&samples[0, 0], samples.shape[0])
            self._end_gap()
            if samples.shape[0]:
                self._remember(&samples[0, 0], samples.shape[0])

    cdef int _check(self, Py_ssize_t channels) except -1:
        if channels != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        return 0

    cdef void _remember(self, const float* samples, Py_ssize_t frames) noexcept nogil:
        cdef Py_ssize_t n = min(frames, self._size), keep = self._size - n, i, channel
        cdef float* history
        samples += (frames - n) * self._channels
        for channel in range(self._channels):
            history = self._history + channel * self._size
            memmove(history, history + n, keep * sizeof(float))
            for i in range(n):
                history[keep + i] = clean(samples[i * self._channels + channel])

    cdef void _end_gap(self) noexcept nogil:
        """What was played in the gap becomes history; until then the history stands still."""
        cdef Py_ssize_t n = min(self._at, self._size), keep = self._size - n, i, channel
        cdef float* history
        cdef const float* x
        if not self._concealing:
            return
        self._concealing = False
        for channel in range(self._channels):
            history = self._history + channel * self._size
            memmove(history, history + n, keep * sizeof(float))
            x = self._extension + channel * self._total
            for i in range(self._at - n, self._at):
                history[keep + i - (self._at - n)] = (
                    <float>self._gain(i) * x[i] if i < self._total else <float>0.0
                )

    cdef double _gain(self, Py_ssize_t frame) noexcept nogil:
        cdef double ms = frame * 1000.0 / self._rate
        cdef double gain = 1.0 - SLOW_PER_MS * max(0.0, ms - FULL_MS)
        return max(0.0, gain - (FAST_PER_MS - SLOW_PER_MS) * max(0.0, ms - SLOW_MS))

    cdef void _conceal(self, float* out, Py_ssize_t frames) noexcept nogil:
        cdef Py_ssize_t channels = self._channels, i, channel, n
        cdef float gain
        if not self._concealing:
            self._concealing = True
            self._known = self._at = 0
            if self._voice:
                self._begin_voice()
            else:
                self._begin_music()
        n = max(0, min(frames, self._total - self._at))
        self._extend(self._at + n)
        for i in range(n):
            gain = <float>self._gain(self._at + i)
            for channel in range(channels):
                out[i * channels + channel] = (
                    gain * self._extension[channel * self._total + self._at + i]
                )
        for i in range(n * channels, frames * channels):
            out[i] = 0.0
        self._at = min(self._at + frames, 2 * self._total)

    cdef void _extend(self, Py_ssize_t last) noexcept nogil:
        """Compute the extension up to ``last``; behind its end all is silent."""
        last = min(last, self._total)
        if last <= self._known:
            return
        if self._voice:
            self._extend_voice(last)
        else:
            self._extend_music(last)
        self._known = last

    # Back to what is heard.

    cdef void _merge_into(self, float* samples, Py_ssize_t frames) noexcept nogil:
        cdef Py_ssize_t channels = self._channels, n = min(frames, self._merge), i, channel
        cdef float gain
        for i in range(frames * channels):
            samples[i] = clean(samples[i])
        self._align(samples, n)
        for i in range(n):
            gain = <float>self._gain(self._at + i)
            for channel in range(channels):
                self._bent[i * channels + channel] *= gain
        cross_fade(self._bent, samples, samples, n, channels)

    cdef void _align(self, const float* samples, Py_ssize_t n) noexcept nogil:
        """The extension where ``samples`` stand, bent so that it meets them in phase."""
        cdef Py_ssize_t channels = self._channels, at = self._at, i, channel, whole
        cdef Py_ssize_t reach = min(self._longest // 4 if self._voice else 0, at), shift = 0
        cdef double bend, place, part
        cdef const float* x
        if at + n + reach > self._total:
            reach = 0
        self._extend(at + n + reach)
        if reach:
            shift = self._best_shift(samples, n, reach)
        for i in range(n):
            # Half of the way runs the shift from nothing to all of it.
            bend = min(1.0, i * 2.0 / n)
            place = at + i + shift * (3.0 - 2.0 * bend) * bend * bend
            whole = min(<Py_ssize_t>place, at + n + reach - 2)
            part = place - whole
            for channel in range(channels):
                x = self._extension + channel * self._total
                if shift == 0:
                    self._bent[i * channels + channel] = x[at + i] if at + i < self._total else 0.0
                else:
                    self._bent[i * channels + channel] = <float>(
                        x[whole] + part * (x[whole + 1] - x[whole])
                    )

    cdef Py_ssize_t _best_shift(
        self, const float* samples, Py_ssize_t n, Py_ssize_t reach
    ) noexcept nogil:
        """The shift within ``reach`` at which the extension is most like ``samples``, else 0."""
        cdef Py_ssize_t channels = self._channels, i, channel, shift, best_shift = 0
        cdef double here = 0.0, best = -2.0, cross, power, other, found
        cdef const float* x
        cdef const float* y
        power = 0.0
        for channel in range(channels):
            for i in range(n):
                self._planar[channel * n + i] = samples[i * channels + channel]
            power += es_dot(self._planar + channel * n, self._planar + channel * n, n)
        for shift in range(-reach, reach + 1):
            cross = other = 0.0
            for channel in range(channels):
                x = self._extension + channel * self._total + self._at + shift
                y = self._planar + channel * n
                cross += es_dot(x, y, n)
                other += es_dot(x, x, n)
            found = cross / sqrt(power * other) if power * other > 1e-20 else 0.0
            if shift == 0:
                here = found
            if found > best:
                best = found
                best_shift = shift
        return best_shift if best >= max(0.5, here + 0.1) else 0

    # Voice.

    cdef void _begin_voice(self) noexcept nogil:
        cdef Py_ssize_t longest = self._longest, window = self._rate // 50, channel, i, lag
        cdef Py_ssize_t other, d
        cdef const float* history
        cdef double* noise
        cdef double* model
        cdef double power, distance, least = -1.0
        cdef const float* end = self._mono + 2 * longest
        cdef float found = 0.0
        power = mono_reference(
            self._history + self._size - 2 * longest, 1, self._size, 2 * longest,
            self._channels, self._mono,
        )
        self._silent = power < 1e-12
        if self._silent:
            return
        lag = other = find_lag(
            self._mono + longest, longest, self._shortest, longest, self._step, self._coarse, &found
        )
        for d in range(max(self._shortest, lag - self._step), min(longest, lag + self._step) + 1):
            distance = 0.0
            for i in range(1, lag + 1):
                distance += fabs(end[-i] - end[-i - d])
            if least < 0.0 or distance < least:
                least = distance
                other = d
        self._lags[0] = lag
        self._lags[1] = (lag + other) // 2
        self._lags[2] = other
        self._overlap = max(1, min(lag, other) // 4)
        self._voicing = min(1.0, max(0.0, (found - 0.3) * 2.0))
        self._loop = self._previous = self._place = 0
        for channel in range(self._channels):
            history = self._history + (channel + 1) * self._size - window
            for i in range(window):
                self._forward[i] = history[i]
            model = self._models + channel * LOW_ORDER
            power = self._burg(NOISE_ORDER, model)
            for i in range(NOISE_ORDER):        # what rings in it dies down in 4 ms
                model[i] *= exp((i - NOISE_ORDER) / (0.004 * self._rate))
            self._levels[channel] = HISS * sqrt(3.0 * power)
            noise = self._noise + channel * (NOISE_ORDER + self._total)
            for i in range(NOISE_ORDER):
                noise[i] = history[window - NOISE_ORDER + i]

    cdef void _extend_voice(self, Py_ssize_t last) noexcept nogil:
        cdef Py_ssize_t i, channel, ramp = max(1, self._rate // 400)
        cdef double rise, voicing, hiss, fade
        cdef double* noise
        for i in range(self._known, last):
            rise = 0.5 - 0.5 * cos(M_PI * (i + 1) / (ramp + 1)) if i < ramp else 1.0
            voicing = self._voicing * max(0.0, 1.0 - 4.0 * i / self._rate)
            hiss = (1.0 - rise) + rise * sqrt(1.0 - voicing * voicing)
            fade = 1.0
            if self._place < self._overlap and self._previous != self._loop:
                fade = 0.5 - 0.5 * cos(M_PI * (self._place + 1) / (self._overlap + 1))
            for channel in range(self._channels):
                if self._silent:
                    self._extension[channel * self._total + i] = 0.0
                    continue
                noise = self._noise + channel * (NOISE_ORDER + self._total) + i
                noise[NOISE_ORDER] = self._levels[channel] * self._uniform() - es_dot64(
                    self._models + channel * LOW_ORDER, noise, NOISE_ORDER
                )
                self._extension[channel * self._total + i] = limited(
                    rise * voicing * self._periodic(channel, fade) + hiss * noise[NOISE_ORDER]
                )
            self._place += 1
            if self._place >= self._lags[self._loop]:
                self._previous = self._loop
                self._loop = (self._loop + 1) % 3
                self._place = 0

    cdef double _periodic(self, Py_ssize_t channel, double fade) noexcept nogil:
        """One sample of the repeated pitch periods, three lags in turn."""
        cdef double value = self._looped(channel, self._lags[self._loop]), old
        if fade < 1.0:
            old = self._looped(channel, self._lags[self._previous])
            value = old + fade * (value - old)
        return value

    cdef double _looped(self, Py_ssize_t channel, Py_ssize_t lag) noexcept nogil:
        """The last period, whose end leads into its own beginning."""
        cdef const float* x = self._history + (channel + 1) * self._size + self._place - lag
        cdef Py_ssize_t tail = self._place - (lag - self._overlap)
        cdef double weight
        if tail < 0:
            return x[0]
        weight = 0.5 - 0.5 * cos(M_PI * (tail + 1) / (self._overlap + 1))
        return x[0] + weight * (x[-lag] - x[0])

    cdef double _uniform(self) noexcept nogil:
        """xorshift32 (Marsaglia 2003), in [-1, 1)."""
        self._random ^= self._random << 13
        self._random ^= self._random >> 17
        self._random ^= self._random << 5
        return self._random / 2147483648.0 - 1.0

    # Music.

    cdef void _begin_music(self) noexcept nogil:
        cdef Py_ssize_t split = self._split, channel, i, k, taps = 2 * self._delay + 1
        cdef const float* x
        cdef double* low
        cdef double* high
        cdef double value
        for channel in range(self._channels):
            low = self._low + channel * self._low_size
            for i in range(LOW_WINDOW):
                x = self._history + channel * self._size + i * split
                value = 0.0
                for k in range(taps):
                    value += self._filter[k] * x[k]
                low[i] = value
            value = DITHER * sqrt(es_dot64(low, low, LOW_WINDOW) / LOW_WINDOW)
            for i in range(LOW_WINDOW):     # pure tones alone leave the model undetermined
                self._forward[i] = low[i] + value * self._uniform()
            self._burg(self._order, self._models + channel * LOW_ORDER)
        self._low_known = LOW_WINDOW
        if split == 1:
            return
        self._extend_low(0)
        for channel in range(self._channels):
            x = self._history + (channel + 1) * self._size - LOW_WINDOW
            high = self._high + channel * self._high_size
            for i in range(LOW_WINDOW):
                high[i] = x[i] - self._low_band(channel, i - LOW_WINDOW)
                self._forward[i] = high[i]
            self._burg(HIGH_ORDER, self._high_models + channel * HIGH_ORDER)
        self._high_known = LOW_WINDOW

    cdef void _extend_music(self, Py_ssize_t last) noexcept nogil:
        cdef Py_ssize_t i, channel
        cdef float* out
        cdef double* high
        self._extend_low(last)
        if self._split > 1:
            predict(
                self._high, self._high_size, self._channels, self._high_known, LOW_WINDOW + last,
                self._high_models, HIGH_ORDER, HIGH_ORDER,
            )
            self._high_known = LOW_WINDOW + last
        for channel in range(self._channels):
            out = self._extension + channel * self._total
            high = self._high + channel * self._high_size + LOW_WINDOW
            if self._split == 1:
                for i in range(self._known, last):
                    out[i] = <float>self._low[channel * self._low_size + LOW_WINDOW + i]
            else:
                for i in range(self._known, last):
                    out[i] = limited(high[i] + self._low_band(channel, i))

    cdef void _extend_low(self, Py_ssize_t last) noexcept nogil:
        """Predict what the low band needs up to frame ``last``."""
        cdef Py_ssize_t known = (last + 2 * self._delay) // self._split + LOW_WINDOW
        if known > self._low_known:
            predict(
                self._low, self._low_size, self._channels, self._low_known, known,
                self._models, LOW_ORDER, self._order,
            )
            self._low_known = known

    cdef double _low_band(self, Py_ssize_t channel, Py_ssize_t frame) noexcept nogil:
        """The low band at the full rate; frame 0 is the first that is lost.

        Low sample j stands at frame (j - LOW_WINDOW + 1) * split - 1 - delay.
        """
        cdef Py_ssize_t place = frame + 1 + 2 * self._delay + (LOW_WINDOW - 1) * self._split
        cdef Py_ssize_t newest = place // self._split, tap = place - newest * self._split
        cdef const double* low = self._low + channel * self._low_size + newest
        cdef double value = 0.0
        while tap <= 2 * self._delay:
            value += self._filter[tap] * low[0]
            low -= 1
            tap += self._split
        return value * self._split

    cdef double _burg(self, Py_ssize_t order, double* out) noexcept nogil:
        """Fit ``x[t] = e[t] - sum of a[k] x[t - k]`` to x in _forward; the power of e.

        Burg 1967, with Hamming weights (Swingler 1979), which keep the frequency of tones true.
        Every reflection coefficient is held below 1, so the filter is stable; from the order at
        which nothing is left to explain, the coefficients are 0. ``out`` gets a[order] first and
        a[1] last, ready for a dot product with the past.
        """
        cdef Py_ssize_t window = self._window, n = window
        cdef double* f = self._forward
        cdef double* b = self._backward
        cdef double power = es_dot64(f, f, n) / n, least = 1e-12 * power + 1e-30
        cdef double k, cross, energy, low, high
        cdef double* a = out + order - 1        # a[-m] is coefficient m + 1
        cdef Py_ssize_t m, i
        for i in range(order):
            out[i] = 0.0
        memcpy(b, f, n * sizeof(double))
        memmove(f, f + 1, (n - 1) * sizeof(double))
        n -= 1
        cross = energy = 0.0
        for i in range(n):
            cross += self._weights[i] * (f[i] * b[i])
            energy += self._weights[i] * (f[i] * f[i] + b[i] * b[i])
        for m in range(order):
            if power <= least or energy <= 1e-30:
                break
            k = min(max(-2.0 * cross / energy, -0.99999), 0.99999)
            for i in range((m + 1) // 2):
                low, high = a[-i], a[-(m - 1 - i)]
                a[-i] = low + k * high
                a[-(m - 1 - i)] = high + k * low
            a[-m] = k
            power *= 1.0 - k * k
            n -= 1
            es_lattice(f, b, self._weights + (window - n) // 2, n, k, &cross, &energy)
        return power


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


cdef inline float clean(float x) noexcept nogil:
    """Not a number becomes 0, and nothing is louder than LIMIT."""
    return limited(x) if x == x else <float>0.0


cdef inline float limited(double x) noexcept nogil:
    return <float>min(max(x, -LIMIT), LIMIT)
