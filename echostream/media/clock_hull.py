"""Plain-Python twin of :mod:`echostream._ext.clock_hull`: its contracts, its oracle in tests,
and what runs where nothing is compiled.

Let ``offset(t) = remote clock - local clock`` at local time ``t``. A packet that left at local
time ``t1`` and arrived at remote time ``t2`` proves ``offset(t1) <= t2 - t1``: it cannot arrive
before it left. One that left at remote time ``t3`` and arrived at local time ``t4`` proves
``offset(t4) >= t3 - t4``. Delay of any size and cause only loosens a bound; none is ever wrong
while both clocks run steadily. Over some tens of seconds a clock is a straight line up to a
random walk of its rate, for which a bound of age ``a`` is relaxed by an *allowance*
``wander * a**1.5 / sqrt(3)``, the standard deviation of such a walk's integral.

What is asked of the bounds:

* every line between them: the steepest and the flattest one enclose, at any later time, all
  values that the offset can have. That is the guaranteed error bound.
* the line in the middle of the widest strip between them. With equally distributed queueing
  both ways it is the maximum-likelihood line for exponential queueing (Moon, Skelly, Towsley
  1999, "Estimation and removal of clock skew from network delay measurements"; Geng et al.
  2018, "Exploiting a natural network effect for scalable, fine-grained clock synchronization").
  While exchanges are few, the likeliest line is often far from the true one, and the mean of all
  lines, each with its likelihood, is nearer (Pitman 1939, "The estimation of the location and
  scale parameters of a continuous population of any given form"): that is the estimate. The
  likelihood takes the queueing of each direction as exponential, with the mean measured.

All times and offsets are integer nanoseconds; differences to a moving reference are float64.
"""

from __future__ import annotations

from bisect import insort
from math import ceil, exp, floor, inf, sqrt

__all__ = ["OffsetHull"]

CAPACITY = 96
RECENT = 32
"""The newest, which are never merged."""
NEAR_NS = 10e9
"""Up to this age, bounds are merged so that all stand for about as much time; older ones for the
more, the older they are."""
SHARE = (1.0, 1 / 3, 1 / 10, 1 / 30, 1 / 100, 1 / 300)
"""Parts of the allowance among which the estimate chooses."""
TOLERANCE_NS = 0.01
LOSS = 0.2
"""Width of the strip, in mean queueing delays, that a smaller allowance may cost."""
SUSPECT = 0.3
"""Width below the least round trip, in mean queueing delays, that a steady clock explains."""
EXCESS_WEIGHT = 1 / 64
SCALE_MAX = 64.0
ITERATIONS = 64
ANCHOR_AFTER = 8
"""Exchanges after which their queueing is known well enough to tell what the rate is worth."""
AVERAGE_AFTER = 4
MEMORY_NS = 60e9
"""Exchanges count less for the likelihood as they age, with this time constant."""
WAIT_WEIGHT = 1 / 256
WAIT_LEAST_NS = 100.0
"""Stamps are no better than that."""
WAIT_CLIP = 3.0
"""Of a queueing delay, so many means count: a stall is no sign of much queueing."""
RATE_TYPICAL = 1e-4
"""Half of all rates between uncorrected quartz clocks are smaller (Cauchy)."""
NODES = 15
NODE_FIRST, NODE_GROWTH = 0.25, 2.5
"""Slopes at which the likelihood is integrated, closest around the likeliest one."""

_Points = list[tuple[float, float]]
_Clouds = tuple[_Points, _Points]
_Cut = tuple[float, float, float, float]
_Weights = tuple[float, float, float, float]


class OffsetHull:
    """A bounded window of offset bounds, and what they prove.

    ``wander``: bound of the random walk of the relative rate, per square root of a second; it
    scales itself up, at most 64 times, while the strip is narrower than round trips explain.
    ``rate_expected``: largest magnitude of the rate that is believed without evidence;
    ``rate_limit``: the largest that is believed at all.

    After :meth:`add`, relative to ``reference`` and at local time ``at``: the feasible offsets
    ``low`` to ``high``, their rates ``rate_low`` to ``rate_high``, ``estimate`` and ``rate``, and
    ``rate_deviation``, what queueing of the present size does to the widest strip's rate.
    """

    def __init__(self, wander: float, rate_expected: float, rate_limit: float):
        self._wander = wander * sqrt(1e-9)
        self._allow = self._wander / sqrt(3.0)
        self._limit = rate_limit
        self._box = (-rate_expected, rate_expected)
        self._box_at: int | None = None
        self._uppers: list[tuple[int, int]] = []
        self._lowers: list[tuple[int, int]] = []
        self._rtts: list[int] = []
        self._since: list[int] = []  # what each bound stands for begins there
        self._level = 0
        self._scale = 1.0
        self._excess = 0.0
        self._seen = 0
        self._recent = 0.0
        self._ages = (0.0, 0.0)  # mean ages of upper and lower bounds
        self._waits = (0.0, 0.0)
        self._spread = (inf, 0.0, 0.0)  # variances of offset and rate, covariance between them
        self._clouds: _Clouds = ([], [])
        self._anchor_rate = 0.0
        self._anchor_deviation = inf
        self._anchor_at = 0
        self.at = 0
        self.reference = 0
        self.low = self.high = self.estimate = self.rate = 0.0
        self.rate_low, self.rate_high = self._box
        self.rate_deviation = inf

    def __len__(self) -> int:
        """Exchanges in the window; at most 96, older ones are merged."""
        return len(self._rtts)

    @property
    def min_rtt(self) -> int:
        """Shortest round trip in the window; 0 when it is empty."""
        return min(self._rtts, default=0)

    @property
    def oldest(self) -> int:
        """Local time of the oldest bound."""
        return self._uppers[0][0] if self._uppers else self.at

    def add(self, upper_at: int, upper: int, lower_at: int, lower: int, rtt: int) -> int:
        """Take one exchange: ``offset(upper_at) <= upper`` and ``offset(lower_at) >= lower``.

        Returns how many older exchanges were dropped because no line fits them and this one:
        more than 0 means that a clock stepped or changed its rate. Any values are survived;
        ``upper`` and ``lower`` within 2**62.
        """
        now = max(upper_at, lower_at)
        if self._seen == 0:
            self.reference = lower + (upper - lower) // 2
        else:
            now = max(now, self.at)
        if len(self._rtts) == CAPACITY:
            self._thin()
        insort(self._uppers, (upper_at, upper), key=lambda p: p[0])
        insort(self._lowers, (lower_at, lower), key=lambda p: p[0])
        self._rtts.append(rtt)
        insort(self._since, upper_at)
        self._seen += 1
        passed = 0
        if self._recent > 0.0:
            passed = now - self.at
            self._recent *= exp(-passed / MEMORY_NS)
        self._recent += 1.0
        self._ages = tuple(  # type: ignore[assignment]
            age + passed + (now - at - age - passed) / self._recent
            for age, at in zip(self._ages, (upper_at, lower_at), strict=True)
        )
        weight = max(EXCESS_WEIGHT, 1.0 / self._seen)
        self._excess += ((rtt - self.min_rtt) - self._excess) * weight
        self._scale = max(1.0, self._scale * (1.0 - EXCESS_WEIGHT))
        dropped = 0
        if not self._bound(now):
            dropped = self._change(now)
            self.reference = lower + (upper - lower) // 2
            if not self._bound(now):
                dropped += len(self._rtts) - 1
                self._uppers = [(upper_at, upper)]
                self._lowers = [(lower_at, lower)]
                self._rtts, self._since = [rtt], [upper_at]
                self._bound(now)
            self._seen = len(self._rtts)
            self._recent = float(self._seen)
            self._ages = tuple(  # type: ignore[assignment]
                sum(now - at for at, _ in points) / self._recent
                for points in (self._uppers, self._lowers)
            )
        while not self._choose(now) and self._scale < SCALE_MAX:
            self._scale *= 2.0
            self._bound(now)
        self.at = now
        self._wait((upper_at, upper), (lower_at, lower))
        self._anchor()
        self._rebase()
        return dropped

    def forget(self, at: int, slack: float) -> None:
        """Drop all bounds; the range of the rate is kept, wider by ``slack`` on both sides."""
        low, high = self._widened(self.rate_low, self.rate_high, at - self.at)
        self._set_box(low - slack, high + slack, at)
        self._anchor_deviation += slack
        self._uppers, self._lowers, self._rtts, self._since = [], [], [], []
        self._seen = 0
        self._recent = 0.0
        self._spread = (inf, 0.0, 0.0)

    def interval(self, at: int) -> tuple[int, int]:
        """All offsets that are possible at local time ``at``, in ns; wider with its distance."""
        age = max(at - self.at, 0)
        spread = self._scale * self._allow * age * sqrt(age)
        low = self.low + self.rate_low * age - spread
        high = self.high + self.rate_high * age + spread
        return self.reference + floor(low), self.reference + ceil(high)

    def offset(self, at: int) -> int:
        """The estimate at local time ``at``, in ns."""
        return self.reference + round(self.estimate + self.rate * max(at - self.at, 0))

    def deviation(self, at: int) -> float:
        """Standard deviation of the estimate at local time ``at`` in ns, as far as queueing is
        exponential; infinite before the fourth exchange. No bound: asymmetry is not in it."""
        age = max(at - self.at, 0)
        variance, covariance, rate_variance = self._spread
        return sqrt(max(0.0, variance + age * (2.0 * covariance + age * rate_variance)))

    def _points(self, start: int, share: float, now: int) -> _Clouds:
        """Both clouds as ``(x, y)``, relative to now and to the reference, relaxed."""
        scale = share * self._scale * self._allow
        upper: _Points = []
        for at, value in self._uppers[start:]:
            age = now - at
            upper.append((-age, value - self.reference + scale * age * sqrt(age)))
        lower: _Points = []
        for at, value in self._lowers[start:]:
            age = now - at
            lower.append((-age, value - self.reference - scale * age * sqrt(age)))
        return upper, lower

    def _bound(self, now: int) -> bool:
        low, high = self._box
        if self._box_at is not None:
            low, high = self._widened(low, high, now - self._box_at)
        return self._solve(0, low, high, now)

    def _solve(self, start: int, low: float, high: float, now: int) -> bool:
        """Extreme slopes between ``low`` and ``high`` of lines between the clouds (Newton)."""
        clouds = self._points(start, 1.0, now)
        b = high
        gap, run, top, _ = _cut(clouds, b)
        for _ in range(ITERATIONS):
            if gap >= -TOLERANCE_NS:
                break
            if run <= 0.0:
                return False
            b += gap / run
            if b < low:
                return False
            gap, run, top, _ = _cut(clouds, b)
        high, b = b, low
        gap, run, _, bottom = _cut(clouds, b)
        for _ in range(ITERATIONS):
            if gap >= -TOLERANCE_NS or run >= 0.0:
                break
            b = min(b + gap / run, high)
            gap, run, _, bottom = _cut(clouds, b)
            if b == high:
                break
        self.rate_low, self.rate_high = b, high
        self.low, self.high = min(bottom, top), max(bottom, top)
        return True

    def _widest(
        self, clouds: _Clouds, p: float, q: float, weights: _Weights
    ) -> tuple[float, float, float]:
        """The widest strip of slope p to q, as the edges weigh: its width, slope and middle now
        (Kelley). Where the slope makes no difference, the one closest to 0."""
        left, right = _cut(clouds, p, weights), _cut(clouds, q, weights)
        if left[1] == 0.0 == right[1]:
            b = max(p, min(0.0, q))
            cut = _cut(clouds, b, weights)
        elif left[1] >= 0.0:
            b, cut = p, left
        elif right[1] <= 0.0:
            b, cut = q, right
        else:
            for _ in range(ITERATIONS):
                b = (right[0] - left[0] - left[1] * p + right[1] * q) / (right[1] - left[1])
                if not p < b < q:
                    b = 0.5 * (p + q)
                cut = _cut(clouds, b, weights)
                if cut[1] == 0.0 or left[0] - left[1] * (b - p) - cut[0] < TOLERANCE_NS:
                    break
                if cut[1] < 0.0:
                    p, left = b, cut
                else:
                    q, right = b, cut
        return cut[0], b, 0.5 * (cut[2] + cut[3])

    def _choose(self, now: int) -> bool:
        """The estimate: the widest strip under the smallest allowance that costs no width.

        False when the strip is narrower than the round trips allow on a steady clock.
        """
        level = self._level
        low, high = self._credible(now)
        clouds = self._points(0, SHARE[0], now)
        upper_age, lower_age = self._ages
        weights = (1.0, 1.0, -upper_age, -lower_age)
        gap, self.rate, self.estimate = self._widest(clouds, low, high, weights)
        least = self.min_rtt
        steady = gap >= least - SUSPECT * self._excess
        need = max(0.0, min(gap, least) - LOSS * self._excess)
        if self._seen % 8 == 0 and level < len(SHARE) - 1:
            level += 1
        while level > 0:
            relaxed = self._points(0, SHARE[level], now)
            gap, rate, value = self._widest(relaxed, low, high, weights)
            if gap >= need:
                self.rate, self.estimate = rate, value
                clouds = relaxed
                break
            level -= 1
        self._level = level
        self._clouds = clouds
        self._average(clouds, low, high, now)
        self.estimate = max(self.low, min(self.high, self.estimate))
        return steady

    def _average(self, clouds: _Clouds, low: float, high: float, now: int) -> None:
        """From the widest strip to the mean of all strips, each with its likelihood."""
        self._spread = (inf, 0.0, 0.0)
        span = now - self._uppers[0][0]
        if self._seen < AVERAGE_AFTER or span <= 0:
            return
        upper, lower = (max(wait, WAIT_LEAST_NS) / self._recent for wait in self._waits)
        weights = (1.0 / upper, 1.0 / lower, -self._ages[0], -self._ages[1])
        _, best, _ = self._widest(clouds, low, high, weights)
        rates, step = [best], NODE_FIRST * min(upper, lower) / span
        for _ in range(NODES // 2):
            rates = [max(low, best - step), *rates, min(high, best + step)]
            step *= NODE_GROWTH
        cuts = [_cut(clouds, b, weights) for b in rates]
        values = [0.5 * (cut[2] + cut[3]) for cut in cuts]
        most = max(cut[0] for cut in cuts)
        odds = [
            (right - left) * exp(cut[0] - most) / (1.0 + (b / RATE_TYPICAL) * (b / RATE_TYPICAL))
            for left, b, right, cut in zip(
                [rates[0], *rates], rates, [*rates[1:], rates[-1]], cuts, strict=False
            )
        ]
        total = sum(odds)
        if not total > 0.0:
            return
        rate = sum(o * b for o, b in zip(odds, rates, strict=True)) / total
        value = sum(o * v for o, v in zip(odds, values, strict=True)) / total
        variance, covariance, rate_variance = 0.25 * (upper * upper + lower * lower), 0.0, 0.0
        for o, b, v in zip(odds, rates, values, strict=True):
            part = o / total
            variance += part * (v - value) * (v - value)
            covariance += part * (v - value) * (b - rate)
            rate_variance += part * (b - rate) * (b - rate)
        self._spread = (variance, covariance, rate_variance)
        self.rate, self.estimate = rate, value + 0.5 * (lower - upper)

    def _wait(self, upper: tuple[int, int], lower: tuple[int, int]) -> None:
        """What the newest exchange waited, each way, beyond the strip's edges."""
        _, _, top, bottom = _cut(self._clouds, self.rate)
        waits = (
            upper[1] - self.reference + self.rate * (self.at - upper[0]) - top,
            bottom - (lower[1] - self.reference) - self.rate * (self.at - lower[0]),
        )
        share = max(WAIT_WEIGHT, 1.0 / self._seen)
        clip = WAIT_CLIP if self._seen > ANCHOR_AFTER else inf
        self._waits = tuple(  # type: ignore[assignment]
            mean + (max(0.0, min(wait, clip * max(mean, WAIT_LEAST_NS))) - mean) * share
            for wait, mean in zip(waits, self._waits, strict=True)
        )

    def _credible(self, now: int) -> tuple[float, float]:
        """Rates near the one that was known best: where a route changed, the widest strip is a
        tilted one, although the clocks run as before."""
        reach = 3.0 * (self._anchor_deviation + self._walk(now - self._anchor_at))
        low = max(self.rate_low, self._anchor_rate - reach)
        high = min(self.rate_high, self._anchor_rate + reach)
        return (low, high) if low <= high else (self.rate_low, self.rate_high)

    def _anchor(self) -> None:
        """Remember the rate, when it is known better than the remembered one by now."""
        span = self.at - self.oldest
        if self._seen < ANCHOR_AFTER or span <= 0:
            self.rate_deviation = inf
            return
        self.rate_deviation = max(self._excess, WAIT_LEAST_NS) / (sqrt(len(self._rtts)) * span)
        aged = self._anchor_deviation + self._walk(self.at - self._anchor_at)
        if self.rate_deviation <= aged:
            self._anchor_rate = self.rate
            self._anchor_deviation = self.rate_deviation
            self._anchor_at = self.at

    def _walk(self, age: int) -> float:
        return self._scale * self._wander * sqrt(max(age, 0))

    def _change(self, now: int) -> int:
        """No line fits: keep the newest that one line fits, at the rate known until now.

        Where older bounds would fit too if the rate had changed, both readings stay open:
        the range of the rate spans them.
        """
        low, high = self._widened(self.rate_low, self.rate_high, now - self.at)
        wide = self._suffix(-self._limit, self._limit, now)
        kept = self._suffix(low, high, now)
        if wide < kept and self._solve(wide, -self._limit, self._limit, now):
            low, high = min(low, self.rate_low), max(high, self.rate_high)
        self._set_box(low, high, now)
        self._anchor_deviation = inf
        self._level = 0
        del self._uppers[:kept], self._lowers[:kept], self._rtts[:kept], self._since[:kept]
        return kept

    def _suffix(self, low: float, high: float, now: int) -> int:
        """The first bound from which on all fit one line (bisection)."""
        a, b = 0, len(self._rtts) - 1
        while a < b:
            middle = (a + b) // 2
            if self._solve(middle, low, high, now):
                b = middle
            else:
                a = middle + 1
        return a

    def _widened(self, low: float, high: float, age: int) -> tuple[float, float]:
        spread = self._wander * sqrt(max(age, 0))
        return max(-self._limit, low - spread), min(self._limit, high + spread)

    def _set_box(self, low: float, high: float, at: int) -> None:
        self._box = self.rate_low, self.rate_high = max(low, -self._limit), min(high, self._limit)
        self._box_at = at

    def _rebase(self) -> None:
        shift = round(self.estimate)
        self.reference += shift
        self.low -= shift
        self.high -= shift
        self.estimate -= shift

    def _thin(self) -> None:
        """Make room: of two neighbours keep the tighter bound, forward and reverse for themselves.
        They are those that cover the least time for their age."""
        since = self._since
        i = min(
            range(CAPACITY - RECENT),
            key=lambda i: (since[i + 2] - since[i]) / (since[-1] - since[i + 2] + NEAR_NS),
        )
        del since[i + 1]
        for points, sign in ((self._uppers, 1), (self._lowers, -1)):
            a, b = points[i], points[i + 1]
            tighter = sign * (b[1] - a[1]) < sign * self.rate * (b[0] - a[0])
            points[i : i + 2] = [b if tighter else a]
        self._rtts[i : i + 2] = [min(self._rtts[i : i + 2])]


def _cut(clouds: _Clouds, b: float, weights: _Weights = (1.0, 1.0, 0.0, 0.0)) -> _Cut:
    """The widest strip of slope ``b``: its width, the change of that with ``-b``, both edges now.
    Each edge has a weight, and a time at which its value counts: the mean time of its bounds, so
    that the width is what all of them together say."""
    top, upper_x = min((y - b * x, x) for x, y in clouds[0])
    bottom, lower_x = max((y - b * x, -x) for x, y in clouds[1])
    upper, lower, x, y = weights
    gap = upper * (top + b * x) - lower * (bottom + b * y)
    return gap, upper * (upper_x - x) - lower * (-lower_x - y), top, bottom
