"""Far more than a side can handle: memory stays, counters are exact, and it calms down at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from full_size import report, resident_bytes, sized
from rpc_support import idle, raw_client, session_of, virtual

from echostream import RpcServer
from echostream.builder import ClientBuilder
from echostream.codes import Close, Status
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.testing import connected_pair

EVENTS = sized(20_000, 1_000_000)
CALLS = sized(6_000, 100_000)
MOST_MB = 32


@pytest.mark.parametrize("slow", ["drop_oldest", "drop_newest", "disconnect", "block"])
@virtual
async def test_events_into_a_listener_that_sleeps(slow: str) -> None:
    """Both sides are in this process: their memory together is within what each may take."""
    heard: list[int] = []
    awake = asyncio.Event()

    async def listen(value: int) -> None:
        await awake.wait()
        heard.append(value)

    body = bytes(100)
    client = ClientBuilder().listener("told", listen)
    async with connected_pair(RpcServer.builder(), client) as (server, _):
        session = await session_of(server)
        room = server.context.group("room", slow=slow)
        room.join(session)
        gc.collect()
        before = resident_bytes()
        told = 0

        async def tell() -> None:
            nonlocal told
            for number in range(EVENTS):
                await room.broadcast("told", number, metadata={"body": body})
                told += 1
                if not number % 64:
                    await asyncio.sleep(0)

        telling = asyncio.create_task(tell())
        last = -1
        while not telling.done() and (slow != "block" or told != last):
            last = told
            await asyncio.sleep(1)
        grown = resident_bytes() - before
        report(f"{told} events, {slow}", grown_mb=round(grown / 1e6, 1))
        assert grown <= MOST_MB << 20
        statistics = room.statistics()
        if slow == "disconnect":
            assert statistics.disconnected == 1
            assert session._peer.ended is not None
            assert session._peer.ended.code == Close.EXCESSIVE_LOAD
            return
        awake.set()
        await telling
        await asyncio.sleep(1)
        assert told == EVENTS
        statistics = room.statistics()
        assert statistics.waiting == 0
        assert len(heard) + statistics.dropped == EVENTS
        assert statistics.sent == len(heard)
        assert heard == sorted(heard)
        if slow == "block":
            assert statistics.dropped == 0
        elif slow == "drop_oldest":
            assert heard[-1] == EVENTS - 1


@virtual
async def test_calls_opened_and_cancelled_at_once() -> None:
    """As a rapid reset does (CVE-2023-44487), against handlers that take their time to stop."""
    running = most = 0

    async def stubborn() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await asyncio.sleep(0.02)
        finally:
            running -= 1

    server = RpcServer.builder().handler("stubborn", stubborn)
    async with raw_client(server) as (started, raw):
        session = await session_of(started)
        lane = raw.engine.open_stream(False)
        for first in range(0, CALLS, 300):
            ids = [2 * call for call in range(first, min(first + 300, CALLS))]
            opened = [encode_frame(frames.REQUEST, i, b"", frames.END, "stubborn") for i in ids]
            ended = [encode_frame(frames.CANCEL, i, b"", 0, None, None, -1, 1) for i in ids]
            raw.send(b"".join(opened), lane)
            await asyncio.sleep(0.001)
            raw.send(b"".join(ended), lane)
            await asyncio.sleep(0.099)  # faster, and the cancellations of refused calls end it all
        await asyncio.sleep(1)
        assert running == 0
        assert idle(session)
        assert session._peer.ended is None
        failed = raw.of(frames.ERROR)
        assert len(failed) + len(raw.of(frames.RESPONSE)) == CALLS
        refused = [frame for frame in failed if frame.number == Status.RESOURCE_EXHAUSTED]
        assert all(f"limit calls={most}" in (frame.name or "") for frame in refused)
        report(f"{CALLS} calls cancelled at once", most_running=most, refused=len(refused))
        assert 0 < most <= 128
        assert refused
