"""The same as ``echostream._ext.time_align``, in Python and numpy: oracle and fallback.

The contracts stand in :mod:`echostream.media.samples`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Unwrapper",
    "clip",
    "deinterleave",
    "float32_to_int16",
    "gain_ramp",
    "int16_to_float32",
    "interleave",
    "level",
    "mix_into",
    "ns_to_samples",
    "samples_to_ns",
]

SECOND = 1_000_000_000
MAX_SECONDS = 9_223_372_035


class Unwrapper:
    def __init__(self, bits: int) -> None:
        if not 2 <= bits <= 62:
            raise ValueError("bits must be 2 to 62")
        self._half = 1 << (bits - 1)
        self._mask = 2 * self._half - 1
        self._last: int | None = None

    def unwrap(self, value: int) -> int:
        value &= self._mask
        if self._last is None:
            self._last = value
        else:
            self._last += (((value - self._last) & self._mask) ^ self._half) - self._half
        return self._last

    def reset(self) -> None:
        self._last = None


def samples_to_ns(samples: int, rate: int) -> int:
    if not 0 < rate < SECOND:
        raise ValueError("rate must be above 0 and below 1 GHz")
    if not -MAX_SECONDS <= samples // rate <= MAX_SECONDS:
        raise OverflowError("the time does not fit 64 bits of nanoseconds")
    return (2 * samples * SECOND + rate) // (2 * rate)


def ns_to_samples(ns: int, rate: int) -> int:
    if not 0 < rate < SECOND:
        raise ValueError("rate must be above 0 and below 1 GHz")
    return (2 * ns * rate + SECOND) // (2 * SECOND)


def int16_to_float32(source: NDArray[np.int16], out: NDArray[np.float32]) -> None:
    _same_shape(source.shape, out.shape)
    np.multiply(source, np.float32(1 / 32768), out=out)


def float32_to_int16(source: NDArray[np.float32], out: NDArray[np.int16]) -> None:
    _same_shape(source.shape, out.shape)
    with np.errstate(over="ignore"):
        scaled = np.nan_to_num(source * np.float32(32768), nan=0.0)
    out[:] = np.rint(np.clip(scaled, -32768, 32767))


def interleave(planar: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    _same_shape(planar.shape[::-1], out.shape)
    out[:] = planar.T


def deinterleave(source: NDArray[np.float32], planar: NDArray[np.float32]) -> None:
    _same_shape(source.shape, planar.shape[::-1])
    planar[:] = source.T


def mix_into(
    out: NDArray[np.float32], source: NDArray[np.float32], offset: int, gain: float
) -> int:
    if source.shape[1] != out.shape[1]:
        raise ValueError(f"source must have the shape (frames, {out.shape[1]})")
    first = max(offset, 0)
    last = min(len(out), offset + len(source))
    if last <= first:
        return 0
    out[first:last] += np.float32(gain) * source[first - offset : last - offset]
    return last - first


def clip(samples: NDArray[np.float32]) -> None:
    samples[np.isnan(samples)] = 0.0
    np.clip(samples, -1.0, 1.0, out=samples)


def gain_ramp(samples: NDArray[np.float32], start: float, stop: float) -> None:
    frames = len(samples)
    if frames:
        gain = start + (stop - start) / frames * np.arange(frames)
        samples *= gain.astype(np.float32)[:, None]


def level(samples: NDArray[np.float32]) -> tuple[float, float]:
    if not samples.size:
        return 0.0, 0.0
    exact = samples.astype(np.float64)
    return float(np.max(np.abs(exact))), float(np.sqrt(np.mean(exact * exact)))


def _same_shape(source: tuple[int, ...], out: tuple[int, ...]) -> None:
    if source != out:
        raise ValueError(
            f"out holds {out[0]} frames of {out[1]} channels, the source {source[0]} of {source[1]}"
        )
