"""Keeps the queue short that a connection makes for itself at the bottleneck.

New Reno fills whatever buffer the path has, and what is urgent waits behind it. The window here
follows delay, as LEDBAT's does (RFC 6817): once per round trip it is scaled so that the round trip
would take the shortest known one and ``target`` on top (the update of FAST TCP: C. Jin, D. Wei, S.
Low, INFOCOM 2004). It is a second bound beside that of the congestion controller, which so never
gets more than it would have had.
"""

from __future__ import annotations

from math import inf
from typing import Any

__all__ = ["QueueLimit"]

SMALLEST_PACKETS = 10
"""RFC 9002's initial window: less is left to losses to decide."""
GROWTH = 1.5
SHRINKAGE = 0.5
"""Bounds of one step."""
BASE_AGE_S = 20.0
"""A shortest round trip that was not seen again for so long is measured anew, with the window
halved for two round trips: part of it may be our own queue, or the path another one."""


class QueueLimit:
    """The window of one connection, while it is to keep queues short. Times in seconds."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._window = inf
        self._base = inf
        self._base_at = 0.0
        self._probing = 0
        self._before = inf  # the window when that began
        self._reduced = 0  # that of the congestion controller then
        self._ssthresh: int | None = None  # and its threshold: losses change it
        self._low = inf
        self._most = 0
        self._round_end = 0.0

    def apply(self, now: float, loss: Any, reserved: int) -> bool:
        """Bound the window of ``loss`` (aioquic's recovery, or the compiled one) for the flush at
        ``now``. ``reserved``: bytes that this round trip needs in any case, which stay within the
        bound. Whether a round trip has ended, so that counting begins anew."""
        if not loss._rtt_initialized:
            return False
        control = loss._cc
        self._low = min(self._low, loss._rtt_latest)
        self._most = max(self._most, control.bytes_in_flight)
        ended = now >= self._round_end
        if ended:
            self._step(now, control, reserved)
            self._round_end = now + loss._rtt_smoothed
            self._low = inf
            self._most = 0
        if control.congestion_window > self._window:
            control.congestion_window = int(self._window)
        return ended

    def _step(self, now: float, control: Any, reserved: int) -> None:
        low = self._low
        if self._probing:
            self._probing -= 1
            if not self._probing:
                self._base, self._base_at = low, now
                self._window = self._before
                if control.ssthresh == self._ssthresh:  # else packets were lost meanwhile
                    control.congestion_window = max(control.congestion_window, self._reduced)
            return
        if low <= self._base * 1.02:
            self._base, self._base_at = min(low, self._base), now
        scale = (self._base + self._target) / low
        smallest = SMALLEST_PACKETS * control._max_datagram_size + 2 * reserved
        window = min(
            self._window, max(2 * self._most, smallest), control.congestion_window * GROWTH
        )
        self._window = max(window * min(max(scale, SHRINKAGE), GROWTH), smallest)
        if now - self._base_at > BASE_AGE_S:
            self._probing = 2
            self._before = self._window
            self._reduced = min(control.congestion_window, int(self._before))
            self._ssthresh = control.ssthresh
            self._window = max(self._window / 2, 4 * control._max_datagram_size + reserved)
