"""Seeded signals to test audio with: something like speech, something like music."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

VOWELS = [
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
]
BANDWIDTHS = (80, 110, 160)


@lru_cache(maxsize=16)
def speech(rate: int, seconds: float, seed: int = 1) -> np.ndarray:
    """Mono float32: glottal pulses of moving pitch through gliding formants, hiss, and pauses."""
    rng = np.random.default_rng(seed)
    n = int(rate * seconds)
    knots = int(seconds * 4) + 2  # four syllables a second
    at = np.linspace(0, n, knots)
    here = np.arange(n)
    pitch = np.interp(here, at, rng.uniform(95, 210, knots))
    pitch *= 1 + 0.01 * np.sin(2 * np.pi * 5.5 * here / rate)
    phase = np.cumsum(pitch / rate)
    pulses = np.diff(np.floor(phase), prepend=0.0) * (1 + 0.05 * rng.standard_normal(n))
    source = np.zeros(n)
    glottis = np.hanning(max(4, int(0.003 * rate)))
    voiced = np.convolve(pulses, np.diff(glottis, append=0.0))[:n]
    kind = rng.choice(3, knots, p=[0.72, 0.13, 0.15])  # vowel, hiss, pause
    segment = np.minimum((here * knots) // n, knots - 1)
    smooth = np.hanning(int(0.02 * rate))
    smooth /= smooth.sum()
    voice_gain = np.convolve(kind[segment] == 0, smooth, "same")
    hiss_gain = np.convolve(kind[segment] == 1, smooth, "same")
    source = voiced * voice_gain + 0.004 * rng.standard_normal(n) * voice_gain
    shapes = np.array([VOWELS[i] for i in rng.integers(0, len(VOWELS), knots)], float)
    for formant, bandwidth in enumerate(BANDWIDTHS):
        frequency = np.interp(here, at, shapes[:, formant])
        source = _resonate(source, frequency, bandwidth, rate)
    hiss = np.diff(rng.standard_normal(n + 1))
    out = 0.3 * source / np.max(np.abs(source)) + 0.02 * hiss * hiss_gain
    out += 1e-4 * rng.standard_normal(n)
    return out.astype(np.float32)


@lru_cache(maxsize=16)
def music(rate: int, seconds: float, seed: int = 1) -> np.ndarray:
    """Mono float32: chords of decaying tones with overtones, a new chord every 0.6 s."""
    rng = np.random.default_rng(seed)
    n = int(rate * seconds)
    out = np.zeros(n + rate)
    for start in range(0, n, int(0.6 * rate)):
        time = np.arange(min(rate * 2, len(out) - start)) / rate
        root = 110 * 2 ** (rng.integers(0, 18) / 12)
        for interval in (0, 4, 7, 12):
            note = root * 2 ** (interval / 12)
            for overtone in range(1, 7):
                if note * overtone < 0.4 * rate:
                    wave = np.sin(2 * np.pi * (note * overtone * time + rng.random()))
                    decay = np.exp(-time * (1.5 + 0.8 * overtone)) * (1 - np.exp(-time * 400))
                    out[start : start + len(time)] += wave * decay * 0.06 / overtone
    out += 1e-4 * rng.standard_normal(len(out))
    return out[:n].astype(np.float32)


def log_spectral_distance(got: np.ndarray, want: np.ndarray, rate: int) -> float:
    """Mean over 20 ms frames of the rms difference in dB between the two spectra, above -60 dB."""
    size = rate // 50
    window = np.hanning(size)
    floor = (1e-3 * np.sqrt(np.mean(want.astype(float) ** 2)) * np.sqrt(size)) ** 2

    def spectra(x):
        pieces = np.lib.stride_tricks.sliding_window_view(x, size)[:: size // 2]
        return 10 * np.log10(np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2 + floor)

    difference = spectra(got) - spectra(want)
    return float(np.mean(np.sqrt(np.mean(difference**2, axis=1))))


def _resonate(x, frequency, bandwidth, rate):
    """A two-pole resonator with a gliding frequency."""
    radius = np.exp(-np.pi * bandwidth / rate)
    first = (2 * radius * np.cos(2 * np.pi * frequency / rate)).tolist()
    second = -radius * radius
    out = []
    y1 = y2 = 0.0
    for value, a in zip(x.tolist(), first, strict=True):
        y1, y2 = value + a * y1 + second * y2, y1
        out.append(y1)
    return np.array(out)
