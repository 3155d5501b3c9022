"""What stands around calls, events and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rpc_support import idle, outcome, session_of, virtual

from echostream import (
    ConfigurationError,
    PermissionDenied,
    RpcClient,
    RpcServer,
    Session,
    StreamReceiver,
)
from echostream.rpc.call import current_call
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed
from echostream.testing import connected_pair


class Recorder(Interceptor):
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        return await self._around("in", call, proceed)

    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        call.metadata.setdefault("by", self.name)
        return await self._around("out", call, proceed)

    async def _around(self, way: str, call: Invocation, proceed: Proceed) -> Any:
        self.log.append((self.name, way, call.kind, call.name))
        try:
            result = await proceed()
        except BaseException as exc:
            self.log.append((self.name, way, type(exc).__name__))
            raise
        self.log.append((self.name, way, "end"))
        return result


async def add(values: list[int]) -> int:
    return sum(values)


async def many(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def total(values: AsyncIterator[int]) -> int:
    return sum([v async for v in values])


async def fails() -> None:
    raise PermissionDenied("no")


async def who() -> Any:
    return dict(current_call().metadata)


async def on_stream(session: Session, stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


def server_builder(log: list[Any]) -> Any:
    async def told(session: Session, value: int) -> None:
        log.append(("told", value))

    builder = RpcServer.builder().listener("told", told).stream_handler("media", on_stream)
    for function in (add, many, total, fails, who):
        builder.handler(function.__name__, function)
    return builder


async def numbers() -> AsyncIterator[int]:
    for number in range(4):
        yield number


@virtual
async def test_they_stand_around_all_shapes_of_both_sides() -> None:
    log: list[Any] = []
    server = server_builder([]).interceptor(Recorder("s1", log)).interceptor(Recorder("s2", log))
    client = RpcClient.builder().interceptor(Recorder("c1", log)).interceptor(Recorder("c2", log))

    def around(kind: str, name: str, end: tuple[Any, ...] = ("end",)) -> list[Any]:
        nested = [("c1", "out"), ("c2", "out"), ("s1", "in"), ("s2", "in")]
        return [(*each, kind, name) for each in nested] + [(*e, *end) for e in reversed(nested)]

    async with connected_pair(server, client) as (started, connected):
        assert await connected.request("add", [1, 2]) == 3
        assert log == around("call", "add")
        log.clear()
        with pytest.raises(PermissionDenied):
            await connected.request("fails")
        assert log == around("call", "fails", ("PermissionDenied",))
        log.clear()
        assert await connected.request("total", numbers()) == 6
        assert log == around("call", "total")
        log.clear()
        assert [v async for v in connected.request_stream("many", 3)] == [0, 1, 2]
        await asyncio.sleep(0.1)
        assert sorted(map(str, log)) == sorted(map(str, around("call", "many")))
        assert log[:4] == around("call", "many")[:4]
        log.clear()
        await connected.emit("told", 5)
        await asyncio.sleep(0.1)
        assert sorted(map(str, log)) == sorted(map(str, around("event", "told")))
        log.clear()
        async with await connected.create_stream("media") as stream:
            await stream.send(b"x")
        await asyncio.sleep(0.1)
        assert sorted(map(str, log)) == sorted(map(str, around("stream", "media")))
        session = await session_of(started)
        assert await connected.request("who", metadata={"a": "b"}) == {"a": "b", "by": "c1"}
        assert idle(session)
        assert idle(connected)


class Rewrite(Interceptor):
    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        if call.name == "add":
            call.payload = [*call.payload, 100]
            call.response_metadata["seen"] = "yes"
            return await proceed() + 1000
        if call.name == "fails":
            return "answered without the handler"
        return await proceed()

    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        if call.name == "forbidden":
            raise PermissionDenied("not from here")
        if call.kind == "event":
            call.payload *= 2
        result = await proceed()
        if call.name == "add":
            assert call.response_metadata == {"seen": "yes"}
        return result


@virtual
async def test_they_may_change_answer_and_refuse() -> None:
    log: list[Any] = []
    server = server_builder(log).interceptor(Rewrite())
    async with connected_pair(server, RpcClient.builder().interceptor(Rewrite())) as (_, client):
        got: dict[str, Any] = {}
        assert await client.request("add", [1], response_metadata=got) == 1101
        assert got == {"seen": "yes"}
        assert await client.request("fails") == "answered without the handler"
        for awaitable in (
            client.request("forbidden"),
            anext(client.request_stream("forbidden")),
            client.emit("forbidden", 1),
        ):
            assert isinstance(await outcome(awaitable), PermissionDenied)
        await client.emit("told", 21)
        await asyncio.sleep(0.1)
        assert log == [("told", 42)]
        assert idle(client)


class Instead(Interceptor):
    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        return 7


@virtual
async def test_an_answer_instead_of_a_call() -> None:
    async with connected_pair(None, RpcClient.builder().interceptor(Instead())) as (_, client):
        assert await client.request("anything") == 7
        with pytest.raises(ConfigurationError, match="many results"):
            await anext(client.request_stream("anything"))


@virtual
async def test_leaving_a_stream_ends_what_stands_around_it() -> None:
    log: list[Any] = []
    server = server_builder([])
    client = RpcClient.builder().interceptor(Recorder("c", log))
    async with connected_pair(server, client) as (started, connected):
        async for value in connected.request_stream("many", 1_000_000):
            assert value == 0
            break
        await asyncio.sleep(0.1)
        assert log == [("c", "out", "call", "many"), ("c", "out", "end")]
        assert idle(connected)
        assert idle(await session_of(started))
        begin = asyncio.create_task(anext(connected.request_stream("many", 1)))
        await asyncio.sleep(0)
        begin.cancel()
        await asyncio.wait((begin,))
        await asyncio.sleep(0.1)
        assert idle(connected)


def test_what_is_no_interceptor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="wants an Interceptor"):
        RpcServer.builder().interceptor(object())  # type: ignore[arg-type]


def test_nothing_stands_around_where_there_is_none() -> None:
    """Routes are the plain ones, and one attribute says so for what goes out."""
    plain = server_builder([]).bind(":0").build()
    route = plain._config.routes.handlers.get("add")
    assert route.call.__name__ == "<lambda>"
    assert plain._config.outgoing is None
    only_in = type("OnlyIn", (Interceptor,), {"incoming": Rewrite.incoming})()
    assert server_builder([]).bind(":0").interceptor(only_in).build()._config.outgoing is None
