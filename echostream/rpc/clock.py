"""Feeds a connection's ``ClockSync``: exchanges of timestamps in DATAGRAMs (wire format, 1.3).

Stamps are as close to the wire as a program gets: t2 and t4 are when the UDP datagram came in
(where the kernel tells, else when it was read), t1 when it was handed to the network, which the
asking side notes for itself. t3 has to be written before its packet is built and encrypted; how
much later that left is said in the next reply, and the exchange waits for it. What is left between
stamp and wire widens the bound, and shifts the offset by half of what differs between the ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from math import inf

from echostream.errors import EchoStreamError
from echostream.media.clock import ClockSync, ProbeSchedule
from echostream.protocol.frames import (
    CLOCK_REPLY,
    CLOCK_REPLY_REQUEST,
    CLOCK_REQUEST,
    decode_clock,
    encode_clock,
)
from echostream.transport.connection import Connection

__all__ = ["ClockDriver", "local_clock"]

MAX_PENDING = 64
MAX_REPLIES = 16
"""Per turn of the loop. A reply is as large as its request."""
RIDE_S = 0.025
"""So long an answer waits for a packet that leaves anyway, where packets leave that often;"""
SPACED_NS = 10_000_000
"""but not one of requests that come closer than that: each of those shall see the path anew."""
FLOW_S = 0.2
"""Over which it is measured how often."""
BARE_SHARE = 0.8
"""Of its wait, an exchange looks so long for a packet that has to be acknowledged anyway."""
MAX_WAIT_S = 0.1
"""A clock frame that has not left by then says little: it is dropped."""
RESTART_NS = 1_000_000_000
LATE_BITS = 12
LATE_MASK = (1 << LATE_BITS) - 1
LATE_UNIT_NS = 128
LAG_MEMORY = 1 / 16
_MASK32 = 0xFFFFFFFF


def local_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], int]:
    """The monotonic clock of timestamps, in ns; on virtual time the loop's own."""
    if getattr(loop, "virtual_time", False):
        return lambda: round(loop.time() * 1e9)
    return time.monotonic_ns


class ClockDriver:
    """One connection's clock. It answers the peer always, and asks only once it was started:
    an idle connection stays silent. ``now_ns`` is this side's clock, which all stamps are of."""

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self.now_ns = now_ns or local_clock(loop)
        self.sync = ClockSync(now=self.now_ns)
        self._schedule: ProbeSchedule | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._rides_from = inf
        self._bare = False  # the last exchange found nothing better than an acknowledgement
        self._due = False
        self._exchange = 0
        self._pending: dict[int, tuple[int, int]] = {}  # what t1 was written, when it left
        self._unsent: list[int] = []
        self._held: tuple[int, int, int, int, int] | None = None  # an exchange, and its stamps
        self._replied = self._written = 0  # the last reply's number and t3
        self._late = 0  # what the next reply says about it
        self._replies: list[tuple[int, int, int]] = []
        self._reply_at = 0.0
        self._reply_timer: asyncio.TimerHandle | None = None
        self._asked_ns = 0
        self._flow: tuple[float, int] = (0.0, 0)  # when it was measured, packets sent until then
        self._caused = 0  # of the packets since then
        self._flowing = False
        self._restarted = -RESTART_NS
        self._sharp_users = 0
        self.bad_frames = 0
        """Malformed, or answers to what was not asked."""
        self.unanswered_requests = 0
        """Requests beyond what one turn answers."""
        self.loop_lag = 0.0
        """Seconds by which this loop's timers come late, smoothed."""

    def start(self) -> None:
        """Begin to ask. Idempotent."""
        if self._schedule is None and self._connection.closed is None:
            now = self.now_ns()
            self._schedule = ProbeSchedule(now)
            self._schedule.sharpen(now, self._sharp_users > 0)
            self._arm()

    def sharpen(self, users: int) -> None:
        """So many more (or fewer) need the clock as good as it can be."""
        self._sharp_users += users
        if self._schedule is not None:
            self._schedule.sharpen(self.now_ns(), self._sharp_users > 0)
            self._arm()

    def ask(self) -> None:
        """One exchange now, in place of the next one. Nothing happens before :meth:`start`."""
        if self._schedule is not None:
            self._due = True
            self._connection.wake()

    def stop(self, error: EchoStreamError | None = None) -> None:
        """The connection ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reply_timer is not None:
            self._reply_timer.cancel()
            self._reply_timer = None
        self._due = False
        self._rides_from = inf
        self._replies.clear()
        self._pending.clear()
        self._schedule = None
        self.sync.close(error)

    def path_changed(self) -> None:
        """The peer is reached on another way: delays measured so far say little."""
        self._restart(self.now_ns())

    def receive(self, data: bytes) -> None:
        """One clock frame. What it asks for leaves with the turn's flush."""
        try:
            flags, exchange, t1, t2, t3 = decode_clock(data)
        except ValueError:
            self.bad_frames += 1
            return
        connection = self._connection
        ago = connection.clock() - connection.received_at
        if connection.arrival_age is not None:
            ago = connection.arrival_age() or ago
        received = self.now_ns() - int(ago * 1e9)
        if flags != CLOCK_REQUEST:
            written, left = self._pending.pop(exchange, (None, 0))
            if written != t1:
                self.bad_frames += 1
                return
            self._hold(exchange, left, t2, t3, received, int.from_bytes(data[2:4], "big"))
        if flags != CLOCK_REPLY:
            if len(self._replies) < MAX_REPLIES:
                origin = t3 if flags == CLOCK_REPLY_REQUEST else t1
                self._replies.append((exchange, origin, received))
                self._plan_reply(received)
            else:
                self.unanswered_requests += 1

    def before_flush(self, now: float) -> None:
        """Stamp and queue what is due, or rides along, as the last thing of a turn."""
        if not (self._replies or self._due or now >= self._rides_from):
            return
        laden = not self._connection.engine.idle
        answers = self._replies and (laden or now >= self._reply_at)
        rides = not self._due and now >= self._rides_from and (laden or self._may_ride_bare(now))
        if not (answers or self._due or rides):
            return
        connection = self._connection
        send = connection.engine.send_datagram
        deadline = now + MAX_WAIT_S
        connection.on_sending = self._sending
        if answers:
            self._caused += not laden
            for exchange, t1, t2 in self._replies:
                self._replied, self._written = exchange, self.now_ns()
                frame = encode_clock(CLOCK_REPLY, exchange, t1, t2, self._written)
                send(frame[:2] + self._late.to_bytes(2, "big") + frame[4:], deadline)
                self._late = 0
            self._replies.clear()
        if self._schedule is None or not (self._due or rides):
            return
        self._due = False
        self._bare = rides and not laden
        self._exchange = exchange = (self._exchange + 1) & _MASK32
        t1 = self.now_ns()
        if send(encode_clock(CLOCK_REQUEST, exchange, t1), deadline):
            if len(self._pending) >= MAX_PENDING:
                del self._pending[next(iter(self._pending))]
            self._pending[exchange] = t1, t1
            self._unsent.append(exchange)
        sync = self.sync
        self._schedule.probe_sent(
            t1, sync.error_bound_ns, sync.usual_rtt_ns, sync.deviation_at, carried=rides
        )
        self._arm()

    def _may_ride_bare(self, now: float) -> bool:
        """Whether a mere acknowledgement leaves with this flush, and nothing better came. It will
        have to be acknowledged then, which costs the other side a packet."""
        wait = self._fires_at - self._rides_from
        if not wait or (not self._bare and now < self._rides_from + BARE_SHARE * wait):
            return False
        at = self._connection.engine.timer()
        return at is not None and at <= now

    def _plan_reply(self, received: int) -> None:
        """Decide how long an answer may wait for a packet that leaves anyway."""
        connection = self._connection
        now = connection.clock()
        since, sent = self._flow
        self._caused += 1  # the acknowledgement
        if now - since >= FLOW_S:
            total = connection.engine.info().packets_sent
            self._flowing = (total - sent - self._caused) * RIDE_S >= now - since
            self._flow, self._caused = (now, total), 0
        spaced = received - self._asked_ns >= SPACED_NS
        self._asked_ns = received
        if not (spaced and self._flowing):
            self._reply_at = now
        elif len(self._replies) == 1:
            self._reply_at = now + RIDE_S
            if self._reply_timer is not None:
                self._reply_timer.cancel()
            self._reply_timer = self._loop.call_at(self._reply_at, connection.wake)

    def _sending(self) -> None:
        now = self.now_ns()
        if self._written:
            late = min(max(now - self._written, 0) // LATE_UNIT_NS, LATE_MASK)
            self._late = (self._replied << LATE_BITS & 0xFFFF) | late
            self._written = 0
        for exchange in self._unsent:
            if exchange in self._pending:
                self._pending[exchange] = self._pending[exchange][0], now
        self._unsent.clear()

    def _hold(self, exchange: int, t1: int, t2: int, t3: int, t4: int, late: int) -> None:
        """Keep an exchange until the next reply says when this one's reply left."""
        held, self._held = self._held, (exchange, t1, t2, t3, t4)
        if held is None:
            return
        before, *stamps = held
        if before == (exchange - 1) & _MASK32 and late >> LATE_BITS == before & 0xFFFF >> LATE_BITS:
            stamps[2] += (late & LATE_MASK) * LATE_UNIT_NS
        self._take(*stamps)

    def _take(self, t1: int, t2: int, t3: int, t4: int) -> None:
        sync = self.sync
        was_synchronized = sync.synchronized
        sync.add_exchange(t1, t2, t3, t4)
        if was_synchronized and not sync.synchronized:
            self._restart(t4)

    def _restart(self, now: int) -> None:
        """Measure anew, not more than once a second: a hostile peer could ask for it with every
        reply."""
        if self._schedule is not None and now - self._restarted >= RESTART_NS:
            self._restarted = now
            self._schedule.restart(now)
            self._arm()

    def _arm(self) -> None:
        assert self._schedule is not None
        if self._timer is not None:
            self._timer.cancel()
        now, loop_now = self.now_ns(), self._loop.time()
        self._rides_from = loop_now + (self._schedule.next_probe_ns(now) - now) / 1e9
        self._fires_at = loop_now + (self._schedule.latest_probe_ns(now) - now) / 1e9
        self._timer = self._loop.call_at(self._fires_at, self._probe)

    def _probe(self) -> None:
        assert self._schedule is not None
        late = max(self._loop.time() - self._fires_at, 0.0)
        self.loop_lag += LAG_MEMORY * (late - self.loop_lag)
        self._timer = None
        if (boot := _boot_ns()) and self.sync.observe_suspend(boot, time.monotonic_ns()):
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
