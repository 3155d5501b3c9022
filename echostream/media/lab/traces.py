"""Synthetic one-way delay traces T1 to T11: seeded, so that every figure can be had again.

A trace is what a jitter buffer sees of a network: when each packet was sent, on the sender's
clock, and when it came, on the receiver's. The difference of the two clocks is part of the trace
(``skew_ppm``); nothing that works on a trace may assume that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["LOST", "SYNTHETIC", "Trace", "synthetic"]

Times = NDArray[np.int64]
Floats = NDArray[np.float64]

LOST = -1
"""Arrival time of a packet that never came."""

MS = 1_000_000
FRAME_MS = 20.0
PACKETS = 30_000


@dataclass(frozen=True, slots=True)
class Trace:
    """One recorded or generated flow of packets, in the order in which they were sent.

    ``sequence_number``, ``send_ns`` and ``arrival_ns`` are int64 arrays of one length;
    ``arrival_ns`` is :data:`LOST` where nothing arrived. A row that repeats an earlier
    sequence number and send time is a second copy of that packet. ``skew_ppm`` is by how much
    the sender's clock is slower than the receiver's: sender time times ``1 + skew_ppm / 1e6``
    runs with the receiver's clock. ``changes_ns`` are the send times at which the path changed.
    """

    name: str
    sequence_number: Times
    send_ns: Times
    arrival_ns: Times
    frame_ns: int = int(FRAME_MS * MS)
    skew_ppm: float = 0.0
    changes_ns: tuple[int, ...] = ()
    description: str = ""
    duplicate: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        seen: set[tuple[int, int]] = set()
        copies = np.zeros(len(self.send_ns), dtype=np.bool_)
        keys = zip(self.sequence_number.tolist(), self.send_ns.tolist(), strict=True)
        for row, key in enumerate(keys):
            copies[row] = key in seen
            seen.add(key)
        object.__setattr__(self, "duplicate", copies)

    def __len__(self) -> int:
        return len(self.send_ns)

    @property
    def arrived(self) -> NDArray[np.bool_]:
        """Which rows are packets that arrived, second copies left out."""
        arrived: NDArray[np.bool_] = (self.arrival_ns != LOST) & ~self.duplicate
        return arrived

    def network_delay_ns(self) -> Floats:
        """Delay of every row above the trace's smallest, clock skew removed; NaN where lost."""
        delay: Floats = self.arrival_ns - self.send_ns * (1.0 + self.skew_ppm * 1e-6)
        delay[self.arrival_ns == LOST] = np.nan
        delay -= np.nanmin(delay)
        return delay


def synthetic(name: str, *, seed: int = 1, packets: int = PACKETS) -> Trace:
    """The trace of this name (a key of :data:`SYNTHETIC`), ``packets`` frames of 20 ms."""
    number = list(SYNTHETIC).index(name)
    return SYNTHETIC[name](name, np.random.default_rng([seed, number]), packets)


def _send_ms(packets: int) -> Floats:
    return np.arange(packets, dtype=np.float64) * FRAME_MS


def _fifo(send: Floats, delay: Floats) -> Floats:
    """Arrival times of a path that never reorders."""
    return np.maximum.accumulate(send + delay)


def _trace(
    name: str,
    send: Floats,
    arrival: Floats,
    description: str,
    *,
    sequence: Times | None = None,
    skew_ppm: float = 0.0,
    changes_ms: tuple[float, ...] = (),
) -> Trace:
    lost = np.isnan(arrival)
    arrival_ns = np.where(lost, 0.0, arrival) * (1.0 + skew_ppm * 1e-6) * MS
    return Trace(
        name=name,
        sequence_number=np.arange(len(send), dtype=np.int64) if sequence is None else sequence,
        send_ns=np.rint(send * MS).astype(np.int64),
        arrival_ns=np.where(lost, LOST, np.rint(arrival_ns)).astype(np.int64),
        skew_ppm=skew_ppm,
        changes_ns=tuple(int(change * MS) for change in changes_ms),
        description=description,
    )


def _gaussian_arrival(rng: np.random.Generator, send: Floats, sigma: float = 5.0) -> Floats:
    return _fifo(send, np.maximum(30.0 + rng.normal(0.0, sigma, len(send)), 0.1))


def _gaussian(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = _send_ms(packets)
    return _trace(name, send, _gaussian_arrival(rng, send), "base 30 ms, Gaussian, sigma 5 ms")


def _lomax(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = _send_ms(packets)
    delay = 20.0 + 4.0 * rng.pareto(2.1, packets)
    return _trace(name, send, _fifo(send, delay), "base 20 ms, Lomax, alpha 2.1, scale 4 ms")


def _slotted(name: str, rng: np.random.Generator, packets: int) -> Trace:
    """netem's ``slot distribution pareto 0.1ms 3ms``: the link opens at random moments."""
    send = _send_ms(packets)
    opens = np.cumsum(np.maximum(0.1 + 3.0 * (rng.pareto(3.0, packets * 40) - 0.5), 0.1))
    arrival = opens[np.searchsorted(opens, send)] + 10.0
    return _trace(name, send, np.maximum.accumulate(arrival), "slots, Pareto 0.1/3 ms, base 10 ms")


def _stalled(rng: np.random.Generator, send: Floats) -> Floats:
    """Wi-Fi: exponential jitter, and stalls whose packets leave 0.3 ms apart when they end."""
    arrival = _fifo(send, 5.0 + rng.exponential(1.5, len(send)))
    start = rng.exponential(2000.0)
    while start < send[-1]:
        end = start + rng.uniform(30.0, 150.0)
        held = np.flatnonzero((arrival >= start) & (arrival < end))
        arrival[held] = end + 0.3 * np.arange(len(held))
        start = end + rng.exponential(2000.0)
    return np.maximum.accumulate(arrival)


def _wifi(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = _send_ms(packets)
    return _trace(
        name, send, _stalled(rng, send), "Exp(1.5 ms), stalls of 30 to 150 ms every Exp(2 s)"
    )


def _lte(name: str, rng: np.random.Generator, packets: int) -> Trace:
    """The model without a recording: a grant every 10 ms, HARQ, a handover every 30 s."""
    send = _send_ms(packets)
    phase = np.cumsum(rng.normal(0.0, 0.5, packets))
    wait = 10.0 - np.mod(send + phase, 10.0)
    harq = 8.0 * (rng.geometric(0.9, packets) - 1)
    arrival = _fifo(send, 20.0 + wait + harq)
    for number in range(1, int(send[-1] // 30_000) + 1):
        start = number * 30_000.0 + rng.uniform(-2000.0, 2000.0)
        end = start + rng.uniform(60.0, 200.0)
        held = np.flatnonzero((arrival >= start) & (arrival < end))
        arrival[held] = end + 1.0 * np.arange(len(held))
    return _trace(
        name,
        send,
        np.maximum.accumulate(arrival),
        "10 ms grants, HARQ +8 ms at 0.1, handover of 60 to 200 ms every 30 s",
    )


def _route_change(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = _send_ms(packets)
    base = np.full(packets, 80.0)
    base[send >= 120_000.0] += 40.0
    base[send >= 360_000.0] -= 60.0
    delay = base + rng.normal(0.0, 2.0, packets)
    return _trace(
        name,
        send,
        send + delay,
        "sigma 2 ms, +40 ms at 120 s, -60 ms at 360 s",
        changes_ms=(120_000.0, 360_000.0),
    )


def _skewed(ppm: float) -> Callable[[str, np.random.Generator, int], Trace]:
    def generate(name: str, rng: np.random.Generator, packets: int) -> Trace:
        send = _send_ms(packets)
        return _trace(
            name,
            send,
            _gaussian_arrival(rng, send),
            f"as T1, clocks {ppm:+g} ppm apart",
            skew_ppm=ppm,
        )

    return generate


def _freeze(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = _send_ms(packets)
    arrival = _fifo(send, 20.0 + rng.exponential(2.0, packets))
    start = 1000.0 * round(send[-1] / 2000.0)
    held = np.flatnonzero((arrival >= start) & (arrival < start + 5000.0))
    arrival[held] = start + 5000.0 + 0.1 * np.arange(len(held))
    return _trace(
        name, send, np.maximum.accumulate(arrival), "Exp(2 ms), one freeze of 5 s, burst release"
    )


def _lossy(bursts: bool) -> Callable[[str, np.random.Generator, int], Trace]:
    def generate(name: str, rng: np.random.Generator, packets: int) -> Trace:
        send = _send_ms(packets)
        arrival = send + 15.0 + rng.exponential(2.0, packets)
        reordered = rng.random(packets) < 0.02
        arrival[reordered] += FRAME_MS * rng.integers(1, 4, packets)[reordered]
        if bursts:  # Gilbert-Elliott: mean run 4, 1 % lost in all
            state, lost = False, np.zeros(packets, dtype=np.bool_)
            for row, draw in enumerate(rng.random(packets)):
                state = draw < (0.75 if state else 0.01 / 0.99 / 4.0)
                lost[row] = state
        else:
            lost = rng.random(packets) < 0.01
        arrival[lost] = np.nan
        copied = np.flatnonzero((rng.random(packets) < 0.01) & ~lost)
        rows = np.sort(np.concatenate([np.arange(packets), copied]), kind="stable")
        second = np.concatenate([[False], rows[1:] == rows[:-1]])
        arrival = np.where(second, arrival[rows] + 5.0, arrival[rows])
        kind = "in bursts of 4" if bursts else "one by one"
        return _trace(
            name,
            send[rows],
            arrival,
            f"2 % reordered by 1 to 3, 1 % doubled, 1 % lost {kind}",
            sequence=rows.astype(np.int64),
        )

    return generate


def _talkspurts(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = np.empty(packets)
    now, row = 0.0, 0
    while row < packets:
        spurt = min(max(1, round(rng.exponential(1000.0) / FRAME_MS)), packets - row)
        send[row : row + spurt] = now + FRAME_MS * np.arange(spurt)
        silence = FRAME_MS * max(1, round(rng.exponential(1350.0) / FRAME_MS))
        now += FRAME_MS * spurt + silence
        row += spurt
    return _trace(name, send, _stalled(rng, send), "talk-spurts Exp(1 s) / Exp(1.35 s) over T3")


def _restarts(name: str, rng: np.random.Generator, packets: int) -> Trace:
    """T1 whose sequence numbers wrap at 16 bits and start again twice."""
    send = _send_ms(packets)
    sequence = (np.arange(packets, dtype=np.int64) + 65_000) % 65_536
    for part in (1, 2):
        begin = part * packets // 3
        sequence[begin:] = (np.arange(packets - begin) + 7 + 20_000 * part) % 65_536
    return _trace(
        name,
        send,
        _gaussian_arrival(rng, send),
        "as T1, 16-bit sequence numbers wrap and restart twice",
        sequence=sequence,
    )


def _lan(name: str, rng: np.random.Generator, packets: int) -> Trace:
    send = _send_ms(packets)
    return _trace(
        name, send, _fifo(send, 0.3 + rng.exponential(0.1, packets)), "base 0.3 ms, Exp(0.1 ms)"
    )


SYNTHETIC: dict[str, Callable[[str, np.random.Generator, int], Trace]] = {
    "T1": _gaussian,
    "T2": _lomax,
    "T2b": _slotted,
    "T3": _wifi,
    "T4": _lte,
    "T5": _route_change,
    "T6+100": _skewed(100.0),
    "T6-100": _skewed(-100.0),
    "T6+1000": _skewed(1000.0),
    "T6-1000": _skewed(-1000.0),
    "T7": _freeze,
    "T8": _lossy(bursts=False),
    "T8b": _lossy(bursts=True),
    "T9": _talkspurts,
    "T10": _restarts,
    "T11": _lan,
}
"""Generators by name (section names as in the literature's order, `T2b` and `T8b` are variants)."""
