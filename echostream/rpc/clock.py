"""Feeds a connection's ``ClockSync``: exchanges of timestamps in DATAGRAMs (wire format, 1.3).

Requests and replies are stamped when the datagrams of a turn are about to be built, and on
receipt with the time at which the UDP datagram was read. Both ends do the same work between
stamp and wire, so it cancels out in the offset and only widens the bound.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from echostream.media.clock import ClockSync, ProbeSchedule
from echostream.protocol.frames import (
    CLOCK_REPLY,
    CLOCK_REQUEST,
    decode_clock,
    encode_clock,
)
from echostream.transport.connection import Connection

__all__ = ["ClockDriver"]

MAX_PENDING = 64
MAX_REPLIES = 16
_MASK32 = 0xFFFFFFFF


class ClockDriver:
    """One connection's clock. It answers the peer always, and asks only once it was started:
    an idle connection stays silent."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self.sync = ClockSync(now=self.now_ns)
        self._schedule: ProbeSchedule | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._exchange = 0
        self._pending: dict[int, int] = {}
        self._replies: list[tuple[int, int, int]] = []
        self.bad_frames = 0

    def now_ns(self) -> int:
        """This side's clock, which all stamps are of."""
        return int(self._connection.clock() * 1e9)

    def start(self) -> None:
        """Begin to ask. Idempotent."""
        if self._schedule is None and self._connection.closed is None:
            self._schedule = ProbeSchedule(self.now_ns())
            self._arm()

    def stop(self, error: Exception | None = None) -> None:
        """The connection ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = False
        self.sync.close(error)  # type: ignore[arg-type]

    def receive(self, data: bytes, received_ns: int) -> bool:
        """One clock frame; whether a reply waits for the next flush."""
        try:
            flags, exchange, t1, t2, t3 = decode_clock(data)
        except ValueError:
            self.bad_frames += 1
            return False
        if flags == CLOCK_REQUEST:
            if len(self._replies) < MAX_REPLIES:
                self._replies.append((exchange, t1, received_ns))
            return True
        if self._pending.pop(exchange, None) != t1:
            self.bad_frames += 1
            return False
        self.sync.add_exchange(t1, t2, t3, received_ns)
        return False

    def before_flush(self, send: Callable[[bytes], bool]) -> None:
        """Stamp and queue what is due."""
        if self._replies:
            for exchange, t1, t2 in self._replies:
                send(encode_clock(CLOCK_REPLY, exchange, t1, t2, self.now_ns()))
            self._replies.clear()
        if self._due and self._schedule is not None:
            self._due = False
            self._exchange = exchange = (self._exchange + 1) & _MASK32
            t1 = self.now_ns()
            if send(encode_clock(CLOCK_REQUEST, exchange, t1)):
                if len(self._pending) >= MAX_PENDING:
                    del self._pending[next(iter(self._pending))]
                self._pending[exchange] = t1
            self._schedule.probe_sent(t1)
            self._arm()

    def _arm(self) -> None:
        assert self._schedule is not None
        now = self.now_ns()
        delay = (self._schedule.next_probe_ns(now) - now) / 1e9
        self._timer = self._loop.call_later(delay, self._probe)

    def _probe(self) -> None:
        self._timer = None
        boot = _boot_ns()
        if (
            boot is not None
            and self._schedule is not None
            and self.sync.observe_suspend(boot, time.monotonic_ns())
        ):
            self._schedule.restart(self.now_ns())
        self._due = True
        self._connection.wake()


if sys.platform == "linux":

    def _boot_ns() -> int | None:
        """A clock that also runs while the machine sleeps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

else:

    def _boot_ns() -> int | None:
        return None
