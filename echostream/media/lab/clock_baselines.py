"""How other projects estimate the offset, written from descriptions of their algorithms.

Yardsticks only. Offsets and times in ns at the edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from statistics import median

__all__ = ["MedianFilter", "TimeFilter"]

SECOND = 1_000_000_000


class MedianFilter:
    """Snapcast: the median of the last 200 offsets; 50 requests at once, then one a second."""

    def __init__(self) -> None:
        self._offsets: deque[float] = deque(maxlen=200)
        self._median = 0.0

    @staticmethod
    def probes(seconds: float) -> Iterator[int]:
        """When it sends its requests."""
        yield from (i * 5_000_000 for i in range(50))
        yield from (i * SECOND for i in range(1, int(seconds)))

    def add_exchange(self, t1: int, t2: int, t3: int, t4: int) -> None:
        self._offsets.append(((t2 - t1) + (t3 - t4)) / 2)
        self._median = median(self._offsets)

    def offset_at(self, local_ns: int) -> float:
        return self._median

    def error_bound_at(self, local_ns: int) -> float:
        """It has none."""
        return inf


class TimeFilter:
    """Sendspin's C++ client: of a burst of 8 every 10 s the exchange with the least round trip
    goes to a Kalman filter of offset and drift, with adaptive forgetting. Microseconds inside.

    Drift process noise 1e-11 per square root of a microsecond, measurement deviation half the
    maximum error (half the round trip), forgetting factor 2 for residuals above 3 maximum errors
    after 100 samples, drift used above 2 of its deviations.
    """

    DRIFT_VARIANCE = 1e-11**2
    FORGET_VARIANCE = 2.0**2
    CUTOFF = 3.0
    LEAST = 100
    GATE = 2.0
    SCALE = 0.5
    BURST = 8

    def __init__(self) -> None:
        self._burst: list[tuple[int, float, int]] = []
        self._count = 0
        self._at = 0.0
        self._offset = self._drift = 0.0
        self._p00 = self._p01 = self._p11 = 0.0

    @classmethod
    def probes(cls, seconds: float) -> Iterator[int]:
        """When it sends its requests."""
        for start in range(0, int(seconds), 10):
            yield from (start * SECOND + i * 20_000_000 for i in range(cls.BURST))

    def add_exchange(self, t1: int, t2: int, t3: int, t4: int) -> None:
        self._burst.append(((t4 - t1) - (t3 - t2), ((t2 - t1) + (t3 - t4)) / 2, t4))
        if len(self._burst) == self.BURST:
            rtt, offset, at = min(self._burst)
            self._burst.clear()
            self.update(offset / 1e3, rtt / 2e3, at / 1e3)

    def update(self, offset: float, error: float, at: float) -> None:
        """One measurement, in microseconds."""
        noise = (error * self.SCALE) ** 2
        dt = at - self._at
        if self._count and dt <= 0:
            return
        self._at = at
        if self._count == 0:
            self._offset, self._p00 = offset, noise
        elif self._count == 1:
            self._drift = (offset - self._offset) / dt
            self._p11 = (self._p00 + noise) / dt**2
            self._offset, self._p00 = offset, noise
        else:
            self._correct(offset, error, noise, dt)
        self._count += 1

    def _correct(self, offset: float, error: float, noise: float, dt: float) -> None:
        predicted = self._offset + self._drift * dt
        p00 = self._p00 + 2 * self._p01 * dt + self._p11 * dt * dt
        p01 = self._p01 + self._p11 * dt
        p11 = self._p11 + self.DRIFT_VARIANCE * dt
        residual = offset - predicted
        if self._count >= self.LEAST and abs(residual) > self.CUTOFF * error:
            p00, p01, p11 = (p * self.FORGET_VARIANCE for p in (p00, p01, p11))
        gain = 1 / (p00 + noise)
        self._offset = predicted + p00 * gain * residual
        self._drift += p01 * gain * residual
        self._p00 = p00 - p00 * gain * p00
        self._p01 = p01 - p00 * gain * p01
        self._p11 = p11 - p01 * gain * p01

    def offset_at(self, local_ns: int) -> float:
        drift = self._drift if self._drift**2 > self.GATE**2 * self._p11 else 0.0
        return (self._offset + drift * (local_ns / 1e3 - self._at)) * 1e3

    def error_bound_at(self, local_ns: int) -> float:
        """It has none that it guarantees."""
        return inf
