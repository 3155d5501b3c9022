# cython: language_level=3
"""Delay estimation and playout control as plain C, shared by every module that needs them.

Header-only: a struct and inline functions, no object and nothing to link. The algorithm is told
in ``ext/delay_estimator.pyx``; its twin is ``echostream/media/delay.py``. All times are ns.
"""

from libc.math cimport NAN, exp, fabs, floor, isnan, log, rint
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memmove, memset

cdef enum:
    BUCKETS = 256
    BLOCKS = 60
    SLOPE_BLOCKS = 8
    RECENT = 8
    LOGGED = 1024
    MEMORY = 10000
    WARM_UP = 5
    ENOUGH = 100

cdef struct Delay:
    double late, start, minimum, maximum, start_share, settle
    double known  # slope that is known from elsewhere, else NaN
    int64_t packets, origin_send, origin_delay
    double last_arrival
    bint released, tilted
    # base line
    double base_x, base_y, slope, block_end, typical
    int blocks
    double block_x[BLOCKS]
    double block_y[BLOCKS]
    # level changes
    int recent, recent_at
    double recent_x[RECENT]
    double recent_residual[RECENT]
    double recent_arrival[RECENT]
    double shift_since, shift_low, fast
    int shift_count
    # distribution of what is above the base line
    double weights[BUCKETS]
    double settling, settling_base
    double increment, total, above, quantile, surplus
    int cursor
    int logged, logged_at
    double upper[BUCKETS]
    double log_x[LOGGED]
    double log_y[LOGGED]
    double log_weight[LOGGED]
    uint16_t log_bucket[LOGGED]

cdef struct Control:
    double raise_rate, lower_rate, unspent, waited
    bint falling


cdef inline double delay_ms() noexcept nogil:
    return 1_000_000.0


cdef inline double delay_log_ratio() noexcept nogil:
    return 0.05146129061556914  # log(10 s / 20 us) / (BUCKETS - 1)


cdef inline int delay_bucket(double residual) noexcept nogil:
    cdef int bucket
    if residual <= 20_000.0:
        return 0
    bucket = 1 + <int>(log(residual / 20_000.0) / delay_log_ratio())
    return bucket if bucket < BUCKETS else BUCKETS - 1


cdef inline void delay_restart(Delay* d) noexcept nogil:
    """Forget everything but the configuration."""
    cdef double late = d.late, start = d.start, minimum = d.minimum, maximum = d.maximum
    cdef double known = d.known, settle = d.settle, start_share = d.start_share
    memset(d, 0, sizeof(Delay))
    d.late = late
    d.start = start
    d.minimum = minimum
    d.maximum = maximum
    d.known = known
    d.settle = settle
    d.start_share = start_share
    d.settling = -1.0
    d.increment = 1.0
    d.shift_since = -1.0
    d.quantile = start
    cdef int bucket
    for bucket in range(BUCKETS):
        d.upper[bucket] = 20_000.0 * exp(delay_log_ratio() * bucket)


cdef inline void delay_know(Delay* d, double slope) noexcept nogil:
    """The slope of the base line as somebody measured it, until the packets plainly say another
    (a sound card has a clock of its own); NaN: nobody has."""
    d.known = min(max(slope, -0.003), 0.003) if not isnan(slope) else NAN


cdef inline double delay_base(const Delay* d, double x) noexcept nogil:
    return d.base_y + d.slope * (x - d.base_x)


cdef inline int64_t delay_wanted(const Delay* d) noexcept nogil:
    """Playout delay above the base line."""
    cdef double wanted = min(max(d.quantile, d.minimum), d.maximum)
    if d.fast > 0.0:  # a longer path is no jitter: the bounds count from its base line
        wanted = max(
            wanted, d.shift_low + min(max(d.fast - d.shift_low, d.minimum), d.maximum)
        )
    return <int64_t>rint(wanted)


cdef inline int64_t delay_target(const Delay* d, int64_t send_ns) noexcept nogil:
    """What to add to a send time to have the moment of its playout."""
    cdef double x = <double>(send_ns - d.origin_send)
    return d.origin_delay + <int64_t>rint(delay_base(d, x)) + delay_wanted(d)


# -- distribution

cdef inline void delay_recount(Delay* d) noexcept nogil:
    cdef int bucket
    d.total = 0.0
    d.above = 0.0
    for bucket in range(BUCKETS):
        d.total += d.weights[bucket]
        if bucket > d.cursor:
            d.above += d.weights[bucket]


cdef inline void delay_record(Delay* d, double x, double y, double residual) noexcept nogil:
    cdef int bucket = delay_bucket(residual)
    cdef double scale
    cdef int row
    d.weights[bucket] += d.increment
    d.total += d.increment
    if bucket > d.cursor:
        d.above += d.increment
    row = d.logged_at
    d.log_x[row] = x
    d.log_y[row] = y
    d.log_bucket[row] = <uint16_t>bucket
    d.log_weight[row] = d.increment
    d.logged_at = (row + 1) & (LOGGED - 1)
    if d.logged < LOGGED:
        d.logged += 1
    if d.packets > MEMORY:
        d.increment *= 1.0 + 1.0 / MEMORY
    if d.increment > 1e9:
        scale = 1.0 / d.increment
        for row in range(BUCKETS):
            d.weights[row] *= scale
        for row in range(LOGGED):
            d.log_weight[row] *= scale
        d.increment = 1.0
        delay_recount(d)


cdef inline double delay_quantile(Delay* d, double share) noexcept nogil:
    """The residual that this share of the weight lies above; a cursor keeps its bucket."""
    cdef double wanted = share * d.total, high, low
    while d.cursor < BUCKETS - 1 and d.above > wanted:
        d.cursor += 1
        d.above -= d.weights[d.cursor]
    while d.cursor > 0 and d.above + d.weights[d.cursor] <= wanted:
        d.above += d.weights[d.cursor]
        d.cursor -= 1
    if d.weights[d.cursor] <= 0.0:
        return d.upper[d.cursor]
    high = d.upper[d.cursor]
    low = d.upper[d.cursor - 1] if d.cursor else 0.0
    return high - (high - low) * (wanted - d.above) / d.weights[d.cursor]


# -- base line

cdef inline void delay_tilt(Delay* d, double slope) noexcept nogil:
    cdef double span = d.block_x[d.blocks - 1] - d.block_x[0]
    d.tilted = fabs(slope - d.slope) * span > 0.1 * d.quantile
    d.slope = slope


cdef inline void delay_fit(Delay* d) noexcept nogil:
    """The skew: least squares through the block minima, where it is plain to see."""
    cdef double middle = 0.0, mean = 0.0, spread = 0.0, slope = 0.0, over = 0.0, x, y, span
    cdef double known = 0.0 if isnan(d.known) else d.known
    cdef int row
    for row in range(d.blocks):
        middle += d.block_x[row] / d.blocks
        mean += d.block_y[row] / d.blocks
    for row in range(d.blocks):
        x = d.block_x[row] - middle
        spread += x * x
        slope += x * (d.block_y[row] - mean)
    slope /= spread
    for row in range(d.blocks):
        y = d.block_y[row] - mean - slope * (d.block_x[row] - middle)
        over = max(over, fabs(y))
    span = d.block_x[d.blocks - 1] - d.block_x[0]
    delay_tilt(
        d, slope if fabs(slope) <= 0.003 and fabs(slope - known) * span > 2.0 * over else known
    )


cdef inline void delay_retell(Delay* d) noexcept nogil:
    """The line lies differently: count the logged packets from it, and nothing older."""
    cdef int row, bucket
    memset(&d.weights[0], 0, sizeof(d.weights))
    for row in range(d.logged):
        bucket = delay_bucket(max(d.log_y[row] - delay_base(d, d.log_x[row]), 0.0))
        d.log_bucket[row] = <uint16_t>bucket
        d.weights[bucket] += d.log_weight[row]
    delay_recount(d)


cdef inline void delay_close_block(Delay* d, double x) noexcept nogil:
    """A second of send time is over: lay the line again below all minima of the last minute."""
    cdef int row
    cdef double y
    d.tilted = False
    if d.blocks >= SLOPE_BLOCKS:
        delay_fit(d)
    elif not isnan(d.known):
        delay_tilt(d, d.known)
    d.base_x = x
    d.base_y = d.block_y[0] + d.slope * (x - d.block_x[0])
    for row in range(1, d.blocks):
        y = d.block_y[row] + d.slope * (x - d.block_x[row])
        d.base_y = min(d.base_y, y)
    if d.tilted and d.logged >= ENOUGH:
        delay_retell(d)
    if d.shift_since < 0.0:
        d.typical = 0.0
        for row in range(d.blocks):
            y = d.block_y[row] - delay_base(d, d.block_x[row])
            d.typical = max(d.typical, y)
    if d.blocks == BLOCKS:
        memmove(&d.block_x[0], &d.block_x[1], (BLOCKS - 1) * sizeof(double))
        memmove(&d.block_y[0], &d.block_y[1], (BLOCKS - 1) * sizeof(double))
        d.blocks -= 1


cdef inline double delay_residual(Delay* d, double x, double y) noexcept nogil:
    """Height above the base line, which this packet may lower."""
    cdef double residual, allowed
    cdef int last
    if d.packets == 1:
        d.base_x = x
        d.base_y = y
    residual = y - delay_base(d, x)
    if residual < 0.0:
        allowed = max(5.0 * delay_ms(), 0.5 * d.quantile)
        if -residual > allowed and d.packets > 50:
            d.blocks = 0  # a shorter path: believed at once
            d.recent = 0
        d.base_y += residual
        d.shift_since = -1.0
        d.fast = 0.0
        residual = 0.0
    if d.blocks and x >= d.block_end:
        delay_close_block(d, x)
        residual = max(y - delay_base(d, x), 0.0)
    elif d.blocks:
        last = d.blocks - 1
        if y - d.block_y[last] < d.slope * (x - d.block_x[last]):
            d.block_x[last] = x
            d.block_y[last] = y
        return residual
    d.block_x[d.blocks] = x
    d.block_y[d.blocks] = y
    d.blocks += 1
    d.block_end = x + 1_000.0 * delay_ms()
    return residual


# -- level changes

cdef inline void delay_rebase(Delay* d, double rise) noexcept nogil:
    """The path became longer: what was recorded since then belongs to the new base line."""
    cdef int row, kept = 0, bucket
    cdef double residual
    for row in range(d.blocks):
        if d.block_x[row] >= d.shift_since:
            d.block_x[kept] = d.block_x[row]
            d.block_y[kept] = d.block_y[row]
            kept += 1
    d.blocks = kept
    d.base_y += rise
    for row in range(d.logged):
        if d.log_x[row] >= d.shift_since:
            bucket = d.log_bucket[row]
            residual = max(d.upper[bucket] - rise, 0.0)
            d.weights[bucket] -= d.log_weight[row]
            d.weights[delay_bucket(residual)] += d.log_weight[row]
    d.logged = 0
    d.logged_at = 0
    delay_recount(d)
    d.recent = 0
    d.shift_since = -1.0
    d.fast = 0.0


cdef inline void delay_watch(Delay* d, double x, double residual, double arrival) noexcept nogil:
    """Tell a longer path from jitter: every recent packet is high, and they came one by one."""
    cdef int row = d.recent_at, oldest
    cdef double low, high
    d.recent_x[row] = x
    d.recent_residual[row] = residual
    d.recent_arrival[row] = arrival
    d.recent_at = (row + 1) & (RECENT - 1)
    if d.recent < RECENT:
        d.recent += 1
    if d.recent < RECENT:
        return
    low = high = residual
    for row in range(RECENT):
        low = min(low, d.recent_residual[row])
        high = max(high, d.recent_residual[row])
    oldest = d.recent_at
    if low <= 2.0 * d.typical + delay_ms() or (
        d.shift_since < 0.0
        and arrival - d.recent_arrival[oldest] <= 0.5 * fabs(x - d.recent_x[oldest])
    ):
        d.shift_since = -1.0
        d.fast = 0.0
        return
    if d.shift_since < 0.0:
        d.shift_count = 0
    d.shift_count += 1
    if d.shift_count <= RECENT:  # the first ones may still be high packets of the old path
        d.shift_since = d.recent_x[oldest]
        d.shift_low = low
    d.shift_low = min(d.shift_low, low)
    d.fast = max(d.fast, high)
    if x - d.shift_since > 4_000.0 * delay_ms():
        delay_rebase(d, d.shift_low)


cdef inline double delay_floor(const Delay* d, double x) noexcept nogil:
    """Above the base line, what is left at the start of a share of the start delay, counted from
    the first packet: the first ones say nothing of rare ones, nor how fast the fastest are."""
    cdef double passed = x - d.settling, rise = delay_base(d, x) - d.settling_base
    if not isnan(d.known):
        rise -= d.known * passed
    return min(d.start_share * d.start * (1.0 - passed / d.settle) - rise, 2.0 * d.start)


cdef inline void delay_settle(Delay* d, double x) noexcept nogil:
    """Come down no faster than the playout may follow. ``settling``: since when; -2 finished."""
    cdef double floor
    if d.settling == -2.0:
        return
    floor = delay_floor(d, x)
    if floor <= d.quantile or x - d.settling > 2.0 * d.settle:
        d.settling = -2.0
    else:
        d.quantile = floor


cdef inline void delay_update(
    Delay* d, int64_t send_ns, int64_t arrival_ns, bint missed
) noexcept nogil:
    """One packet arrived; ``missed``: after the moment of its playout."""
    cdef double x, y, arrival, gap, residual, share, limit
    cdef bint frozen
    if d.packets == 0:
        d.origin_send = send_ns
        d.origin_delay = arrival_ns - send_ns
    d.packets += 1
    x = <double>(send_ns - d.origin_send)
    y = <double>(arrival_ns - send_ns - d.origin_delay)
    arrival = x + y
    gap = arrival - d.last_arrival
    d.last_arrival = max(d.last_arrival, arrival)
    residual = delay_residual(d, x, y)
    delay_watch(d, x, residual, arrival)
    frozen = False
    if gap >= 1_000.0 * delay_ms():
        d.released = True  # a freeze is one event, however many packets it held back
    elif d.released:
        frozen = gap < 250.0 * delay_ms() and residual > d.quantile
        d.released = frozen
    if not frozen:
        delay_record(d, x, y, residual)
    limit = d.late * 6_000.0
    if not frozen or d.packets > LOGGED:  # a first freeze says little of the rest
        d.surplus += (1.0 if missed else 0.0) - d.late
        d.surplus = min(max(d.surplus, -limit), limit)
    if d.settling == -1.0:
        d.settling = x
        d.settling_base = delay_base(d, x)
    if d.packets < WARM_UP:
        d.quantile = max(d.start, delay_floor(d, x))
        return
    share = min(max(1.0 - d.surplus / limit, 0.3), 1.5)
    d.quantile = delay_quantile(d, d.late * share)
    delay_settle(d, x)


cdef inline void delay_relearn(Delay* d) noexcept nogil:
    """The base line stays, what lies above it is unknown again."""
    memset(&d.weights[0], 0, sizeof(d.weights))
    d.total = d.above = 0.0
    d.increment = 1.0
    d.cursor = 0
    d.logged = d.logged_at = 0
    d.blocks = 0
    d.recent = 0
    d.shift_since = -1.0
    d.fast = d.typical = d.surplus = 0.0
    d.quantile = d.start
    d.settling = -1.0
    d.packets = 1


# -- control

cdef inline void control_watch(
    Control* c, double error_ns, double span_ns, double wanted_ns
) noexcept nogil:
    """Decide whether to fall, once for each ``span_ns`` of time.

    Falling begins when the playout point was too late by more than 2 % of the delay for half a
    second: a packet that came early says little. It ends at the target.
    """
    if error_ns > -20_000.0:
        c.falling = False
    if -error_ns < max(30_000.0, 0.02 * wanted_ns):
        c.waited = 0.0
        return
    c.waited += span_ns
    if c.waited > 500.0 * delay_ms():
        c.falling = True


cdef inline double control_step(
    Control* c, double error_ns, double span_ns, double grain_ns
) noexcept nogil:
    """How much later (positive) or earlier to play, a whole number of grains.

    ``error_ns`` is how far the playout point is before its target, ``span_ns`` what is about to
    be played, ``grain_ns`` one sample. Rising starts at once, falling when ``control_watch`` says
    so, and twice as fast while it is more than 60 ms too late. What the rates allow and less
    than a grain needs is kept for the next step.
    """
    cdef double rate = c.raise_rate if error_ns > 0.0 else c.lower_rate
    cdef double distance = fabs(error_ns), move
    if error_ns < -60.0 * delay_ms():
        rate *= 2.0
    c.unspent = min(c.unspent + span_ns, max(span_ns, grain_ns / rate))
    if distance < 20_000.0 or (error_ns < 0.0 and not c.falling):
        return 0.0
    move = floor(min(distance, rate * c.unspent) / grain_ns) * grain_ns
    c.unspent -= move / rate
    return move if error_ns > 0.0 else -move
