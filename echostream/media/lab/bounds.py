"""Exact lower bounds of the mean playout delay for a share of late packets.

Delays are nanoseconds above the trace's smallest network delay, clock skew removed. Only packets
that arrived count. All of these know the whole trace in advance:

* B0: one fixed delay. No causal policy can beat it on average on a trace that is stationary and
  unpredictable; the ratio to it is the figure of merit there.
* B0seg: one fixed delay for each stretch between known changes of the path.
* B2: any trajectory whose slope is limited. It rises before a stall begins, which nobody can;
  it is reported and never a criterion.
"""

from __future__ import annotations

import math

import numpy as np

from echostream.media.lab.traces import Floats, Trace

__all__ = ["fixed_bound", "segment_bound", "segments", "trajectory_bound"]


def _quantile(delays: Floats, late: float) -> float:
    """The smallest delay with which at most this share of the packets is late."""
    if not len(delays):
        return 0.0
    ordered = np.sort(delays)
    return float(ordered[max(math.ceil((1.0 - late) * len(ordered) - 1e-9) - 1, 0)])


def fixed_bound(trace: Trace, late: float) -> float:
    """B0: the order statistic at ``1 - late`` of the network delays."""
    return _quantile(trace.network_delay_ns()[trace.arrived], late)


def segments(trace: Trace) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Rows of the arrived packets, split where the path changed."""
    rows = np.flatnonzero(trace.arrived)
    return np.split(rows, np.searchsorted(trace.send_ns[rows], trace.changes_ns))


def segment_bound(trace: Trace, late: float) -> list[float]:
    """B0seg: a delay for each of :func:`segments` that minimises the mean over all packets.

    The share of late packets is shared out by one price of a late packet (a Lagrange
    multiplier), found by bisection: every segment then takes the delay that costs it least.
    """
    parts = [np.sort(trace.network_delay_ns()[rows]) for rows in segments(trace)]
    allowed = late * sum(map(len, parts))

    def at_price(price: float) -> list[int]:
        """Late packets that each segment chooses when one costs this much delay."""
        chosen = []
        for part in parts:
            count = len(part)
            cost = part * count + price * np.arange(count - 1, -1, -1)
            chosen.append(count - 1 - int(np.argmin(cost)))
        return chosen

    low, high = 0.0, 1e6 * max(float(part[-1]) for part in parts if len(part)) + 1.0
    for _ in range(100):
        price = (low + high) / 2
        if sum(at_price(price)) > allowed:
            low = price
        else:
            high = price
    return [float(part[len(part) - 1 - n]) for part, n in zip(parts, at_price(high), strict=True)]


def trajectory_bound(
    trace: Trace, late: float, *, slope: float = 0.1, grid_ns: float = 1e6, limit_ns: float = 5e8
) -> tuple[float, float]:
    """B2: (lower, upper) bound of the mean delay of any path with ``|dD/dt| <= slope``.

    Dynamic programming over a grid of delays; for a price of a late packet the best path is
    exact, and the two values are the convex hull's and the next vertex's mean delay.
    """
    rows = np.flatnonzero(trace.arrived)
    delays = trace.network_delay_ns()[rows]
    steps = np.diff(trace.send_ns[rows], prepend=trace.send_ns[rows[0]])
    top = min(limit_ns, float(delays.max()))
    levels = np.arange(0.0, top + grid_ns, grid_ns)
    late_below = np.searchsorted(levels, delays)  # levels below this one are late
    # The grid is coarser than one packet's step: reach is carried over until it is a whole cell.
    carried = np.floor(np.cumsum(np.abs(steps)) * slope / grid_ns).astype(int)
    reach = np.diff(carried, prepend=0)

    def best(price: float) -> tuple[float, float]:
        """(share of late packets, mean delay) of the best path at this price."""
        value = np.zeros(len(levels))
        came_from = np.empty((len(rows), len(levels)), dtype=np.int16)
        cells = np.arange(len(levels), dtype=np.int16)
        for row in range(len(rows)):
            origin = cells
            for _ in range(min(int(reach[row]), len(levels))):
                up = np.concatenate([value[1:], [np.inf]])
                down = np.concatenate([[np.inf], value[:-1]])
                choice = np.argmin([value, up, down], axis=0)
                origin = np.choose(
                    choice, [origin, np.append(origin[1:], 0), np.insert(origin[:-1], 0, 0)]
                )
                value = np.minimum(value, np.minimum(up, down))
            came_from[row] = origin
            value = value + levels
            value[: late_below[row]] += price
        cell = int(np.argmin(value))
        total, missed = 0.0, 0
        for row in range(len(rows) - 1, -1, -1):
            total += levels[cell]
            missed += cell < late_below[row]
            cell = int(came_from[row][cell])
        return missed / len(rows), total / len(rows)

    low, high = 0.0, float(top) * 1e4
    cheap, dear = best(low), best(high)
    for _ in range(18):
        price = math.sqrt(max(low, 1e3) * high)
        point = best(price)
        if point[0] > late:
            low, cheap = price, point
        else:
            high, dear = price, point
    if cheap[0] <= late or cheap[0] == dear[0]:
        return dear[1], dear[1]
    share = (cheap[0] - late) / (cheap[0] - dear[0])
    return cheap[1] + share * (dear[1] - cheap[1]), dear[1]
