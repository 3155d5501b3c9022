"""The delay estimator: the same numbers from both implementations, and what it must tell apart."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from echostream._ext import delay_estimator as compiled
from echostream.media import delay as plain
from echostream.media.lab.traces import LOST, SYNTHETIC, Trace, synthetic

MS = 1_000_000
FRAME = 20 * MS

both = pytest.mark.parametrize("made_by", [compiled, plain], ids=["compiled", "plain"])


def arrivals(trace: Trace) -> list[tuple[int, int]]:
    rows = np.flatnonzero(trace.arrival_ns != LOST)
    rows = rows[np.argsort(trace.arrival_ns[rows], kind="stable")]
    return list(zip(trace.send_ns[rows].tolist(), trace.arrival_ns[rows].tolist(), strict=True))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_twins_agree_on_every_packet(name: str) -> None:
    one, other = (made.DelayEstimator(0.01, 40.0 * MS, 0.0, 2e9) for made in (compiled, plain))
    missed = random.Random(7)
    for send, arrival in arrivals(synthetic(name, packets=4000)):
        late = missed.random() < 0.01
        one.update(send, arrival, late)
        other.update(send, arrival, late)
        assert abs(one.target_ns(send) - other.target_ns(send)) <= 1000
    assert one.skew_ppm == pytest.approx(other.skew_ppm, abs=0.01)
    one.restart()
    other.restart()
    assert one.wanted_ns == other.wanted_ns == 40 * MS


def test_control_twins_agree() -> None:
    one, other = (made.PlayoutControl(0.1, 0.06) for made in (compiled, plain))
    draw = random.Random(3)
    for _ in range(5000):
        error, span = draw.gauss(-20 * MS, 60 * MS), draw.choice([1, 5, 20]) * MS
        one.watch(error, span, 50 * MS)
        other.watch(error, span, 50 * MS)
        assert one.falling == other.falling
        assert one.step(error, span, 20833.3) == other.step(error, span, 20833.3)


@both
def test_clean_network_needs_no_delay(made_by: Any) -> None:
    estimator = made_by.DelayEstimator(0.01, 40.0 * MS)
    for n in range(200):
        estimator.update(n * FRAME, n * FRAME + 5 * MS)
    assert estimator.wanted_ns <= 20_000
    assert estimator.base_ns(200 * FRAME) == 5 * MS


@both
def test_a_steady_level_is_base_line_and_not_jitter(made_by: Any) -> None:
    """A path 40 ms longer is followed within 8 packets, and is the base line 4 s later."""
    estimator = made_by.DelayEstimator(0.01, 40.0 * MS)
    rng = random.Random(1)
    base = 30 * MS
    seen = {}
    for n in range(1500):
        if n == 1000:
            base += 40 * MS
        send = n * FRAME
        estimator.update(send, send + base + round(abs(rng.gauss(0.0, 1.0)) * MS))
        seen[n] = (estimator.target_ns(send) - 30 * MS, estimator.wanted_ns)
    assert seen[999][0] < 5 * MS
    assert seen[1008][0] > 40 * MS
    assert seen[1400][0] < 50 * MS
    assert seen[1400][1] < 6 * MS


@both
def test_a_shorter_path_is_believed_at_once(made_by: Any) -> None:
    estimator = made_by.DelayEstimator(0.01, 40.0 * MS)
    for n in range(1000):
        estimator.update(n * FRAME, n * FRAME + (90 if n < 900 else 30) * MS)
        if n == 900:
            assert estimator.target_ns(n * FRAME) < 31 * MS


@both
def test_a_freeze_counts_once(made_by: Any) -> None:
    """NetEq forgets one stall for 30 s; here 5 s without arrivals are one event."""
    estimator = made_by.DelayEstimator(0.01, 40.0 * MS)
    for n in range(5000):
        send = n * FRAME
        arrival = send + 5 * MS
        if 2000 <= n < 2250:
            arrival = 2250 * FRAME
        estimator.update(send, arrival)
    assert estimator.wanted_ns < 1 * MS


@both
@pytest.mark.parametrize("ppm", [-1000.0, -100.0, 100.0, 1000.0])
def test_skew_is_no_delay(made_by: Any, ppm: float) -> None:
    estimator = made_by.DelayEstimator(0.01, 40.0 * MS)
    rng = random.Random(2)
    for n in range(6000):
        send = n * FRAME
        estimator.update(send, round(send * (1 + ppm * 1e-6)) + round(rng.expovariate(1 / MS)))
    assert estimator.skew_ppm == pytest.approx(ppm, abs=10.0)
    true_base = 6000 * FRAME * ppm * 1e-6
    assert abs(estimator.base_ns(6000 * FRAME) - true_base) < 0.5 * MS
    assert 3 * MS < estimator.wanted_ns < 7 * MS  # Exp(1 ms): 4.6 ms at 1 %


@both
def test_memory_renormalises(made_by: Any) -> None:
    """300,000 packets pass the point where the growing increment is scaled back."""
    if made_by is plain:
        pytest.skip("three hundred thousand packets are for the compiled one")
    estimator = made_by.DelayEstimator(0.01, 40.0 * MS)
    rng = np.random.default_rng(4)
    for n, jitter in enumerate(rng.exponential(MS, 300_000).astype(int).tolist()):
        estimator.update(n * FRAME, n * FRAME + jitter)
    assert 4 * MS < estimator.wanted_ns < 5.4 * MS


@both
@pytest.mark.parametrize(
    "arguments", [(0.0, 1.0), (1.0, 1.0), (float("nan"), 1.0), (0.1, 1.0, 5.0, 4.0)]
)
def test_bad_arguments(made_by: Any, arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        made_by.DelayEstimator(*arguments)
    with pytest.raises(ValueError, match="rates"):
        made_by.PlayoutControl(0.0, 0.1)
