"""An allowance that is spent by events and grows again with time."""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """A token bucket: ``burst`` at once, ``rate`` per second after that."""

    __slots__ = ("_burst", "_left", "_rate", "_refilled_at")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = burst
        self._refilled_at: float | None = None

    def spend(self, now: float) -> bool:
        """Take one. ``False`` when nothing is left."""
        if not self.has(now):
            return False
        self._left -= 1.0
        return True

    def has(self, now: float) -> bool:
        """Whether one is left to take."""
        if self._refilled_at is not None:
            self.earn(max(0.0, now - self._refilled_at) * self._rate)
        self._refilled_at = now
        return self._left >= 1.0

    def earn(self, amount: float) -> None:
        """Grow by ``amount``, up to the burst."""
        self._left = min(self._burst, self._left + amount)
