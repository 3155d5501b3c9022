"""Two clocks and the path between them, in virtual time.

The model is that of chrony's simulation tests: one-way delay = base + jitter * Exp(1), relative
rate = constant + a random walk with one step per second; on top of it gaussian jitter, stalls,
loss, routes that change and clocks that step. The local clock is the true time, in ns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import sqrt
from random import Random
from typing import Protocol

from echostream.media.clock import ProbeSchedule

__all__ = [
    "ClockPath",
    "Delay",
    "Filter",
    "Link",
    "Outcome",
    "RemoteClock",
    "probes",
    "run",
]

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Delay:
    """One direction, in ns. ``routes``: ``(time, base)`` from which another base holds.
    ``stall``: ``(mean pause between stalls, longest stall)``; what is sent in one waits for it."""

    base: float = 100e3
    jitter: float = 100e3
    gaussian: bool = False
    routes: tuple[tuple[float, float], ...] = ()
    stall: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ClockPath:
    """Rates relative to 1, ``wander`` per square root of a second, ``steps`` as ``(time, ns)``,
    ``silence`` as ``(from, to)``: nothing is sent. ``only_every``: of so many, one arrives."""

    forward: Delay = field(default_factory=Delay)
    reverse: Delay = field(default_factory=Delay)
    offset: float = 100e6
    rate: float = 1e-4
    wander: float = 1e-9
    steps: tuple[tuple[float, float], ...] = ()
    silence: tuple[float, float] | None = None
    loss: float = 0.0
    only_every: int = 1
    hold: float = 20e3


class RemoteClock:
    """The remote clock as a function of true time; exact to float64 rounding of its offset."""

    def __init__(self, path: ClockPath, rng: Random, seconds: float):
        self._rates: list[float] = []
        self._offsets = [path.offset]
        rate = path.rate
        for _ in range(int(seconds) + 120):
            self._rates.append(rate)
            self._offsets.append(self._offsets[-1] + rate * SECOND)
            rate += path.wander * rng.gauss(0, 1)
        self._steps = path.steps

    def offset(self, t: float) -> float:
        """Remote minus local, ns."""
        i = min(int(t // SECOND), len(self._rates) - 1)
        stepped = sum(size for at, size in self._steps if t >= at)
        return self._offsets[i] + self._rates[i] * (t - i * SECOND) + stepped

    def rate(self, t: float) -> float:
        """Gain of the remote clock."""
        return self._rates[min(int(t // SECOND), len(self._rates) - 1)]

    def read(self, t: float) -> int:
        """The clock's reading."""
        whole = int(t)
        return whole + int(self.offset(t) + (t - whole))


class Link:
    """Draws delays and makes exchanges."""

    def __init__(self, path: ClockPath, seed: int, seconds: float):
        self.path = path
        self.clock = RemoteClock(path, Random(f"clock {seed}"), seconds)
        self._rng = Random(f"link {seed}")
        self._stalls = {
            id(d): list(self._make_stalls(d.stall, seconds))
            for d in (path.forward, path.reverse)
            if d.stall
        }
        self._count = 0

    def exchange(self, t1: int) -> tuple[int, int, int, int] | None:
        """The four timestamps of an exchange that starts at ``t1``; None where it was lost."""
        path = self.path
        self._count += 1
        there = t1 + self._delay(path.forward, t1)
        back = there + path.hold
        arrival = back + self._delay(path.reverse, back)
        lost = self._rng.random() < path.loss or self._count % path.only_every
        if lost or (path.silence and path.silence[0] <= t1 < path.silence[1]):
            return None
        return t1, self.clock.read(there), self.clock.read(back), int(arrival) + 1

    def _delay(self, delay: Delay, t: float) -> float:
        base = delay.base
        for at, other in delay.routes:
            if t >= at:
                base = other
        rng = self._rng
        extra = abs(rng.gauss(0, 1)) if delay.gaussian else rng.expovariate(1.0)
        if delay.stall:
            stalls = self._stalls[id(delay)]
            i = bisect_right(stalls, (t, float("inf"))) - 1
            if i >= 0 and stalls[i][1] > t:
                base += stalls[i][1] - t
        return base + delay.jitter * extra

    def _make_stalls(
        self, stall: tuple[float, float], seconds: float
    ) -> Iterator[tuple[float, float]]:
        t = 0.0
        while t < seconds * SECOND:
            t += self._rng.expovariate(1 / stall[0])
            end = t + self._rng.uniform(0.2, 1.0) * stall[1]
            yield t, end
            t = end


class Filter(Protocol):
    """What is fed and judged."""

    def add_exchange(self, t1: int, t2: int, t3: int, t4: int) -> object: ...
    def offset_at(self, local_ns: int) -> float: ...
    def error_bound_at(self, local_ns: int) -> float: ...


def probes(seconds: float) -> Iterator[int]:
    """When EchoStream sends its probes."""
    schedule = ProbeSchedule(0)
    t = 0
    while t < seconds * SECOND:
        yield t
        schedule.probe_sent(t)
        t = schedule.next_probe_ns(t)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``errors``: estimated minus true offset, sampled, in ns; ``bounds`` at the same times.
    ``uncovered`` counts errors above their bound, but for the ``unseen`` samples: those after a
    step of the remote clock and before the first exchange that began after it came back."""

    times: list[int]
    errors: list[float]
    bounds: list[float]
    rate_errors: list[float]
    uncovered: int
    unseen: int
    rtts: list[int]

    @property
    def rms(self) -> float:
        return sqrt(sum(e * e for e in self.errors) / len(self.errors))

    def quantile(self, q: float) -> float:
        """Of the magnitude of the error."""
        ordered = sorted(map(abs, self.errors))
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]

    @property
    def maximum(self) -> float:
        return self.quantile(1.0)


def run(
    link: Link,
    clock: Filter,
    times: Iterable[int],
    seconds: float,
    *,
    start: float = 10.0,
    every: float = 0.5,
    watch: Callable[[int], None] | None = None,
) -> Outcome:
    """Exchanges at ``times`` in the order of their arrival; samples from ``start`` on.

    ``watch`` is called with the local time of every sample and every exchange."""
    exchanges = [e for e in map(link.exchange, times) if e]
    exchanges.sort(key=lambda e: e[3])
    outcome = Outcome([], [], [], [], 0, 0, [e[3] - e[0] - (e[2] - e[1]) for e in exchanges])
    uncovered = unseen = 0
    steps = [at for at, _ in link.path.steps]
    newest = 0
    due, pause = int(start * SECOND), int(every * SECOND)
    for t1, t2, t3, t4 in [*exchanges, (0, 0, 0, int(seconds * SECOND))]:
        while due < t4:
            true = link.clock.offset(due)
            error = clock.offset_at(due) - true
            bound = clock.error_bound_at(due)
            outcome.times.append(due)
            outcome.errors.append(error)
            outcome.bounds.append(bound)
            rate = getattr(clock, "drift_ppm", 0.0) * 1e-6
            outcome.rate_errors.append(rate - link.clock.rate(due))
            if any(newest < at <= due for at in steps):
                unseen += 1
            elif abs(error) > bound:
                uncovered += 1
            if watch:
                watch(due)
            due += pause
        if t2:
            clock.add_exchange(t1, t2, t3, t4)
            newest = max(newest, t1)
            if watch:
                watch(t4)
    return Outcome(
        outcome.times,
        outcome.errors,
        outcome.bounds,
        outcome.rate_errors,
        uncovered,
        unseen,
        outcome.rtts,
    )
