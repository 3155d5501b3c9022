"""Moments of a stream that somebody waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Cues"]


class Cues:
    """:meth:`add`, :meth:`forget_new` and :meth:`passed` are for any thread, the rest for the one
    that pulls."""

    def __init__(self) -> None:
        self._new: deque[tuple[int, Any]] = deque()
        self._waiting: list[tuple[int, Any]] = []
        self._passed: deque[tuple[int, Any]] = deque()

    def add(self, moment: int, value: Any) -> None:
        self._new.append((moment, value))

    def forget_new(self) -> None:
        """Those that the pulls have not seen yet."""
        self._new.clear()

    def forget_waiting(self) -> None:
        """Those that they have."""
        self._waiting.clear()

    def advance(self, now: int, heard_at: Callable[[int], int] | None) -> None:
        """All with ``heard_at(moment)`` up to ``now`` are passed; none while that is unknown."""
        while self._new:
            self._waiting.append(self._new.popleft())
        if heard_at is None or not self._waiting:
            return
        left = []
        for moment, value in self._waiting:
            heard = heard_at(moment)
            if heard <= now:
                self._passed.append((heard, value))
            else:
                left.append((moment, value))
        self._waiting = left

    def passed(self) -> list[tuple[int, Any]]:
        """Those passed since the last call, each with the time at which it was heard."""
        passed = []
        while self._passed:
            passed.append(self._passed.popleft())
        return passed
