"""Calls and events with ``at``: they run at a time of the shared clock, on every side."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from rpc_support import outcome, quic_pair, real, server_builder, session_of, virtual

from echostream import (
    ConfigurationError,
    DeadlineExceeded,
    RpcClient,
    RpcError,
    RpcServer,
    Unavailable,
    handler,
)
from echostream.codes import Status
from echostream.rpc.call import current_call
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

SECOND = 1_000_000_000
PATH = Impairment(delay=0.01, jitter=0.002)


def server_ns() -> int:
    return round(asyncio.get_running_loop().time() * 1e9)


def client_ns() -> int:
    """A clock 5 s behind that loses 50 ppm."""
    now = server_ns()
    return now - 5 * SECOND - now // 20_000


@handler("when")
async def when() -> list[Any]:
    """The server's time, and what the handler sees of the call."""
    return [server_ns(), dict(current_call().metadata)]


class Heard:
    """A listener that notes the server's time at which it ran."""

    def __init__(self) -> None:
        self.at: list[tuple[str, int]] = []

    async def _tick(self, name: str) -> None:
        self.at.append((name, server_ns()))


def client_builder(heard: Heard | None = None) -> Any:
    client = RpcClient.builder().handler(when)
    if heard is not None:
        client.listener("tick", heard._tick)
    client._now_ns = client_ns
    return client


def pair(heard: Heard | None = None) -> Any:
    server = RpcServer.builder().handler(when)
    return connected_pair(server, client_builder(heard), up=PATH, down=PATH)


@virtual
async def test_handlers_run_at_the_shared_time_on_both_sides() -> None:
    async with pair() as (server, client):
        with pytest.raises(Unavailable):
            client.shared_time_ns()
        await client.clock.wait_synchronized(timeout=5.0)
        session = await session_of(server)
        assert session.shared_time_ns() == server_ns()
        bound = client.clock.error_bound_ns
        assert abs(client.shared_time_ns() - server_ns()) <= bound
        for caller in (client, session):
            at = caller.shared_time_ns() + 2 * SECOND
            ran, metadata = await caller.request("when", at=at, metadata={"a": "b"})
            assert abs(ran - at) <= (1_000 if caller is client else bound)
            assert metadata == {"a": "b"}
        assert client.statistics().scheduled_late == session.statistics().scheduled_late == 0


@virtual
async def test_late_runs_at_once_and_is_counted() -> None:
    async with pair() as (server, client):
        await client.request("when")
        session = await session_of(server)
        ran, _ = await client.request("when", at=server_ns() - SECOND)
        assert 0 <= server_ns() - ran <= 20_000_000
        assert session.statistics().scheduled_late == 1


@virtual
async def test_too_far_ahead_is_refused_and_a_deadline_counts() -> None:
    async with pair() as (server, client):
        refused = await outcome(client.request("when", at=server_ns() + 61 * SECOND))
        assert isinstance(refused, RpcError)
        assert refused.status == Status.INVALID_ARGUMENT
        assert (await session_of(server)).statistics().scheduled_refused == 1
        with pytest.raises(DeadlineExceeded):
            await client.request("when", at=server_ns() + 2 * SECOND, timeout=1.0)
        wait = asyncio.create_task(client.request("when", at=server_ns() + 30 * SECOND))
        await asyncio.sleep(0.1)
        assert (await session_of(server)).statistics().calls_running == 1
        wait.cancel()
        await asyncio.sleep(0.1)
        assert (await session_of(server)).statistics().calls_running == 0


@virtual
async def test_events_run_together_and_keep_their_order(caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    async with pair(heard) as (server, client):
        await client.request("when")
        session = await session_of(server)
        at = server_ns() + SECOND
        await session.emit("tick", "first", at=at)
        await session.emit("tick", "second")
        assert await server.context.broadcast("tick", "third", at=at + SECOND) == 1
        with caplog.at_level(logging.WARNING):
            await session.emit("tick", "never", at=at + 100 * SECOND)
            await asyncio.sleep(5.0)
        assert [name for name, _ in heard.at] == ["first", "second", "third"]
        bound = client.clock.error_bound_ns
        assert abs(heard.at[0][1] - at) <= bound
        assert heard.at[1][1] - heard.at[0][1] <= 1_000
        assert abs(heard.at[2][1] - at - SECOND) <= bound
        assert "ahead" in caplog.text
        assert client.statistics().scheduled_refused == 1
        assert client.statistics().tasks == 0


@virtual
async def test_a_client_whose_clock_cannot_be_known_answers_so() -> None:
    async with pair() as (server, client):
        await client.request("when")
        session = await session_of(server)
        client._peer.clock.receive = lambda data: None
        answer = await outcome(session.request("when", at=server_ns() + SECOND))
        assert isinstance(answer, DeadlineExceeded)


@virtual
async def test_wrong_times_are_refused_on_both_sides() -> None:
    async with pair() as (_, client):
        for wrong in (1.5, 2**63, "now"):
            with pytest.raises(ConfigurationError, match="shared clock"):
                await client.request("when", at=wrong)
            with pytest.raises(ConfigurationError, match="shared clock"):
                await client.emit("when", at=wrong)
        answer = await outcome(client.request("when", metadata={"echostream.at": "soon"}))
        assert isinstance(answer, RpcError)
        assert answer.status == Status.INVALID_ARGUMENT


@real
async def test_real_loops_do_not_run_early() -> None:
    @handler("ran")
    async def ran() -> int:
        return time.monotonic_ns()

    async with quic_pair(server_builder().handler(ran)) as (server, client):
        await client.clock.wait_synchronized(timeout=20.0)
        at = (await session_of(server)).shared_time_ns() + 30_000_000
        assert await client.request("ran", at=at) >= at
