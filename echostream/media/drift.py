"""Follow the drift of a sender's clock: from the level of a buffer to a resampling ratio.

Sans-IO: the caller reports the level and how much was played since the last report, and hands the
ratio to :class:`echostream.media.resample.Resampler`.

The loop is PipeWire's delay-locked loop (``spa/utils/dll.h``, after Fons Adriaensen, "Using a DLL
to filter time"): second order with a damping of 0.75, behind a low-pass twenty times faster. Its
bandwidth starts at 0.128 Hz and halves every 3 s down to 0.016 Hz. What a clock filter knows
of the drift is fed forward, and only the rest is left to the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, pi

from echostream.errors import ConfigurationError

__all__ = ["DriftController", "DriftStatistics"]

MAX_BANDWIDTH, MIN_BANDWIDTH = 0.128, 0.016
HALVING_S = 3.0
RELOCK_S = 0.010
"""An error above this, while the bandwidth is narrow, opens it again."""


@dataclass(frozen=True, slots=True)
class DriftStatistics:
    """``ratio`` in use; ``drift_ppm``, the settled part of it; ``bandwidth`` in Hz now."""

    ratio: float
    drift_ppm: float
    bandwidth: float


class DriftController:
    """Hold a buffer at its target by steering the resampler that empties it.

    ``max_ppm`` bounds the ratio: 5000 for music, 500 (below one cent) in a multi-room group.
    ``feed_forward_ppm`` may be set at any time to the sender's drift against the local clock, as
    the clock filter measures it: positive where the sender is fast.
    """

    def __init__(
        self, sample_rate: int, *, max_ppm: float = 5000.0, feed_forward_ppm: float = 0.0
    ) -> None:
        if sample_rate <= 0:
            raise ConfigurationError("sample_rate must be above 0 Hz")
        if not 0.0 < max_ppm <= 50_000.0:
            raise ConfigurationError("max_ppm must be above 0 and at most 50000 (5 %)")
        self._rate = sample_rate
        self._max = max_ppm * 1e-6
        self._forward = 0.0
        self._z1 = self._z2 = self._z3 = 0.0
        self._bandwidth = MAX_BANDWIDTH
        self._held_s = 0.0
        self._ratio = 1.0
        self.feed_forward_ppm = feed_forward_ppm

    @property
    def feed_forward_ppm(self) -> float:
        return self._forward * 1e6

    @feed_forward_ppm.setter
    def feed_forward_ppm(self, value: float) -> None:
        if not abs(value) < 1e6:
            raise ValueError("feed_forward_ppm must be a finite number of ppm")
        # What the loop has found out so far is not added a second time.
        forward = value * 1e-6
        if self._forward or self._z3:
            self._z3 += self._forward - forward
        self._forward = forward

    @property
    def ratio(self) -> float:
        """Input frames per output frame, relative to the nominal rates."""
        return self._ratio

    def update(self, excess: float, played: int) -> float:
        """The ratio for the audio to come.

        ``excess``: frames in the buffer beyond its target, with what is in flight (negative: too
        few). ``played``: frames put out since the last update, about 5 to 50 ms worth. An
        ``excess`` that is not finite, or nothing played, leaves the ratio as it is.
        """
        if played <= 0 or not abs(excess) < 1e12:
            return self._ratio
        self._schedule(excess, played)
        w = 2.0 * pi * self._bandwidth * played / self._rate
        smooth = 1.0 - exp(-20.0 * w)
        self._z1 += smooth * (1.5 * w / played * excess - self._z1)
        self._z2 += smooth * (self._z1 - self._z2)
        correction = self._forward + self._z2 + self._z3
        if abs(correction) < self._max:  # at its bound the ratio tells nothing about the drift
            self._z3 += w / 1.5 * self._z2
        self._ratio = 1.0 + min(max(correction, -self._max), self._max)
        return self._ratio

    def reset(self) -> None:
        """A new stream or a jump of the level: lock again, from the drift known so far."""
        self._z1 = self._z2 = 0.0
        self._bandwidth = MAX_BANDWIDTH
        self._held_s = 0.0

    def statistics(self) -> DriftStatistics:
        return DriftStatistics(self._ratio, (self._forward + self._z3) * 1e6, self._bandwidth)

    def _schedule(self, excess: float, played: int) -> None:
        self._held_s += played / self._rate
        if abs(excess) > RELOCK_S * self._rate and self._bandwidth < MAX_BANDWIDTH / 2:
            self._bandwidth = MAX_BANDWIDTH
            self._held_s = 0.0
        elif self._held_s >= HALVING_S:
            self._bandwidth = max(MIN_BANDWIDTH, self._bandwidth / 2)
            self._held_s = 0.0
