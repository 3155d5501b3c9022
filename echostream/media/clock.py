"""One clock for two programs: the remote monotonic clock as seen from here, with its error bound.

Sans-IO: exchanges come in with their four timestamps, time is always a parameter, wall clocks
are never read. The arithmetic is in :mod:`echostream.media.clock_hull` and
:mod:`echostream.media.clock_map`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from echostream.errors import ConnectionClosed, EchoStreamError

try:
    from echostream._ext.clock_hull import OffsetHull
    from echostream._ext.clock_map import ClockMap
except ImportError:  # nothing is compiled here
    from echostream.media.clock_hull import OffsetHull  # type: ignore[assignment]
    from echostream.media.clock_map import ClockMap  # type: ignore[assignment]

__all__ = ["ClockStatistics", "ClockSync", "ProbeSchedule"]

WANDER = 3e-7
"""Three standard deviations of the relative rate's random walk, per square root of a second:
a hundred times chrony's default model."""
RATE_EXPECTED = 1e-3
RATE_LIMIT = 0.06
RATE_TYPICAL = 1e-4
"""Standard deviation of the rates between uncorrected quartz clocks."""
RATE_SLACK = 5e-6
"""What a suspended machine's temperature may do to its rate."""
SLEW = 500e-6
SLEW_FAST = 0.1
SLEW_LIMIT_NS = 20_000_000
CONFIRMATIONS = 4
SUSPEND_NS = 500_000_000
SPAN_LIMIT_NS = 60_000_000_000
STAMP_LIMIT_NS = 2**61
REMEMBERED = 128
RTT_MEMORY = 1 / 16
RTT_CLIP = 4
"""A round trip counts as at most so many usual ones."""
TICK_NS = 1
"""A difference of two stamps that were rounded to ns may be off by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStatistics:
    """A snapshot. Times in ns; ``refused_*`` count exchanges that were not used, and why."""

    accepted: int
    refused_rtt: int
    """The reply left before the request came, or stayed longer than the round trip took."""
    refused_stamp: int
    """Outside the range of stamps, a span above one minute, or older than that."""
    refused_duplicate: int
    changes: int
    """How often older exchanges were dropped because no steady clock explains them."""
    steps: int
    """Changes that four exchanges in a row confirmed and the published map had to follow."""
    last_step_ns: int
    suspends: int
    epoch: int
    """Rises when the published map jumps; within an epoch it never runs backwards."""
    synchronized: bool
    offset_ns: int
    error_bound_ns: float
    drift_ppm: float
    drift_bound_ppm: float
    min_rtt_ns: int
    exchanges: int
    window_ns: int


class ClockSync:
    """Maps a remote monotonic clock to the local one, and knows how far it may be off.

    ``now`` tells the local monotonic time in ns for the properties that are bound to the
    present; without it the present is the newest exchange, as in the replay of a trace.

    The published map is continuous and strictly rising in both directions: corrections are
    slewed, at most 500 ppm, above 20 ms at most 10 %. It jumps only before its first use, and
    where the remote clock itself was stepped by more than 20 ms, which four exchanges in a row
    must confirm; then ``epoch`` rises.

    Timestamps must be taken as close to the wire as possible: what lies between a stamp and
    the wire widens ``error_bound_ns``, it never makes it wrong. Clocks that tick coarsely do.
    Feed and close it on one thread (that of the event loop, if there is one); :meth:`to_local`,
    :meth:`to_remote` and the properties may be read from any thread.
    """

    def __init__(self, *, now: Callable[[], int] | None = None):
        self._now = now
        self._hull = OffsetHull(WANDER, RATE_EXPECTED, RATE_LIMIT)
        self._map = ClockMap()
        self._rate = 0.0
        self._rtt_ns = 0
        self._usual_rtt_ns = 0.0
        self._published_at = -(2**63)
        self._published = False
        self._agreeing = 0
        self._recent: dict[tuple[bool, int], None] = {}
        self._boot_gap: int | None = None
        self._waiters: list[tuple[float, asyncio.Future[None]]] = []
        self._closed: BaseException | None = None
        self._accepted = self._refused_rtt = self._refused_stamp = self._refused_duplicate = 0
        self._changes = self._steps = self._last_step_ns = self._suspends = self._epoch = 0

    # -- reading -----------------------------------------------------------------------------

    @property
    def offset_ns(self) -> int:
        """Remote clock minus local clock, now, as published; 0 before the first exchange."""
        return self.offset_at(self._present())

    @property
    def drift_ppm(self) -> float:
        """What the remote clock gains on the local one, in parts per million."""
        return self._rate * 1e6

    @property
    def drift_bound_ppm(self) -> float:
        """How far ``drift_ppm`` may be off; infinite without exchanges."""
        if not len(self._hull):
            return inf
        return max(self._hull.rate_high - self._rate, self._rate - self._hull.rate_low) * 1e6

    @property
    def error_bound_ns(self) -> float:
        """How far the published map may be off now; infinite without exchanges.

        Holds for any delay, asymmetric ones too, on clocks whose relative rate walks at most as
        ``WANDER`` says and is, until exchanges prove more, at most ``RATE_EXPECTED``. Grows while
        no exchange comes. A step of the remote clock shows with the first exchange after it.
        """
        return self.error_bound_at(self._present())

    @property
    def rtt_ns(self) -> int:
        """The newest exchange's round trip, without what the other side held it; 0 before."""
        return self._rtt_ns

    @property
    def min_rtt_ns(self) -> int:
        """The shortest round trip of late; 0 without exchanges."""
        return self._hull.min_rtt

    @property
    def usual_rtt_ns(self) -> float:
        """The round trip, smoothed over some exchanges; 0 before the first."""
        return self._usual_rtt_ns

    @property
    def synchronized(self) -> bool:
        """Whether four exchanges in a row agreed since the start or the last change."""
        return self._published and self._agreeing >= CONFIRMATIONS

    @property
    def epoch(self) -> int:
        """Rises when the published map jumps."""
        return self._epoch

    def offset_at(self, local_ns: int) -> int:
        """:attr:`offset_ns` at a local time."""
        return self._map.peek(local_ns) - local_ns

    def error_bound_at(self, local_ns: int) -> float:
        """:attr:`error_bound_ns` at a local time, not before the newest exchange."""
        if not len(self._hull):
            return inf
        low, high = self._hull.interval(local_ns)
        offset = self.offset_at(local_ns)
        return max(high - offset, offset - low)

    def deviation_at(self, local_ns: int) -> float:
        """Standard deviation (ns) of the estimate at a local time, for symmetrical paths: what more
        exchanges make smaller, where :attr:`error_bound_ns` holds what they cannot. Infinite before
        the fourth exchange."""
        return self._hull.deviation(local_ns)

    def to_local(self, remote_ns: int) -> int:
        """Local time of a remote time. The inverse of :meth:`to_remote` within 1 ns."""
        return self._map.to_local(remote_ns)

    def to_remote(self, local_ns: int) -> int:
        """Remote time of a local time. The inverse of :meth:`to_local` within 1 ns."""
        return self._map.to_remote(local_ns)

    def statistics(self) -> ClockStatistics:
        """A frozen snapshot."""
        return ClockStatistics(
            accepted=self._accepted,
            refused_rtt=self._refused_rtt,
            refused_stamp=self._refused_stamp,
            refused_duplicate=self._refused_duplicate,
            changes=self._changes,
            steps=self._steps,
            last_step_ns=self._last_step_ns,
            suspends=self._suspends,
            epoch=self._epoch,
            synchronized=self.synchronized,
            offset_ns=self.offset_ns,
            error_bound_ns=self.error_bound_ns,
            drift_ppm=self.drift_ppm,
            drift_bound_ppm=self.drift_bound_ppm,
            min_rtt_ns=self._hull.min_rtt,
            exchanges=len(self._hull),
            window_ns=self._hull.at - self._hull.oldest,
        )

    # -- feeding -----------------------------------------------------------------------------

    def add_exchange(
        self, t1: int, t2: int, t3: int, t4: int, *, from_remote: bool = False
    ) -> bool:
        """Take one exchange (RFC 5905, section 8), all in ns: origin t1, receive t2, transmit
        t3, destination t4. False when it was refused, and counted.

        t1 and t4 are of the local clock, t2 and t3 of the remote one; with ``from_remote``,
        where the remote side asked, it is the other way round. Exchanges may overtake each other.
        """
        if not self._plausible(t1, t2, t3, t4, from_remote):
            return False
        rtt = max((t4 - t1) - (t3 - t2), 0)
        if from_remote:
            upper_at, upper, lower_at, lower = t3, t4 - t3, t2, t1 - t2
        else:
            upper_at, upper, lower_at, lower = t1, t2 - t1, t4, t3 - t4
        dropped = self._hull.add(upper_at, upper + TICK_NS, lower_at, lower - TICK_NS, rtt)
        self._rtt_ns = rtt
        share = RTT_MEMORY if self._accepted else 1.0
        self._usual_rtt_ns += share * (
            min(rtt, RTT_CLIP * (self._usual_rtt_ns or rtt)) - self._usual_rtt_ns
        )
        self._accepted += 1
        if dropped:
            self._changes += 1
            self._agreeing = 0
        self._agreeing += 1
        self._publish()
        if self._waiters:
            self._wake()
        return True

    def observe_suspend(self, boot_ns: int, monotonic_ns: int) -> bool:
        """Compare a clock that runs while the machine sleeps (CLOCK_BOOTTIME) with the local
        one. True when they parted by more than 0.5 s since the last call: what was measured is
        forgotten, the drift kept with a wider bound, and it is time to probe again.
        """
        gap = boot_ns - monotonic_ns
        jumped = self._boot_gap is not None and abs(gap - self._boot_gap) > SUSPEND_NS
        self._boot_gap = gap
        if jumped:
            self._hull.forget(monotonic_ns, RATE_SLACK)
            self._agreeing = 0
            self._suspends += 1
        return jumped

    async def wait_synchronized(
        self, bound_ns: float | None = None, timeout: float | None = None
    ) -> None:
        """Wait until :attr:`synchronized`, and :attr:`error_bound_ns` is at most ``bound_ns``.

        Raises ``TimeoutError`` after ``timeout`` seconds and what :meth:`close` was given when
        the clock is or gets closed.
        """
        bound = inf if bound_ns is None else bound_ns
        if self._closed is not None:
            raise self._closed
        if self._reached(bound):
            return
        waiter = (bound, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter[1]
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def close(self, error: EchoStreamError | None = None) -> None:
        """No exchange will come any more: waits end with ``error``. The map stays readable."""
        if self._closed is None:
            self._closed = error or ConnectionClosed("the clock was closed")
        waiters, self._waiters = self._waiters, []
        for _, future in waiters:
            if not future.done():
                future.set_exception(self._closed)

    # -- inside ------------------------------------------------------------------------------

    def _present(self) -> int:
        return self._hull.at if self._now is None else self._now()

    def _plausible(self, t1: int, t2: int, t3: int, t4: int, from_remote: bool) -> bool:
        if not all(-STAMP_LIMIT_NS < stamp < STAMP_LIMIT_NS for stamp in (t1, t2, t3, t4)):
            self._refused_stamp += 1
            return False
        span, hold = t4 - t1, t3 - t2
        if span < 0 or hold < 0 or span < hold - RATE_LIMIT * hold:
            self._refused_rtt += 1
            return False
        newest = t3 if from_remote else t4
        stale = self._accepted and newest < self._hull.at - SPAN_LIMIT_NS
        if span > SPAN_LIMIT_NS or stale:
            self._refused_stamp += 1
            return False
        key = (from_remote, t1)
        if key in self._recent:
            self._refused_duplicate += 1
            return False
        self._recent[key] = None
        if len(self._recent) > REMEMBERED:
            del self._recent[next(iter(self._recent))]
        return True

    def _publish(self) -> None:
        """Steer the published map towards the estimate."""
        hull, clock = self._hull, self._map
        if self._agreeing < CONFIRMATIONS and clock.used:
            return  # the map waits until a change is confirmed
        now = max(self._present(), hull.at, self._published_at)
        self._rate = self._believed_rate()
        target = now + hull.offset(hull.at) + round(self._rate * (now - hull.at))
        current = clock.peek(now)
        correction = target - current
        jump = not clock.used
        if self._published and self._agreeing == CONFIRMATIONS and self._accepted > CONFIRMATIONS:
            low, high = hull.interval(now)
            if not low <= current - now <= high:
                self._steps += 1
                self._last_step_ns = correction
                if abs(correction) > SLEW_LIMIT_NS and not jump:
                    jump = True
                    self._epoch += 1
        if jump:
            clock.set(now, target, self._rate, now, self._rate)
        else:
            slew = SLEW if abs(correction) <= SLEW_LIMIT_NS else SLEW_FAST
            until = now + round(abs(correction) / slew)
            rate = self._rate + (slew if correction > 0 else -slew)
            clock.set(now, current, rate, until, self._rate)
        self._published_at = now
        self._published = True

    def _believed_rate(self) -> float:
        """The estimated rate; while the exchanges say little about it, rather the last one."""
        hull = self._hull
        trust = 1.0 / (1.0 + (hull.rate_deviation / RATE_TYPICAL) ** 2)
        rate = self._rate + trust * (hull.rate - self._rate)
        return min(max(rate, hull.rate_low), hull.rate_high)

    def _reached(self, bound: float) -> bool:
        return self.synchronized and self.error_bound_ns <= bound

    def _wake(self) -> None:
        for bound, future in self._waiters:
            if not future.done() and self._reached(bound):
                future.set_result(None)


MILLISECOND = 1_000_000
BURSTS = (
    *((gap * MILLISECOND, 8) for gap in (0, 100, 200, 300, 400)),
    *((1_000 * MILLISECOND, 8),) * 9,
    *((2_000 * MILLISECOND, 8),) * 10,
    (4_000 * MILLISECOND, 6),
)
"""Pause before a burst, probes in it; the last goes on for ever."""
SPARSE_PROBES = 1
LONGEST_PAUSE = 32_000 * MILLISECOND
SPARSE_NS = 200_000.0
SPARSE_SHARE = 0.1
"""The last pause doubles, up to the longest, while the error bound at its end is no more than that,
or than that share of it, above half of the usual round trip: more exchanges would not help much.
Else it halves."""
SPACING_NS = 5 * MILLISECOND
SHARP_NS = 8_000.0
"""While somebody plays by the clock, the next exchange comes before the estimate's standard
deviation has grown to this: the 99th percentile of what two players are apart by is six of them."""
SHARP_PAUSES = tuple(pause * MILLISECOND for pause in (640, 320, 160, 80, 40, 20))
EAGER_NS = 5_000 * MILLISECOND
"""For so long after the beginning, it may even come after ``SPACING_NS``."""
RIDE_SHARE = 4
"""An exchange may wait a quarter of its pause for a packet that leaves anyway;"""
RIDE_NS = 25 * MILLISECOND
"""within a burst so long, once another one of it found such a packet."""


class ProbeSchedule:
    """When to send the next exchange: 8 probes 5 ms apart at once, bursts of 8 that thin out
    over half a minute, then 6 probes every 4 s. Where the bound is small anyway, they become one
    every 8, 16 or 32 s, the longest pause that keeps it small. Time missed is not caught up.

    A *sharp* schedule is for a clock that somebody plays in a group by: as many probes as the
    measured queueing asks for, one every 640 ms on a quiet path, every 20 ms (at first 5 ms) where
    delays vary much.
    """

    def __init__(self, start_ns: int):
        self._sharp = False
        self.restart(start_ns)

    def restart(self, now_ns: int) -> None:
        """Begin again: after a suspend, a step, a new path."""
        self._start = now_ns
        self._burst = 0
        self._left = BURSTS[0][1]
        self._pause = BURSTS[-1][0]
        self._begun = False  # the present burst
        self._small = False  # the bound, when it began
        self._due = now_ns
        self._ride = 0

    def sharpen(self, now_ns: int, sharp: bool) -> None:
        """The clock shall, or need no longer, be as good as it can be."""
        if sharp and not self._sharp:
            self._start = now_ns
            self._due = min(self._due, now_ns)
        self._sharp = sharp

    def next_probe_ns(self, now_ns: int) -> int:
        """When the next probe leaves: ``now_ns`` or later."""
        return max(self._due, now_ns)

    def latest_probe_ns(self, now_ns: int) -> int:
        """Until when it may wait for a packet that leaves anyway."""
        return max(self._due + self._ride, now_ns)

    def probe_sent(
        self,
        now_ns: int,
        bound_ns: float = inf,
        rtt_ns: float = 0.0,
        deviation_at: Callable[[int], float] = lambda at: 0.0,
        *,
        carried: bool = False,
    ) -> None:
        """A probe left, ``carried`` by a packet that left anyway. The clock's error is at most
        ``bound_ns``, a round trip usually takes ``rtt_ns``; ``deviation_at`` is the clock's.
        """
        if not self._begun:
            self._begun = True
            slack = max(SPARSE_NS, SPARSE_SHARE * rtt_ns)
            self._small = bound_ns <= rtt_ns / 2 + slack
        self._left -= 1
        if self._left:
            self._due = now_ns + SPACING_NS
            self._ride = RIDE_NS if carried else 0
            return
        self._begun = False
        last = len(BURSTS) - 1
        pause, self._left = BURSTS[min(self._burst + 1, last)]
        if self._burst == last:
            longer, shorter = 2 * self._pause, self._pause // 2
            self._pause = min(longer, LONGEST_PAUSE) if self._small else max(shorter, pause)
            if self._pause > pause:
                pause, self._left = self._pause, SPARSE_PROBES
        self._burst = min(self._burst + 1, last)
        if self._sharp and (self._burst == last or deviation_at(now_ns + pause) > SHARP_NS):
            pause, self._left = self._sharp_pause(now_ns, deviation_at), 1
        self._due = now_ns + pause
        self._ride = pause // RIDE_SHARE

    def _sharp_pause(self, now_ns: int, deviation_at: Callable[[int], float]) -> int:
        for pause in SHARP_PAUSES:
            if deviation_at(now_ns + pause) <= SHARP_NS:
                return pause
        return SPACING_NS if now_ns - self._start < EAGER_NS else SHARP_PAUSES[-1]
