"""Deadlines and traces through nested calls, metadata both ways, retries."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rpc_support import WIRE, session_of, virtual

from echostream import (
    ClientContext,
    ConfigurationError,
    DeadlineExceeded,
    ResourceExhausted,
    RpcClient,
    RpcError,
    RpcServer,
    Session,
    Unavailable,
)
from echostream.rpc.call import current_call
from echostream.rpc.retry import RetryPolicy
from echostream.testing import connected_pair

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@virtual
async def test_a_nested_call_has_the_time_that_remains() -> None:
    seen: dict[str, float | None] = {}

    async def outer(session: Session) -> None:
        await asyncio.sleep(0.3)
        await session.request("inner", timeout=30.0)

    async def inner() -> None:
        seen["remaining"] = current_call().time_remaining
        try:
            await asyncio.sleep(3600)
        finally:
            seen["ended"] = asyncio.get_running_loop().time()

    server, client = RpcServer.builder().handler("outer", outer), RpcClient.builder()
    async with connected_pair(server, client.handler("inner", inner), up=WIRE, down=WIRE) as (_, c):
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await c.request("outer", timeout=1.0)
        await asyncio.sleep(0.1)
        assert seen["remaining"] is not None
        assert 0.6 < seen["remaining"] < 0.71
        assert seen["ended"] is not None
        assert seen["ended"] - began == pytest.approx(1.0, abs=0.03)


@virtual
async def test_a_nested_stream_has_it_too_and_what_outlives_the_handler_has_not() -> None:
    left: list[float | None] = []
    later: list[asyncio.Task[Any]] = []

    async def many() -> AsyncIterator[int]:
        left.append(current_call().time_remaining)
        yield 1

    async def one() -> None:
        left.append(current_call().time_remaining)

    async def background(session: Session) -> None:
        await asyncio.sleep(5)
        await session.request("one")

    async def outer(session: Session) -> None:
        async for _ in session.request_stream("many"):
            pass
        later.append(asyncio.create_task(background(session)))

    client = RpcClient.builder().handler("many", many).handler("one", one)
    async with connected_pair(RpcServer.builder().handler("outer", outer), client) as (_, c):
        await c.request("outer", timeout=1.0)
        await later[0]
        assert left[0] is not None
        assert left[0] <= 1.0
        assert left[1] is None


@virtual
async def test_no_call_begins_after_the_deadline() -> None:
    calls: list[str] = []
    result: list[Exception] = []

    async def stubborn(session: Session) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            try:
                await session.request("inner")
            except DeadlineExceeded as exc:
                result.append(exc)
            raise

    async def inner() -> None:
        calls.append("inner")

    client = RpcClient.builder().handler("inner", inner)
    async with connected_pair(RpcServer.builder().handler("f", stubborn), client) as (_, c):
        with pytest.raises(DeadlineExceeded):
            await c.request("f", timeout=0.5)
        await asyncio.sleep(0.1)
    assert calls == []
    assert "deadline of 'f' has passed" in str(result[0])


@virtual
async def test_the_trace_goes_along() -> None:
    seen: list[dict[str, Any]] = []

    async def outer(session: Session) -> None:
        await session.request("inner", metadata={"own": "1"})
        await session.request("inner", metadata={"traceparent": "mine"})
        await session.emit("told")
        async for _ in session.request_stream("many"):
            pass

    async def inner() -> None:
        seen.append(dict(current_call().metadata))

    async def many() -> AsyncIterator[int]:
        await inner()
        yield 1

    client = RpcClient.builder().handler("inner", inner).listener("told", inner)
    client.handler("many", many)
    async with connected_pair(RpcServer.builder().handler("outer", outer), client) as (_, c):
        given = {"traceparent": TRACE, "tracestate": "a=b", "other": "x"}
        await c.request("outer", metadata=given)
        await asyncio.sleep(0.1)
    both = {"traceparent": TRACE, "tracestate": "a=b"}
    assert sorted(seen, key=str) == sorted(
        [both | {"own": "1"}, {"traceparent": "mine", "tracestate": "a=b"}, both, both], key=str
    )


@virtual
async def test_an_error_carries_metadata_and_details() -> None:
    async def fails() -> None:
        current_call().response_metadata["from"] = "call"
        raise RpcError("no", status=9, details={"field": [1]}, metadata={"raw": b"\0"})

    async with connected_pair(RpcServer.builder().handler("fails", fails)) as (_, client):
        with pytest.raises(RpcError) as caught:
            await client.request("fails")
        assert caught.value.metadata == {"from": "call", "raw": b"\0"}
        assert caught.value.details == {"field": [1]}


@virtual
async def test_idempotent_calls_are_tried_again() -> None:
    tried: list[float] = []
    policy = RetryPolicy(attempts=4, backoff=1.0, rng=random.Random(1))

    async def flaky(failures: int) -> int:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) <= failures:
            raise Unavailable("not now", details={"retry_after": 0.5})
        return len(tried)

    async def broken() -> None:
        tried.append(0)
        raise RpcError("for good", status=3)

    server = RpcServer.builder().handler("flaky", flaky).handler("broken", broken)
    async with connected_pair(server, RpcClient.builder().retry(policy)) as (_, client):
        assert await client.request("flaky", 2, idempotent=True) == 3
        assert all(b - a >= 0.5 for a, b in itertools.pairwise(tried))
        assert policy.retries == 2
        tried.clear()
        with pytest.raises(Unavailable):
            await client.request("flaky", 2)
        with pytest.raises(RpcError, match="for good"):
            await client.request("broken", idempotent=True)
        assert len(tried) == 2
        tried.clear()
        with pytest.raises(Unavailable):
            await client.request("flaky", 99, idempotent=True)
        assert len(tried) <= 4
        tried.clear()
        with pytest.raises(Unavailable):  # one timeout for all: no time for a third
            await client.request("flaky", 99, idempotent=True, timeout=0.9)
        assert len(tried) <= 2


@virtual
async def test_the_budget_ends_retries() -> None:
    count = 0

    async def down() -> None:
        nonlocal count
        count += 1
        raise Unavailable("down")

    policy = RetryPolicy(attempts=3, budget=10)
    client = RpcClient.builder().retry(policy)
    async with connected_pair(RpcServer.builder().handler("down", down), client) as (_, c):
        for _ in range(50):
            with pytest.raises(Unavailable):
                await c.request("down", idempotent=True)
    assert 50 < count <= 50 + 5
    for wrong in ({"attempts": 0}, {"backoff": -1}, {"budget": "x"}):
        with pytest.raises(ConfigurationError):
            RetryPolicy(**wrong)  # type: ignore[arg-type]


@virtual
async def test_a_server_retries_too() -> None:
    tried: list[int] = []

    async def flaky(ctx: ClientContext) -> int:
        tried.append(1)
        if len(tried) < 2:
            raise ResourceExhausted("wait")
        return 1

    policy = RetryPolicy(statuses=(8,))
    server, client = RpcServer.builder().retry(policy), RpcClient.builder().handler("f", flaky)
    async with connected_pair(server, client) as (started, _):
        session = await session_of(started)
        assert await session.request("f", idempotent=True) == 1
