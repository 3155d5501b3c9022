"""Which task serves a call: one for those that do not wait, else each its own."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from rpc_support import outcome, server_builder, session_of, virtual

from echostream import Cancelled, RpcClient, RpcError, Session
from echostream.rpc.call import current_call
from echostream.testing import connected_pair

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def at_once(client: RpcClient, method: str, payloads: list[Any]) -> list[Any]:
    """The outcomes of calls that arrive together."""
    return await asyncio.gather(*(outcome(client.request(method, each)) for each in payloads))


@virtual
async def test_handlers_that_do_not_wait_share_a_task() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def handle(number: int) -> int:
        tasks.append(asyncio.current_task())
        return number

    async with connected_pair(server_builder().handler("handle", handle)) as (server, client):
        assert await at_once(client, "handle", list(range(20))) == list(range(20))
        assert len(set(tasks)) == 1
        assert (await session_of(server))._peer.dispatcher.tasks == 0


@virtual
async def test_handlers_that_wait_run_at_the_same_time() -> None:
    arrived = 0
    everybody = asyncio.Event()
    tasks: set[asyncio.Task[Any] | None] = set()

    async def meet(number: int) -> int:
        nonlocal arrived
        arrived += 1
        if arrived == 20:
            everybody.set()
        await everybody.wait()
        tasks.add(asyncio.current_task())
        return number

    async with connected_pair(server_builder().handler("meet", meet)) as (_, client):
        for _ in range(2):  # the second time it is known that they wait
            arrived = 0
            everybody.clear()
            tasks.clear()
            assert await at_once(client, "meet", list(range(20))) == list(range(20))
            assert len(tasks) == 20


@virtual
async def test_some_wait_and_some_do_not() -> None:
    release = asyncio.Event()
    served: list[int] = []

    async def handle(number: int) -> int:
        if number % 3 == 0:
            await release.wait()
        served.append(number)
        return number

    async with connected_pair(server_builder().handler("handle", handle)) as (_, client):
        calls = asyncio.gather(*(client.request("handle", number) for number in range(12)))
        await asyncio.sleep(1)
        assert served == [number for number in range(12) if number % 3]
        release.set()
        assert await calls == list(range(12))


@virtual
async def test_a_context_variable_is_one_calls_own() -> None:
    seen: list[str] = []

    async def sign(name: str) -> str:
        seen.append(WHO.get())
        if name:
            WHO.set(name)
        return current_call().method

    async with connected_pair(server_builder().handler("sign", sign)) as (_, client):
        assert await at_once(client, "sign", ["", "ada", "", "bob", ""]) == ["sign"] * 5
    assert seen == ["nobody"] * 5


@virtual
async def test_a_timeout_inside_a_handler_ends_that_handler_only() -> None:
    async def handle(seconds: float) -> str:
        if not seconds:
            return "at once"
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timeout"
        return "slept"

    async with connected_pair(server_builder().handler("handle", handle)) as (_, client):
        assert await at_once(client, "handle", [0, 0.2, 0, 0.1, 20, 0]) == [
            *("at once", "timeout", "at once", "timeout", "slept", "at once")
        ]


@virtual
async def test_a_handler_that_cancels_itself_takes_nobody_along() -> None:
    async def handle(cancel: bool) -> str:
        if cancel:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return "done"

    async def fail(text: str) -> str:
        raise RpcError(text) if text else asyncio.CancelledError

    builder = server_builder().handler("handle", handle).handler("fail", fail)
    async with connected_pair(builder) as (_, client):
        assert await at_once(client, "handle", [False, True, False, True, False]) == ["done"] * 5
        outcomes = await at_once(client, "fail", ["a", "", "b", ""])
        assert [getattr(each, "message", None) for each in outcomes[::2]] == ["a", "b"]
        assert [type(each) for each in outcomes[1::2]] == [Cancelled, Cancelled]
        assert await at_once(client, "handle", [False]) == ["done"]


@virtual
async def test_a_call_that_is_cancelled_while_it_is_queued_never_runs() -> None:
    served: list[int] = []
    calls: list[asyncio.Task[Any]] = []

    async def handle(session: Session, number: int) -> int:
        served.append(number)
        if number == 0:  # the others have arrived with it, and have not begun
            handlers = session._peer.dispatcher.handlers
            handlers._stop(min(handlers._running) + 4)
        return number

    async with connected_pair(server_builder().handler("handle", handle)) as (_, client):
        calls = [asyncio.create_task(client.request("handle", number)) for number in range(4)]
        done, pending = await asyncio.wait(calls, timeout=5)
        assert served == [0, 1, 3]
        assert {call.result() for call in done} == {0, 1, 3}
        for call in pending:
            call.cancel()
