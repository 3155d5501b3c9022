"""The same as ``echostream/_ext/signal.pxd``, in numpy: signal analysis for the Python twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_CHANNELS",
    "best_lag",
    "correlation",
    "cross_fade",
    "decimation",
    "find_lag",
    "first_peak",
    "mono_reference",
]

MAX_CHANNELS = 64
COARSE_RATE = 4000
NEARLY = 0.92


def mono_reference(frames: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Energy-weighted sum of the channels of ``(frames, channels)``, and the power of all."""
    x = frames.astype(np.float64)
    with np.errstate(all="ignore"):
        energy = np.sum(x * x, axis=0)
        total = float(np.sum(energy))
    if not 0.0 < total < 1e30:
        return np.zeros(len(x)), total / len(x)
    sign = np.where(x.T @ x[:, np.argmax(energy)] >= 0.0, 1.0, -1.0)
    return x @ (sign * energy / total), total / len(x)


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    power = float(np.dot(a, a) * np.dot(b, b))
    return float(np.dot(a, b) / np.sqrt(power)) if power > 1e-30 else 0.0


def best_lag(x: NDArray[np.float64], at: int, first: int, last: int, n: int) -> tuple[int, float]:
    """The lag in [first, last] at which ``x[at - lag :][:n]`` is most like ``x[at:][:n]``."""
    values = [correlation(x[at : at + n], x[at - lag :][:n]) for lag in range(first, last + 1)]
    best = int(np.argmax(values))
    return first + best, values[best]


def first_peak(x: NDArray[np.float64], at: int, first: int, last: int, n: int) -> int:
    """The shortest lag with a peak of the correlation of at least NEARLY the best."""
    values = [correlation(x[at : at + n], x[at - lag :][:n]) for lag in range(first, last + 1)]
    enough = NEARLY * max(values)
    for i, value in enumerate(values[:-1]):
        if value >= enough and value >= values[i + 1] and (i == 0 or value > values[i - 1]):
            return first + i
    return last


def decimation(rate: int) -> int:
    return max(1, (rate + COARSE_RATE // 2) // COARSE_RATE)


def find_lag(
    x: NDArray[np.float64], at: int, n: int, shortest: int, longest: int, step: int
) -> tuple[int, float]:
    before, after = longest // step - 1, n // step - 1
    triangle = step - np.abs(np.arange(1 - step, step))
    centres = at + step * np.arange(-before, after)
    low = x[centres[:, None] + np.arange(1 - step, step)] @ triangle
    coarse = first_peak(low, before, max(1, shortest // step), before, after)
    first, last = max(shortest, (coarse - 1) * step), min(longest, (coarse + 1) * step)
    return best_lag(x, at, first, last, min(n, max(coarse * step, shortest)))


def cross_fade(old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
    turn = np.pi / (len(old) + 1)
    weight = (0.5 - 0.5 * np.cos(turn * np.arange(1, len(old) + 1)))[:, None]
    faded: NDArray[np.float32] = (old + weight * (new - old)).astype(np.float32)
    return faded
