"""The same as ``echostream._ext.conceal``, in numpy: oracle and fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from echostream.media import signal_py

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Extrapolator", "burg"]

LIMIT = 16.0  # full scale is 1; what is louder is not audio
NOISE_ORDER, HIGH_ORDER, LOW_ORDER, LOW_WINDOW = 16, 32, 192, 1024
LOW_RATE = 11_000  # Hz, about: the rate at which music is extrapolated
WORK = 2 * LOW_ORDER * LOW_WINDOW  # multiply-adds per model of all channels together
SIDE_LOBES = 4  # half length of the band-splitting filter, in samples at the low rate
HISS = 0.5  # of the prediction error's amplitude: the ear forgives too little rather than too much
DITHER = 1e-4  # of the low band's level
FULL_MS, SLOW_MS, SLOW_PER_MS, FAST_PER_MS = 20.0, 60.0, 0.008, 0.016
LONGEST_GAP_MS = 105  # by then all is silent


class Extrapolator:
    """Contract: :class:`echostream.media.conceal.Concealer`."""

    def __init__(self, rate: int, channels: int, voice: bool) -> None:
        if not 8000 <= rate <= 192000:
            raise ValueError("rate must be 8000 to 192000 Hz")
        if not 1 <= channels <= signal_py.MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {signal_py.MAX_CHANNELS}")
        self._rate = rate
        self._channels = channels
        self._voice = voice
        self._shortest = rate // 400
        self._longest = rate * 15 // 1000
        self._step = signal_py.decimation(rate)
        self._merge = rate // 200
        self._split = max(1, (rate + LOW_RATE // 2) // LOW_RATE)
        self._delay = SIDE_LOBES * self._split if self._split > 1 else 0
        if voice:
            size = self._longest * 5 // 2
        else:
            size = (LOW_WINDOW - 1) * self._split + 2 * self._delay + 1
        self._total = rate * LONGEST_GAP_MS // 1000 + self._longest
        self._history: NDArray[np.float32] = np.zeros((size, channels), np.float32)
        self._extension = np.zeros((self._total, channels))
        self._known = 0  # frames of the extension that are computed
        self._at = 0  # frames of it that were played
        self._random = 0x9E3779B9
        self.concealing = False
        self._kernel = split_filter(self._split, self._delay)

    @property
    def gain(self) -> float:
        return self._gain(self._at) if self.concealing else 1.0

    def heard(self, samples: NDArray[np.float32]) -> None:
        if samples.shape[1] != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        self._end_gap()
        self._remember(samples)

    def conceal(self, out: NDArray[np.float32]) -> None:
        if out.shape[1] != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        if not self.concealing:
            self._begin()
        n = len(out)
        out[:] = self._extended(self._at, n) * self._gains(self._at, n)
        self._at = min(self._at + n, 2 * self._total)

    def merge(self, samples: NDArray[np.float32]) -> None:
        if samples.shape[1] != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        if self.concealing and len(samples):
            samples[:] = clean(samples)
            n = min(len(samples), self._merge)
            old = self._aligned(samples[:n]) * self._gains(self._at, n)
            samples[:n] = signal_py.cross_fade(old.astype(np.float32), samples[:n])
        self._end_gap()
        self._remember(samples)

    def _end_gap(self) -> None:
        """What was played in the gap becomes history; until then the history stands still."""
        if self.concealing:
            played = self._extended(0, self._at) * self._gains(0, self._at)
            self._remember(played.astype(np.float32))
            self.concealing = False

    def _remember(self, samples: NDArray[np.float32]) -> None:
        size = len(self._history)
        self._history = np.concatenate([self._history, clean(samples[-size:])])[-size:]

    def _gain(self, frame: int) -> float:
        ms = frame * 1000.0 / self._rate
        gain = 1.0 - SLOW_PER_MS * max(0.0, ms - FULL_MS)
        gain -= (FAST_PER_MS - SLOW_PER_MS) * max(0.0, ms - SLOW_MS)
        return max(0.0, gain)

    def _gains(self, first: int, n: int) -> NDArray[np.float64]:
        return np.array([self._gain(first + i) for i in range(n)]).reshape(n, 1)

    def _begin(self) -> None:
        self.concealing = True
        self._known = self._at = 0
        self._extension[:] = 0.0
        if self._voice:
            self._begin_voice()
        else:
            self._begin_music()

    def _extended(self, first: int, n: int) -> NDArray[np.float64]:
        """Frames [first, first + n) of the extension; silence behind its end."""
        last = min(first + n, self._total)
        if last > self._known:
            if self._voice:
                self._voice_until(last)
            else:
                self._music_until(last)
            np.clip(self._extension, -LIMIT, LIMIT, out=self._extension)
            self._known = last
        out = np.zeros((n, self._channels))
        if last > first:
            out[: last - first] = self._extension[first:last]
        return out

    def _aligned(self, samples: NDArray[np.float32]) -> NDArray[np.float64]:
        """The extension where ``samples`` stand, bent so that it meets them in phase."""
        n, at = len(samples), self._at
        reach = min(self._longest // 4 if self._voice else 0, at)
        if reach == 0 or at + n + reach > self._total:
            return self._extended(at, n)
        around = self._extended(at - reach, n + 2 * reach)
        found = [joint_correlation(around[d : d + n], samples) for d in range(2 * reach + 1)]
        best = int(np.argmax(found))
        if found[best] < max(0.5, found[reach] + 0.1):
            best = reach
        # Half of the way runs the shift from nothing to all of it.
        bend = np.minimum(1.0, np.arange(n) * 2.0 / n)
        place = reach + np.arange(n) + (best - reach) * (3.0 - 2.0 * bend) * bend * bend
        whole = np.minimum(place.astype(int), len(around) - 2)
        part = (place - whole)[:, None]
        bent: NDArray[np.float64] = around[whole] + part * (around[whole + 1] - around[whole])
        return bent

    def _begin_voice(self) -> None:
        longest, step = self._longest, self._step
        mono, power = signal_py.mono_reference(self._history[-2 * longest :])
        self._silent = power < 1e-12
        if self._silent:
            return
        lag, found = signal_py.find_lag(mono, longest, longest, self._shortest, longest, step)
        candidates = np.arange(max(self._shortest, lag - step), min(longest, lag + step) + 1)
        recent = mono[-lag:]
        distance = [
            float(np.sum(np.abs(recent - mono[len(mono) - lag - d : len(mono) - d])))
            for d in candidates
        ]
        other = int(candidates[int(np.argmin(distance))])
        self._lags = (lag, (lag + other) // 2, other)
        self._voicing = min(1.0, max(0.0, (found - 0.3) * 2.0))
        self._overlap = max(1, min(self._lags) // 4)
        self._loop = self._previous = self._place = 0
        window = self._history[-(self._rate // 50) :].astype(np.float64)
        models = [burg(window[:, c], NOISE_ORDER) for c in range(self._channels)]
        fading = np.exp(-np.arange(1, NOISE_ORDER + 1) / (0.004 * self._rate))
        # Noise of this colour, in which what rings dies down in 4 ms.
        self._shape = np.array([model * fading for model, _ in models])[:, ::-1]
        self._level = np.array([HISS * np.sqrt(3.0 * power) for _, power in models])
        self._noise = np.zeros((NOISE_ORDER + self._total, self._channels))
        self._noise[:NOISE_ORDER] = window[-NOISE_ORDER:]

    def _voice_until(self, last: int) -> None:
        if self._silent:
            self._extension[self._known : last] = 0.0
            return
        ramp = max(1, self._rate // 400)
        for i in range(self._known, last):
            noise = self._noise[i : i + NOISE_ORDER]
            white = np.array([self._uniform() for _ in range(self._channels)]) * self._level
            self._noise[NOISE_ORDER + i] = white - np.sum(self._shape * noise.T, axis=1)
            rise = 0.5 - 0.5 * np.cos(np.pi * (i + 1) / (ramp + 1)) if i < ramp else 1.0
            voicing = self._voicing * max(0.0, 1.0 - 4.0 * i / self._rate)
            hiss = (1.0 - rise) + rise * np.sqrt(1.0 - voicing * voicing)
            self._extension[i] = rise * voicing * self._periodic()
            self._extension[i] += hiss * self._noise[NOISE_ORDER + i]

    def _periodic(self) -> NDArray[np.float64]:
        """The next frame of the repeated pitch periods, three lags in turn."""
        i = self._place
        value = self._looped(self._loop, i)
        if i < self._overlap and self._previous != self._loop:
            weight = 0.5 - 0.5 * np.cos(np.pi * (i + 1) / (self._overlap + 1))
            old = self._looped(self._previous, i)
            value = old + weight * (value - old)
        self._place += 1
        if self._place == self._lags[self._loop]:
            self._previous = self._loop
            self._loop = (self._loop + 1) % 3
            self._place = 0
        return value

    def _looped(self, loop: int, i: int) -> NDArray[np.float64]:
        """Frame ``i`` of the last period, whose end leads into its own beginning."""
        lag = self._lags[loop]
        history = self._history
        value: NDArray[np.float64] = history[len(history) - lag + i].astype(np.float64)
        tail = i - (lag - self._overlap)
        if tail >= 0:
            weight = 0.5 - 0.5 * np.cos(np.pi * (tail + 1) / (self._overlap + 1))
            value += weight * (history[len(history) - 2 * lag + i] - value)
        return value

    def _uniform(self) -> float:
        """xorshift32 (Marsaglia 2003), in [-1, 1)."""
        x = self._random
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        self._random = x
        return x / 2147483648.0 - 1.0

    def _begin_music(self) -> None:
        split, delay, channels = self._split, self._delay, self._channels
        history = self._history.astype(np.float64)
        centres = len(history) - 1 - delay - split * np.arange(LOW_WINDOW)[::-1]
        known = history[centres[:, None] + np.arange(-delay, delay + 1)]
        order = max(NOISE_ORDER, min(LOW_ORDER, WORK // (LOW_WINDOW * channels)))
        self._low = np.tensordot(known, self._kernel, axes=([1], [0]))
        self._low_models = [burg(self._dithered(c), order)[0] for c in range(channels)]
        if split == 1:
            return
        window = LOW_WINDOW
        low_band = self._low_band(-window, 0)
        self._high = history[-window:] - low_band
        self._high_models = [burg(self._high[:, c], HIGH_ORDER)[0] for c in range(channels)]

    def _dithered(self, channel: int) -> NDArray[np.float64]:
        """The low band 80 dB above noise: pure tones alone leave the model undetermined."""
        low = self._low[:, channel]
        level = DITHER * np.sqrt(np.mean(low * low))
        dithered: NDArray[np.float64] = low + level * np.array([self._uniform() for _ in low])
        return dithered

    def _music_until(self, last: int) -> None:
        low = self._low_band(self._known, last)
        if self._split > 1:
            while len(self._high) < LOW_WINDOW + last:
                self._high = step_forward(self._high, self._high_models)
            low = low + self._high[LOW_WINDOW + self._known : LOW_WINDOW + last]
        self._extension[self._known : last] = low

    def _low_band(self, first: int, last: int) -> NDArray[np.float64]:
        """Frames [first, last) of the low band at the full rate; 0 is the first lost frame."""
        split, delay = self._split, self._delay
        # Low sample j stands at frame (j - LOW_WINDOW + 1) * split - 1 - delay.
        place = np.arange(first, last) + 1 + delay
        newest = (place + delay) // split + LOW_WINDOW - 1
        while len(self._low) <= newest[-1]:
            self._low = step_forward(self._low, self._low_models)
        if split == 1:
            return self._low[newest]
        out = np.zeros((last - first, self._channels))
        for back in range(2 * SIDE_LOBES + 1):
            j = newest - back
            tap = place - (j - LOW_WINDOW + 1) * split + delay
            inside = (tap >= 0) & (tap < len(self._kernel))
            out[inside] += split * self._kernel[tap[inside]][:, None] * self._low[j[inside]]
        return out


def split_filter(split: int, delay: int) -> NDArray[np.float64]:
    """Windowed sinc (Blackman) that passes the band of a rate ``split`` times lower; gain 1."""
    at = np.arange(-delay, delay + 1)
    turn = np.pi * at / (delay + 1)
    taps = np.sinc(0.9 * at / split) * (0.42 + 0.5 * np.cos(turn) + 0.08 * np.cos(2.0 * turn))
    filter_: NDArray[np.float64] = taps / taps.sum()
    return filter_


def burg(x: NDArray[np.float64], order: int) -> tuple[NDArray[np.float64], float]:
    """Coefficients a[1..order] of ``x[t] = e[t] - sum a[k] x[t - k]`` and the power of e.

    Burg 1967, with Hamming weights (Swingler 1979), which keep the frequency of tones true. Every
    reflection coefficient is held below 1, so the filter is stable; from the order at which
    nothing is left to explain, the coefficients are 0.
    """
    a = np.zeros(order)
    weights = np.hamming(len(x))
    power = float(np.dot(x, x)) / len(x)
    least = 1e-12 * power + 1e-30
    forward, backward = x[1:].copy(), x[:-1].copy()
    for m in range(order):
        skip = (len(x) - len(forward)) // 2
        weighted = weights[skip : skip + len(forward)]
        energy = float(np.dot(weighted, forward * forward + backward * backward))
        if power <= least or energy <= 1e-30:
            break
        k = -2.0 * float(np.dot(weighted, forward * backward)) / energy
        k = min(max(k, -0.99999), 0.99999)
        a[:m] += k * a[:m][::-1].copy()
        a[m] = k
        power *= 1.0 - k * k
        forward, backward = (forward + k * backward)[1:], (backward + k * forward)[:-1]
    return a, power


def step_forward(
    known: NDArray[np.float64], models: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """One more frame, as the models predict it."""
    frame = [-np.dot(a, known[: -len(a) - 1 : -1, c]) for c, a in enumerate(models)]
    return np.concatenate([known, np.clip([frame], -LIMIT, LIMIT)])


def joint_correlation(a: NDArray[np.float64], b: NDArray[np.float32]) -> float:
    """Normalised correlation over all channels together."""
    power = float(np.sum(a * a)) * float(np.sum(b.astype(np.float64) ** 2))
    return float(np.sum(a * b)) / np.sqrt(power) if power > 1e-20 else 0.0


def clean(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Not a number becomes 0, and nothing is louder than LIMIT."""
    return np.clip(np.nan_to_num(samples, nan=0.0), -LIMIT, LIMIT)
