"""The largest value of the last seconds."""

from __future__ import annotations

__all__ = ["RecentMaximum"]


class RecentMaximum:
    """The largest of the values of the last ``span_ns``, or up to twice that; ``start`` before the
    first."""

    __slots__ = ("_before", "_since", "_span_ns", "_until_ns")

    def __init__(self, span_ns: int, start: float = 0.0) -> None:
        self._span_ns = span_ns
        self._before = self._since = start
        self._until_ns = -(2**63)

    def add(self, value: float, now_ns: int) -> None:
        """A value at a time that does not step back."""
        if now_ns >= self._until_ns:
            fresh = now_ns >= self._until_ns + self._span_ns
            self._before = value if fresh else self._since
            self._since = value
            self._until_ns = now_ns + self._span_ns
        elif value > self._since:
            self._since = value

    @property
    def value(self) -> float:
        return max(self._before, self._since)
