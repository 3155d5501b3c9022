"""``ClockSync``: signs, hostile input, steps, suspend, waiting, schedule."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError
from itertools import pairwise
from math import inf, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream.errors import ConnectionClosed
from echostream.media.clock import ClockSync, ProbeSchedule

SECOND = 1_000_000_000
MS = 1_000_000


def feed(
    clock: ClockSync,
    start: int,
    offset: int,
    count: int = 8,
    gap: int = 5 * MS,
    delays: tuple[int, int] = (100_000, 100_000),
) -> int:
    """Exchanges on clocks of the same rate; returns the time of the last."""
    t4 = start
    for i in range(count):
        t1 = start + i * gap
        t2 = t1 + delays[0] + offset
        t3 = t2 + 20_000
        t4 = t3 - offset + delays[1]
        assert clock.add_exchange(t1, t2, t3, t4)
    return t4


def test_before_the_first_exchange() -> None:
    clock = ClockSync()
    assert not clock.synchronized
    assert clock.offset_ns == 0
    assert clock.drift_ppm == 0.0
    assert clock.error_bound_ns == inf
    assert clock.drift_bound_ppm == inf
    assert clock.to_local(clock.to_remote(123)) == 123


@pytest.mark.parametrize("offset", [-(10**17), -5_000_000, 0, 5_000_000, 10**17])
def test_offset_is_remote_minus_local(offset: int) -> None:
    clock = ClockSync()
    now = feed(clock, 10 * SECOND, offset)
    assert clock.synchronized
    assert abs(clock.offset_ns - offset) <= 20_000
    assert abs(clock.to_remote(now) - (now + offset)) <= 20_000
    assert abs(clock.to_local(now + offset) - now) <= 20_000
    assert 100_000 <= clock.error_bound_ns <= 150_000


def test_first_exchange_sets_the_offset_and_is_inverted_exactly() -> None:
    clock = ClockSync()
    clock.add_exchange(1000, 6_000_000 + 1100, 6_000_000 + 1100, 1200)
    assert clock.offset_ns == 6_000_000
    assert clock.to_local(clock.to_remote(1200)) == 1200
    assert clock.error_bound_ns <= 103


def test_asymmetry_shows_in_the_bound() -> None:
    clock = ClockSync()
    feed(clock, SECOND, 0, delays=(1_900_000, 100_000))
    assert abs(clock.offset_ns - 900_000) <= 50_000
    assert 900_000 <= clock.error_bound_ns <= 1_100_000


def test_either_side_may_ask() -> None:
    """The same packets, seen from both ends: opposite offsets, equal bounds."""
    here, there = ClockSync(), ClockSync()
    offset = 42 * SECOND
    for i in range(12):
        t1 = SECOND + i * 5 * MS
        t2 = t1 + offset + 150_000 + i % 3 * 40_000
        t3, t4 = t2 + 10_000, t2 + 10_000 - offset + 120_000 + i % 2 * 70_000
        assert here.add_exchange(t1, t2, t3, t4)
        assert there.add_exchange(t1, t2, t3, t4, from_remote=True)
    assert abs(here.offset_ns - offset) <= 50_000
    assert abs(there.offset_ns + offset) <= 50_000
    assert abs(here.error_bound_ns - there.error_bound_ns) <= 30_000


def test_late_packets_only_loosen() -> None:
    clock = ClockSync()
    now = feed(clock, SECOND, 7 * SECOND)
    before = clock.error_bound_at(now + SECOND)
    feed(clock, now + SECOND // 2, 7 * SECOND, count=4, delays=(50 * MS, 900 * MS))
    assert abs(clock.offset_ns - 7 * SECOND) <= clock.error_bound_ns
    assert clock.error_bound_ns <= before * 1.5
    assert clock.statistics().changes == 0


def test_refused_and_counted() -> None:
    clock = ClockSync()
    good = (SECOND, SECOND + 100_000, SECOND + 120_000, SECOND + 220_000)
    assert clock.add_exchange(*good)
    t1, t2, t3, t4 = good
    assert not clock.add_exchange(*good)
    assert not clock.add_exchange(t1 + 1, t2, t3, t1)
    assert not clock.add_exchange(t1 + 1, t3, t2, t4)
    assert not clock.add_exchange(t1 + 1, t2, t2 + MS, t4)
    assert not clock.add_exchange(t1 + 1, 2**63 - 1, 2**63 - 1, t4)
    assert not clock.add_exchange(t1 + 1, t2, t3, t1 + 61 * SECOND)
    assert not clock.add_exchange(t1 - 100 * SECOND, t2, t3, t4 - 100 * SECOND)
    statistics = clock.statistics()
    assert statistics.accepted == 1
    assert statistics.refused_duplicate == 1
    assert statistics.refused_rtt == 3
    assert statistics.refused_stamp == 3
    assert abs(clock.offset_ns) <= 220


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(-(2**64), 2**64), st.integers(0, 10**10), st.integers(0, 10**9)),
        max_size=60,
    ),
    st.booleans(),
)
def test_a_peer_cannot_break_it(replies: list[tuple[int, int, int]], used: bool) -> None:
    """Whatever t2 and t3 are: nothing raises, nothing grows, the map stays a map."""
    clock = ClockSync()
    now = 5 * SECOND
    for t2, hold, rtt in replies:
        if used:
            clock.to_remote(now)
        clock.add_exchange(now, t2, t2 + hold, now + rtt)
        clock.add_exchange(t2, now, now + rtt, t2 + hold, from_remote=True)
        now += rtt + 1
        assert abs(clock.to_local(clock.to_remote(now)) - now) <= 1
        assert clock.to_remote(now + 10) >= clock.to_remote(now)
        assert clock.error_bound_at(now) >= 0
    assert clock.statistics().exchanges <= 96
    assert len(clock._recent) <= 128


@pytest.mark.parametrize("size", [SECOND, -SECOND, 3 * MS, -3 * MS, 10**17, -(10**17)])
def test_a_step_needs_four_exchanges(size: int) -> None:
    clock = ClockSync()
    now = feed(clock, SECOND, 5 * SECOND, count=40, gap=500 * MS)
    clock.to_remote(now)
    before = clock.offset_at(now + SECOND)
    now = feed(clock, now + SECOND, 5 * SECOND + size, count=3)
    assert not clock.synchronized
    assert abs(clock.offset_at(now) - before) < 1000
    assert clock.error_bound_ns >= abs(size) - 200_000
    now = feed(clock, now + 5 * MS, 5 * SECOND + size, count=1)
    statistics = clock.statistics()
    assert clock.synchronized
    assert statistics.steps == 1
    assert abs(statistics.last_step_ns - size) < 300_000
    jumps = abs(size) > 20 * MS
    assert clock.epoch == jumps
    later = now + 10 * SECOND
    assert abs(clock.offset_at(later) - 5 * SECOND - size) < 300_000


def test_one_lie_does_not_move_the_map() -> None:
    clock = ClockSync()
    now = feed(clock, SECOND, 0, count=40, gap=500 * MS)
    clock.to_remote(now)
    lie = now + SECOND
    clock.add_exchange(lie, lie + 10**15, lie + 10**15, lie + 200_000)
    assert abs(clock.offset_ns) < 50_000
    now = feed(clock, lie + 10 * MS, 0, count=8)
    assert clock.synchronized
    assert abs(clock.offset_ns) < 50_000
    assert clock.epoch == 0
    assert clock.statistics().steps == 0


def test_a_step_before_first_use_is_taken_at_once() -> None:
    clock = ClockSync()
    now = feed(clock, SECOND, 0)
    feed(clock, now + SECOND, 50 * SECOND, count=1)
    assert abs(clock.offset_ns - 50 * SECOND) < 300_000
    assert clock.epoch == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_large_corrections_of_our_own_never_run_backwards(sign: int) -> None:
    """A first exchange that was 90 ms off, without any step of the remote clock."""
    present = 0
    clock = ClockSync(now=lambda: present)
    slow = (180 * MS, 100_000) if sign > 0 else (100_000, 180 * MS)
    present = feed(clock, SECOND, 0, delays=slow)
    assert abs(clock.offset_ns) > 80 * MS
    last = clock.to_remote(present)
    for start in range(present + SECOND, present + 4 * SECOND, SECOND):
        end = feed(clock, start, 0, count=4)
        for present in range(end, end + SECOND // 2, 10 * MS):
            remote = clock.to_remote(present)
            assert remote > last
            last = remote
    assert abs(clock.offset_ns) < MS
    assert clock.epoch == 0


def test_precision_after_weeks() -> None:
    clock = ClockSync()
    weeks = 10 * 7 * 86_400 * SECOND
    offset = 2**60
    now = feed(clock, weeks, offset, count=60, gap=SECOND)
    assert abs(clock.offset_ns - offset) <= 10
    for i in range(100):
        assert abs(clock.to_local(clock.to_remote(now + i)) - now - i) <= 1


def test_the_bound_grows_without_exchanges() -> None:
    clock = ClockSync()
    now = feed(clock, SECOND, 0, count=60, gap=SECOND)
    bounds = [clock.error_bound_at(now + s * SECOND) for s in (0, 1, 10, 60, 600)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] + 50_000


def test_suspend_forgets_the_offset_and_keeps_the_drift() -> None:
    clock = ClockSync()
    now = feed(clock, SECOND, 0, count=60, gap=SECOND)
    clock.to_remote(now)
    assert not clock.observe_suspend(now, now)
    assert not clock.observe_suspend(now + 2 * SECOND + 400 * MS, now + 2 * SECOND)
    assert clock.synchronized
    assert clock.observe_suspend(now + 3600 * SECOND, now + 3 * SECOND)
    assert not clock.synchronized
    assert clock.error_bound_ns == inf
    now = feed(clock, now + 4 * SECOND, 3597 * SECOND, count=4)
    assert clock.synchronized
    assert clock.epoch == 1
    assert abs(clock.offset_ns - 3597 * SECOND) < 20_000
    assert clock.drift_bound_ppm < 50
    assert clock.statistics().suspends == 1


def test_statistics_are_frozen() -> None:
    statistics = ClockSync().statistics()
    with pytest.raises(FrozenInstanceError):
        statistics.steps = 1  # type: ignore[misc]


def test_wait_synchronized() -> None:
    async def scenario() -> None:
        clock = ClockSync()
        plain = asyncio.ensure_future(clock.wait_synchronized())
        bounded = asyncio.ensure_future(clock.wait_synchronized(bound_ns=60_000))
        await asyncio.sleep(0)
        now = feed(clock, SECOND, 0)
        await plain
        assert not bounded.done()
        with pytest.raises(TimeoutError):
            await clock.wait_synchronized(bound_ns=10, timeout=0)
        feed(clock, now + MS, 0, delays=(20_000, 20_000))
        await bounded
        await clock.wait_synchronized(bound_ns=60_000)
        assert clock._waiters == []

    asyncio.run(scenario())


def test_closing_ends_the_waits() -> None:
    async def scenario() -> None:
        clock = ClockSync()
        waits = [asyncio.ensure_future(clock.wait_synchronized(bound)) for bound in (None, 5)]
        await asyncio.sleep(0)
        waits[0].cancel()
        clock.close(ConnectionClosed("gone", code=4))
        clock.close()
        with pytest.raises(ConnectionClosed, match="gone"):
            await waits[1]
        with pytest.raises(ConnectionClosed, match="gone"):
            await clock.wait_synchronized()
        with pytest.raises(asyncio.CancelledError):
            await waits[0]

    asyncio.run(scenario())


def test_schedule() -> None:
    schedule = ProbeSchedule(100)
    sent, now = [], 100
    while now < 120 * SECOND:
        now = schedule.next_probe_ns(now)
        sent.append(now - 100)
        schedule.probe_sent(now)
    assert sent[:8] == [i * 5 * MS for i in range(8)]
    assert sum(t < 2 * SECOND for t in sent) <= 64
    gaps = [b - a for a, b in pairwise(sent)]
    pauses = [gap for gap in gaps if gap > 5 * MS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 4 * SECOND
    assert schedule.next_probe_ns(500 * SECOND) == 500 * SECOND
    schedule.probe_sent(500 * SECOND)
    assert schedule.next_probe_ns(500 * SECOND) == 500 * SECOND + 5 * MS
    schedule.restart(600 * SECOND)
    assert schedule.next_probe_ns(600 * SECOND) == 600 * SECOND


@pytest.mark.parametrize(
    ("bound", "rtt"), [(50e3, 100_000), (21e6, 40_000_000)], ids=["close", "far"]
)
def test_schedule_is_sparse_while_the_bound_is_small(bound: float, rtt: int) -> None:
    """More exchanges would not get far below half of a round trip."""
    schedule, sent = ProbeSchedule(0), [0]
    while sent[-1] < 400 * SECOND:
        schedule.probe_sent(sent[-1], bound, rtt)
        sent.append(schedule.next_probe_ns(sent[-1]))
    pauses = [gap for a, b in pairwise(sent) if (gap := b - a) > 5 * MS]
    steady = pauses[pauses.index(8 * SECOND) :]
    assert [pause // SECOND for pause in steady] == [8, 16, *[32] * (len(steady) - 2)]
    assert len(steady) > 6
    wide = 2 * bound + 200e3
    schedule.probe_sent(sent[-1], wide, rtt)  # the bound grew too much meanwhile
    assert schedule.next_probe_ns(sent[-1]) == sent[-1] + 16 * SECOND


def test_the_pause_settles_where_the_bound_stays_small() -> None:
    """A bound that grows as that of real clocks does."""
    schedule, sent, at = ProbeSchedule(0), [0], 0
    while sent[-1] < 2000 * SECOND:
        age = (sent[-1] - at) / SECOND
        schedule.probe_sent(sent[-1], 40e3 + 3e-7 / sqrt(3) * age**1.5 * 1e9, 80_000)
        at = sent[-1]
        sent.append(schedule.next_probe_ns(sent[-1]))
    late = [b - a for a, b in pairwise(sent) if a > 200 * SECOND]
    assert 16 * SECOND <= max(late) <= 32 * SECOND
    assert len(late) < 0.1 * 1800


@pytest.mark.parametrize(
    ("queueing", "least", "most"), [(5e6, 1000, 2500), (1e5, 120, 300)], ids=["jitter", "quiet"]
)
def test_a_sharp_schedule_follows_the_queueing(queueing: float, least: int, most: int) -> None:
    """A deviation as independent delays have it: eager at first, never in excess."""
    schedule, sent = ProbeSchedule(0), [0]
    schedule.sharpen(0, True)
    while sent[-1] < 60 * SECOND:
        memory = [at for at in sent if sent[-1] - at < 30 * SECOND]
        deviation = queueing / len(memory)
        rate = 3 * deviation / max(sent[-1] - memory[0], SECOND)

        def deviation_at(at: int, now: int = sent[-1], d: float = deviation, r: float = rate):
            return d + r * (at - now)

        schedule.probe_sent(sent[-1], 5e6, 8_000_000, deviation_at)
        sent.append(schedule.next_probe_ns(sent[-1]))
    gaps = [b - a for a, b in pairwise(sent)]
    assert min(gaps) == 5 * MS
    assert max(gaps[-10:]) <= 640 * MS
    assert least <= len(sent) <= most
    schedule.sharpen(sent[-1], False)
    for _ in range(20):
        schedule.probe_sent(sent[-1])
        sent.append(schedule.next_probe_ns(sent[-1]))
    assert max(b - a for a, b in pairwise(sent[-20:])) == 4 * SECOND


def test_a_sparse_schedule_is_sharp_at_once_when_it_has_to_be() -> None:
    schedule, now = ProbeSchedule(0), 0
    while now < 400 * SECOND:
        schedule.probe_sent(now, 50e3, 100_000)
        now = schedule.next_probe_ns(now)
    asked = now - 20 * SECOND
    schedule.sharpen(asked, True)
    assert schedule.next_probe_ns(asked) == asked


def test_a_probe_waits_a_little_for_a_packet_that_carries_it() -> None:
    schedule = ProbeSchedule(0)
    for _ in range(7):
        schedule.probe_sent(0)
        assert schedule.latest_probe_ns(0) == schedule.next_probe_ns(0)  # nobody carries here
    schedule.probe_sent(0)
    assert schedule.next_probe_ns(0) == 100 * MS
    assert schedule.latest_probe_ns(0) == 125 * MS
    schedule.probe_sent(110 * MS, carried=True)
    assert schedule.next_probe_ns(0) == 115 * MS
    assert schedule.latest_probe_ns(0) == 140 * MS
    schedule.probe_sent(140 * MS)
    assert schedule.latest_probe_ns(0) == schedule.next_probe_ns(0) == 145 * MS
