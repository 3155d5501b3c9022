"""Groups on the virtual network: real QUIC, clocks and sound cards that differ by +-50 ppm."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from players import (
    BLOCK,
    FORMAT,
    JITTER,
    LAN,
    RATE,
    SECOND,
    WIFI,
    Player,
    cast,
    pairwise,
    ramp,
    true_ns,
)

from echostream import (
    AudioFormat,
    ConfigurationError,
    MethodNotFound,
    RpcServer,
    Session,
    StreamReceiver,
)
from echostream.contrib.group import Group
from echostream.testing import Impairment, QuicNetwork, run_virtual

PACKET = 320
QUIET = Impairment(delay=0.002)


def virtual(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        run_virtual(test(*args, **kwargs), limit=600.0)

    return run


@asynccontextmanager
async def room(
    players: list[Player], path: Impairment = QUIET, *, seed: int = 1, **options
) -> AsyncIterator[tuple[QuicNetwork, Group, list]]:
    """A server, its connected players, and a group without members."""
    async with QuicNetwork(seed=seed) as network:
        server = await network.serve()
        clients = [await network.connect(p.builder(), up=path, down=path) for p in players]
        sessions = await sessions_of(server, len(players))
        async with Group("music", FORMAT, **options) as group:
            yield network, group, clients, sessions


async def sessions_of(server: RpcServer, count: int) -> list[Session]:
    """The sessions of so many clients; the last one connects a moment before its session does."""
    while len(server.context.sessions) < count:  # noqa: ASYNC110 - one way of the path
        await asyncio.sleep(0.001)
    return list(server.context.sessions)


async def play(group: Group, seconds: float) -> None:
    """So much more of the ramp."""
    end = group.frame + seconds * RATE
    while group.frame < end:
        await group.send(ramp(group.frame, PACKET))


def between(start: float, stop: float) -> np.ndarray:
    return np.arange(start, stop, BLOCK * SECOND / RATE)


@pytest.mark.parametrize(
    ("path", "limit_us", "settled_us"), [(LAN, 100, 100), (JITTER, 300, 100), (WIFI, 200, 100)]
)
@virtual
async def test_eight_players_play_one_sample_at_once(path, limit_us, settled_us):
    players = cast(8)
    async with room(players, path) as (_, group, _, sessions):
        await asyncio.gather(*map(group.add, sessions))
        start = await group.start()
        await play(group, 8.0)
        due, end = group.time_of(0), true_ns()
        assert len(group.members) == 8
    joined = [p.errors(start, between(start + 2 * SECOND, start + 3 * SECOND)) for p in players]
    apart = pairwise(joined)
    assert len(apart) > 500
    assert np.quantile(apart, 0.99) < limit_us * 1e3, "not in sync within 2 s of joining"
    times = between(due + 3 * SECOND, end - 0.3 * SECOND)
    later = [p.errors(due, times) for p in players]
    apart = pairwise(later)
    print(
        f"pairwise: p50 {np.median(apart) / 1e3:.1f}, p99 {np.quantile(apart, 0.99) / 1e3:.1f} µs"
    )
    assert len(apart) > 4000
    assert np.quantile(apart, 0.99) < settled_us * 1e3
    for player, errors in zip(players, later, strict=True):
        known = ~np.isnan(errors)
        assert np.all(np.abs(errors[known]) <= player.error_bounds(times)[known])


@virtual
async def test_joining_and_leaving_in_the_middle():
    players = cast(3, seed=3)
    async with room(players, LAN) as (_, group, clients, sessions):
        by_client = {c.context: p for c, p in zip(clients, players, strict=True)}
        assert len(by_client) == 3
        await group.add(sessions[0])
        await group.add(sessions[1])
        await play(group, 3.0)
        joined = true_ns()
        joining = asyncio.create_task(group.add(sessions[2]))
        await play(group, 3.0)
        await joining
        await group.remove(sessions[0])
        await clients[1].close()
        await play(group, 2.0)
        due, end = group.time_of(0), true_ns()
        assert [m.session for m in group.members] == [sessions[2]]
    after = [p.errors(due, between(joined + 2.0 * SECOND, joined + 2.8 * SECOND)) for p in players]
    apart = pairwise(after)
    assert len(apart) > 100
    assert np.quantile(apart, 0.99) < 100e3
    alone = players[2].errors(due, between(joined + 3.5 * SECOND, end - 0.2 * SECOND))
    assert np.nanmax(np.abs(alone)) < 100e3


@virtual
async def test_start_at_a_time_flush_and_start_again():
    players = cast(2, seed=4)
    async with room(players) as (_, group, _, sessions):
        for session in sessions:
            await group.add(session)
        with pytest.raises(ConfigurationError, match="too soon"):
            await group.start(at=group.now() + 1_000_000)
        first = group.now() + SECOND
        assert await group.start(at=first) == first
        await play(group, 1.5)
        flushed = true_ns()
        await group.flush()
        at = group.now() + SECOND
        await group.start(at=at)
        due = group.time_of(0)
        await play(group, 1.0)
        end = true_ns()
    for player in players:
        assert np.all(player_silent(player, first - 0.5 * SECOND, first - 0.03 * SECOND))
        assert (
            np.nanmax(np.abs(player.errors(first, between(first + 3e7, flushed)))) < 35e3
        )  # it begins at the nearest frame: half of one is 31 us
        assert np.all(player_silent(player, flushed + 0.08 * SECOND, at - 0.03 * SECOND))
        assert (
            np.nanmax(np.abs(player.errors(due, between(at + 3e7, end - 2e8)))) < 35e3
        )  # it begins at the nearest frame: half of one is 31 us


def player_silent(player: Player, start: float, stop: float) -> np.ndarray:
    samples = np.concatenate(player.heard)
    first, last = ((t - player.begin) * RATE / SECOND for t in (start, stop))
    return samples[max(int(first), 0) : int(last)] == 0.0


@virtual
async def test_the_delay_follows_the_needs_and_all_move_together():
    players = cast(2, seed=5)
    async with room(players, QUIET) as (network, group, clients, sessions):
        for session in sessions:
            await group.add(session)
        await play(group, 2.0)
        small = group.delay
        assert small < 0.1
        network.impair(clients[1], up=QUIET, down=Impairment(delay=0.15))
        await play(group, 14.0)
        assert group.delay > 0.15
        assert group.moves >= 1
        due, end = group.time_of(0), true_ns()
    errors = [p.errors(due, between(end - 2 * SECOND, end - 3e8)) for p in players]
    # What the asymmetric path hides from the clock, at most: half of its difference.
    assert np.nanmax(np.abs(errors[0])) < 20e3
    assert np.nanmax(np.abs(errors[1])) < 75e6


@virtual
async def test_cues_are_told_at_their_sample():
    players = cast(3, seed=6)
    async with room(players, LAN) as (_, group, _, sessions):
        for session in sessions:
            await group.add(session)
        await group.start()
        frames = (4000, 4001, 9999)
        times = [await group.cue({"light": n}, frame) for n, frame in enumerate(frames)]
        assert times == [group.time_of(frame) for frame in frames]
        await play(group, 1.0)
        await asyncio.sleep(0.2)
    for player in players:
        assert [value for _, value in player.cues] == [{"light": n} for n in range(3)]
        for (heard, _), at in zip(player.cues, times, strict=True):
            assert abs(player.true_of(heard) - at) < 100e3


@virtual
async def test_streams_of_one_timeline_stay_together():
    """Two groups on sound cards that differ, and a stream of pictures."""
    shown: list[tuple[int, int]] = []
    music, speech = Player("music", 40, -30, 100.0), Player("speech", 0, 0)
    builder = music.builder().plugin(speech.plugin)

    async def on_pictures(stream: StreamReceiver) -> None:
        async for picture, at in stream.aligned():
            shown.append((int(picture), music.true_of(at)))

    builder.stream_handler("pictures", on_pictures)
    speech.clock = music.clock
    async with QuicNetwork(seed=2) as network:
        server = await network.serve()
        await network.connect(builder, up=LAN, down=LAN)
        (session,) = await sessions_of(server, 1)
        async with Group("music", FORMAT) as one, Group("speech", FORMAT) as two:
            await one.add(session)
            await two.add(session)
            pictures = await session.create_stream("pictures", time_sync=True, playout_delay=0.0)
            at = true_ns() + SECOND // 2
            assert await one.start(at) == await two.start(at) == at
            for number in range(100):
                frame = one.frame
                await pictures.send_with_timestamp(b"%d" % frame, one.time_of(frame))
                await one.send(ramp(frame, PACKET))
                if number % 3 == 0:
                    await two.send(ramp(two.frame, 3 * PACKET))
            await asyncio.sleep(0.3)
    times = between(at + 1e8, at + 1.8 * SECOND)
    errors = [music.errors(at, times), speech.errors(at, times)]
    assert np.quantile(pairwise(errors), 0.99) < 50e3
    assert len(shown) == 100
    for frame, heard in shown[30:]:
        assert abs(heard - at - frame * SECOND / RATE) < 100e3


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_live_sound_is_heard_the_delay_after_its_capture(delivery):
    players = cast(2, seed=7)
    async with room(players, delivery=delivery, min_delay=0.1) as (_, group, _, sessions):
        for session in sessions:
            await group.add(session)
        begin = true_ns()
        for number in range(200):
            await asyncio.sleep(0.02)
            noise = (number * 7919 % 200) * 1000  # ns: a stamp is not exact
            await group.send(
                ramp(number * PACKET, PACKET), captured=begin + number * 20_000_000 + noise
            )
        end = true_ns()
        delay = group.delay
    due = begin + delay * SECOND
    errors = [p.errors(due, between(begin + 2 * SECOND, end - 2e8)) for p in players]
    assert np.nanmax(np.abs(errors)) < 250e3
    assert np.quantile(pairwise(errors), 0.99) < 50e3


@virtual
async def test_a_client_without_a_player_is_refused():
    async with room([Player("other", 0, 0)]) as (_, group, _, (session,)):
        with pytest.raises((MethodNotFound, Exception)) as raised:
            await group.add(session)
        assert "music" in str(raised.value)
        assert group.members == ()


def test_options_are_checked():
    with pytest.raises(ConfigurationError, match="min_delay"):
        Group("x", AudioFormat(48_000, 2), min_delay=3.0)
    with pytest.raises(ConfigurationError, match="async with"):
        Group("x", AudioFormat(48_000, 2)).now()
