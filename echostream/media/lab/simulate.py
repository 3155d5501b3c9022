"""Packet-level simulation: any delay policy on a trace, in a tenth of a second.

The clock plays on whatever happens. A packet that is not there when its moment comes is late and
is concealed until it comes, at most for its frame; meanwhile the playout point may move freely,
else no faster than the policy's rates. This is what the jitter buffer does sample by sample
(:mod:`.replay`), and it uses the same estimator and control.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from echostream.media.lab.result import Outcome, Result
from echostream.media.lab.traces import LOST, Trace

__all__ = ["Policy", "simulate"]


class Policy(Protocol):
    """What a policy is asked. ``holds``: an empty buffer stops its playout, not the clock.
    ``skips``: it goes back by leaving whole packets out, which nobody hears: they count as late.

    ``move`` answers by how much (ns) to play later or earlier after ``span_ns`` of playing on;
    ``free`` tells that nothing is being played. ``offset_ns`` is what is added to a send time to
    have the moment of playout.
    """

    name: str
    holds: bool
    skips: bool

    def start(self, send_ns: int, arrival_ns: int, frame_ns: int) -> int:
        """The first offset."""

    def arrived(self, send_ns: int, arrival_ns: int, offset_ns: float) -> None: ...

    def move(self, now_ns: float, offset_ns: float, span_ns: float, free: bool) -> float: ...

    def glitch(self) -> None:
        """A frame had to be concealed."""


def simulate(trace: Trace, policy: Policy, *, late: float = 0.01) -> Result:
    """Play a trace under a policy. ``late`` is only kept, for the bound in the summary."""
    rows = np.flatnonzero(~trace.duplicate)
    send: Sequence[int] = trace.send_ns[rows].tolist()
    arrival: Sequence[int] = trace.arrival_ns[rows].tolist()
    order = [row for row in np.argsort(arrival, kind="stable").tolist() if arrival[row] != LOST]
    playout = np.full(len(trace), np.nan)
    outcome = np.full(len(trace), Outcome.DUPLICATE, dtype=np.int8)
    frame = trace.frame_ns
    newest = order[0]
    offset = float(policy.start(send[newest], arrival[newest], frame))
    policy.arrived(send[newest], arrival[newest], offset)
    position, concealed, events, concealing, moved = 1, 0.0, 0, False, 0.0
    skipped = 0.0
    now = float(arrival[newest])
    for row, sent in enumerate(send):
        span = float(sent - send[row - 1]) if row else float(frame)
        now = max(now, sent + offset - frame)
        while position < len(order) and arrival[order[position]] <= now:
            packet = order[position]
            policy.arrived(send[packet], arrival[packet], offset)
            newest = max(newest, packet)
            position += 1
        if row:
            pause = span > 1.5 * frame
            step = policy.move(now, offset, span, concealing or pause)
            offset += max(step, -span)
            if policy.skips and step < 0.0 and not (concealing or pause):
                skipped += min(-step, span)
            moved += abs(step) if not (concealing or pause) else 0.0
        due = sent + offset
        came = arrival[row]
        index = rows[row]
        if skipped >= 0.999 * frame and came != LOST:
            skipped -= frame
            outcome[index] = Outcome.LATE
        elif came != LOST and came <= due:
            outcome[index] = Outcome.PLAYED
            playout[index] = due
            concealing = False
        else:
            outcome[index] = Outcome.LOST if came == LOST else Outcome.LATE
            following = arrival[order[position]] if position < len(order) else LOST
            ahead = newest > row or following == LOST
            if policy.holds and not ahead and following > due:
                concealed += following - due
                offset += following - due
            else:  # what is left of a late packet is heard
                concealed += frame if came == LOST else min(frame, came - due)
            policy.glitch()
            events += not concealing
            concealing = True
        now = max(now, due)
    return Result(
        trace=trace,
        policy=policy.name,
        late_wanted=late,
        playout_ns=playout,
        outcome=outcome,
        concealed_ms=concealed / 1e6,
        concealment_events=events,
        stretch_ratio=moved / max(float(frame) * len(rows), 1.0),
    )


def simulate_prefetch(
    trace: Trace, *, prefetch: int = 4, capacity: int = 16, late: float = 0.01
) -> Result:
    """aiortc's buffer: no clock, a frame comes out when ``prefetch`` more stand behind it."""
    rows = np.flatnonzero(~trace.duplicate)
    playout = np.full(len(trace), np.nan)
    outcome = np.full(len(trace), Outcome.DUPLICATE, dtype=np.int8)
    outcome[rows] = np.where(trace.arrival_ns[rows] == LOST, Outcome.LOST, Outcome.LATE)
    arrivals = [(int(trace.arrival_ns[row]), n) for n, row in enumerate(rows)]
    heap = [entry for entry in arrivals if entry[0] != LOST]
    heapq.heapify(heap)
    present: set[int] = set()
    origin, free_at, concealed, events = heap[0][1], 0.0, 0.0, 0
    while heap:
        now, number = heapq.heappop(heap)
        if number < origin:
            continue
        present.add(number)
        excess = number - origin - capacity + 1
        if excess > 0:
            origin += excess
            while origin not in present:
                origin += 1
        if all(origin + k in present for k in range(prefetch + 1)):
            if free_at and now > free_at:
                concealed += now - free_at
                events += 1
            playout[rows[origin]] = max(float(now), free_at)
            outcome[rows[origin]] = Outcome.PLAYED
            free_at = playout[rows[origin]] + trace.frame_ns
            present.discard(origin)
            origin += 1
    return Result(
        trace=trace,
        policy="aiortc",
        late_wanted=late,
        playout_ns=playout,
        outcome=outcome,
        concealed_ms=concealed / 1e6,
        concealment_events=events,
    )
