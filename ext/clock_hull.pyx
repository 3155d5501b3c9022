# cython: auto_pickle=False, autotestdict=False
"""Offset between two clocks from one-way bounds.

The mechanism below :class:`echostream.media.clock.ClockSync`; the plain-Python twin, with the
same names, is :mod:`echostream.media.clock_hull`, whose docstrings hold the contracts.

The cloud of bounds is reduced to two convex hulls (Andrew's monotone chain). What is asked
of them are extreme values of ``min(upper - b x) - max(lower - b x)``, concave in the slope
``b``: Newton's and Kelley's iterations reach them exactly, in a few steps, because the function
is piecewise linear.
"""

cimport cython
from libc.math cimport INFINITY, ceil, exp, floor, llrint, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memmove

cdef enum:
    CAPACITY = 96
    LEVELS = 6
    ITERATIONS = 64
    ANCHOR_AFTER = 8
    RECENT = 32
    NODES = 15
    AVERAGE_AFTER = 4

cdef double[LEVELS] SHARE = [1.0, 1.0 / 3, 1.0 / 10, 1.0 / 30, 1.0 / 100, 1.0 / 300]
cdef double TOLERANCE_NS = 0.01
cdef double LOSS = 0.2
cdef double SUSPECT = 0.3
cdef double SCALE_MAX = 64.0
cdef double EXCESS_WEIGHT = 1.0 / 64
cdef double WAIT_WEIGHT = 1.0 / 256
cdef double WAIT_LEAST_NS = 100.0
cdef double WAIT_CLIP = 3.0
cdef double MEMORY_NS = 60e9
cdef double NEAR_NS = 10e9
cdef double RATE_TYPICAL = 1e-4
cdef double NODE_FIRST = 0.25
cdef double NODE_GROWTH = 2.5


cdef struct Hull:
    Py_ssize_t count
    double[CAPACITY] x
    double[CAPACITY] y


cdef struct Cut:
    double gap          # width of the strip of slope b between the hulls
    double run          # x of the touched upper point minus x of the touched lower point
    double top          # where the strip's edges pass x = 0
    double bottom
    double upper_x      # where they touch the hulls
    double lower_x


cdef void _chain(
    Hull* hull, const double* x, const double* y, const double* allowance, double share,
    Py_ssize_t start, Py_ssize_t count,
) noexcept nogil:
    """Lower convex hull of ``(x, y + share * allowance)``; ``x`` ascends."""
    cdef Py_ssize_t i, n = 0
    cdef double px, py
    for i in range(start, count):
        px = x[i]
        py = y[i] + share * allowance[i]
        while n > 0 and hull.x[n - 1] == px and hull.y[n - 1] >= py:
            n -= 1
        if n > 0 and hull.x[n - 1] == px:
            continue
        while n > 1 and (
            (hull.y[n - 1] - hull.y[n - 2]) * (px - hull.x[n - 1])
            >= (py - hull.y[n - 1]) * (hull.x[n - 1] - hull.x[n - 2])
        ):
            n -= 1
        hull.x[n] = px
        hull.y[n] = py
        n += 1
    hull.count = n


cdef Cut _cut(const Hull* upper, const Hull* lower, double b) noexcept nogil:
    """The strip of slope ``b``. ``lower`` holds negated values, so that both are lower hulls."""
    cdef Cut cut
    cdef Py_ssize_t i
    cdef double value, xu = upper.x[0], xl = lower.x[0]
    cut.top = upper.y[0] - b * upper.x[0]
    for i in range(1, upper.count):
        value = upper.y[i] - b * upper.x[i]
        if value > cut.top:
            break  # a convex sequence does not fall again
        cut.top = value
        xu = upper.x[i]
    cut.bottom = lower.y[0] + b * lower.x[0]
    for i in range(1, lower.count):
        value = lower.y[i] + b * lower.x[i]
        if value > cut.bottom:
            break
        cut.bottom = value
        xl = lower.x[i]
    cut.bottom = -cut.bottom
    cut.gap = cut.top - cut.bottom
    cut.run = xu - xl
    cut.upper_x = xu
    cut.lower_x = xl
    return cut


@cython.final
cdef class OffsetHull:
    """See :class:`echostream.media.clock_hull.OffsetHull`."""

    cdef double _wander, _allow, _limit
    cdef Py_ssize_t _count
    cdef int64_t[CAPACITY] _upper_at, _upper_y, _lower_at, _lower_y, _rtt
    cdef int64_t[CAPACITY] _since
    cdef double[CAPACITY] _ux, _uy, _ua, _lx, _ly, _la
    cdef Hull _upper, _lower
    cdef double _box_low, _box_high
    cdef int64_t _box_at
    cdef bint _box_fixed
    cdef int _level
    cdef double _scale
    cdef double _excess
    cdef int64_t _seen
    cdef double _recent, _upper_age, _lower_age, _upper_wait, _lower_wait
    cdef double _upper_weight, _lower_weight
    cdef double _variance, _covariance, _rate_variance
    cdef double _anchor_rate, _anchor_deviation
    cdef int64_t _anchor_at
    cdef readonly int64_t at
    cdef readonly int64_t reference
    cdef readonly double low, high, rate_low, rate_high, estimate, rate, rate_deviation

    def __init__(self, double wander, double rate_expected, double rate_limit):
        self._wander = wander * sqrt(1e-9)
        self._allow = self._wander / sqrt(3.0)
        self._limit = rate_limit
        self._box_low = -rate_expected
        self._box_high = rate_expected
        self._box_fixed = True
        self._scale = 1.0
        self._anchor_deviation = INFINITY
        self._variance = INFINITY
        self.rate_deviation = INFINITY
        self.rate_low = -rate_expected
        self.rate_high = rate_expected

    def __len__(self):
        return self._count

    @property
    def min_rtt(self):
        return self._min_rtt()

    @property
    def oldest(self):
        return self._upper_at[0] if self._count else self.at

    def add(
        self, int64_t upper_at, int64_t upper, int64_t lower_at, int64_t lower, int64_t rtt
    ):
        return self._add(upper_at, upper, lower_at, lower, rtt)

    def forget(self, int64_t at, double slack):
        cdef double low = self.rate_low, high = self.rate_high
        self._widen(&low, &high, self._age(at))
        self._box(low - slack, high + slack, at)
        self._anchor_deviation += slack
        self._count = 0
        self._seen = 0
        self._recent = 0.0
        self._variance = INFINITY

    def interval(self, int64_t at):
        cdef double age = self._age(at)
        cdef double spread = self._scale * self._allow * age * sqrt(age)
        low = self.reference + int(floor(self.low + self.rate_low * age - spread))
        high = self.reference + int(ceil(self.high + self.rate_high * age + spread))
        return low, high

    def offset(self, int64_t at):
        cdef double age = self._age(at)
        return self.reference + int(llrint(self.estimate + self.rate * age))

    def deviation(self, int64_t at):
        cdef double age = self._age(at)
        return sqrt(max(
            0.0, self._variance + age * (2.0 * self._covariance + age * self._rate_variance)
        ))

    # -- the rest is C ---------------------------------------------------------------------

    cdef double _age(self, int64_t at) noexcept nogil:
        return <double>(at - self.at) if at > self.at else 0.0

    cdef int64_t _min_rtt(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef int64_t least = self._rtt[0] if self._count else 0
        for i in range(1, self._count):
            least = min(least, self._rtt[i])
        return least

    cdef Py_ssize_t _add(
        self, int64_t upper_at, int64_t upper, int64_t lower_at, int64_t lower, int64_t rtt
    ) noexcept nogil:
        cdef Py_ssize_t n, dropped = 0
        cdef double passed = 0.0
        cdef int64_t now = max(upper_at, lower_at)
        if self._seen == 0:
            self.reference = lower + (upper - lower) // 2
        else:
            now = max(now, self.at)
        if self._count == CAPACITY:
            self._thin()
        n = self._count
        self._count = n + 1
        _insert(self._upper_at, self._upper_y, n, upper_at, upper)
        _insert(self._lower_at, self._lower_y, n, lower_at, lower)
        _insert(self._since, NULL, n, upper_at, 0)
        self._rtt[n] = rtt
        self._seen += 1
        if self._recent > 0.0:
            passed = <double>(now - self.at)
            self._recent *= exp(-passed / MEMORY_NS)
        self._recent += 1.0
        self._upper_age += passed
        self._lower_age += passed
        self._upper_age += (<double>(now - upper_at) - self._upper_age) / self._recent
        self._lower_age += (<double>(now - lower_at) - self._lower_age) / self._recent
        self._excess += (<double>(rtt - self._min_rtt()) - self._excess) * max(
            EXCESS_WEIGHT, 1.0 / self._seen
        )
        self._scale = max(1.0, self._scale * (1.0 - EXCESS_WEIGHT))
        self._load(now)
        if not self._bound(now):
            dropped = self._change(now)
            self.reference = lower + (upper - lower) // 2
            self._load(now)
            if not self._bound(now):  # not even the last of both sorts: they are of two regimes
                dropped += self._count - 1
                self._count = 1
                self._upper_at[0] = upper_at
                self._upper_y[0] = upper
                self._lower_at[0] = lower_at
                self._lower_y[0] = lower
                self._rtt[0] = rtt
                self._since[0] = upper_at
                self._load(now)
                self._bound(now)
            self._seen = self._count
            self._recent = <double>self._count
            self._upper_age = _mean_age(self._upper_at, self._count, now)
            self._lower_age = _mean_age(self._lower_at, self._count, now)
        self.at = now
        while not self._choose(now) and self._scale < SCALE_MAX:
            self._scale *= 2.0
            self._load(now)
            self._bound(now)
        self._wait(upper_at, upper, lower_at, lower, now)
        self._anchor()
        self._rebase()
        return dropped

    cdef void _load(self, int64_t now) noexcept nogil:
        """Bounds relative to now and to the reference, where float64 is exact enough."""
        cdef Py_ssize_t i
        cdef double age
        for i in range(self._count):
            age = <double>(now - self._upper_at[i])
            self._ux[i] = -age
            self._uy[i] = <double>(self._upper_y[i] - self.reference)
            self._ua[i] = self._scale * self._allow * age * sqrt(age)
            age = <double>(now - self._lower_at[i])
            self._lx[i] = -age
            self._ly[i] = <double>(self.reference - self._lower_y[i])
            self._la[i] = self._scale * self._allow * age * sqrt(age)

    cdef void _hulls(self, Py_ssize_t start, double share) noexcept nogil:
        _chain(&self._upper, self._ux, self._uy, self._ua, share, start, self._count)
        _chain(&self._lower, self._lx, self._ly, self._la, share, start, self._count)

    cdef bint _bound(self, int64_t now) noexcept nogil:
        cdef double low = self._box_low, high = self._box_high
        if not self._box_fixed:
            self._widen(&low, &high, <double>(now - self._box_at))
        return self._solve(0, low, high)

    cdef bint _solve(self, Py_ssize_t start, double p, double q) noexcept nogil:
        """Feasible lines of slope p to q: their extreme slopes, and where those pass now."""
        cdef Cut cut
        cdef double b = q, top
        cdef int i
        self._hulls(start, 1.0)
        cut = _cut(&self._upper, &self._lower, b)
        for i in range(ITERATIONS):  # Newton from the right; an early stop is on the safe side
            if cut.gap >= -TOLERANCE_NS:
                break
            if cut.run <= 0.0:
                return False
            b += cut.gap / cut.run
            if b < p:
                return False
            cut = _cut(&self._upper, &self._lower, b)
        q = b
        top = cut.top
        b = p
        cut = _cut(&self._upper, &self._lower, b)
        for i in range(ITERATIONS):
            if cut.gap >= -TOLERANCE_NS or cut.run >= 0.0:
                break
            b += cut.gap / cut.run
            if b > q:
                b = q
                cut = _cut(&self._upper, &self._lower, b)
                break
            cut = _cut(&self._upper, &self._lower, b)
        self.rate_low = b
        self.rate_high = q
        self.low = min(cut.bottom, top)
        self.high = max(cut.bottom, top)
        return True

    cdef Cut _weighed(self, double b) noexcept nogil:
        """The strip of slope b, each edge with its weight and at the mean time of its bounds;
        ``gap`` and ``run`` follow them."""
        cdef Cut cut = _cut(&self._upper, &self._lower, b)
        cut.gap = (
            self._upper_weight * (cut.top - b * self._upper_age)
            - self._lower_weight * (cut.bottom - b * self._lower_age)
        )
        cut.run = (
            self._upper_weight * (cut.upper_x + self._upper_age)
            - self._lower_weight * (cut.lower_x + self._lower_age)
        )
        return cut

    cdef double _widest(
        self, double p, double q, double* rate, double* value
    ) noexcept nogil:
        """The widest strip of slope p to q, as the edges weigh: its width, slope and middle now
        (Kelley). Where the slope makes no difference, the one closest to 0."""
        cdef double b
        cdef Cut left, right, cut
        cdef int i
        left = self._weighed(p)
        right = self._weighed(q)
        if left.run == 0.0 and right.run == 0.0:
            b = max(p, min(0.0, q))
            cut = self._weighed(b)
        elif left.run >= 0.0:
            b = p
            cut = left
        elif right.run <= 0.0:
            b = q
            cut = right
        else:
            for i in range(ITERATIONS):
                b = (right.gap - left.gap - left.run * p + right.run * q) / (right.run - left.run)
                if not p < b < q:
                    b = 0.5 * (p + q)
                cut = self._weighed(b)
                if cut.run == 0.0 or left.gap - left.run * (b - p) - cut.gap < TOLERANCE_NS:
                    break
                if cut.run < 0.0:
                    p = b
                    left = cut
                else:
                    q = b
                    right = cut
        rate[0] = b
        value[0] = 0.5 * (cut.top + cut.bottom)
        return cut.gap

    cdef bint _choose(self, int64_t now) noexcept nogil:
        """The estimate: the widest strip under the smallest allowance that costs no width.

        False when the strip is narrower than the round trips allow on a steady clock.
        """
        cdef double reach = 3.0 * (self._anchor_deviation + self._walk(now - self._anchor_at))
        cdef double low = max(self.rate_low, self._anchor_rate - reach)
        cdef double high = min(self.rate_high, self._anchor_rate + reach)
        cdef double rate, value, gap, need, least = <double>self._min_rtt()
        cdef bint steady
        cdef int level = self._level
        if low > high:
            low = self.rate_low
            high = self.rate_high
        self._upper_weight = self._lower_weight = 1.0
        gap = self._widest(low, high, &self.rate, &self.estimate)  # on the hulls of _solve
        steady = gap >= least - SUSPECT * self._excess
        need = max(0.0, min(gap, least) - LOSS * self._excess)
        if self._seen % 8 == 0 and level < LEVELS - 1:
            level += 1
        while level > 0:
            self._hulls(0, SHARE[level])
            if self._widest(low, high, &rate, &value) >= need:
                self.rate = rate
                self.estimate = value
                break
            level -= 1
        self._level = level
        if level == 0:
            self._hulls(0, 1.0)
        self._average(low, high, now)
        self.estimate = max(self.low, min(self.high, self.estimate))
        return steady

    cdef void _average(self, double low, double high, int64_t now) noexcept nogil:
        """From the widest strip to the mean of all strips, each with its likelihood."""
        cdef double[NODES] rates, values, odds
        cdef double span = <double>(now - self._upper_at[0])
        cdef double upper = max(self._upper_wait, WAIT_LEAST_NS) / self._recent
        cdef double lower = max(self._lower_wait, WAIT_LEAST_NS) / self._recent
        cdef double step, part, best, ratio, total = 0.0, rate = 0.0, value = 0.0
        cdef Cut cut
        cdef int i, middle = NODES // 2
        self._variance = INFINITY
        if self._seen < AVERAGE_AFTER or span <= 0.0:
            return
        self._upper_weight = 1.0 / upper
        self._lower_weight = 1.0 / lower
        self._widest(low, high, &best, &part)
        step = NODE_FIRST * min(upper, lower) / span
        rates[middle] = best
        for i in range(middle):
            rates[middle + 1 + i] = min(high, best + step)
            rates[middle - 1 - i] = max(low, best - step)
            step *= NODE_GROWTH
        best = -INFINITY
        for i in range(NODES):
            cut = self._weighed(rates[i])
            values[i] = 0.5 * (cut.top + cut.bottom)
            odds[i] = cut.gap
            best = max(best, cut.gap)
        for i in range(NODES):
            ratio = rates[i] / RATE_TYPICAL
            odds[i] = exp(odds[i] - best) / (1.0 + ratio * ratio)
        for i in range(NODES):  # by the trapezoidal rule
            step = rates[min(i + 1, NODES - 1)] - rates[max(i - 1, 0)]
            part = step * odds[i]
            total += part
            rate += part * rates[i]
            value += part * values[i]
        if not total > 0.0:
            return
        rate /= total
        value /= total
        self._variance = 0.25 * (upper * upper + lower * lower)
        self._covariance = self._rate_variance = 0.0
        for i in range(NODES):
            step = rates[min(i + 1, NODES - 1)] - rates[max(i - 1, 0)]
            part = step * odds[i] / total
            self._variance += part * (values[i] - value) * (values[i] - value)
            self._covariance += part * (values[i] - value) * (rates[i] - rate)
            self._rate_variance += part * (rates[i] - rate) * (rates[i] - rate)
        self.rate = rate
        self.estimate = value + 0.5 * (lower - upper)

    cdef void _wait(
        self, int64_t upper_at, int64_t upper, int64_t lower_at, int64_t lower, int64_t now
    ) noexcept nogil:
        """What the newest exchange waited, each way, beyond the strip's edges."""
        cdef Cut cut = _cut(&self._upper, &self._lower, self.rate)
        cdef double share = max(WAIT_WEIGHT, 1.0 / self._seen)
        cdef double forth = <double>(upper - self.reference) + self.rate * (
            <double>(now - upper_at)
        ) - cut.top
        cdef double back = cut.bottom - <double>(lower - self.reference) - self.rate * (
            <double>(now - lower_at)
        )
        if self._seen > ANCHOR_AFTER:  # a stall is no sign of much queueing
            forth = min(forth, WAIT_CLIP * max(self._upper_wait, WAIT_LEAST_NS))
            back = min(back, WAIT_CLIP * max(self._lower_wait, WAIT_LEAST_NS))
        self._upper_wait += (max(0.0, forth) - self._upper_wait) * share
        self._lower_wait += (max(0.0, back) - self._lower_wait) * share

    cdef void _anchor(self) noexcept nogil:
        """Remember the rate, when it is known better than the remembered one by now."""
        cdef double span = <double>(self.at - self._upper_at[0])
        self.rate_deviation = INFINITY
        if self._seen < ANCHOR_AFTER or span <= 0.0:
            return
        self.rate_deviation = max(self._excess, WAIT_LEAST_NS) / (
            sqrt(<double>self._count) * span
        )
        if self.rate_deviation <= self._anchor_deviation + self._walk(self.at - self._anchor_at):
            self._anchor_rate = self.rate
            self._anchor_deviation = self.rate_deviation
            self._anchor_at = self.at

    cdef double _walk(self, int64_t age) noexcept nogil:
        return self._scale * self._wander * sqrt(<double>age) if age > 0 else 0.0

    cdef void _rebase(self) noexcept nogil:
        cdef int64_t shift = llrint(self.estimate)
        self.reference += shift
        self.low -= shift
        self.high -= shift
        self.estimate -= shift

    cdef Py_ssize_t _change(self, int64_t now) noexcept nogil:
        """No line fits: keep the newest that one line fits, at the rate known until now.

        Where older samples would fit too if the rate had changed, both readings stay open:
        the rate box spans them.
        """
        cdef double low = self.rate_low, high = self.rate_high
        cdef Py_ssize_t wide, kept
        self._widen(&low, &high, self._age(now))
        wide = self._suffix(-self._limit, self._limit)
        kept = self._suffix(low, high)
        if wide < kept and self._solve(wide, -self._limit, self._limit):
            low = min(low, self.rate_low)
            high = max(high, self.rate_high)
        self._box(low, high, now)
        self._anchor_deviation = INFINITY
        self._level = 0
        self._drop(kept)
        return kept

    cdef Py_ssize_t _suffix(self, double low, double high) noexcept nogil:
        cdef Py_ssize_t a = 0, b = self._count - 1, middle
        while a < b:
            middle = (a + b) // 2
            if self._solve(middle, low, high):
                b = middle
            else:
                a = middle + 1
        return a

    cdef void _widen(self, double* low, double* high, double age) noexcept nogil:
        cdef double spread = self._wander * sqrt(age) if age > 0 else 0.0
        low[0] = max(-self._limit, low[0] - spread)
        high[0] = min(self._limit, high[0] + spread)

    cdef void _box(self, double low, double high, int64_t now) noexcept nogil:
        self._box_low = max(low, -self._limit)
        self._box_high = min(high, self._limit)
        self._box_at = now
        self._box_fixed = False
        self.rate_low = self._box_low
        self.rate_high = self._box_high

    cdef void _drop(self, Py_ssize_t n) noexcept nogil:
        cdef size_t size = <size_t>(self._count - n) * sizeof(int64_t)
        self._count -= n
        memmove(self._upper_at, self._upper_at + n, size)
        memmove(self._upper_y, self._upper_y + n, size)
        memmove(self._lower_at, self._lower_at + n, size)
        memmove(self._lower_y, self._lower_y + n, size)
        memmove(self._rtt, self._rtt + n, size)
        memmove(self._since, self._since + n, size)

    cdef void _thin(self) noexcept nogil:
        """Make room: of two neighbours keep the tighter bound, forward and reverse for themselves.
        They are those that cover the least time for their age."""
        cdef Py_ssize_t i, best = 0
        cdef int64_t newest = self._since[self._count - 1]
        cdef double cover, least = INFINITY
        for i in range(self._count - RECENT):
            cover = <double>(self._since[i + 2] - self._since[i]) / (
                <double>(newest - self._since[i + 2]) + NEAR_NS
            )
            if cover < least:
                least = cover
                best = i
        i = best
        if self._upper_y[i + 1] - self._upper_y[i] >= self.rate * (
            <double>(self._upper_at[i + 1] - self._upper_at[i])
        ):
            self._upper_at[i + 1] = self._upper_at[i]
            self._upper_y[i + 1] = self._upper_y[i]
        if self._lower_y[i + 1] - self._lower_y[i] <= self.rate * (
            <double>(self._lower_at[i + 1] - self._lower_at[i])
        ):
            self._lower_at[i + 1] = self._lower_at[i]
            self._lower_y[i + 1] = self._lower_y[i]
        self._rtt[i + 1] = min(self._rtt[i], self._rtt[i + 1])
        self._count -= 1
        _remove(self._upper_at, i, self._count)
        _remove(self._upper_y, i, self._count)
        _remove(self._lower_at, i, self._count)
        _remove(self._lower_y, i, self._count)
        _remove(self._rtt, i, self._count)
        _remove(self._since, i + 1, self._count)


cdef double _mean_age(const int64_t* at, Py_ssize_t count, int64_t now) noexcept nogil:
    cdef double total = 0.0
    cdef Py_ssize_t i
    for i in range(count):
        total += <double>(now - at[i])
    return total / <double>count


cdef inline void _remove(int64_t* values, Py_ssize_t i, Py_ssize_t left) noexcept nogil:
    memmove(values + i, values + i + 1, <size_t>(left - i) * sizeof(int64_t))


cdef void _insert(int64_t* xs, int64_t* ys, Py_ssize_t n, int64_t x, int64_t y) noexcept nogil:
    """Keep ``xs`` ascending; what arrives is nearly always the last."""
    cdef Py_ssize_t i = n
    while i > 0 and xs[i - 1] > x:
        xs[i] = xs[i - 1]
        if ys != NULL:
            ys[i] = ys[i - 1]
        i -= 1
    xs[i] = x
    if ys != NULL:
        ys[i] = y
