"""The facade without ``async``: from this thread, from others, and not from a coroutine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest

from echostream import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    Identity,
    MethodNotFound,
    RpcClient,
    RpcServer,
    Session,
    StreamReceiver,
)
from echostream import sync as sync_module
from echostream.sync import Client, connect


class Calc(Protocol):
    async def add(self, values: list[int]) -> int: ...

    def count(self, to: int) -> AsyncIterator[int]: ...


class Calculator:
    cancelled = 0

    async def add(self, values: list[int]) -> int:
        return sum(values)

    async def count(self, to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
        finally:
            type(self).cancelled += 1


@pytest.fixture(scope="module")
def server() -> Iterator[RpcServer]:
    """A server on an event loop in another thread."""
    started: list[RpcServer] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def total(values: AsyncIterator[int]) -> int:
        return sum([value async for value in values])

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def bounce(session: Session, value: int) -> None:
        await session.emit("back", value)

    async def media(session: Session, stream: StreamReceiver) -> None:
        session.set("media", [item async for item in stream])

    async def media_count(session: Session) -> int:
        return len(session.get("media", default=[]))

    async def serve() -> None:
        builder = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral())
        builder.implement(Calc, Calculator()).stream_handler("media", media)
        builder.listener("bounce", bounce)
        for function in (total, sleep, media_count):
            builder.handler(function.__name__, function)
        async with builder.build() as running:
            started.append(running)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(20)
    yield started[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def client(server: RpcServer) -> Iterator[Client]:
    with connect(server.address, fingerprint=server.fingerprint) as connected:
        yield connected


def test_all_shapes(client: Client) -> None:
    assert client.request("calc.add", [1, 2], returns=int) == 3
    assert list(client.request_stream("calc.count", 3, returns=int)) == [0, 1, 2]
    assert client.request("total", iter([1, 2, 3])) == 6
    with pytest.raises(MethodNotFound):
        client.request("nobody")
    with pytest.raises(DeadlineExceeded):
        client.request("sleep", 30, timeout=0.05)
    client.emit("bounce", 1, ack=True)
    assert client.statistics().calls_pending == 0
    assert not client.clock.synchronized or client.clock.offset_ns is not None


def test_a_stream_that_is_left_is_cancelled(client: Client) -> None:
    before = Calculator.cancelled
    for number in client.request_stream("calc.count", 1_000_000):
        assert number == 0
        break
    client.request("calc.add", [])
    assert Calculator.cancelled == before + 1


def test_an_interface(client: Client) -> None:
    calc = client.bind(Calc)
    assert calc.add([4, 5]) == 9
    assert list(calc.count(2)) == [0, 1]


def test_streams(client: Client) -> None:
    with client.create_stream("media") as stream:
        for _ in range(3):
            stream.send(b"x")
    while client.request("media_count") != 3:
        pass
    with pytest.raises(ZeroDivisionError), client.create_stream("media") as stream:
        stream.send(b"x")
        stream.flush()
        raise ZeroDivisionError


def test_from_many_threads(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda n: client.request("calc.add", [n, n]), range(200)))
    assert sums == [2 * n for n in range(200)]


def test_handlers_run_in_the_loops_thread(server: RpcServer) -> None:
    heard: list[str] = []
    done = threading.Event()

    async def back(value: int) -> None:
        heard.append(threading.current_thread().name)
        done.set()

    builder = RpcClient.builder().connect(server.address).listener("back", back)
    with connect(builder.trust(fingerprint=server.fingerprint)) as client:
        client.emit("bounce", 1)
        assert done.wait(20)
    assert heard == ["echostream.sync"]
    with pytest.raises(ConnectionClosed):
        client.request("calc.add", [])
    client.close()
    with pytest.raises(ConfigurationError, match="the builder says"):
        connect(RpcClient.builder().connect(server.address), insecure=True)


def test_a_coroutine_is_told_to_await(client: Client) -> None:
    async def wrong(call: Callable[..., Any]) -> None:
        call("calc.add", [])

    with pytest.raises(ConfigurationError, match="use RpcClient and await"):
        asyncio.run(wrong(client.request))


def test_an_interrupt_cancels_the_call(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __init__(self, future: Any) -> None:
            self.future = future

        def result(self) -> None:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self.future.cancel()

    real = asyncio.run_coroutine_threadsafe
    futures: list[Any] = []

    def interrupted(coroutine: Any, loop: Any) -> Any:
        futures.append(real(coroutine, loop))
        return Interrupted(futures[-1])

    monkeypatch.setattr(sync_module.asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.request("sleep", 30)
    monkeypatch.undo()
    assert futures[0].cancelled()
    assert client.request("calc.add", [1]) == 1
