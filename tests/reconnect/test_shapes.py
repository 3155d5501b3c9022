"""Streaming calls, interceptors and acknowledged events of a client that comes back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from rpc_support import outcome, session_of, virtual
from test_reconnect import WIRE, client, down, server

from echostream import MethodNotFound, RpcError, Session, Unavailable
from echostream.builder import ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Status
from echostream.errors import ConnectionClosed, DeadlineExceeded, InternalError
from echostream.rpc.call import current_call
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed
from echostream.rpc.retry import RetryPolicy
from echostream.testing import Impairment, QuicNetwork

HOLE = Impairment(blackhole=True)


async def count(first: int) -> AsyncIterator[int]:
    for number in range(first, first + 3):
        yield number


async def endless() -> AsyncIterator[int]:
    yield 1
    await asyncio.sleep(3600)


async def total(numbers: AsyncIterator[int]) -> int:
    return sum([number async for number in numbers])


def shapes() -> ServerBuilder:
    builder = server().handler("count", count).handler("endless", endless)
    return builder.handler("total", total)


async def nothing() -> None:
    pass


async def items(*values: int) -> AsyncIterator[int]:
    for value in values:
        yield value


async def listed(stream: Any) -> list[Any]:
    return [value async for value in stream]


@virtual
async def test_streaming_calls_wait_for_the_next_connection() -> None:
    async with QuicNetwork() as network:
        first = await network.serve(shapes())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        assert await listed(connected.request_stream("count", 5, returns=int)) == [5, 6, 7]
        begun = connected.request_stream("endless")
        assert await anext(begun) == 1
        adding = asyncio.create_task(
            outcome(connected.request("total", endless(), idempotent=True))
        )
        await asyncio.sleep(0.1)
        await network.kill(first)
        assert isinstance(await outcome(anext(begun)), ConnectionClosed)
        assert isinstance(await adding, Unavailable)  # its arguments cannot be had again
        await down(connected)
        counting = asyncio.create_task(listed(connected.request_stream("count", 1)))
        summing = asyncio.create_task(connected.request("total", items(1, 2, 3)))
        hasty = await outcome(anext(connected.request_stream("count", 1, timeout=0.1)))
        assert isinstance(hasty, DeadlineExceeded)
        await network.serve(shapes())
        assert await counting == [1, 2, 3]
        assert await summing == 6


@virtual
async def test_a_streaming_call_that_a_leaving_server_refuses_begins_again() -> None:
    """The call is on its way when the server says GOAWAY."""
    async with QuicNetwork() as network:
        first = await network.serve(shapes())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        held = asyncio.create_task(outcome(connected.request("hold", timeout=1.0)))
        await asyncio.sleep(0.1)
        leaving = asyncio.create_task(first.shutdown(drain=3.0))
        await asyncio.sleep(0.001)
        counting = asyncio.create_task(listed(connected.request_stream("count", 4)))
        assert isinstance(await held, DeadlineExceeded)
        await leaving
        assert not counting.done()
        await network.serve(shapes())
        assert await counting == [4, 5, 6]


@virtual
async def test_interceptors_stand_around_all_connections_that_a_call_takes() -> None:
    seen: list[str] = []

    class Watch(Interceptor):
        async def outgoing(self, invocation: Invocation, proceed: Proceed) -> Any:
            seen.append(invocation.name)
            invocation.metadata["who"] = "me"
            return await proceed()

    async def whoami() -> str:
        current_call().response_metadata["seen"] = "yes"
        return str(current_call().metadata["who"])

    def serving() -> ServerBuilder:
        return shapes().handler("whoami", whoami).listener("note", nothing)

    retry = RetryPolicy(attempts=3)
    async with QuicNetwork() as network:
        first = await network.serve(serving())
        builder = client().interceptor(Watch()).retry(retry)
        connected = await network.connect(builder, up=WIRE, down=WIRE)
        await network.kill(first)
        await down(connected)
        extra: dict[str, str | bytes] = {}
        asking = asyncio.create_task(connected.request("whoami", response_metadata=extra))
        telling = asyncio.create_task(connected.emit("note", ack=True))
        counting = asyncio.create_task(listed(connected.request_stream("count", 0)))
        await asyncio.sleep(0.1)
        await network.serve(serving())
        assert await asking == "me"
        assert extra == {"seen": "yes"}
        await telling
        assert await counting == [0, 1, 2]
    assert Counter(seen) == {"whoami": 1, "note": 1, "count": 1}
    assert retry.retries == 0


@virtual
async def test_acknowledged_events_that_were_made_in_the_gap() -> None:
    async def fail() -> None:
        raise ValueError("on purpose")

    def serving() -> ServerBuilder:
        return server().listener("note", nothing).listener("fail", fail)

    async with QuicNetwork() as network:
        first = await network.serve(serving())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await network.kill(first)
        await down(connected)
        emits = [
            asyncio.create_task(outcome(connected.emit(name, ack=True)))
            for name in ("note", "fail", "nobody")
        ]
        hasty = await outcome(connected.emit("note", ack=True, timeout=0.1))
        assert isinstance(hasty, DeadlineExceeded)
        assert not any(emit.done() for emit in emits)
        await network.serve(serving())
        assert await emits[0] is None
        assert isinstance(await emits[1], InternalError)
        assert isinstance(await emits[2], MethodNotFound)
        link = connected._link
        assert link is not None
        assert len(link.emitters) == 0


@virtual
async def test_closing_ends_the_wait_for_acknowledgements() -> None:
    async with QuicNetwork() as network:
        first = await network.serve(server())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await network.kill(first)
        sent = asyncio.create_task(outcome(connected.emit("note", ack=True)))
        await down(connected)
        kept = asyncio.create_task(outcome(connected.emit("note", ack=True)))
        await asyncio.sleep(0.1)
        assert not sent.done()
        await connected.close()
        assert isinstance(await sent, ConnectionClosed)
        assert isinstance(await kept, ConnectionClosed)


@virtual
async def test_an_acknowledgement_that_went_with_its_connection() -> None:
    """The listener has run; the server that comes next knows that, but not what came of it."""
    ran = asyncio.Event()

    async def note() -> None:
        ran.set()

    async def on_resume(session: Session) -> int:
        return 1

    async with QuicNetwork() as network:
        first = await network.serve(server().listener("note", note))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await asyncio.sleep(0.2)
        network.impair(connected, up=WIRE, down=HOLE)
        emit = asyncio.create_task(outcome(connected.emit("note", ack=True)))
        await ran.wait()
        await network.kill(first)
        network.impair(connected, up=WIRE, down=WIRE)
        await network.serve(server().listener("note", note).on_resume(on_resume))
        answer = await emit
        assert isinstance(answer, Unavailable)
        assert not answer.unserved
        assert connected.link_statistics().connections == 2


def test_acknowledged_events_over_many_losses(seed: int) -> None:
    """Each is heard once and in order, and each emitter learns what its listener came to, also
    where the connection took the acknowledgement with it: the server remembers."""
    chance = random.Random(seed)
    heard: list[int] = []
    answers: list[BaseException | None] = []

    async def hear(number: int) -> None:
        heard.append(number)
        if chance.random() < 0.05:
            await asyncio.sleep(chance.random() * 0.1)
        if number % 7 == 0:
            raise RpcError("not this one", status=Status.ALREADY_EXISTS)

    async def talk(connected: RpcClient) -> None:
        waiting = []
        for number in range(600):
            waiting.append(asyncio.create_task(outcome(connected.emit("a", number, ack=True))))
            await asyncio.sleep(chance.random() * 0.02)
        answers.extend(await asyncio.gather(*waiting))

    @virtual
    async def main() -> None:
        path = Impairment(delay=0.015, jitter=0.01, loss=0.03)
        async with QuicNetwork(seed=seed) as network:
            serving = server().listener("a", hear).quic(keep_alive=0.5, idle_timeout=1.5)
            running = await network.serve(serving)
            connected = await network.connect(client(), up=path, down=path)
            await session_of(running)
            talking = asyncio.create_task(talk(connected))
            for _ in range(5):
                await asyncio.sleep(chance.random())
                network.impair(connected, up=HOLE, down=HOLE)
                await down(connected)
                network.impair(connected, up=path, down=path)
                await connected.wait_connected()
            await talking
            assert connected._link is not None
            assert len(connected._link.emitters) == 0
            assert connected._link.resumption.resent > 0

    main()
    assert heard == list(range(600))
    statuses = [answer.status if isinstance(answer, RpcError) else answer for answer in answers]
    assert statuses == [None if n % 7 else Status.ALREADY_EXISTS for n in range(600)]
