"""When a counter had, or will have, a value: the clock behind noisy readings of it.

Sans-IO. A delay-locked loop (Fons Adriaensen, "Using a DLL to filter time"; critically damped,
second order) on readings at any distance. Exact readings come out exactly; the noise of others is
averaged, over a second at first and over half a minute in the end.
"""

from __future__ import annotations

from math import pi, sqrt

__all__ = ["Timebase"]

SECOND = 1_000_000_000
FIRST_BANDWIDTH, LAST_BANDWIDTH = 1.0, 0.03
HALVING_S = 4.0
NOISE_MEMORY = 1 / 16
JUMP_NS = 5_000_000
JUMPS = 3
"""So many readings in a row that miss by more are no noise: the clock behind them has jumped."""
PAUSE_NS = 500_000_000
"""One that misses by as much is enough."""


class Timebase:
    """Maps a counter of ``rate`` ticks per second (nominally) to nanoseconds, and back.

    Counts are integers or, asked for, fractions of one; times are integers of up to 63 bits. Before
    the first reading, count 0 is at 0 ns.
    """

    __slots__ = (
        "_bandwidth",
        "_fraction",
        "_held_s",
        "_jumps",
        "_period",
        "count",
        "noise_ns",
        "ns",
        "started",
    )

    def __init__(self, rate: float, noise_ns: float = 0.0) -> None:
        self._period = SECOND / rate
        self._fraction = 0.0
        self._bandwidth = FIRST_BANDWIDTH
        self._held_s = 0.0
        self._jumps = 0
        self.started = False
        self.count = 0
        """The last reading's."""
        self.ns = 0
        self.noise_ns = noise_ns
        """Smoothed magnitude of what readings miss; at first, what is expected."""

    @property
    def period_ns(self) -> float:
        """Of one count, as learned."""
        return self._period

    def ns_at(self, count: float) -> int:
        """The time of a count."""
        return self.ns + round((count - self.count) * self._period + self._fraction)

    def count_at(self, ns: int) -> float:
        """The count at a time."""
        return self.count + (ns - self.ns - self._fraction) / self._period

    def missed(self, count: int, ns: int) -> int:
        """How much later than expected a reading is, in ns; it is not taken in."""
        return ns - self.ns_at(count)

    def begin(self, count: int, ns: int) -> None:
        """From now on ``count`` is at ``ns``: a new origin, with the period learned so far."""
        self.count, self.ns, self._fraction = count, ns, 0.0
        self._jumps = 0
        self.started = True

    def update(self, count: int, ns: int) -> bool:
        """Take in a reading with a higher count than the last one; True where the clock jumped
        (the first time it begins)."""
        if not self.started:
            self.begin(count, ns)
            return True
        if count <= self.count:
            return False
        span = count - self.count
        expected = span * self._period + self._fraction
        missed = ns - self.ns - expected
        if abs(missed) > JUMP_NS:
            self._jumps += 1
            if self._jumps >= JUMPS or abs(missed) > PAUSE_NS:
                self.begin(count, ns)
                return True
            missed = 0.0
        else:
            self._jumps = 0
            self.noise_ns += NOISE_MEMORY * (abs(missed) - self.noise_ns)
        seconds = span * self._period / SECOND
        w = min(2.0 * pi * self._bandwidth * seconds, 0.3)
        whole = round(expected + sqrt(2.0) * w * missed)
        self._fraction = expected + sqrt(2.0) * w * missed - whole
        self.ns += whole
        self.count = count
        self._period += w * w * missed / span
        self._held_s += seconds
        if self._held_s >= HALVING_S:
            self._bandwidth = max(self._bandwidth / 2.0, LAST_BANDWIDTH)
            self._held_s = 0.0
        return False
