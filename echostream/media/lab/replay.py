"""Play a trace through the jitter buffer that streams use, sample by sample."""

from __future__ import annotations

import numpy as np

from echostream.media.jitter import JitterBuffer
from echostream.media.lab.result import Outcome, Result
from echostream.media.lab.traces import LOST, Trace

__all__ = ["replay"]

SECOND = 1_000_000_000
SAMPLE_RATE = 48_000


def replay(
    trace: Trace,
    *,
    late: float = 0.01,
    profile: str = "voice",
    quantum_ms: float = 0.05,
    start_delay_ms: float = 40.0,
    max_delay_ms: float = 2000.0,
) -> Result:
    """Push every packet when it came, pull ``quantum_ms`` at a time, and watch the cursor.

    The audio is silence at 48 kHz: what is measured is which packet was played when. A packet is
    late when its first sample was due before it came.
    """
    max_packet_ms = max(120.0, trace.frame_ns / 1e6)
    buffer = JitterBuffer(
        SAMPLE_RATE,
        sample_type="int16",
        target_late=late,
        profile=profile,
        start_delay_ms=start_delay_ms,
        max_delay_ms=max_delay_ms,
        max_packet_ms=min(max_packet_ms, 1000.0),
        capacity=1024,
    )
    frame = trace.frame_ns * SAMPLE_RATE // SECOND
    payload = bytes(2 * frame)
    stamps = (trace.send_ns - trace.send_ns.min()) * SAMPLE_RATE // SECOND
    order = np.flatnonzero(trace.arrival_ns != LOST)
    order = order[np.argsort(trace.arrival_ns[order], kind="stable")]
    pauses = np.diff(trace.send_ns, append=trace.send_ns[-1]) > 2 * trace.frame_ns

    sequence = (trace.sequence_number % 2**32).tolist()
    timestamps = stamps.tolist()
    silence = pauses.tolist()
    rows = order.tolist()
    arrivals = trace.arrival_ns[order].tolist()
    push, ring = buffer.push, buffer.ring
    frames = max(1, round(quantum_ms * SAMPLE_RATE / 1000))
    out = np.zeros((frames, 1), dtype=np.float32)
    first = arrivals[0]
    # Play on until the last packet must have been heard, had it come with the longest delay.
    until = arrivals[-1] + int(max_delay_ms * 1e6) + trace.frame_ns
    pulls = (until - first) * SAMPLE_RATE // SECOND // frames + 1
    cursors = np.empty(pulls + 1, dtype=np.int64)
    pushed_at = np.zeros(len(trace), dtype=np.int64)
    refused = np.zeros(len(trace), dtype=np.bool_)
    cursors[0] = -(2**62)
    row = number = 0
    while number < pulls:
        now = first + number * frames * SECOND // SAMPLE_RATE
        while row < len(rows) and arrivals[row] <= now:
            packet = rows[row]
            pushed_at[packet] = number
            refused[packet] = (
                push(
                    sequence[packet],
                    timestamps[packet],
                    payload,
                    arrivals[row],
                    silence=silence[packet],
                )
                > 1
            )
            row += 1
        following = arrivals[row] if row < len(rows) else until
        steps = max(1, -((now - following) * SAMPLE_RATE // SECOND // frames))
        steps = min(steps, pulls - number)
        ring.pull_many_into(out, now, cursors[number + 1 : number + 1 + steps])
        number += steps

    # Packets are heard in the pull whose cursor first passes their first sample.
    heard_in = np.searchsorted(cursors, stamps, side="right") - 1
    after = cursors[np.minimum(heard_in + 1, pulls)]
    behind = after - stamps
    in_time = (stamps >= cursors[pushed_at]) & ~refused & (heard_in < pulls)
    outcome = np.where(in_time, Outcome.PLAYED, Outcome.LATE).astype(np.int8)
    outcome[in_time & (behind > 2 * frames)] = Outcome.LATE  # passed over, not played
    outcome[trace.arrival_ns == LOST] = Outcome.LOST
    outcome[trace.duplicate] = Outcome.DUPLICATE
    into = np.clip(1.0 - behind / frames, 0.0, 1.0)
    playout = first + (heard_in + into) * (frames * SECOND / SAMPLE_RATE)
    playout[outcome != Outcome.PLAYED] = np.nan
    statistics = buffer.statistics()
    per_ms = SAMPLE_RATE / 1000
    # The silence after the last packet is no concealment.
    tail = max(0, int(cursors[-1]) - int(stamps.max()) - frame)
    return Result(
        trace=trace,
        policy="echostream",
        late_wanted=late,
        playout_ns=playout,
        outcome=outcome,
        concealed_ms=max(statistics.concealed_frames - tail, 0) / per_ms,
        concealment_events=statistics.concealment_events - (tail > 0),
        stretch_ratio=(statistics.raised_frames + statistics.lowered_frames)
        / max(statistics.played_frames, 1),
    )
