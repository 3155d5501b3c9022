"""The four shapes of a call, each from client to server and from server to client.

The cases of gRPC's interoperability tests (grpc/doc/interop-test-descriptions.md) are here under
their names, in this library's words.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from full_size import sized
from rpc_support import (
    WIRE,
    idle,
    outcome,
    quic_pair,
    raw_client,
    real,
    server_builder,
    session_of,
    turns,
    virtual,
)

from echostream import (
    Cancelled,
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    InvalidPayload,
    MethodNotFound,
    ResourceExhausted,
    RpcClient,
    RpcError,
    RpcServer,
)
from echostream.codes import Close, Reset, Status
from echostream.protocol import frames
from echostream.protocol.flow import RECEIVE_BYTES, WINDOW
from echostream.protocol.frames import encode_frame
from echostream.protocol.payload import encode
from echostream.rpc.call import current_call
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

DIRECTIONS = ("up", "down")


@dataclass
class Reply:
    body: bytes
    number: int = 0


class Seen:
    """What the handlers saw."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.given = 0
        self.taken = 0
        self.cancelled_at: list[float] = []
        self.ended = asyncio.Event()


def handlers(seen: Seen) -> list[tuple[str, Callable[..., Any]]]:
    async def empty() -> None:
        """Nothing in, nothing out."""

    async def unary(size: int) -> Reply:
        return Reply(bytes(size))

    async def sizes(parts: AsyncIterator[bytes]) -> int:
        total = 0
        try:
            async for part in parts:
                total += len(part)
                seen.taken += 1
        except asyncio.CancelledError:
            seen.cancelled += 1
            seen.cancelled_at.append(asyncio.get_running_loop().time())
            raise
        finally:
            seen.ended.set()
        return total

    async def replies(wanted: list[int]) -> AsyncIterator[Reply]:
        for number, size in enumerate(wanted):
            yield Reply(bytes(size), number)

    async def forever(start: int) -> AsyncIterator[int]:
        try:
            while True:
                seen.given += 1
                yield start
                start += 1
        finally:
            seen.cancelled += 1
            seen.cancelled_at.append(asyncio.get_running_loop().time())
            seen.ended.set()

    async def ping_pong(wanted: AsyncIterator[int]) -> AsyncIterator[Reply]:
        try:
            async for size in wanted:
                yield Reply(bytes(size), size)
        finally:
            seen.cancelled += 1
            seen.ended.set()

    async def status(code: int) -> None:
        raise RpcError("test status message", status=code, details={"why": [1, 2]})

    async def status_later(code: int) -> AsyncIterator[int]:
        for number in range(3):
            yield number
        raise RpcError("test status message", status=code, details={"why": [1, 2]})

    async def sleeps(values: AsyncIterator[int]) -> AsyncIterator[int]:
        try:
            async for value in values:
                await asyncio.sleep(3600)
                yield value
        finally:
            seen.cancelled += 1

    async def metadata() -> Any:
        call = current_call()
        call.response_metadata["x-echo-trailing"] = call.metadata["x-echo"]
        return None

    async def metadata_stream(values: AsyncIterator[int]) -> AsyncIterator[int]:
        call = current_call()
        async for value in values:
            yield value
        call.response_metadata["x-echo-trailing"] = call.metadata["x-echo"]

    async def first_two(values: AsyncIterator[int]) -> list[int]:
        return [await anext(values), await anext(values)]

    async def lenient(values: AsyncIterator[int]) -> list[int]:
        good = []
        while True:
            try:
                good.append(await anext(values))
            except InvalidPayload:
                seen.taken += 1
            except StopAsyncIteration:
                return good

    functions = (
        empty,
        unary,
        sizes,
        replies,
        forever,
        ping_pong,
        status,
        status_later,
        sleeps,
        metadata,
        metadata_stream,
        first_two,
        lenient,
    )
    return [(function.__name__, function) for function in functions]


@asynccontextmanager
async def caller(
    direction: str, seen: Seen, *, wire: Impairment = WIRE, **limits: int
) -> AsyncIterator[Any]:
    """One side that calls the other, over a path with a delay; nothing is left behind."""
    server, client = RpcServer.builder(), RpcClient.builder()
    serving = server if direction == "up" else client
    for name, function in handlers(seen):
        serving.handler(name, function)
    if limits:
        serving.limits(**limits)
    async with connected_pair(server, client, up=wire, down=wire) as (started, connected):
        session = await session_of(started)
        yield connected if direction == "up" else session
        await asyncio.sleep(1)
        assert idle(session)
        assert idle(connected)


async def counted(count: int, value: Any = 1) -> AsyncIterator[Any]:
    for _ in range(count):
        yield value


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_empty_unary(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        assert await side.request("empty") is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_large_unary(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        assert await side.request("unary", 314_159, returns=Reply) == Reply(bytes(314_159))


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_client_streaming(direction: str) -> None:
    async def payloads() -> AsyncIterator[bytes]:
        for size in (27_182, 8, 1_828, 45_904):
            yield bytes(size)

    async with caller(direction, Seen()) as side:
        assert await side.request("sizes", payloads(), returns=int) == 74_922


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_server_streaming(direction: str) -> None:
    wanted = [31_415, 9, 2_653, 58_979]
    async with caller(direction, Seen()) as side:
        got = [r async for r in side.request_stream("replies", wanted, returns=Reply)]
        assert got == [Reply(bytes(size), number) for number, size in enumerate(wanted)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_ping_pong(direction: str) -> None:
    turn: asyncio.Queue[int | None] = asyncio.Queue()

    async def pings() -> AsyncIterator[int]:
        while (size := await turn.get()) is not None:
            yield size

    async with (
        caller(direction, Seen()) as side,
        side.request_stream("ping_pong", pings(), returns=Reply) as pongs,
    ):
        for size in (31_415, 9, 2_653, 58_979):
            turn.put_nowait(size)
            assert await anext(pongs) == Reply(bytes(size), size)
        turn.put_nowait(None)
        assert await anext(pongs, None) is None
        assert await anext(pongs, None) is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_empty_stream(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        assert [r async for r in side.request_stream("ping_pong", counted(0))] == []
        assert await side.request("sizes", counted(0)) == 0
        assert [r async for r in side.request_stream("replies", [])] == []


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_status_code_and_message(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        with pytest.raises(RpcError, match="test status message") as unary:
            await side.request("status", 2)
        got = []
        with pytest.raises(RpcError, match="test status message") as stream:
            async for value in side.request_stream("status_later", 9):
                got.append(value)  # noqa: PERF401 - what came before the error counts
        assert got == [0, 1, 2]
        assert (unary.value.status, stream.value.status) == (2, Status.FAILED_PRECONDITION)
        for error in (unary.value, stream.value):
            assert error.details == {"why": [1, 2]}
            assert error.method in ("status", "status_later")


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_unimplemented_method(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        for awaitable in (
            side.request("statu", 2),
            side.request("statu", counted(2)),
            anext(side.request_stream("statu", 2)),
            anext(side.request_stream("statu", counted(100_000))),
        ):
            error = await outcome(awaitable)
            assert isinstance(error, MethodNotFound)
            assert "did you mean 'status'" in error.message


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_cancel_after_begin(direction: str) -> None:
    seen, closed = Seen(), []

    async def never() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.sleep(3600)
        finally:
            closed.append(True)

    async with caller(direction, seen) as side:
        request = asyncio.create_task(side.request("sizes", never()))
        await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert closed == [True]
        await seen.ended.wait()
        assert seen.cancelled == 1
        assert seen.cancelled_at[0] - now <= 0.03


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("how", ["aclose", "break", "task", "timeout", "dropped"])
@virtual
async def test_cancel_after_first_response(direction: str, how: str) -> None:
    """However the reader leaves, the handler sees it one way later."""
    seen = Seen()
    loop = asyncio.get_running_loop()

    async def read(side: Any) -> None:
        stream = side.request_stream("forever", 1, timeout=1.0 if how == "timeout" else None)
        assert await anext(stream) == 1
        if how == "aclose":
            await stream.aclose()
        elif how in ("task", "timeout"):
            async for _ in stream:
                await asyncio.sleep(0.01)

    async def leave(side: Any) -> None:
        async for value in side.request_stream("forever", 1):
            assert value == 1
            break

    async with caller(direction, seen) as side:
        began = loop.time()
        if how == "break":
            await leave(side)
        else:
            task = asyncio.create_task(read(side))
            if how == "task":
                await asyncio.sleep(0.5)
                task.cancel()
            result = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 2)
            del task
            if how == "timeout":
                assert isinstance(result[0], DeadlineExceeded)
                assert loop.time() - began == pytest.approx(1.0, abs=0.02)
        now = loop.time()
        await seen.ended.wait()
        assert seen.cancelled == 1
        assert seen.cancelled_at[0] - now <= 0.03
        assert await side.request("empty") is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_timeout_on_sleeping_server(direction: str) -> None:
    seen = Seen()
    async with caller(direction, seen) as side:
        with pytest.raises(DeadlineExceeded):
            await anext(side.request_stream("sleeps", counted(3), timeout=0.2))
        await asyncio.sleep(0.05)
        assert seen.cancelled == 1


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_custom_metadata(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        got: dict[str, str | bytes] = {}
        value = b"\x0a\x0b\x0a\x0b"
        await side.request("metadata", metadata={"x-echo": value}, response_metadata=got)
        assert got == {"x-echo-trailing": value}
        stream = side.request_stream("metadata_stream", counted(2), metadata={"x-echo": "abc"})
        assert [v async for v in stream] == [1, 1]
        assert stream.metadata == {"x-echo-trailing": "abc"}


# Beyond gRPC's cases.


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_the_shape_has_to_be_the_handlers(direction: str) -> None:
    async with caller(direction, Seen()) as side:
        for awaitable, said in (
            (side.request("replies", [1]), "call it with request_stream()"),
            (anext(side.request_stream("unary", 1)), "call it with request()"),
            (side.request("sizes", b"x"), "call it with an async iterator"),
            (side.request("unary", counted(1)), "not an async iterator"),
        ):
            error = await outcome(awaitable)
            assert isinstance(error, MethodNotFound)
            assert said in error.message


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_items_are_typed(direction: str) -> None:
    async def mixed() -> AsyncIterator[Any]:
        for value in (1, "two", 3):
            yield value

    seen = Seen()
    async with caller(direction, seen) as side:
        with pytest.raises(InvalidPayload, match=r"item 2: Expected `int`, got `str`"):
            await side.request("first_two", mixed())
        assert await side.request("lenient", mixed()) == [1, 3]
        assert seen.taken == 1
        with pytest.raises(InvalidPayload, match="Expected `str`, got `int`"):
            await anext(side.request_stream("forever", 1, returns=str))
        await seen.ended.wait()


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_an_answer_ends_the_arguments(direction: str) -> None:
    """A handler need not take all: the rest is not produced."""
    produced, closed = [], []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                produced.append(1)
                yield len(produced)
        finally:
            closed.append(True)

    async with caller(direction, Seen()) as side:
        assert await side.request("first_two", endless()) == [1, 2]
        assert closed == [True]
        assert len(produced) < 1000


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_a_slow_reader_slows_the_handler(direction: str) -> None:
    seen = Seen()
    async with caller(direction, seen) as side:
        async with side.request_stream("forever", 0) as stream:
            for number in range(3):
                assert await anext(stream) == number
            await asyncio.sleep(10)
            assert WINDOW <= seen.given <= WINDOW + 3
            for number in range(3, 1000):
                assert await anext(stream) == number
        await seen.ended.wait()


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_a_slow_handler_slows_the_arguments(direction: str) -> None:
    """Large items are held up by bytes long before their number counts; calls go on."""
    sent = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield bytes(64 * 1024)

    async with caller(direction, Seen()) as side:
        task = asyncio.create_task(anext(side.request_stream("sleeps", large())))
        await asyncio.sleep(5)
        window = (1 << 20) + RECEIVE_BYTES + (256 << 10)
        assert sent * 64 * 1024 < window + 4 * 64 * 1024
        assert await side.request("empty", timeout=1) is None
        task.cancel()
        await asyncio.wait((task,))


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_the_iterator_of_arguments_fails(direction: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.sleep(0.1)
        raise ZeroDivisionError("mine")

    async def unsendable() -> AsyncIterator[Any]:
        yield b"1"
        await asyncio.sleep(0.1)
        yield object()

    seen = Seen()
    async with caller(direction, seen) as side:
        with pytest.raises(ZeroDivisionError, match="mine"):
            await side.request("sizes", broken())
        with pytest.raises(InvalidPayload, match="object cannot be sent"):
            await side.request("sizes", unsendable())
        await asyncio.sleep(0.1)
        assert seen.cancelled == 2


@virtual
async def test_limits_of_items_have_names() -> None:
    seen = Seen()
    async with caller("up", seen, message_size=4096) as side:
        with pytest.raises(ResourceExhausted, match="message_size is 4096"):
            await side.request("sizes", counted(1, bytes(5000)))
        assert await side.request("empty") is None


@virtual
async def test_a_stream_from_one_call_feeds_another() -> None:
    seen = Seen()
    async with caller("up", seen) as side:
        first = side.request_stream("replies", [3, 4])

        async def bodies() -> AsyncIterator[bytes]:
            async with aclosing(first):
                async for reply in first:
                    yield reply["body"]

        assert await side.request("sizes", bodies()) == 7


@virtual
async def test_pending_streams_end_with_the_connection() -> None:
    seen = Seen()
    server = RpcServer.builder()
    for name, function in handlers(seen):
        server.handler(name, function)
    async with connected_pair(server) as (_, client):

        async def patient() -> AsyncIterator[bytes]:
            await asyncio.sleep(3600)
            yield b""

        stream = client.request_stream("forever", 1)
        assert await anext(stream) == 1
        tasks = [
            asyncio.create_task(outcome(client.request("sizes", patient()))),
            asyncio.create_task(outcome(anext(client.request_stream("sleeps", patient())))),
        ]
        await turns()
        client._peer.close()
        for task in tasks:
            assert isinstance(await task, ConnectionClosed)
        with pytest.raises(ConnectionClosed):
            async for _ in stream:
                pass
        await turns()
        assert not client._peer.pumps
    assert seen.cancelled == 3


@virtual
async def test_two_tasks_cannot_read_one_stream() -> None:
    async with caller("up", Seen()) as side:
        stream = side.request_stream("sleeps", counted(1))
        first = asyncio.create_task(outcome(anext(stream)))
        await asyncio.sleep(0.1)
        with pytest.raises(ConfigurationError, match="two tasks"):
            await anext(stream)
        await stream.aclose()
        assert isinstance(await first, StopAsyncIteration)


@virtual
async def test_a_stream_that_was_never_begun_costs_nothing() -> None:
    async with caller("up", Seen()) as side:
        stream = side.request_stream("forever", 1)
        await stream.aclose()
        assert await anext(stream, None) is None
        with pytest.raises(ConfigurationError, match="timeout"):
            side.request_stream("forever", 1, timeout=-1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@virtual
async def test_random_cancellations_leave_nothing(direction: str) -> None:
    """Calls of all shapes, cancelled at random times: every handler hears of it."""
    count = sized(1_200, 10_000)
    rng = random.Random(8)
    running = [0]
    late: list[float] = []
    cancelled_at: dict[int, float] = {}
    loop = asyncio.get_running_loop()

    async def unary(number: int) -> int:
        return await work(number)

    async def work(number: int) -> int:
        running[0] += 1
        try:
            await asyncio.sleep(0.05)
        finally:
            running[0] -= 1
            if number in cancelled_at:
                late.append(loop.time() - cancelled_at[number])
        return number

    async def many(number: int) -> AsyncIterator[int]:
        for _ in range(5):
            yield await work(number)

    async def fed(numbers: AsyncIterator[int]) -> int:
        total = 0
        async for number in numbers:
            total += await work(number)
        return total

    async def both(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield await work(number)

    async def one(side: Any, number: int) -> None:
        shape = number % 4
        if shape == 0:
            await side.request("unary", number)
        elif shape == 1:
            async for _ in side.request_stream("many", number):
                pass
        elif shape == 2:
            await side.request("fed", counted(3, number))
        else:
            async for _ in side.request_stream("both", counted(3, number)):
                pass

    server, client = RpcServer.builder(), RpcClient.builder()
    for function in (unary, many, fed, both):
        (server if direction == "up" else client).handler(function.__name__, function)
    async with connected_pair(server, client, up=WIRE, down=WIRE, seed=8) as (started, connected):
        session = await session_of(started)
        side = connected if direction == "up" else session

        async def canceller(numbers: list[int]) -> None:
            for number in numbers:
                task = asyncio.create_task(one(side, number))
                await asyncio.sleep(rng.random() * 0.25)
                if not task.done():
                    cancelled_at[number] = loop.time()
                    task.cancel()
                await asyncio.wait((task,))

        await asyncio.gather(*(canceller(list(range(k, count, 40))) for k in range(40)))
        await asyncio.sleep(0.2)
        gc.collect()
        assert running == [0]
        assert len(late) > count // 5
        assert max(late) <= 0.03  # a round trip is 0.02
        assert idle(session)
        assert idle(connected)
        for peer in (session._peer, connected._peer):
            assert not peer.protocol.inbox._incoming or len(peer.protocol.inbox._incoming) < 12
            assert len(peer.connection.engine._sending) < 12
        other = session if direction == "up" else connected
        assert other.statistics().tasks == 0
        assert len(asyncio.all_tasks()) < 12


@pytest.mark.parametrize("direction", DIRECTIONS)
@real
async def test_all_shapes_over_quic(direction: str) -> None:
    seen = Seen()
    server, client = server_builder(), RpcClient.builder()
    for name, function in handlers(seen):
        (server if direction == "up" else client).handler(name, function)
    async with quic_pair(server, client) as (started, connected):
        session = await session_of(started)
        side: Any = connected if direction == "up" else session
        assert await side.request("sizes", counted(200, bytes(3000))) == 600_000
        wanted = [1000] * 300
        got = [r.number async for r in side.request_stream("replies", wanted, returns=Reply)]
        assert got == list(range(300))
        assert [r["number"] async for r in side.request_stream("ping_pong", counted(9))] == [1] * 9
        for _ in range(300):  # more than the peer lets be open at a time
            async for value in side.request_stream("forever", 5):
                assert value == 5
                break
        with pytest.raises(DeadlineExceeded):
            await side.request("sizes", _slow(), timeout=0.05)
        await side.request("empty")
        while not (idle(session) and idle(connected)):  # noqa: ASYNC110 - the end of cancellations
            await asyncio.sleep(0.01)


async def _slow() -> AsyncIterator[bytes]:
    yield b""
    await asyncio.sleep(3600)


# Peers that keep no rules.


def _request(name: str, call_id: int = 0, *, more: bool = True, credit: int = -1) -> bytes:
    flags = 0 if more else frames.END
    return encode_frame(frames.REQUEST, call_id, b"", flags, name, None, -1, credit)


def _item(number: int, value: Any = b"x", call_id: int = 0) -> bytes:
    return encode_frame(frames.ITEM, call_id, encode(value), 0, None, None, -1, number)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([_request("sizes"), _item(1)], "ITEM 1 of call 0, 0 was next"),
        ([_request("sizes"), _item(0, call_id=2)], "not its own"),
        ([_request("sizes"), _request("sizes", 2)], "bidirectional stream of its own"),
        ([_request("sleeps", credit=1), *(_item(n, 1) for n in range(66))], "beyond the credit"),
        ([_item(0)], "not its own"),
    ],
)
@virtual
async def test_items_that_break_the_rules(sent: list[bytes], why: str) -> None:
    server = RpcServer.builder()
    for name, function in handlers(Seen()):
        server.handler(name, function)
    async with raw_client(server) as (_, raw):
        raw.send(b"".join(sent), raw.engine.open_stream(True))
        closed = await raw.closed()
        assert closed.code == Close.PROTOCOL_ERROR
        assert why in closed.reason


@virtual
async def test_a_streaming_call_needs_a_bidirectional_stream() -> None:
    async with raw_client(RpcServer.builder()) as (_, raw):
        raw.send(_request("sizes"))
        assert "bidirectional" in (await raw.closed()).reason


@virtual
async def test_a_call_that_is_reset_before_its_request_is_answered_by_the_end() -> None:
    async with raw_client(RpcServer.builder()) as (server, raw):
        stream = raw.engine.open_stream(True)
        raw.engine.reset_stream(stream, Reset.CANCELLED)
        raw.connection.wake()
        await turns(20)
        session = await session_of(server)
        engine: Any = session._peer.connection.engine
        assert stream not in engine._sending
        assert not session._peer.protocol.inbox._incoming.get(stream)


@virtual
async def test_streaming_calls_count_towards_the_limit_of_calls() -> None:
    """Opened as fast as the peer's streams allow, and cancelled: 8 run, 8 wait, the rest is refused
    by name, and nothing stays."""
    seen = Seen()
    server = RpcServer.builder().limits(calls=8)
    for name, function in handlers(seen):
        server.handler(name, function)
    async with raw_client(server) as (started, raw):
        session = await session_of(started)
        for call in range(0, 200, 2):
            raw.send(_request("sizes", call), raw.engine.open_stream(True))
        await turns(50)
        assert session.statistics().calls_running == 8
        refused = raw.of(frames.ERROR)
        assert len(refused) == 100 - 16
        assert {frame.number for frame in refused} == {Status.RESOURCE_EXHAUSTED}
        assert "limit calls=8" in (refused[0].name or "")
        for call in range(0, 200, 2):
            raw.send(encode_frame(frames.CANCEL, call, b"", 0, None, None, -1, Reset.CANCELLED))
        await turns(50)
        assert len(raw.of(frames.ERROR)) == 100
        assert idle(session)


@virtual
async def test_a_half_that_ends_without_its_last_item_is_a_cancellation() -> None:
    seen = Seen()
    server = RpcServer.builder()
    for name, function in handlers(seen):
        server.handler(name, function)
    async with raw_client(server) as (started, raw):
        stream = raw.send(_request("sizes") + _item(0), raw.engine.open_stream(True))
        while not seen.taken:  # noqa: ASYNC110 - a few turns
            await asyncio.sleep(0)
        raw.send(b"", stream, fin=True)
        await seen.ended.wait()
        assert seen.cancelled == 1
        (error,) = await raw.expect(frames.ERROR)
        assert error.number == Status.CANCELLED
        assert idle(await session_of(started))


@virtual
async def test_an_answer_that_is_cut_off_is_an_end() -> None:
    """A server that resets its half: the call fails, and its slot is free."""
    seen = Seen()
    async with caller("down", seen) as session:
        stream = session.request_stream("forever", 1)
        assert await anext(stream) == 1
        peer = session._peer
        (flow,) = peer.protocol.flows.values()
        peer.engine_event(_reset(flow.stream_id))
        with pytest.raises(Cancelled, match="gave the call up"):
            async for _ in stream:
                pass
        assert not peer.calls
        peer.protocol.cancel_call(flow.call_id)
        peer.connection.wake()
        await seen.ended.wait()


def _reset(stream_id: int) -> Any:
    from echostream.transport.engine import StreamReset

    return StreamReset(stream_id, Reset.HANDLER_FAILED)
