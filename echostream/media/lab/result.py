"""What became of every packet of a trace, and the figures that follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from echostream.media.lab.bounds import fixed_bound
from echostream.media.lab.traces import LOST, Trace

__all__ = ["Outcome", "Result", "Summary"]

MS = 1e6


class Outcome(IntEnum):
    """What became of a row of a trace. Only a played packet has a moment of playout."""

    PLAYED = 0
    LATE = 1
    LOST = 2
    DUPLICATE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run. Delays are above the trace's smallest network delay."""

    packets: int
    lost: int
    duplicate: int
    late: int
    late_rate: float
    mean_delay_ms: float
    p95_delay_ms: float
    p99_delay_ms: float
    concealed_ms: float
    concealment_events: int
    stretch_ratio: float
    b0_ms: float
    ratio_to_b0: float

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``playout_ns``: when the first sample of each row was played, NaN if never."""

    trace: Trace
    policy: str
    late_wanted: float
    playout_ns: NDArray[np.float64]
    outcome: NDArray[np.int8]
    concealed_ms: float
    concealment_events: int
    stretch_ratio: float = 0.0

    def delay_ns(self) -> NDArray[np.float64]:
        """Playout delay of every row above the smallest network delay; NaN where not played."""
        trace = self.trace
        sent = trace.send_ns * (1.0 + trace.skew_ppm * 1e-6)
        network = (trace.arrival_ns - sent)[trace.arrival_ns != LOST]
        delay: NDArray[np.float64] = self.playout_ns - sent - network.min()
        return delay

    def summary(self) -> Summary:
        counts = np.bincount(self.outcome, minlength=4).tolist()
        delay = self.delay_ns()
        delay = delay[~np.isnan(delay)] / MS
        if not len(delay):
            delay = np.array([np.nan])
        arrived = counts[Outcome.PLAYED] + counts[Outcome.LATE]
        bound = fixed_bound(self.trace, self.late_wanted) / MS
        mean = float(delay.mean())
        return Summary(
            packets=len(self.trace) - counts[Outcome.DUPLICATE],
            lost=counts[Outcome.LOST],
            duplicate=counts[Outcome.DUPLICATE],
            late=counts[Outcome.LATE],
            late_rate=counts[Outcome.LATE] / arrived if arrived else 0.0,
            mean_delay_ms=mean,
            p95_delay_ms=float(np.percentile(delay, 95)),
            p99_delay_ms=float(np.percentile(delay, 99)),
            concealed_ms=self.concealed_ms,
            concealment_events=self.concealment_events,
            stretch_ratio=self.stretch_ratio,
            b0_ms=bound,
            ratio_to_b0=mean / bound if bound > 0 else float("nan"),
        )
