"""Delays with a tail, and stalls, as Wi-Fi has them."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from echostream.transport.impairment import Impairer, Impairment


def arrivals(impairment: Impairment, count: int = 20_000, pause: float = 0.001) -> list[float]:
    """Delays of datagrams that are sent one after the other."""
    path = Impairer(impairment, 1)
    delays = []
    for number in range(count):
        arrival = path.arrival(100, number * pause)
        assert arrival is not None
        delays.append(arrival - number * pause)
    return delays


def test_a_tail_is_exponential() -> None:
    delays = arrivals(Impairment(delay=0.001, tail=0.002))
    assert min(delays) >= 0.001
    assert statistics.mean(delays) == pytest.approx(0.003, rel=0.05)
    assert statistics.median(delays) == pytest.approx(0.001 + 0.002 * 0.693, rel=0.05)


def test_what_is_sent_in_a_stall_leaves_at_its_end_in_order() -> None:
    delays = arrivals(Impairment(delay=0.001, stall_every=0.5, stall=0.1))
    held = [delay for delay in delays if delay > 0.0011]
    assert 0.05 < len(held) / len(delays) < 0.2  # 60 ms of 560
    assert max(held) <= 0.101
    times = [number * 0.001 + delay for number, delay in enumerate(delays)]
    assert all(b - a > -1e-9 for a, b in pairwise(times))
    assert delays == arrivals(Impairment(delay=0.001, stall_every=0.5, stall=0.1))


@pytest.mark.parametrize("wrong", [{"tail": -1.0}, {"stall_every": -1.0}, {"stall": float("nan")}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Impairment(**wrong)
