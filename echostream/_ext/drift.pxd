# cython: language_level=3
"""The drift controller as plain C, header-only; told and tested in ``echostream/media/drift.py``.

All in seconds, and in ratios instead of ppm.
"""

from libc.math cimport M_PI, fabs, sqrt

cdef struct Drift:
    double rate, largest, slew, forward, learned, level, missed, bandwidth, held, ratio
    bint known


cdef inline void drift_start(Drift* d, double rate, double largest, double slew) noexcept nogil:
    d.rate = rate
    d.largest = largest
    d.slew = slew
    d.forward = d.learned = d.level = d.missed = d.held = 0.0
    d.bandwidth = 0.128
    d.ratio = 1.0
    d.known = False


cdef inline void drift_forward(Drift* d, double forward) noexcept nogil:
    """What is known of the drift; what was learned so far is not added a second time."""
    if not d.known:
        d.ratio = 1.0 + min(max(forward, -d.largest), d.largest)
    else:
        d.learned += d.forward - forward
    d.forward = forward


cdef inline double drift_observe(Drift* d, double error, double span) noexcept nogil:
    cdef double predicted, missed, w
    if not d.known:
        d.known = True
        d.level = error
        return error
    predicted = d.level + (d.forward + d.learned + 1.0 - d.ratio) * span
    missed = error - predicted
    d.missed += min(span / 0.3, 1.0) * (missed - d.missed)
    if fabs(d.missed) > 0.0015:
        predicted += d.missed
        missed = d.missed = 0.0
        d.bandwidth = max(d.bandwidth, 0.064)
        d.held = 0.0
    w = 2.0 * M_PI * d.bandwidth
    d.level = predicted + 2.0 * w * span * missed
    d.learned += w * w * span * missed
    d.held += span
    if d.held >= 4.0:
        d.bandwidth = max(0.016, d.bandwidth / 2.0)
        d.held = 0.0
    return d.level


cdef inline double drift_way_back(const Drift* d, double level) noexcept nogil:
    cdef double distance = fabs(level), knee = d.slew / 2.0 / 0.25, speed
    if distance < knee:
        return 0.5 * level
    speed = sqrt(d.slew * (distance - knee / 2.0))
    return speed if level > 0.0 else -speed


cdef inline double drift_update(Drift* d, double excess, double played, double moved) noexcept nogil:
    """The ratio for the audio to come; frames, as ``DriftController.update``."""
    cdef double error = excess / d.rate, span = played / d.rate, level, wanted, step, ratio
    if played <= 0.0 or not fabs(excess) < 1e12:
        return d.ratio
    if d.known:
        d.level += moved / d.rate
    level = drift_observe(d, error, span)
    wanted = d.forward + d.learned + drift_way_back(d, level)
    step = d.slew * span
    ratio = d.ratio + min(max(1.0 + wanted - d.ratio, -step), step)
    d.ratio = min(max(ratio, 1.0 - d.largest), 1.0 + d.largest)
    return d.ratio
