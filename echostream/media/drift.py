"""Follow the drift of a sender's clock: from the level of a buffer to a resampling ratio.

Sans-IO: the caller reports the level and how much was played since the last report, and hands the
ratio to :class:`echostream.media.resample.Resampler`.

Two parts. An *observer* predicts the level from the ratio in use, as a delay-locked loop does
(Fons Adriaensen, "Using a DLL to filter time"; second order, critically damped), and learns the
drift from what the prediction misses: a ratio that is at its bound, or on its way back from a
jump of the level, teaches it nothing wrong. Its bandwidth starts at 0.128 Hz and halves every 4 s
down to 0.016 Hz. What a clock filter knows of the drift is fed forward, and only the rest is
learned. The *law* leads the level back: in proportion to the error, and from 2 ms on along a
parabola, as a train brakes before the station. The ratio itself moves by at most ``max_slew_ppm``
per second, so that no listener hears it move.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

from echostream.errors import ConfigurationError

__all__ = ["DriftController", "DriftStatistics"]

MAX_BANDWIDTH, MIN_BANDWIDTH = 0.128, 0.016
HALVING_S = 4.0
JUMP_S, JUMP_TIME_S = 0.0015, 0.3
"""A level that stays this far from the prediction has jumped: no drift is learned from that.
But where the drift was not learned yet, it comes again and again: then it is learned faster."""
RELOCK_BANDWIDTH = 0.064
GAIN = 0.5
"""Share of a small error that is made good in a second."""


@dataclass(frozen=True, slots=True)
class DriftStatistics:
    """``ratio`` in use; ``drift_ppm``, the sender's against the local clock; ``bandwidth`` in Hz
    with which it is learned now."""

    ratio: float
    drift_ppm: float
    bandwidth: float


class DriftController:
    """Hold a buffer at its target by steering the resampler that empties it.

    ``max_ppm`` bounds the ratio: 5000 for music, 500 (below one cent) in a multi-room group;
    ``max_slew_ppm`` bounds its change per second. ``feed_forward_ppm`` may be set at any time to
    the sender's drift against the local clock, as the clock filter measures it: positive where the
    sender is fast.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        max_ppm: float = 5000.0,
        max_slew_ppm: float = 1000.0,
        feed_forward_ppm: float = 0.0,
    ) -> None:
        if sample_rate <= 0:
            raise ConfigurationError("sample_rate must be above 0 Hz")
        if not 0.0 < max_ppm <= 50_000.0:
            raise ConfigurationError("max_ppm must be above 0 and at most 50000 (5 %)")
        if not 0.0 < max_slew_ppm <= 1e6:
            raise ConfigurationError("max_slew_ppm must be above 0 and at most 1000000")
        self._rate = sample_rate
        self._max = max_ppm * 1e-6
        self._slew = max_slew_ppm * 1e-6
        self._knee = self._slew / 2.0 / GAIN**2
        self._forward = 0.0
        self._learned = 0.0
        self._level: float | None = None
        self._missed = 0.0
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
        forward = value * 1e-6
        if self._level is None:
            self._ratio = 1.0 + min(max(forward, -self._max), self._max)
        else:  # what was learned so far is not added a second time
            self._learned += self._forward - forward
        self._forward = forward

    @property
    def ratio(self) -> float:
        """Input frames per output frame, relative to the nominal rates."""
        return self._ratio

    def update(self, excess: float, played: int, moved: float = 0.0) -> float:
        """The ratio for the audio to come.

        ``excess``: frames in the buffer beyond its target, with what is in flight (negative: too
        few). ``played``: frames put out since the last update, about 1 to 50 ms worth. ``moved``:
        how much of the change of ``excess`` since then is known to be no drift, because the
        target was set anew. An ``excess`` that is not finite, or nothing played, leaves the
        ratio as it is.
        """
        if played <= 0 or not abs(excess) < 1e12:
            return self._ratio
        error, span = excess / self._rate, played / self._rate
        if self._level is not None:
            self._level += moved / self._rate
        level = self._observe(error, span)
        wanted = self._forward + self._learned + self._way_back(level)
        step = self._slew * span
        ratio = self._ratio + min(max(1.0 + wanted - self._ratio, -step), step)
        self._ratio = min(max(ratio, 1.0 - self._max), 1.0 + self._max)
        return self._ratio

    def reset(self) -> None:
        """A new stream: begin again, from the drift known so far."""
        self._level = None
        self._missed = 0.0
        self._bandwidth = MAX_BANDWIDTH
        self._held_s = 0.0
        drift = self._forward + self._learned
        self._ratio = 1.0 + min(max(drift, -self._max), self._max)

    def statistics(self) -> DriftStatistics:
        drift = self._forward + self._learned
        return DriftStatistics(self._ratio, drift * 1e6, self._bandwidth)

    def _observe(self, error: float, span: float) -> float:
        """The smoothed error; learns the drift on the way. All in seconds."""
        if self._level is None:
            self._level = error
            return error
        predicted = self._level + (self._forward + self._learned + 1.0 - self._ratio) * span
        missed = error - predicted
        self._missed += min(span / JUMP_TIME_S, 1.0) * (missed - self._missed)
        if abs(self._missed) > JUMP_S:
            predicted += self._missed
            missed = self._missed = 0.0
            self._bandwidth, self._held_s = max(self._bandwidth, RELOCK_BANDWIDTH), 0.0
        w = 2.0 * pi * self._bandwidth
        self._level = predicted + 2.0 * w * span * missed
        self._learned += w * w * span * missed
        self._held_s += span
        if self._held_s >= HALVING_S:
            self._bandwidth = max(MIN_BANDWIDTH, self._bandwidth / 2.0)
            self._held_s = 0.0
        return self._level

    def _way_back(self, level: float) -> float:
        """Addition to the ratio that leads ``level`` (s) to 0."""
        distance = abs(level)
        if distance < self._knee:
            return GAIN * level
        # Half of the slew brakes, so that the other half is left to keep to the parabola.
        speed = sqrt(self._slew * (distance - self._knee / 2.0))
        return speed if level > 0.0 else -speed
