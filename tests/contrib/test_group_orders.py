"""Groups under any order of joining, leaving, flushing and starting: real QUIC, virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from players import BLOCK, FORMAT, RATE, SECOND, Player, cast, pairwise, ramp, true_ns

from echostream import ConfigurationError, Session
from echostream.contrib.group import Group
from echostream.testing import Impairment, QuicNetwork, run_virtual

PLAYERS = 3
PATH = Impairment(delay=0.002)
PACKET = 320
EDGE = 30_000_000
"""Blocks and cross-fades at the ends of what is judged, ns."""
FADED = 80_000_000
APART_NS = 100e3

joins = st.tuples(st.just("join"), st.integers(0, PLAYERS - 1))
leaves = st.tuples(st.just("leave"), st.integers(0, PLAYERS - 1))
plays = st.tuples(st.just("play"), st.sampled_from([0.3, 0.5]))
flushes = st.tuples(st.just("flush"), st.none())
starts = st.tuples(st.just("start"), st.sampled_from([0.01, 0.2, 0.4]))
orders = st.lists(st.one_of(joins, plays, plays, leaves, flushes, starts), min_size=4, max_size=9)


@dataclass
class Stage:
    """A group, its sessions in the order of the players, and what should have been heard."""

    group: Group
    sessions: list[Session]
    here: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    running: bool = False
    quiet_from: int = 0
    silences: list[tuple[int, int]] = field(default_factory=list)
    heard: list[tuple[int, int, int, frozenset[int]]] = field(default_factory=list)
    """From when until when (true ns), when frame 0 would have been, who."""

    async def join(self, number: int) -> None:
        if number in self.here | self.gone:
            return
        joining = asyncio.ensure_future(self.group.add(self.sessions[number]))
        while not joining.done():
            if self.running:
                await self.group.send(ramp(self.group.frame, PACKET))
            else:
                await asyncio.sleep(0.01)
        await joining
        self.here.add(number)

    async def leave(self, number: int) -> None:
        if number in self.here:
            await self.group.remove(self.sessions[number])
            self.here.remove(number)
            self.gone.add(number)

    async def start(self, lead: float) -> None:
        if self.running:
            return
        group, at = self.group, self.group.now() + round(lead * SECOND)
        try:
            assert await group.start(at) == at
        except ConfigurationError:
            assert at < group.now() + group.delay * SECOND
            at = await group.start()
        assert at >= group.now() + group.delay * SECOND - EDGE
        self._started(at)

    def _started(self, at: int) -> None:
        assert self.group.time_of(self.group.frame) == at
        assert self.group.delay >= 0.05
        self.silences.append((self.quiet_from, at))
        self.running = True

    async def play(self, seconds: float) -> None:
        group = self.group
        if not self.running:
            self._started(await group.start())
        first, moves = group.frame, group.moves
        while group.frame < first + seconds * RATE:
            await group.send(ramp(group.frame, PACKET))
        if group.moves == moves:
            until = group.time_of(group.frame)
            self.heard.append((group.time_of(first), until, group.time_of(0), frozenset(self.here)))

    async def flush(self, _: None) -> None:
        if not self.running:
            return
        now = true_ns()
        await self.group.flush()
        self.heard = [(a, min(b, now), due, who) for a, b, due, who in self.heard]
        start, stop = self.silences[-1]
        self.silences[-1] = start, min(stop, now)
        self.quiet_from = now + FADED
        self.running = False


async def perform(order: list[tuple[str, object]], seed: int) -> tuple[Stage, list[Player]]:
    players = cast(PLAYERS, seed=seed)
    async with QuicNetwork(seed=seed) as network:
        server = await network.serve()
        sessions: list[Session] = []
        for player in players:
            await network.connect(player.builder(), up=PATH, down=PATH)
            while len(server.context.sessions) == len(sessions):  # noqa: ASYNC110 - one way
                await asyncio.sleep(0.001)
            sessions = [*sessions, *(s for s in server.context.sessions if s not in sessions)]
        async with Group("music", FORMAT) as group:
            stage = Stage(group, sessions)
            for verb, argument in order:
                await getattr(stage, verb)(argument)
            await asyncio.sleep(0.2)
            stage.heard = [(a, min(b, true_ns()), due, who) for a, b, due, who in stage.heard]
    return stage, players


def silent(player: Player, start: int, stop: int) -> bool:
    if not player.heard:
        return True
    samples = np.concatenate(player.heard)
    first, last = (int((t - player.begin) * RATE / SECOND) for t in (start, stop))
    return bool(np.all(samples[max(first, 0) : max(last, 0)] == 0.0))


@settings(deadline=None, max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(order=orders, seed=st.integers(1, 1000))
@example([("start", 0.4), ("flush", None), ("start", 0.01), ("join", 2), ("flush", None)], 305)
def test_all_who_are_here_play_one_timeline_and_nobody_before_its_start(
    order: list[tuple[str, object]], seed: int
) -> None:
    order = [("join", 0), ("join", 1), *order, ("play", 0.5)]
    stage, players = run_virtual(perform(order, seed), limit=120.0)
    for start, stop in stage.silences:
        assert all(silent(player, start, stop - EDGE) for player in players)
    for start, stop, due, who in stage.heard:
        times = np.arange(start + EDGE, stop - EDGE, BLOCK * SECOND / RATE)
        if len(times) < 10:
            continue
        errors = [players[number].errors(due, times) for number in who]
        for each in errors:
            assert np.count_nonzero(~np.isnan(each)) > len(times) / 2, "silent, or elsewhere"
            assert np.nanmax(np.abs(each)) < APART_NS
        if len(who) > 1:
            assert pairwise(errors).max() < APART_NS
