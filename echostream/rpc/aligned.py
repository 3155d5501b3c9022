"""Time-synchronised streams: what is agreed at open, and when a frame is to be heard."""

from __future__ import annotations

from typing import Any

from echostream.errors import ConfigurationError, DeadlineExceeded, InvalidPayload
from echostream.rpc.clock import ClockDriver

__all__ = ["DEFAULT_PLAYOUT_DELAY", "Timeline", "playout_delay_ns", "wait_synchronized"]

DEFAULT_PLAYOUT_DELAY = 0.1
"""Seconds: above the jitter of a good Wi-Fi, below what a viewer notices."""
MAX_PLAYOUT_DELAY = 10.0
SYNC_WAIT_S = 5.0
"""How long the first aligned frame waits for the clock; it takes about 20 ms and a round trip."""


def playout_delay_ns(seconds: float | None) -> int:
    """The option ``playout_delay``. Raises ``ConfigurationError``."""
    if seconds is None:
        seconds = DEFAULT_PLAYOUT_DELAY
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_PLAYOUT_DELAY:
        raise ConfigurationError(
            f"playout_delay={seconds!r} must be seconds, 0 to {MAX_PLAYOUT_DELAY:g}"
        )
    return round(seconds * 1e9)


async def wait_synchronized(clock: ClockDriver) -> None:
    """Wait until the clock is synchronised. Raises ``DeadlineExceeded`` after ``SYNC_WAIT_S``,
    ``ConnectionClosed`` when the connection ended before."""
    if clock.sync.synchronized:
        return
    try:
        await clock.sync.wait_synchronized(timeout=SYNC_WAIT_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the clock was not synchronised within {SYNC_WAIT_S:g} s: do DATAGRAMs get through?"
        ) from None


class Timeline:
    """Where the frames of one incoming stream lie on the local clock."""

    def __init__(self, clock: ClockDriver, delay_ns: int) -> None:
        self._clock = clock
        self._ready = False
        self.delay_ns = delay_ns
        self.overdue = 0
        """Frames that were handed out after the time at which they were to be heard."""
        clock.start()

    @classmethod
    def from_wire(cls, body: dict[str, Any], clock: ClockDriver) -> Timeline | None:
        """Read STREAM_OPEN's map (wire format, section 5); ``None`` without ``time_sync``.
        Raises ``InvalidPayload``."""
        if body.get("time_sync", False) is False:
            return None
        delay_us = body.get("playout_delay", round(DEFAULT_PLAYOUT_DELAY * 1e6))
        if body["time_sync"] is not True or not isinstance(delay_us, int):
            raise InvalidPayload("$.time_sync must be a bool, $.playout_delay whole µs")
        if not 0 <= delay_us <= MAX_PLAYOUT_DELAY * 1e6:
            raise InvalidPayload(f"$.playout_delay must be 0 to {MAX_PLAYOUT_DELAY:g} s, in µs")
        return cls(clock, delay_us * 1000)

    def to_wire(self) -> dict[str, Any]:
        """What STREAM_ACCEPT says about it."""
        return {"time_sync": True, "playout_delay": self.delay_ns // 1000}

    async def wait_ready(self) -> None:
        """:func:`wait_synchronized`, but only the first time."""
        if not self._ready:
            await wait_synchronized(self._clock)
            self._ready = True

    def aligned(self, capture_ts: int) -> int:
        """The local time (ns) at which what was captured then is to be heard."""
        local = self._clock.sync.to_local(capture_ts + self.delay_ns)
        if local < self._clock.now_ns():
            self.overdue += 1
        return local
