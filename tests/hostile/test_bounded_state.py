"""The state that a peer can make this side keep, without I/O: its bounds, and what it costs."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream.errors import ProtocolError
from echostream.protocol.assembly import Account, Progress
from echostream.protocol.events import EventReceived
from echostream.protocol.ordering import MAX_AHEAD, EventOrder


def event(number: int, name: str, payload: bytes = b"") -> EventReceived:
    return EventReceived(number, name, payload, None, 2)


@given(
    names=st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    large=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 1000),
)
def test_events_of_one_name_keep_their_order_on_any_path(
    names: list[str], large: set[int], seed: int
) -> None:
    """Small ones keep theirs on a lane, large ones travel alone and overtake; as the outbox says
    it, each names its predecessor where the lane does not."""
    rng = random.Random(seed)
    lane: list[tuple[EventReceived, int]] = []
    alone: list[tuple[EventReceived, int]] = []
    last_large: dict[str, int] = {}
    last_small = 0
    for index, name in enumerate(names):
        number = index + 1
        if index in large:
            predecessor = last_large.get(name, 0) or last_small or -1
            last_large[name] = number
            alone.append((event(number, name), predecessor))
        else:
            lane.append((event(number, name), last_large.pop(name, -1)))
            last_small = number
    rng.shuffle(alone)
    order = EventOrder()
    delivered: list[EventReceived] = []
    while lane or alone:
        source = lane if lane and (not alone or rng.random() < 0.5) else alone
        item, predecessor = source.pop(0)
        ready = order.accept(item, predecessor)
        assert ready is not None
        delivered += ready
        assert order.accept(item, predecessor) is None
    assert sorted(e.number for e in delivered) == list(range(1, len(names) + 1))
    assert order.held == 0
    assert order.delivered == len(names)
    for name in set(names):
        numbers = [e.number for e in delivered if e.name == name]
        assert numbers == sorted(numbers)


def steps(run: object) -> int:
    """Lines of Python that ``run`` executes: a measure of its cost that no machine changes."""
    count = 0

    def trace(frame: object, kind: str, arg: object) -> object:
        nonlocal count
        count += kind == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        assert callable(run)
        run()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("kind", ["one name", "many names", "a chain backwards"])
def test_holding_events_costs_the_same_for_each(kind: str) -> None:
    """Twice as many held events cost twice as much, not four times; so does their release."""

    def attack(count: int) -> None:
        order = EventOrder()
        numbers = range(count, 1, -1) if kind == "a chain backwards" else range(2, count + 1)
        for n in numbers:
            name = "x" if kind == "one name" else f"{n}"
            order.accept(event(n, name), n - 1 if kind == "a chain backwards" else 1)
        ready = order.accept(event(1, "first"), -1)
        assert ready is not None
        assert len(ready) == count

    small, large = (steps(lambda n=n: attack(n)) for n in (300, 600))
    assert large <= 2.2 * small


def test_held_events_are_bounded_in_number_and_bytes() -> None:
    order = EventOrder()
    with pytest.raises(ProtocolError, match="too far ahead"):
        order.accept(event(MAX_AHEAD + 1, "x"), -1)
    with pytest.raises(ProtocolError, match="exceed"):
        for number in range(2, 40):
            order.accept(event(number, "x", bytes(1 << 20)), 1)


def test_accounts_refuse_the_greedy_and_not_the_modest() -> None:
    total = Account(1000)
    greedy, modest = Account(800, total), Account(800, total)
    assert greedy.change(700)
    assert not greedy.change(200)  # its own limit
    assert modest.change(400)  # the total is passed, by less than its share of it
    assert not modest.change(200)
    assert total.held == 1500
    greedy.close()
    greedy.close()
    assert total.held == 600
    assert modest.change(100)
    modest.close()
    assert total.held == 0


def test_progress_wants_a_kib_per_second() -> None:
    progress = Progress(10)
    assert not progress.stalled(0.0)
    progress.grew(10 * 1024)
    assert not progress.stalled(9.0)
    assert not progress.stalled(10.0)
    progress.grew(10 * 1024 - 1)
    assert progress.stalled(20.0)
    progress.restart()
    assert not progress.stalled(30.0)
