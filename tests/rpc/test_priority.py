"""What leaves first, what is too old to leave, and what interceptors see of broadcasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rpc_support import outcome, session_of, virtual

from echostream import RpcServer, Session
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.errors import ConfigurationError, DeadlineExceeded
from echostream.protocol.frames import FrameParser
from echostream.protocol.outbox import OWN_STREAM_SIZE, Outbox
from echostream.rpc.call import current_call
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed
from echostream.testing import Impairment, connected_pair, quic_pair

NARROW = Impairment(delay=0.02, rate=62_500, queue=100)
"""500 kbit/s."""


class Lanes:
    """A carrier that notes what is written, in order."""

    is_client = True
    window_left = 0

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []
        self.urgency: list[int] = []
        self.ahead: dict[int, int] = {}

    def open_stream(self, bidirectional: bool, urgency: int) -> int:
        self.urgency.append(urgency)
        return len(self.urgency) - 1

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        parser = FrameParser(1 << 24)
        parser.feed(data)
        while parser.next():
            self.written.append((stream_id, parser.payload_bytes()[0]))

    def buffered(self, stream_id: int) -> int:
        return self.ahead.get(stream_id, 0)

    unsent = buffered


def test_the_outbox_writes_by_priority_and_keeps_the_order_of_a_name() -> None:
    lanes = Lanes()
    outbox = Outbox(lanes)  # type: ignore[arg-type]
    outbox.event("late", b"\x01", priority=7)
    outbox.event("usual", b"\x02")
    outbox.event("late", b"\x03", priority=0)  # behind what waits of its name
    outbox.event("urgent", b"\x04", priority=0)
    outbox.flush(0.0)
    assert [value for _, value in lanes.written] == [4, 2, 1, 3]
    assert outbox.idle
    lanes.written.clear()
    large = bytes(OWN_STREAM_SIZE)
    for priority, first in ((7, 5), (0, 6), (3, 7)):
        frame = _request(bytes([first]) + large)
        outbox.call(frame, priority)
    outbox.call(_request(b"\x08"), 7)
    outbox.call(_request(b"\x09"), 1)
    outbox.flush(0.0)
    assert [value for _, value in lanes.written] == [9, 8, 6]  # one large call fills what is left
    stream = lanes.written[-1][0]
    lanes.ahead[stream] = len(large)
    outbox.flush(0.0)
    assert len(lanes.written) == 3
    lanes.ahead[stream] = 0
    outbox.flush(0.0)
    assert [value for _, value in lanes.written[3:]] == [7]
    assert lanes.urgency[stream] < lanes.urgency[lanes.written[-1][0]]


def _request(payload: bytes) -> bytes:
    from echostream.protocol import frames

    return frames.encode_frame(frames.REQUEST, 0, payload, frames.END, "x")


@virtual
async def test_an_urgent_call_passes_those_that_use_up_the_limit() -> None:
    async def hold(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return current_call().method

    server = RpcServer.builder().handler("hold", hold).limits(calls=8)
    async with connected_pair(server) as (_, client):
        order: list[int] = []

        async def call(priority: int, seconds: float) -> None:
            await client.request("hold", seconds, priority=priority)
            order.append(priority)

        tasks = [asyncio.create_task(call(7, 10.0)) for _ in range(20)]
        tasks += [asyncio.create_task(call(3, 1.0)) for _ in range(3)]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(call(0, 0.5)) for _ in range(2)]
        await asyncio.gather(*tasks)
        # Six of bulk and two usual ones used up the eight that run; the urgent ones came after the
        # third usual one, and before it.
        assert order == [3, 3, 0, 0, 3] + [7] * 20


@pytest.mark.parametrize("direction", ["arguments", "results"])
@virtual
async def test_items_that_wait_too_long_are_dropped_and_counted(direction: str) -> None:
    """Each of 5 KB, 20 a second, over a path that carries 12: those that arrive are fresh."""
    ages: list[float] = []
    loop = asyncio.get_running_loop()

    async def source() -> AsyncIterator[tuple[float, bytes]]:
        begin = loop.time()
        for number in range(100):
            yield loop.time(), bytes(5_000)
            await asyncio.sleep(max(begin + number * 0.05 - loop.time(), 0))

    async def take(values: AsyncIterator[tuple[float, bytes]]) -> None:
        async for sent, _ in values:
            ages.append(loop.time() - sent)

    async def give() -> AsyncIterator[tuple[float, bytes]]:
        current_call().max_age = 0.1
        async for value in source():
            yield value

    server = ServerBuilder().handler("take", take).handler("give", give)
    async with quic_pair(server, up=NARROW, down=NARROW) as (started, client):
        session = await session_of(started)
        if direction == "arguments":
            await client.request("take", source(), max_age=0.1)
            expired = client.statistics().expired
        else:
            async for sent, _ in client.request_stream("give", returns=tuple[float, bytes]):
                ages.append(loop.time() - sent)
            expired = session.statistics().expired
        assert len(ages) + expired == 100
        assert expired
        assert len(ages) > 40
        # Its path, what may be written ahead and what reno puts into the path's buffer.
        assert sorted(ages)[len(ages) // 2] < 1.0


@virtual
async def test_a_call_of_many_results_does_not_begin_too_late() -> None:
    async def hold() -> None:
        await asyncio.sleep(5)

    async def many() -> AsyncIterator[int]:
        yield 1

    server = RpcServer.builder().handler("hold", hold).handler("many", many).limits(calls=1)
    async with connected_pair(server) as (_, client):
        holding = asyncio.create_task(client.request("hold"))
        await asyncio.sleep(0.1)
        late = client.request_stream("many", max_age=1.0)
        assert isinstance(await outcome(anext(late)), DeadlineExceeded)
        await holding
        assert [value async for value in client.request_stream("many", max_age=1.0)] == [1]
        with pytest.raises(ConfigurationError):
            client.request_stream("many", max_age=-1)


@virtual
async def test_a_broadcast_passes_the_interceptors_once() -> None:
    seen: list[Any] = []

    class Stamp(Interceptor):
        async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
            seen.append((call.kind, call.name, call.payload, type(call.context).__name__))
            if call.payload == "secret":
                return None
            call.payload = call.payload.upper()
            call.metadata["stamp"] = "1"
            return await proceed()

    heard: list[Any] = []

    async def hear(text: str) -> None:
        heard.append((text, current_call().metadata.get("stamp")))

    server = RpcServer.builder().interceptor(Stamp())
    async with connected_pair(server, ClientBuilder().listener("said", hear)) as (started, _):
        session: Session = await session_of(started)
        room = started.context.group("room")
        room.join(session)
        assert await room.broadcast("said", "a") == 1
        assert await started.context.broadcast("said", "b") == 1
        assert await room.broadcast("said", "secret") == 0
        await asyncio.sleep(0.1)
        assert heard == [("A", "1"), ("B", "1")]
        assert seen == [
            ("event", "said", "a", "ServerContext"),
            ("event", "said", "b", "ServerContext"),
            ("event", "said", "secret", "ServerContext"),
        ]
