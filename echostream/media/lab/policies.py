"""Delay policies of other projects, written anew from their published constants, and ours.

They see only send and arrival times: no clock of their own, no chance. The reading of each is in
its docstring; where one depends on more than packets (a level filter, a resampler), the model here
errs in its favour.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.jitter import PROFILES
from echostream.media.lab.result import Result
from echostream.media.lab.simulate import Policy, simulate, simulate_prefetch
from echostream.media.lab.traces import Trace

if TYPE_CHECKING:
    from echostream._ext.delay_estimator import DelayEstimator, PlayoutControl
else:
    try:
        from echostream._ext.delay_estimator import DelayEstimator, PlayoutControl
    except ImportError:  # not compiled
        from echostream.media.delay import DelayEstimator, PlayoutControl

__all__ = ["POLICIES", "EchoStream", "Fixed", "JackTrip", "NetEq", "Roc", "Speex", "run_policy"]

MS = 1e6


class _Base:
    """Remembers the first packet; subclasses say where to play."""

    name = ""
    holds = False
    skips = False
    raise_rate = math.inf
    lower_rate = math.inf

    def start(self, send_ns: int, arrival_ns: int, frame_ns: int) -> int:
        self.frame_ns = frame_ns
        self.first_delay = arrival_ns - send_ns
        return self.first_delay + round(self.start_delay_ns())

    def start_delay_ns(self) -> float:
        return 0.0

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None:
        pass

    def glitch(self) -> None:
        pass

    def offset(self, now_ns: float, offset_ns: float) -> float:
        return offset_ns

    def move(self, now_ns: float, offset_ns: float, span_ns: float, free: bool) -> float:
        step = self.offset(now_ns, offset_ns) - offset_ns
        if free:
            return step
        return min(max(step, -self.lower_rate * span_ns), self.raise_rate * span_ns)


class EchoStream(_Base):
    """Ours: the estimator and the control that the jitter buffer embeds."""

    name = "echostream"

    def __init__(self, late: float = 0.01, profile: str = "voice", start_ms: float = 40.0) -> None:
        rates = PROFILES[profile]
        self._estimator = DelayEstimator(
            late, start_ms * MS, 0.0, 2000.0 * MS, rates.start_share, rates.settle_s
        )
        self._control = PlayoutControl(rates.raise_rate, rates.lower_rate)
        self._start_ns = start_ms * MS
        self._newest = 0

    def start_delay_ns(self) -> float:
        return self._start_ns

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None:
        self._estimator.update(send_ns, arrival_ns, arrival_ns > send_ns + offset_ns)
        self._newest = send_ns

    def move(self, now_ns: float, offset_ns: float, span_ns: float, free: bool) -> float:
        error = self._estimator.target_ns(self._newest) - offset_ns
        wanted = self._estimator.wanted_ns
        self._control.watch(error, span_ns, wanted)
        if -error > max(1000.0 * MS, 4.0 * wanted):
            return error
        if free:
            return error if error > 0.0 or self._control.falling else 0.0
        return self._control.step(error, span_ns)


class Fixed(_Base):
    """One delay after the first packet; 200 ms is GStreamer rtpjitterbuffer's default latency."""

    name = "fixed"

    def __init__(self, delay_ms: float = 200.0) -> None:
        self._delay_ns = delay_ms * MS

    def start_delay_ns(self) -> float:
        return self._delay_ns


class NetEq(_Base):
    """WebRTC NetEq: delay manager (underrun and reorder optimizer), limits, one stretch per 50 ms.

    Arrival in 10 ms ticks; relative delay above the minimum of 2 s; the maximum of each 500 ms
    goes into 100 buckets of 20 ms, forgetting 0.983; quantile 0.95; start 80 ms. It controls the
    mean buffer level, which counts half a frame of decoded audio, between max(3/4 T, T - 85 ms)
    and max(T, that + 20 ms). An empty buffer is expanded: the playout waits.
    """

    name = "neteq"
    raise_rate = lower_rate = 0.1

    def __init__(self, quantile: float = 0.95, *, holds: bool = True) -> None:
        self.holds = holds
        self._quantile = quantile
        self._window: deque[tuple[int, int]] = deque()
        self._buckets = np.zeros(100)
        self._reordered = np.zeros(100)
        self._updates = self._packets = 0
        self._interval_start = -1
        self._interval_max = 0.0
        self._newest = -1
        self._mean_delay = 0.0
        self._underrun = 80.0 * MS
        self._reorder = 0.0

    def start_delay_ns(self) -> float:
        return 0.0

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None:
        tick = int(10 * MS)
        delay = arrival_ns // tick * tick - send_ns
        reordered = send_ns < self._newest
        self._newest = max(self._newest, send_ns)
        self._window.append((send_ns, delay))
        while self._window[0][0] < self._newest - 2000 * MS:
            self._window.popleft()
        relative = max(float(delay - min(entry[1] for entry in self._window)), 0.0)
        if self._packets:
            self._mean_delay += (delay - self._mean_delay) * 0.03
        else:
            self._mean_delay = float(delay)
        self._packets += 1
        if not reordered:
            if self._interval_start < 0:
                self._interval_start = arrival_ns
            self._interval_max = max(self._interval_max, relative)
            if arrival_ns - self._interval_start > 500 * MS:
                self._interval_start = arrival_ns
                self._update()
                self._interval_max = 0.0
        self._count_reordered(relative if reordered else 0.0)

    def _update(self) -> None:
        bucket = int(self._interval_max / (20 * MS))
        if bucket >= 100:
            return
        self._updates += 1
        factor = max(0.0, min(0.983, 1.0 - 2.0 / (self._updates + 1)))
        self._buckets *= factor
        self._buckets[bucket] += 1.0 - factor
        share = np.cumsum(self._buckets)
        self._underrun = (1 + int(np.searchsorted(share, self._quantile))) * 20.0 * MS

    def _count_reordered(self, relative: float) -> None:
        bucket = min(int(relative / (20 * MS)), 99)
        if bucket == 0 and self._reorder == 0.0:
            return
        factor = max(0.0, min(0.9993, 1.0 - 2.0 / (self._packets + 1)))
        self._reordered *= factor
        self._reordered[bucket] += 1.0 - factor
        loss = 100.0 * (1.0 - np.cumsum(self._reordered))
        cost = np.maximum(np.arange(100) * 20.0 - self._underrun / MS, 0.0) + 20.0 * loss
        self._reorder = (1 + int(np.argmin(cost))) * 20.0 * MS

    def offset(self, now_ns: float, offset_ns: float) -> float:
        target = max(self._underrun, self._reorder)
        low = max(0.75 * target, target - 85 * MS)
        high = max(target, low + 20 * MS)
        empty = self._mean_delay - self.frame_ns / 2
        return min(max(offset_ns, empty + low), empty + high)


class Speex(_Base):
    """Speex jitter buffer: cost = delay + factor x late over the 40 latest of 3 x 1000 packets.

    Automatic trade-off 1 + spread / 40; four late packets more for raising the count of late ones;
    steps of one frame, taken at once.
    """

    name = "speex"
    skips = True

    def __init__(self, tradeoff: float = 1.0) -> None:
        self._tradeoff = tradeoff
        self._auto = 1.0
        self._windows: list[list[int]] = [[], [], []]
        self._counts = [0, 0, 0]

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None:
        if self._counts[0] >= 1000:
            self._windows = [[], *self._windows[:2]]
            self._counts = [0, *self._counts[:2]]
        self._counts[0] += 1
        latest = self._windows[0]
        bisect.insort(latest, send_ns - arrival_ns)
        del latest[40:]

    def offset(self, now_ns: float, offset_ns: float) -> float:
        total = sum(self._counts)
        latest = sorted(value for window in self._windows for value in window)[:40]
        if not latest:
            return offset_ns
        unit = MS / 8  # timestamps at 8 kHz
        factor = self._tradeoff * self._auto * 3000 / total
        late, penalty, best_cost, best = 0, False, math.inf, 0.0
        slack = [(value + offset_ns) / unit for value in latest]
        step = self.frame_ns / unit
        for value in slack:
            rounded = math.floor(value / step) * step
            cost = -rounded + factor * late
            if cost < best_cost:
                best_cost, best = cost, rounded
            late += 1
            if rounded >= 0 and not penalty:
                penalty = True
                late += 4
        self._auto = 1.0 + (slack[-1] - slack[0]) / 40
        if total < 40 and best > 0:
            return offset_ns
        return offset_ns - best * unit


class Roc(_Base):
    """Roc Toolkit (develop): jitter meter and latency tuner, resampling within 0.5 %.

    Mean of 50,000 packets; maximum of 10; leaky capacitor (exponent 6, 0.07); quantile 0.92 of
    10,000; peak over 50,000. Target max(1.2 peak, 3 mean), lowered only below 1/1.7 of the
    current one; 5 s to wait after lowering, 15 s after raising; 200 ms at first, from 15 ms to
    1 s. The latency controlled is the mean queue.
    """

    name = "roc"
    raise_rate = lower_rate = 0.005

    def __init__(self, peak: float = 1.2) -> None:
        self._factor = peak
        self._last: tuple[int, int] | None = None
        self._jitter: deque[float] = deque(maxlen=10)
        self._sum = 0.0
        self._count = 0
        self._capacitor = self._from = 0.0
        self._resistance, self._steps = 1.0, 0
        self._envelope: deque[float] = deque(maxlen=10_000)
        self._peaks: deque[float] = deque(maxlen=1000)  # one for 50 packets
        self._target = 200.0 * MS
        self._wait_until = 5_000.0 * MS
        self._mean_delay = 0.0

    def start_delay_ns(self) -> float:
        return self._target

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None:
        delay = float(arrival_ns - send_ns)
        if self._last is None:
            self._last = (send_ns, arrival_ns)
            self._mean_delay = delay
            self._wait_until += arrival_ns
            return
        jitter = abs((arrival_ns - self._last[1]) - (send_ns - self._last[0]))
        self._last = (send_ns, arrival_ns)
        self._mean_delay += (delay - self._mean_delay) / 500
        self._count += 1
        self._sum += jitter
        self._jitter.append(jitter)
        mean = self._sum / self._count
        smooth = max(self._jitter)
        if smooth > self._capacitor:
            self._capacitor = self._from = smooth
            self._resistance = min((smooth / max(mean, 1.0)) ** 6 * 0.07, 1e6) + 1e-3
            self._steps = 0
        else:
            self._steps += 1
            self._capacitor = self._from * math.exp(-self._steps / self._resistance)
        self._envelope.append(self._capacitor)
        if self._count % 50 == 0:
            self._peaks.append(float(np.quantile(np.array(self._envelope), 0.92)))
            self._tune(float(arrival_ns), mean)

    def _tune(self, now_ns: float, mean: float) -> None:
        estimate = max(self._factor * max(self._peaks), 3.0 * mean)
        estimate = min(max(estimate, 15.0 * MS), 1000.0 * MS)
        if now_ns < self._wait_until:
            return
        if estimate > self._target:
            self._target = estimate
            self._wait_until = now_ns + 15_000 * MS
        elif estimate * 1.7 < self._target:
            self._target = estimate
            self._wait_until = now_ns + 5_000 * MS

    def offset(self, now_ns: float, offset_ns: float) -> float:
        return self._mean_delay + self._target


class JackTrip(_Base):
    """JackTrip Regulator: age of a packet at most sigma + maximum of the gaps + headroom.

    Gaps between arrivals in windows of 1 s, long-term mean over 8 x 60 of them after 2 s of
    start-up; headroom grows by 1 ms (or to the last maximum) after a second with glitches, not
    twice in a row. An empty buffer waits; packets older than the tolerance are skipped, two at
    least.
    """

    name = "jacktrip"
    holds = skips = True

    def __init__(self, headroom_ms: float = 0.0) -> None:
        self._gaps: list[float] = []
        self._window_end = 0.0
        self._sigma = self._maximum = self._last_maximum = 0.0
        self._windows = 0
        self._headroom = headroom_ms
        self._glitches = 0
        self._raised = False
        self._tolerance = 0.0
        self._last_arrival = 0.0
        self._delay = 0.0

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None:
        self._delay = float(arrival_ns - send_ns)
        if not self._last_arrival:
            self._window_end = arrival_ns + 1000 * MS
            self._tolerance = 2.0 * self.frame_ns / MS
        else:
            self._gaps.append((arrival_ns - self._last_arrival) / MS)
        self._last_arrival = float(arrival_ns)
        if arrival_ns < self._window_end or not self._gaps:
            return
        self._window_end = arrival_ns + 1000 * MS
        sigma, self._last_maximum = float(np.std(self._gaps)), max(self._gaps)
        self._gaps.clear()
        self._windows += 1
        weight = 1.0 / min(self._windows, 480)
        self._sigma += (sigma - self._sigma) * weight
        self._maximum += (self._last_maximum - self._maximum) * weight
        if self._windows <= 2:
            self._glitches = 0
            return
        limit = math.ceil(0.006 * 1e9 / self.frame_ns)
        if self._glitches > limit and not self._raised:
            needed = math.ceil(self._last_maximum - self._tolerance)
            bound = max(3.0 * self._maximum, self._last_maximum + 10.0)
            self._headroom = min(self._headroom + max(needed, 1), bound)
            self._raised = True
        else:
            self._raised = False
        self._glitches = 0
        tolerance = self._sigma + self._maximum + self._headroom
        self._tolerance = min(max(tolerance, self.frame_ns / MS), 250.0)

    def glitch(self) -> None:
        self._glitches += 1

    def offset(self, now_ns: float, offset_ns: float) -> float:
        excess = offset_ns - self._delay - self._tolerance * MS
        skipped = excess // self.frame_ns * self.frame_ns
        return offset_ns - skipped if skipped >= 2 * self.frame_ns else offset_ns


def _target(make: Callable[[float], Policy]) -> Callable[[Trace, float], Result]:
    return lambda trace, late: simulate(trace, make(late), late=late)


POLICIES: dict[str, Callable[[Trace, float], Result]] = {
    "echostream": _target(EchoStream),
    "fixed": _target(lambda late: Fixed()),
    "neteq": _target(lambda late: NetEq()),
    "speex": _target(lambda late: Speex()),
    "roc": _target(lambda late: Roc()),
    "jacktrip": _target(lambda late: JackTrip()),
    "aiortc": lambda trace, late: simulate_prefetch(trace, late=late),
}
"""Policies by name, with their published settings; ours takes the late rate that is asked for."""


def run_policy(name: str, trace: Trace, *, late: float = 0.01) -> Result:
    """Simulate a policy of :data:`POLICIES` on a trace."""
    if name not in POLICIES:
        raise ConfigurationError(f"policy is one of {', '.join(POLICIES)}, not {name!r}")
    return POLICIES[name](trace, late)
