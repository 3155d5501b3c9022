"""Plain-Python twin of :mod:`echostream._ext.delay_estimator`: oracle, and fallback.

The algorithm and its reasons are told in ``ext/delay_estimator.pyx``; both run the same tests and
give the same numbers.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["DelayEstimator", "PlayoutControl"]

MS = 1_000_000.0
BUCKETS = 256
LOWEST = 0.02 * MS
LOG_RATIO = 0.05146129061556914  # log(10 s / 20 us) / (BUCKETS - 1)
BLOCKS = 60
SLOPE_BLOCKS = 8
RECENT = 8
LOGGED = 1024
MEMORY = 10_000
WARM_UP = 5
ENOUGH = 100
UNSET, FINISHED = -1.0, -2.0
MAX_SLOPE = 0.003
FEEDBACK = 6_000.0


class DelayEstimator:
    """The estimator by itself; see :class:`echostream._ext.delay_estimator.DelayEstimator`."""

    def __init__(
        self,
        late: float,
        start_ns: float,
        minimum_ns: float = 0.0,
        maximum_ns: float = 10e9,
        start_share: float = 0.5,
        settle_s: float = 2.0,
    ) -> None:
        if not 0.0 < late < 1.0:
            raise ValueError(f"late is a share between 0 and 1, not {late}")
        if not 0.0 <= minimum_ns <= maximum_ns:
            raise ValueError(f"minimum_ns ({minimum_ns}) must be from 0 to maximum_ns")
        if not (0.0 <= start_share <= 1.0 and settle_s > 0.0):
            raise ValueError("start_share is from 0 to 1, settle_s above 0")
        self._late = late
        self._start = start_ns
        self._minimum = minimum_ns
        self._maximum = maximum_ns
        self._start_share, self._settle_ns = start_share, settle_s * 1e9
        self._known = math.nan
        self.restart()

    def restart(self) -> None:
        self.packets = 0
        self._tilted = False
        self._origin_send = self._origin_delay = 0
        self._last_arrival = 0.0
        self._released = False
        self._base_x = self._base_y = self._slope = self._block_end = self._typical = 0.0
        self._blocks: list[tuple[float, float]] = []
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT)
        self._shift_since = -1.0
        self._shift_low = self._fast = 0.0
        self._shift_count = 0
        self._weights = [0.0] * BUCKETS
        self._increment = 1.0
        self._total = self._above = self._surplus = 0.0
        self._quantile = self._start
        self._settling, self._settling_base = UNSET, 0.0
        self._cursor = 0
        self._log: deque[tuple[float, float, int, float]] = deque(maxlen=LOGGED)

    def relearn(self) -> None:
        """The base line stays, what lies above it is unknown again."""
        self._weights = [0.0] * BUCKETS
        self._total = self._above = self._surplus = self._fast = self._typical = 0.0
        self._increment = 1.0
        self._cursor = 0
        self._log.clear()
        self._blocks.clear()
        self._recent.clear()
        self._shift_since = -1.0
        self._quantile = self._start
        self._settling = UNSET
        self.packets = 1

    @property
    def wanted_ns(self) -> int:
        wanted = min(max(self._quantile, self._minimum), self._maximum)
        if self._fast > 0.0:
            spread = self._fast - self._shift_low
            spread = min(max(spread, self._minimum), self._maximum)
            wanted = max(wanted, self._shift_low + spread)
        return round(wanted)

    def know(self, skew_ppm: float) -> None:
        slope = skew_ppm * 1e-6
        self._known = slope if math.isnan(slope) else min(max(slope, -MAX_SLOPE), MAX_SLOPE)

    @property
    def skew_ppm(self) -> float:
        return self._slope * 1e6

    def base_ns(self, send_ns: int) -> int:
        return self._origin_delay + int(self._base(float(send_ns - self._origin_send)))

    def target_ns(self, send_ns: int) -> int:
        base = self._base(float(send_ns - self._origin_send))
        return self._origin_delay + round(base) + self.wanted_ns

    def update(self, send_ns: int, arrival_ns: int, missed: bool = False) -> None:
        if self.packets == 0:
            self._origin_send = send_ns
            self._origin_delay = arrival_ns - send_ns
        self.packets += 1
        x = float(send_ns - self._origin_send)
        y = float(arrival_ns - send_ns - self._origin_delay)
        arrival = x + y
        gap = arrival - self._last_arrival
        self._last_arrival = max(self._last_arrival, arrival)
        residual = self._residual(x, y)
        self._watch(x, residual, arrival)
        frozen = False
        if gap >= 1_000.0 * MS:
            self._released = True
        elif self._released:
            frozen = gap < 250.0 * MS and residual > self._quantile
            self._released = frozen
        if not frozen:
            self._record(x, y, residual)
        limit = self._late * FEEDBACK
        if not frozen or self.packets > LOGGED:  # a first freeze says little of the rest
            self._surplus += (1.0 if missed else 0.0) - self._late
            self._surplus = min(max(self._surplus, -limit), limit)
        if self._settling == UNSET:
            self._settling, self._settling_base = x, self._base(x)
        if self.packets < WARM_UP:
            self._quantile = max(self._start, self._floor(x))
            return
        share = min(max(1.0 - self._surplus / limit, 0.3), 1.5)
        self._quantile = self._quantile_at(self._late * share)
        self._settle(x)

    def _settle(self, x: float) -> None:
        if self._settling == FINISHED:
            return
        floor = self._floor(x)
        if floor <= self._quantile or x - self._settling > 2.0 * self._settle_ns:
            self._settling = FINISHED
        else:
            self._quantile = floor

    def _floor(self, x: float) -> float:
        passed = x - self._settling
        rise = self._base(x) - self._settling_base
        if not math.isnan(self._known):
            rise -= self._known * passed
        floor = self._start_share * self._start * (1.0 - passed / self._settle_ns) - rise
        return min(floor, 2.0 * self._start)

    # -- distribution

    def _record(self, x: float, y: float, residual: float) -> None:
        bucket = _bucket(residual)
        self._weights[bucket] += self._increment
        self._total += self._increment
        if bucket > self._cursor:
            self._above += self._increment
        self._log.append((x, y, bucket, self._increment))
        if self.packets > MEMORY:
            self._increment *= 1.0 + 1.0 / MEMORY
        if self._increment > 1e9:
            scale = 1.0 / self._increment
            self._weights = [weight * scale for weight in self._weights]
            for row, (at, y, logged, weight) in enumerate(self._log):
                self._log[row] = (at, y, logged, weight * scale)
            self._increment = 1.0
            self._recount()

    def _recount(self) -> None:
        self._total = self._above = 0.0
        for bucket, weight in enumerate(self._weights):
            self._total += weight
            if bucket > self._cursor:
                self._above += weight

    def _quantile_at(self, share: float) -> float:
        wanted = share * self._total
        while self._cursor < BUCKETS - 1 and self._above > wanted:
            self._cursor += 1
            self._above -= self._weights[self._cursor]
        while self._cursor > 0 and self._above + self._weights[self._cursor] <= wanted:
            self._above += self._weights[self._cursor]
            self._cursor -= 1
        high = _upper(self._cursor)
        weight = self._weights[self._cursor]
        if weight <= 0.0:
            return high
        low = _upper(self._cursor - 1) if self._cursor else 0.0
        return high - (high - low) * (wanted - self._above) / weight

    # -- base line

    def _base(self, x: float) -> float:
        return self._base_y + self._slope * (x - self._base_x)

    def _residual(self, x: float, y: float) -> float:
        if self.packets == 1:
            self._base_x, self._base_y = x, y
        residual = y - self._base(x)
        if residual < 0.0:
            if -residual > max(5.0 * MS, 0.5 * self._quantile) and self.packets > 50:
                self._blocks.clear()
                self._recent.clear()
            self._base_y += residual
            self._shift_since = -1.0
            self._fast = 0.0
            residual = 0.0
        if self._blocks and x >= self._block_end:
            self._close_block(x)
            residual = max(y - self._base(x), 0.0)
        elif self._blocks:
            last_x, last_y = self._blocks[-1]
            if y - last_y < self._slope * (x - last_x):
                self._blocks[-1] = (x, y)
            return residual
        self._blocks.append((x, y))
        self._block_end = x + 1_000.0 * MS
        return residual

    def _close_block(self, x: float) -> None:
        self._tilted = False
        if len(self._blocks) >= SLOPE_BLOCKS:
            self._fit()
        elif not math.isnan(self._known):
            self._tilt(self._known)
        self._base_x = x
        self._base_y = min(by + self._slope * (x - bx) for bx, by in self._blocks)
        if self._tilted and len(self._log) >= ENOUGH:
            self._retell()
        if self._shift_since < 0.0:
            self._typical = max(0.0, *(by - self._base(bx) for bx, by in self._blocks))
        if len(self._blocks) == BLOCKS:
            del self._blocks[0]

    def _fit(self) -> None:
        count = len(self._blocks)
        middle = mean = 0.0
        for x, y in self._blocks:
            middle += x / count
            mean += y / count
        spread = slope = over = 0.0
        for x, y in self._blocks:
            spread += (x - middle) * (x - middle)
            slope += (x - middle) * (y - mean)
        slope /= spread
        for x, y in self._blocks:
            over = max(over, abs(y - mean - slope * (x - middle)))
        span = self._blocks[-1][0] - self._blocks[0][0]
        known = 0.0 if math.isnan(self._known) else self._known
        plain = abs(slope) <= MAX_SLOPE and abs(slope - known) * span > 2.0 * over
        self._tilt(slope if plain else known)

    def _tilt(self, slope: float) -> None:
        span = self._blocks[-1][0] - self._blocks[0][0]
        self._tilted = abs(slope - self._slope) * span > 0.1 * self._quantile
        self._slope = slope

    def _retell(self) -> None:
        """The line lies differently: count the logged packets from it, and nothing older."""
        self._weights = [0.0] * BUCKETS
        for row, (x, y, _, weight) in enumerate(self._log):
            bucket = _bucket(max(y - self._base(x), 0.0))
            self._log[row] = (x, y, bucket, weight)
            self._weights[bucket] += weight
        self._recount()

    # -- level changes

    def _watch(self, x: float, residual: float, arrival: float) -> None:
        self._recent.append((x, residual, arrival))
        if len(self._recent) < RECENT:
            return
        low = min(packet[1] for packet in self._recent)
        oldest_x, _, oldest_arrival = self._recent[0]
        burst = arrival - oldest_arrival <= 0.5 * abs(x - oldest_x)
        if low <= 2.0 * self._typical + MS or (self._shift_since < 0.0 and burst):
            self._shift_since = -1.0
            self._fast = 0.0
            return
        if self._shift_since < 0.0:
            self._shift_count = 0
        self._shift_count += 1
        if self._shift_count <= RECENT:
            self._shift_since = oldest_x
            self._shift_low = low
        self._shift_low = min(self._shift_low, low)
        self._fast = max(self._fast, *(packet[1] for packet in self._recent))
        if x - self._shift_since > 4_000.0 * MS:
            self._rebase(self._shift_low)

    def _rebase(self, rise: float) -> None:
        self._blocks = [block for block in self._blocks if block[0] >= self._shift_since]
        self._base_y += rise
        for x, _, bucket, weight in self._log:
            if x >= self._shift_since:
                self._weights[bucket] -= weight
                self._weights[_bucket(max(_upper(bucket) - rise, 0.0))] += weight
        self._log.clear()
        self._recount()
        self._recent.clear()
        self._shift_since = -1.0
        self._fast = 0.0


def _bucket(residual: float) -> int:
    if residual <= LOWEST:
        return 0
    return min(1 + int(math.log(residual / LOWEST) / LOG_RATIO), BUCKETS - 1)


def _upper(bucket: int) -> float:
    return LOWEST * math.exp(LOG_RATIO * bucket)


class PlayoutControl:
    """Twin of :class:`echostream._ext.delay_estimator.PlayoutControl`."""

    def __init__(self, raise_rate: float, lower_rate: float) -> None:
        if not (0.0 < raise_rate < 1.0 and 0.0 < lower_rate < 1.0):
            raise ValueError("rates are seconds per second, between 0 and 1")
        self._raise_rate = raise_rate
        self._lower_rate = lower_rate
        self._unspent = self._waited = 0.0
        self.falling = False

    def watch(self, error_ns: float, span_ns: float, wanted_ns: float) -> None:
        if error_ns > -20_000.0:
            self.falling = False
        if -error_ns < max(30_000.0, 0.02 * wanted_ns):
            self._waited = 0.0
            return
        self._waited += span_ns
        if self._waited > 500.0 * MS:
            self.falling = True

    def step(self, error_ns: float, span_ns: float, grain_ns: float = 1.0) -> float:
        rate = self._raise_rate if error_ns > 0.0 else self._lower_rate
        if error_ns < -60.0 * MS:
            rate *= 2.0
        distance = abs(error_ns)
        self._unspent = min(self._unspent + span_ns, max(span_ns, grain_ns / rate))
        if distance < 20_000.0 or (error_ns < 0.0 and not self.falling):
            return 0.0
        move = math.floor(min(distance, rate * self._unspent) / grain_ns) * grain_ns
        self._unspent -= move / rate
        return move if error_ns > 0.0 else -move
