"""Sample time and sample values: the small kernels that everything in the media path uses.

Arrays are ``(frames, channels)``, C-contiguous, float32 in [-1, 1] or int16, unless a docstring
says otherwise. Outputs belong to the caller; nothing here allocates.

* ``Unwrapper(bits)`` extends 16- or 32-bit counters to 64 bits: ``unwrap(value)`` is the number
  nearest to the one before it; a distance of exactly half the range counts as backward. The first
  value stands for itself, and so does the first after ``reset()``.
* ``samples_to_ns(samples, rate)`` and ``ns_to_samples(ns, rate)`` round to the nearest integer
  (halves up) and compute with integers only, so that an hour of steps adds up to an hour, and a
  sample number survives the way there and back. ``OverflowError`` past 292 years.
* ``int16_to_float32(source, out)`` divides by 32768. ``float32_to_int16(source, out)`` multiplies
  by 32768, rounds to nearest (ties to even) and saturates at -32768 and 32767; NaN becomes 0.
  One scale for both directions, so that every int16 comes back as itself.
* ``interleave(planar, out)`` and ``deinterleave(source, planar)`` go between ``(channels, frames)``
  and ``(frames, channels)``, float32.
* ``mix_into(out, source, offset, gain)`` adds a block where frame 0 of ``source`` stands at
  frame ``offset`` of ``out`` (which may be negative or past the end) and returns how many frames
  overlapped. It does not clip: ``clip(samples)`` does, once, after the last stream. NaN becomes 0.
* ``gain_ramp(samples, start, stop)`` multiplies in place by a gain that goes from ``start`` at the
  first frame to ``stop`` at the frame after the last: blocks that go on where the one before
  stopped make no click.
* ``level(samples)`` is ``(peak, rms)`` over all channels, linear; :func:`dbfs` converts.
"""

from __future__ import annotations

from math import inf, log10
from typing import TYPE_CHECKING

import numpy as np

try:
    from echostream._ext.time_align import (
        Unwrapper,
        clip,
        deinterleave,
        float32_to_int16,
        gain_ramp,
        int16_to_float32,
        interleave,
        level,
        mix_into,
        ns_to_samples,
        samples_to_ns,
    )
except ImportError:  # nothing is compiled
    from echostream.media.samples_py import (  # type: ignore[assignment]
        Unwrapper,
        clip,
        deinterleave,
        float32_to_int16,
        gain_ramp,
        int16_to_float32,
        interleave,
        level,
        mix_into,
        ns_to_samples,
        samples_to_ns,
    )

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = [
    "Unwrapper",
    "clip",
    "dbfs",
    "deinterleave",
    "float32_to_int16",
    "gain_ramp",
    "int16_to_float32",
    "interleave",
    "level",
    "mix",
    "mix_into",
    "ns_to_samples",
    "samples_to_ns",
]


def mix(
    out: NDArray[np.float32], streams: Iterable[tuple[NDArray[np.float32], int, float]]
) -> None:
    """Fill ``out`` with the sum of ``(block, offset, gain)`` streams, clipped once.

    ``offset`` is the frame of ``out`` at which the block's first frame stands.
    """
    out.fill(0.0)
    for block, offset, gain in streams:
        mix_into(out, block, offset, gain)
    clip(out)


def dbfs(value: float) -> float:
    """Decibels relative to full scale, 1.0; ``-inf`` for 0.

    A sine that just reaches full scale has a peak of 0 and an rms of -3.01 dBFS (no AES17 offset).
    """
    return 20.0 * log10(value) if value > 0.0 else -inf
