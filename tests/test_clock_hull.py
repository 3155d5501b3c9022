"""The kernel and its twin: the same answers as each other and as exact arithmetic."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream.media import clock_hull as twin
from echostream.media import clock_map as twin_map
from echostream.media.lab.clock_path import SECOND, ClockPath, Delay, Link, probes

try:
    from echostream._ext import clock_hull as kernel
    from echostream._ext import clock_map as kernel_map
except ImportError:
    kernel = kernel_map = None  # type: ignore[assignment]

COMPILED = pytest.mark.skipif(kernel is None, reason="nothing is compiled")
MODULES = [pytest.param(kernel, marks=COMPILED), twin]
MAPS = [pytest.param(kernel_map, marks=COMPILED), twin_map]
EXPECTED, LIMIT = 1e-3, 0.06


def exact_interval(
    bounds: list[tuple[int, int, int, int]], now: int
) -> tuple[Fraction, Fraction] | None:
    """Of all lines between the bounds, with slopes up to EXPECTED: their range at ``now``."""
    uppers = [(Fraction(at - now), Fraction(u)) for at, u, _, _ in bounds]
    lowers = [(Fraction(at - now), Fraction(v)) for _, _, at, v in bounds]
    low, high = Fraction(-EXPECTED), Fraction(EXPECTED)
    for xu, u in uppers:
        for xl, v in lowers:
            if xu > xl:
                high = min(high, (u - v) / (xu - xl))
            elif xu < xl:
                low = max(low, (v - u) / (xl - xu))
            elif u < v:
                return None
    if low > high:
        return None
    return max(v - low * x for x, v in lowers), min(u - high * x for x, u in uppers)


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Exchanges on clocks without wander, in order of arrival; delays of any size."""
    offset = draw(st.integers(-(10**15), 10**15))
    rate = draw(st.integers(-400, 400)) * 10**-6
    result, t = [], draw(st.integers(0, 10**15))
    start = t
    for _ in range(draw(st.integers(1, 25))):
        t += draw(st.integers(1, 4 * SECOND))
        there, back = draw(st.integers(0, 10**7)), draw(st.integers(0, 10**7))
        true = [offset + round((x - start) * rate) for x in (t + there, t + there + back)]
        result.append((t, true[0] + there, t + there + back, true[1] - back))
    return sorted(result, key=lambda e: e[2])


@pytest.mark.parametrize("module", MODULES)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(bounds=exchanges())
def test_interval_is_that_of_exact_arithmetic(module: Any, bounds: Any) -> None:
    hull = module.OffsetHull(0.0, EXPECTED, LIMIT)
    for k, (xu, u, xl, v) in enumerate(bounds, 1):
        hull.add(xu, u, xl, v, max(u - v, 0))
        expected = exact_interval(bounds[:k], xl)
        if expected is None or len(hull) < k:
            return  # rounding of a case without slack; the other tests look at changes
        low, high = hull.interval(xl)
        assert abs(low - expected[0]) <= 2
        assert abs(high - expected[1]) <= 2
        assert low <= hull.offset(xl) <= high


PATHS = {
    "default": ClockPath(),
    "reordered": ClockPath(Delay(1e5, 1e8), Delay(1e5, 1e8)),
    "wander": ClockPath(wander=1e-6),
    "fast": ClockPath(rate=-0.05),
    "step": ClockPath(steps=((60.3 * SECOND, -1e6), (90 * SECOND, 1e17))),
}


@COMPILED
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_kernel_and_twin_agree(path: ClockPath) -> None:
    link = Link(path, 3, 120)
    done = sorted(filter(None, map(link.exchange, probes(120))), key=lambda e: e[3])
    compiled, plain = (m.OffsetHull(3e-7, EXPECTED, LIMIT) for m in (kernel, twin))
    for i, (t1, t2, t3, t4) in enumerate(done):
        if i == 300:
            compiled.forget(t4, 5e-6)
            plain.forget(t4, 5e-6)
        arguments = (t1, t2 - t1, t4, t3 - t4, max(t4 - t1 - t3 + t2, 0))
        assert compiled.add(*arguments) == plain.add(*arguments)
        assert len(compiled) == len(plain)
        assert compiled.min_rtt == plain.min_rtt
        assert compiled.oldest == plain.oldest
        later = t4 + 10 * SECOND
        assert abs(compiled.offset(later) - plain.offset(later)) <= 1
        assert compiled.deviation(later) == pytest.approx(plain.deviation(later), rel=1e-6)
        for a, b in zip(compiled.interval(later), plain.interval(later), strict=True):
            assert abs(a - b) <= 1


@pytest.mark.parametrize("module", MODULES)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(
        st.tuples(*[st.integers(-(2**61), 2**61), st.integers(-(2**62) + 1, 2**62 - 1)] * 2),
        max_size=40,
    )
)
def test_any_numbers_are_survived(module: Any, numbers: list[tuple[int, int, int, int]]) -> None:
    hull = module.OffsetHull(3e-7, EXPECTED, LIMIT)
    for xu, u, xl, v in numbers:
        hull.add(xu, u, xl, v, max(min(u - v, 2**62), 0))
        assert 1 <= len(hull) <= 96
        low, high = hull.interval(hull.at)
        assert low <= high
        assert -LIMIT <= hull.rate_low <= hull.rate_high <= LIMIT


@pytest.mark.parametrize("module", MODULES)
def test_window_is_bounded_and_reaches_back(module: Any) -> None:
    hull = module.OffsetHull(3e-7, EXPECTED, LIMIT)
    for i in range(1000):
        hull.add(i * SECOND, 100_000, i * SECOND + 200_000, -100_000, 200_000)
        assert len(hull) <= 96
    assert hull.at - hull.oldest > 150 * SECOND


@pytest.mark.parametrize("module", MAPS)
@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    local0=st.integers(-(2**60), 2**60),
    remote0=st.integers(-(2**60), 2**60),
    rate0=st.floats(-0.16, 0.16),
    rate1=st.floats(-0.06, 0.06),
    length=st.integers(0, 10**12),
    at=st.integers(-(10**15), 10**15),
    step=st.integers(1, 10**12),
)
def test_map_is_invertible_and_rises(
    module: Any,
    local0: int,
    remote0: int,
    rate0: float,
    rate1: float,
    length: int,
    at: int,
    step: int,
) -> None:
    published = module.ClockMap()
    published.set(local0, remote0, rate0, local0 + length, rate1)
    assert not published.used
    assert published.to_remote(local0) == remote0
    local, remote = local0 + at, remote0 + at
    assert abs(published.to_local(published.to_remote(local)) - local) <= 1
    assert abs(published.to_remote(published.to_local(remote)) - remote) <= 1
    assert published.to_remote(local + step) >= published.to_remote(local)
    assert published.to_local(remote + step) >= published.to_local(remote)
    assert published.used


@pytest.mark.parametrize("module", MAPS)
def test_map_clips_at_the_ends_of_int64(module: Any) -> None:
    published = module.ClockMap()
    published.set(0, 2**62, 0.06, 10, 0.06)
    assert published.to_remote(2**63 - 1) == 2**63 - 1
    assert published.to_local(-(2**63)) < -(2**62)
    published.set(-(2**62), 2**62, 0.0, -(2**62), 0.0)
    assert published.to_local(-(2**63)) == -(2**63)


@pytest.mark.parametrize("module", MAPS)
def test_readers_never_see_half_a_map(module: Any) -> None:
    published = module.ClockMap()
    published.set(0, 0, 0.0, 0, 0.0)
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(published.to_remote(1_000))

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(20_000):
        published.set(i, i, 0.0, i, 0.0)
        published.set(0, 10**9, 0.0, 0, 0.0)
    done.set()
    thread.join()
    assert set(seen) <= {1_000, 10**9 + 1_000}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("ppm", [-50, 0, 40])
@pytest.mark.parametrize("delay_ms", [0, 10, 300])
def test_without_queueing_the_estimate_is_exact(module: Any, ppm: int, delay_ms: int) -> None:
    """However long the round trip is, also while it is longer than all that was measured.

    2 ns are rounding. At first, while the smaller allowances are not tried yet, the older bounds'
    allowance, half of it, counts too."""
    hull = module.OffsetHull(3e-7, EXPECTED, LIMIT)
    delay, offset = delay_ms * 10**6, 77 * SECOND
    allowed = 0.5 * 3e-7 * (2 * delay / SECOND) ** 1.5 / 3**0.5 * SECOND

    def remote(local: int) -> int:
        return offset + local + round((local - 10**13) * ppm * 1e-6)

    for number, start in enumerate(probes(20)):
        t1 = 10**13 + start
        t2, t4 = remote(t1 + delay), t1 + 2 * delay
        hull.add(t1, t2 - t1 + 1, t4, t2 - t4 - 1, 2 * delay)
        error = hull.offset(t4) - (remote(t4) - t4)
        if number >= 3:
            assert abs(error) <= 2 + (allowed if number < 40 else 0)
        if number >= 40:
            assert hull.rate == pytest.approx(ppm * 1e-6, abs=2e-9)
            assert hull.deviation(t4) < 20.0
