"""Requests: shapes of handlers, errors, cancellation, deadlines, limits."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
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
    ClientContext,
    ConnectionClosed,
    DeadlineExceeded,
    InternalError,
    InvalidPayload,
    MethodNotFound,
    PermissionDenied,
    ResourceExhausted,
    RpcClient,
    RpcError,
    RpcServer,
    Session,
    Unavailable,
    handler,
)
from echostream.codes import Status
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.protocol.payload import encode
from echostream.rpc.call import current_call
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment
from echostream.transport.memory import MemoryLink


@dataclass
class Point:
    x: int
    y: int = 0


class Tag(msgspec.Struct):
    name: str


class Options(TypedDict):
    volume: float


class Colour(enum.Enum):
    RED = "red"


async def an_int(value: int) -> int:
    return value + 1


async def a_point(session: Session, point: Point) -> Point:
    return Point(point.y, point.x)


async def a_tag(value: Tag) -> Tag:
    return value


async def options(value: Options) -> float:
    return value["volume"]


async def colour(value: Colour) -> Colour:
    return value


async def a_time(value: datetime) -> datetime:
    return value


async def maybe(value: int | None) -> bool:
    return value is None


async def doubled(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value * 2


async def plain(value: Any) -> Any:
    return value


async def nothing() -> None:
    """No context and no payload."""


async def who(session: Session) -> str:
    return session.id


async def unannotated(session, value):  # type: ignore[no-untyped-def]
    return [type(session).__name__, value]


class Service:
    @handler("service.add")
    async def add(self, session: Session, value: int) -> int:
        return value + 10

    async def __call__(self, value: int) -> int:
        return value + 20


def shapes() -> Any:
    service = Service()
    functions = (an_int, a_point, a_tag, options, colour, a_time, maybe, doubled, plain, nothing)
    builder = RpcServer.builder().handler(service.add).handler("object", service)
    for function in (*functions, who, unannotated):
        builder.handler(function.__name__, function)
    return builder


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "payload", "returns", "expected"),
    [
        ("an_int", 1, None, 2),
        ("a_point", Point(1, 2), Point, Point(2, 1)),
        ("a_point", {"x": 1}, None, {"x": 0, "y": 1}),
        ("a_tag", Tag("a"), Tag, Tag("a")),
        ("options", {"volume": 0.5}, float, 0.5),
        ("colour", Colour.RED, Colour, Colour.RED),
        ("a_time", NOON, datetime, NOON),
        ("maybe", None, bool, True),
        ("maybe", 3, bool, False),
        ("plain", {"a": [1, b"x", None]}, None, {"a": [1, b"x", None]}),
        ("nothing", None, None, None),
        ("service.add", 1, int, 11),
        ("object", 1, int, 21),
        ("unannotated", 1, None, ["Session", 1]),
    ],
)
@virtual
async def test_shapes_of_handlers(method: str, payload: Any, returns: Any, expected: Any) -> None:
    async with connected_pair(shapes()) as (_, client):
        assert await client.request(method, payload, returns=returns) == expected


@virtual
async def test_arrays_travel() -> None:
    async with connected_pair(shapes()) as (server, client):
        out = await client.request("doubled", np.ones((3, 2), np.float32))
        np.testing.assert_array_equal(out, np.full((3, 2), 2, np.float32))
        assert await client.request("who") == (await session_of(server)).id


@pytest.mark.parametrize(
    ("method", "payload", "where"),
    [
        ("an_int", "1", "$"),
        ("a_point", {"x": "one"}, "$.x"),
        ("options", {}, "volume"),
        ("colour", "blue", "blue"),
        ("doubled", np.ones(3, np.int16), "float32"),
    ],
)
@virtual
async def test_a_mismatch_names_the_field_and_runs_nothing(
    method: str, payload: Any, where: str
) -> None:
    async with connected_pair(shapes()) as (server, client):
        with pytest.raises(InvalidPayload, match=".") as caught:
            await client.request(method, payload)
        assert where in caught.value.message
        assert caught.value.method == method
        assert (await session_of(server)).statistics().calls_served == 0


@virtual
async def test_both_sides_call_even_inside_a_call() -> None:
    async def ask_back(session: Session, depth: int) -> int:
        return 0 if depth == 0 else 1 + await session.request("down", depth - 1, returns=int)

    async def down(ctx: ClientContext, depth: int) -> int:
        return 0 if depth == 0 else 1 + await ctx.request("up", depth - 1, returns=int)

    async with connected_pair(
        RpcServer.builder().handler("up", ask_back), RpcClient.builder().handler("down", down)
    ) as (_, client):
        assert await client.request("up", 20) == 20


class Refused(PermissionDenied):
    """A program's own subclass."""


@pytest.mark.parametrize(
    ("raised", "kind", "status", "message", "details"),
    [
        (RpcError("busy", status=Status.ABORTED), RpcError, Status.ABORTED, "busy", None),
        (RpcError("odd", status=77, details=[1]), RpcError, 77, "odd", [1]),
        (Refused("no", details={"k": 1}), PermissionDenied, 7, "no", {"k": 1}),
        (MethodNotFound("inner"), MethodNotFound, 12, "inner", None),
        (Unavailable(), Unavailable, 14, "", None),
        (RpcError("zero", status=0), RpcError, Status.UNKNOWN, "zero", None),
        (RpcError("x" * 300), RpcError, Status.UNKNOWN, "x" * 255, None),
        (RpcError("é" * 200), RpcError, Status.UNKNOWN, "é" * 127, None),
        (RpcError("\ud800"), RpcError, Status.UNKNOWN, "?", None),
        (RpcError(5), RpcError, Status.UNKNOWN, "5", None),  # type: ignore[arg-type]
        (RpcError("bad", status="no"), InternalError, 13, None, None),  # type: ignore[arg-type]
        (RpcError("bad", details=object()), InternalError, 13, None, None),
        (ValueError("secret"), InternalError, 13, None, None),
        (ConnectionClosed("secret"), InternalError, 13, None, None),
        (asyncio.CancelledError("secret"), Cancelled, 1, "the handler was cancelled", None),
    ],
    ids=repr,
)
@virtual
async def test_what_a_handler_raises(
    raised: BaseException, kind: type, status: int, message: str | None, details: Any, caplog: Any
) -> None:
    async def fail() -> None:
        raise raised

    async with connected_pair(RpcServer.builder().handler("fail", fail)) as (server, client):
        with caplog.at_level(logging.CRITICAL), pytest.raises(kind) as caught:
            await client.request("fail")
        error = caught.value
        assert type(error) is kind
        assert error.status == status
        assert "secret" not in str(error)
        if message is not None:
            assert error.message == message
        assert error.details == details
        assert error.method == "fail"
        assert idle(client)
        assert idle(await session_of(server))


@virtual
async def test_a_failing_handler_is_logged_where_it_failed(caplog: Any) -> None:
    async def fail() -> None:
        raise ValueError("only here")

    async with connected_pair(RpcServer.builder().handler("fail", fail)) as (_, client):
        with pytest.raises(InternalError):
            await client.request("fail")
    (record,) = [r for r in caplog.records if r.name == "echostream.rpc"]
    assert "only here" in str(record.exc_info)


@pytest.mark.parametrize("result", [object(), {1: 2}, {"a": object()}, 1 << 70])
@virtual
async def test_a_result_that_cannot_be_sent_is_the_handlers_fault(result: Any, caplog: Any) -> None:
    async def broken() -> Any:
        return result

    async with connected_pair(RpcServer.builder().handler("broken", broken)) as (_, client):
        with caplog.at_level(logging.CRITICAL), pytest.raises(InternalError):
            await client.request("broken")


@virtual
async def test_an_unknown_method_is_named_with_the_nearest() -> None:
    async with connected_pair(shapes()) as (_, client):
        with pytest.raises(MethodNotFound, match="did you mean 'an_int'"):
            await client.request("an_imt")


@virtual
async def test_metadata_and_deadline_are_seen_by_the_handler() -> None:
    seen = []

    async def look() -> None:
        call = current_call()
        seen.append((call.method, dict(call.metadata), call.deadline, call.time_remaining))

    link = Impairment(delay=0.1)
    async with connected_pair(RpcServer.builder().handler("look", look), up=link) as (_, client):
        await client.request("look", metadata={"trace": "t", "raw": b"\0"}, timeout=5)
        await client.request("look")
    ((_, metadata, deadline, left), (_, none, no_deadline, _)) = seen
    assert metadata == {"trace": "t", "raw": b"\0"}
    assert left == pytest.approx(5)
    assert deadline is not None
    assert (none, no_deadline) == ({}, None)
    with pytest.raises(LookupError):
        current_call()


def sleeper(log: list[str], *, stubborn: bool = False) -> Any:
    async def sleep(seconds: float) -> str:
        log.append("begin")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            log.append("cancelled")
            if not stubborn:
                raise
            await asyncio.sleep(3)
        log.append("end")
        return "done"

    return RpcServer.builder().handler("sleep", sleep)


@virtual
async def test_cancelling_the_caller_cancels_the_handler() -> None:
    log: list[str] = []
    async with connected_pair(sleeper(log), up=WIRE, down=WIRE) as (server, client):
        task = asyncio.create_task(client.request("sleep", 100.0))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert log == ["begin", "cancelled"]
        assert idle(client)
        assert idle(await session_of(server))


@pytest.mark.parametrize("stubborn", [False, True])
@virtual
async def test_a_deadline_ends_call_and_handler_within_a_round_trip(stubborn: bool) -> None:
    log: list[str] = []
    loop = asyncio.get_running_loop()
    async with connected_pair(sleeper(log, stubborn=stubborn), up=WIRE, down=WIRE) as (
        server,
        client,
    ):
        began = loop.time()
        with pytest.raises(DeadlineExceeded) as caught:
            await client.request("sleep", 100.0, timeout=1)
        assert caught.value.method == "sleep"
        assert loop.time() - began == pytest.approx(1, abs=0.02)
        await asyncio.sleep(0.05)
        assert log == ["begin", "cancelled"]
        await asyncio.sleep(5)  # whatever it answers later is nobody's
        assert idle(client)
        assert idle(await session_of(server))


@virtual
async def test_the_callee_keeps_the_deadline_by_itself() -> None:
    log: list[str] = []
    async with raw_client(sleeper(log, stubborn=True)) as (_, raw):
        raw.send(encode_frame(frames.REQUEST, 0, encode(100.0), frames.END, "sleep", None, 500_000))
        (error,) = await raw.expect(frames.ERROR)
        assert error.number == Status.DEADLINE_EXCEEDED
        await asyncio.sleep(10)
        assert raw.of(frames.RESPONSE) == []
        assert len(raw.of(frames.ERROR)) == 1


@virtual
async def test_max_age_of_a_call_that_cannot_leave() -> None:
    link = MemoryLink(up=Impairment(rate=2000), down=WIRE)
    async with connected_pair(shapes(), up=link.up, down=link.down) as (_, client):
        first = asyncio.gather(*(client.request("plain", bytes(16_000)) for _ in range(120)))
        await turns(2)
        with pytest.raises(DeadlineExceeded, match="max_age"):
            await client.request("plain", bytes(15_000), max_age=0.5)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


@virtual
async def test_a_cancel_that_overtakes_its_request() -> None:
    log: list[str] = []
    async with raw_client(sleeper(log)) as (server, raw):
        raw.send(encode_frame(frames.CANCEL, 0, b"", 0, None, None, -1, 0x10))
        await turns()
        raw.send(encode_frame(frames.REQUEST, 0, encode(1.0), frames.END, "sleep"))
        raw.send(encode_frame(frames.REQUEST, 2, encode(0.5), frames.END, "sleep"))
        (response,) = await raw.expect(frames.RESPONSE)
        assert response.id == 2
        assert [(error.id, error.number) for error in raw.of(frames.ERROR)] == [(0, 1)]
        assert log == ["begin", "end"]
        raw.send(encode_frame(frames.CANCEL, 2, b"", 0))  # after its end: nothing
        await turns()
        assert idle(await session_of(server))


@virtual
async def test_half_of_ten_thousand_calls_are_cancelled(seed: int) -> None:
    chance = random.Random(seed)
    cancelled = finished = 0

    async def work(seconds: float) -> float:
        nonlocal cancelled, finished
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        finished += 1
        return seconds

    up = Impairment(delay=0.02, jitter=0.03, loss=0.05)
    async with connected_pair(
        RpcServer.builder().handler("work", work).limits(calls=1000), up=up, down=up, seed=seed
    ) as (server, client):
        session = await session_of(server)
        before = len(asyncio.all_tasks())

        async def one(index: int) -> str:
            seconds = chance.random() * 0.2
            call = asyncio.create_task(client.request("work", seconds))
            if index % 2:
                try:
                    async with asyncio.timeout(chance.random() * 0.3):
                        assert await call == seconds
                except TimeoutError:
                    return "cancelled"
                return "answered"
            assert await call == seconds
            return "answered"

        results: list[str] = []
        for start in range(0, 10_000, 1000):
            results += await asyncio.gather(*(one(start + n) for n in range(1000)))
        assert 1000 < results.count("cancelled") <= 5000
        await asyncio.sleep(5)
        assert cancelled > 500
        assert finished >= results.count("answered")
        assert idle(client)
        assert idle(session)
        assert len(asyncio.all_tasks()) == before
        assert len(session._live_peer.protocol.inbox._incoming) < 12  # type: ignore[union-attr]


@virtual
async def test_the_limit_of_calls_is_kept_by_waiting() -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    builder = RpcServer.builder().handler("work", work).limits(calls=3)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        await asyncio.gather(*(client.request("work") for _ in range(50)))
        assert most == 3
        held = asyncio.gather(*(client.request("work") for _ in range(3)))
        await turns(1)
        with pytest.raises(DeadlineExceeded, match="calls=3"):
            await client.request("work", timeout=0.005)
        await held


@virtual
async def test_a_cancelled_waiter_does_not_take_a_slot_with_it() -> None:
    builder = sleeper([]).limits(calls=1)
    async with connected_pair(builder) as (_, client):
        first = asyncio.create_task(client.request("sleep", 1.0))
        await turns(3)
        second = asyncio.create_task(client.request("sleep", 1.0))
        third = asyncio.create_task(client.request("sleep", 1.0))
        first.add_done_callback(lambda _: second.cancel())
        assert await first == "done"
        assert await third == "done"
        assert isinstance(await outcome(asyncio.wait_for(asyncio.shield(third), 1)), str)
        with pytest.raises(asyncio.CancelledError):
            await second


@virtual
async def test_calls_that_are_cancelled_and_repeated_keep_within_the_limit() -> None:
    log: list[str] = []
    up = Impairment(delay=0.02, jitter=0.05, loss=0.1)
    async with connected_pair(sleeper(log).limits(calls=4), up=up, down=WIRE, seed=3) as (_, c):
        for _ in range(200):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await asyncio.gather(*(c.request("sleep", 60.0) for _ in range(4)))
        assert await c.request("sleep", 0.0) == "done"


@virtual
async def test_a_peer_that_ignores_the_limit_is_refused_by_name() -> None:
    log: list[str] = []
    async with raw_client(sleeper(log).limits(calls=2)) as (server, raw):
        lane = raw.send(encode_frame(frames.REQUEST, 0, encode(0.0), frames.END, "sleep"))
        await raw.expect(frames.RESPONSE)
        log.clear()
        for index in range(1, 8):
            raw.send(
                encode_frame(frames.REQUEST, 2 * index, encode(9.0), frames.END, "sleep"), lane
            )
        errors = await raw.expect(frames.ERROR, 3)
        assert {e.number for e in errors} == {Status.RESOURCE_EXHAUSTED}
        assert "calls=2" in (errors[0].name or "")
        assert log == ["begin", "begin"]
        await raw.expect(frames.RESPONSE, 5)
        assert log == ["begin", "begin", "end", "end"] * 2
        assert idle(await session_of(server))


@pytest.mark.parametrize("size", [4097, 40_000, 200_000])
@virtual
async def test_messages_above_the_limit_are_refused_on_the_side_that_sends(size: int) -> None:
    async def big(count: int) -> bytes:
        return bytes(count)

    async def take(data: bytes) -> int:
        return len(data)

    server = RpcServer.builder().handler("big", big).handler("take", take)
    server.limits(message_size=4096)
    client_limits = RpcClient.builder().limits(message_size=4096)
    async with connected_pair(server, client_limits) as (_, client):
        with pytest.raises(ResourceExhausted, match="message_size is 4096"):
            await client.request("take", bytes(size))
        with pytest.raises(ResourceExhausted, match="message_size is 4096"):
            await client.emit("event", bytes(size))
        with pytest.raises(ResourceExhausted, match="message_size is 4096"):
            await client.request("big", size)
        assert await client.request("take", bytes(4000)) == 4000
        assert idle(client)


@virtual
async def test_an_oversize_request_of_a_hostile_peer_is_refused_and_the_rest_goes_on() -> None:
    async with raw_client(shapes().limits(message_size=4096)) as (server, raw):
        lane = raw.send(
            encode_frame(frames.REQUEST, 0, encode(bytes(100_000)), frames.END, "plain")
        )
        raw.send(encode_frame(frames.REQUEST, 2, encode(1), frames.END, "an_int"), lane)
        (error,) = await raw.expect(frames.ERROR)
        assert (error.id, error.number) == (0, Status.RESOURCE_EXHAUSTED)
        assert "message_size" in (error.name or "")
        (response,) = await raw.expect(frames.RESPONSE)
        assert response.id == 2
        assert (await session_of(server)).statistics().frames_oversize == 1


@virtual
async def test_limits_of_nesting_and_items_are_kept_on_both_sides() -> None:
    async with connected_pair(shapes().limits(nesting=4, items=64)) as (_, client):
        with pytest.raises(InvalidPayload):
            await client.request("plain", [[[[[[]]]]]])
        with pytest.raises(InvalidPayload):
            await client.request("plain", list(range(65)))
    async with raw_client(shapes().limits(nesting=4, items=64)) as (_, raw):
        raw.send(encode_frame(frames.REQUEST, 0, encode([[[[[[]]]]]]), frames.END, "plain"))
        (error,) = await raw.expect(frames.ERROR)
        assert error.number == Status.INVALID_ARGUMENT


@real
async def test_large_and_small_calls_together_over_quic() -> None:
    async def echo(data: bytes) -> bytes:
        return data

    async with quic_pair(server_builder().handler("echo", echo)) as (_, client):
        sizes = [0, 1, 16_000, 17_000, 100_000, 1_000_000, 4_000_000] * 3
        out = await asyncio.gather(*(client.request("echo", bytes(size)) for size in sizes))
        assert [len(data) for data in out] == sizes
        assert idle(client)
