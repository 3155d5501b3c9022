"""What a peer may not do, and what it may do without harm."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rpc_support import RawClient, idle, outcome, raw_client, session_of, turns, virtual

from echostream import ResourceExhausted, RpcServer, StreamReceiver, StreamReset, Unavailable
from echostream.codes import Close, Reset, Status
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame, encode_media
from echostream.protocol.hello import Hello, Limits
from echostream.protocol.inbox import DATAGRAM_BACKLOG
from echostream.protocol.payload import encode
from echostream.transport.memory import memory_pair

OPTIONS = encode({"format": None, "codec": "pcm", "time_sync": False, "offset": 0, "epoch": 0})


def server(log: list[Any] | None = None) -> Any:
    async def echo(value: Any) -> Any:
        return value

    async def note(value: Any) -> None:
        if log is not None:
            log.append(value)

    async def read(stream: StreamReceiver) -> None:
        try:
            async for item in stream:
                if log is not None:
                    log.append(item)
        except StreamReset as exc:
            if log is not None:
                log.append(exc.code)

    builder = RpcServer.builder().handler("echo", echo).listener("note", note)
    return builder.stream_handler("read", read)


def request(call_id: int = 0, flags: int = frames.END, name: str | None = "echo") -> bytes:
    return encode_frame(frames.REQUEST, call_id, encode(1), flags, name)


def opening(alias: int = 0, name: str | None = "read", flags: int = 0) -> bytes:
    return encode_frame(frames.STREAM_OPEN, alias, OPTIONS, flags, name)


VIOLATIONS = {
    "request with our parity": [request(1)],
    "request without a name": [request(0, name=None)],
    "stream with our parity": [opening(1)],
    "stream without a name": [opening(0, name=None)],
    "event without a number": [encode_frame(frames.EVENT, 0, b"\xc0", 0, "note")],
    "event without a name": [encode_frame(frames.EVENT, 1, b"\xc0")],
    "hello on a lane": [encode_frame(frames.HELLO, 1, Hello().encode())],
    "goaway on a lane": [encode_frame(frames.GOAWAY, 0, b"")],
    "media that nobody opened": [encode_media(0, 0, 0, 0, b"x")],
    "media of another stream": [opening(0) + encode_media(2, 0, 0, 0, b"x")],
    "two opens on one stream": [opening(0) + opening(2)],
    "end of another stream": [opening(0) + encode_frame(frames.STREAM_END, 2, b"", 0)],
    "flush without an epoch": [encode_frame(frames.STREAM_FLUSH, 0, b"")],
    "flush of another stream": [
        opening(0) + encode_frame(frames.STREAM_FLUSH, 2, b"", frames.MARK, None, None, -1, 1)
    ],
    "an alias twice": [opening(0), opening(0)],
    "type zero": [b"\x00\x00\x00\x00"],
    "clock frame on a stream": [bytes([0x41]) + bytes(31)],
    "fields beyond the length": [bytes([frames.REQUEST, frames.NAME, 0, 1, 40])],
    "an event far ahead": [encode_frame(frames.EVENT, 1 << 20, b"\xc0", 0, "note")],
    "oversize open": [encode_frame(frames.STREAM_OPEN, 0, bytes(5 << 20), 0, "read")],
}


@pytest.mark.parametrize("what", VIOLATIONS)
@virtual
async def test_a_violation_closes_this_connection(what: str) -> None:
    async with raw_client(server()) as (started, raw):
        for data in VIOLATIONS[what]:
            raw.send(data)
        closed = await raw.closed()
        assert (closed.code, closed.by_peer) == (Close.PROTOCOL_ERROR, True), closed
        await turns(5)
        assert started.context.sessions == ()


@virtual
async def test_the_same_call_id_twice() -> None:
    async with raw_client(server().handler("wait", lambda_wait())) as (_, raw):
        raw.send(request(0, name="wait") * 2)
        assert (await raw.closed()).code == Close.PROTOCOL_ERROR


def lambda_wait() -> Any:
    async def wait(value: int) -> None:
        await asyncio.Event().wait()

    return wait


@pytest.mark.parametrize(
    "first",
    [
        request(),
        encode_frame(frames.HELLO, 1, b"\xc1"),
        encode_frame(frames.HELLO, 1, encode([])),
        encode_frame(frames.HELLO, 1, encode({"version": 0})),
        encode_frame(frames.HELLO, 1, encode({"version": 1, "capabilities": []})),
        encode_frame(frames.HELLO, 1, bytes(70_000)),
        encode_frame(frames.HELLO, 1, Hello().encode()) * 2,
        encode_frame(
            frames.HELLO,
            1,
            encode({"version": 1, "capabilities": [], "agent": "", "limits": {"calls": 0}}),
        ),
    ],
    ids=range(8),
)
@virtual
async def test_what_must_not_be_the_first_frame(first: bytes) -> None:
    async with raw_client(server(), greet=False) as (started, raw):
        raw.send(first)
        assert (await raw.closed()).code == Close.PROTOCOL_ERROR
        assert started.context.sessions == ()


@virtual
async def test_nothing_is_acted_on_before_hello_and_all_of_it_after() -> None:
    log: list[Any] = []
    async with raw_client(server(log), greet=False) as (_, raw):
        control = raw.engine.open_stream(False)
        for index in range(100):
            raw.send(encode_frame(frames.EVENT, index + 1, encode(index), 0, "note"))
        raw.send(request())
        await asyncio.sleep(1)
        assert log == []
        assert raw.of(frames.RESPONSE) == []
        raw.send(
            encode_frame(
                frames.HELLO,
                9,
                encode(
                    {
                        "version": 9,
                        "capabilities": ["x"],
                        "agent": "a",
                        "limits": {"new": 1},
                        "more": 1,
                    }
                ),
            ),
            control,
        )
        await raw.expect(frames.RESPONSE)
        await turns(200)
        assert sorted(log) == list(range(100))


@virtual
async def test_a_flood_before_hello_is_bounded_by_flow_control_and_time() -> None:
    async with raw_client(server(), greet=False) as (_, raw):
        raw.engine.open_stream(False)
        lane = raw.engine.open_stream(False)
        for _ in range(64):
            raw.send(encode_frame(frames.EVENT, 1, bytes(1 << 20), 0, "note"), lane)
        assert (await raw.closed()).code == Close.TIMEOUT
        assert raw.engine.buffered_total == 0
        assert raw.connection.engine._data_sent <= 8 << 20  # type: ignore[attr-defined]


@virtual
async def test_what_is_tolerated() -> None:
    log: list[Any] = []
    async with raw_client(server(log)) as (started, raw):
        session = await session_of(started)
        lane = raw.send(bytes([0x3F, 0, 5, 3]) + b"abc")  # an unknown type
        raw.send(encode_frame(frames.RESPONSE, 99, b"\xc0", frames.END), lane)
        raw.send(encode_frame(frames.ERROR, 99, b"", frames.END, None, None, -1, 13), lane)
        raw.send(encode_frame(frames.CANCEL, 98, b""), lane)
        raw.send(encode_frame(frames.CREDIT, 98, b"", 0, None, None, -1, 5), lane)
        for kind in (frames.STREAM_ACCEPT, frames.STREAM_ABORT, frames.STREAM_END):
            raw.send(encode_frame(kind, 98, b"", 0, None, None, -1, 5), lane)
        raw.datagram(b"\x00")
        raw.datagram(bytes([0x3F, 0, 5, 3]) + b"abc")
        raw.datagram(encode_media(98, 0, 0, 0, b"x"))
        raw.datagram(request())
        both = encode_frame(frames.EVENT, 0, encode(7), 0, "note")
        raw.datagram(both + both)
        raw.send(encode_frame(frames.EVENT, 1, encode("x" * 5), 0, "unknown"), lane)
        raw.send(encode_frame(frames.EVENT, 1, encode(1), 0, "note"), lane)  # a repeated number
        raw.send(request(), lane)
        (response,) = await raw.expect(frames.RESPONSE)
        assert response.payload == encode(1)
        await turns()
        assert log == [7, 7]
        counters = session.statistics()
        assert counters.late_answers == 2
        assert counters.events_unclaimed == 1
        assert counters.packets_unclaimed == 1
        assert counters.datagrams_bad == 2
        assert idle(session)


@pytest.mark.parametrize("stop", [2, 6])
@virtual
async def test_a_lane_that_is_stopped(stop: int) -> None:
    async with raw_client(server()) as (_, raw):
        raw.send(request())
        (response,) = await raw.expect(frames.RESPONSE)
        hello = raw.of(frames.HELLO)[0]
        raw.engine.stop_stream((hello if stop == 2 else response).stream_id, 0x10)
        raw.connection.wake()
        assert (await raw.closed()).code == Close.PROTOCOL_ERROR


@pytest.mark.parametrize("fin", [False, True])
@virtual
async def test_the_control_stream_must_stay(fin: bool) -> None:
    async with raw_client(server(), greet=False) as (_, raw):
        control = raw.greet()
        await raw.expect(frames.HELLO)
        if fin:
            raw.send(b"", control, fin=True)
        else:
            raw.engine.reset_stream(control, 0)
            raw.connection.wake()
        assert (await raw.closed()).code == Close.PROTOCOL_ERROR


@virtual
async def test_a_stream_that_ends_inside_a_frame() -> None:
    async with raw_client(server()) as (_, raw):
        raw.send(request()[:-1], fin=True)
        assert (await raw.closed()).code == Close.PROTOCOL_ERROR


@virtual
async def test_a_stream_that_is_reset_inside_a_frame_is_forgotten() -> None:
    async with raw_client(server()) as (started, raw):
        session = await session_of(started)
        for _ in range(300):
            lane = raw.send(encode_frame(frames.REQUEST, 0, bytes(9000), 0, "echo")[:5000])
            await turns(6)
            raw.engine.reset_stream(lane, Reset.CANCELLED)
            raw.connection.wake()
            await turns(6)
        inbox = session._live_peer.protocol.inbox  # type: ignore[union-attr]
        assert len(inbox._incoming) == 1
        assert inbox.assembling == 0


@virtual
async def test_incomplete_frames_are_bounded() -> None:
    async with raw_client(server().limits(message_size=4096, assembly=200_000)) as (_, raw):
        for _ in range(32):
            raw.send(encode_frame(frames.REQUEST, 0, bytes(36_000), 0, "echo")[:-1])
        await asyncio.sleep(1)
        assert len(raw.stops) == 32 - 200_000 // 36_000
        assert {code for _, code in raw.stops} == {Reset.TOO_LARGE}


@virtual
async def test_an_oversize_event_is_skipped_and_holds_up_nothing() -> None:
    log: list[Any] = []
    async with raw_client(server(log).limits(message_size=4096)) as (_, raw):
        raw.send(encode_frame(frames.EVENT, 2, encode(2), 0, "note", None, -1, 1))
        await turns()
        assert log == []
        raw.send(encode_frame(frames.EVENT, 1, bytes(50_000), 0, "note"))
        await turns(20)
        assert log == [2]


@virtual
async def test_an_oversize_item_ends_its_stream_only() -> None:
    log: list[Any] = []
    async with raw_client(server(log).limits(message_size=4096)) as (_, raw):
        stream = raw.send(opening(0) + encode_media(0, 0, 0, 0, b"ok"))
        await raw.expect(frames.STREAM_ACCEPT)
        raw.send(encode_media(0, 0, 1, 1, bytes(50_000)), stream)
        await asyncio.sleep(1)
        assert log == [b"ok", Reset.TOO_LARGE]
        assert raw.stops == [(stream, Reset.TOO_LARGE)]
        raw.send(request())
        await raw.expect(frames.RESPONSE)


async def raw_server(limits: Limits | None = None) -> tuple[Any, RawClient]:
    """A real client through memory whose server keeps no rules."""
    from echostream import RpcClient
    from echostream.testing.pair import _MemoryClient

    ours, theirs = memory_pair()
    raw = RawClient(theirs)
    await theirs.wait_connected()
    raw.greet(limits)
    client = _MemoryClient(RpcClient.builder().connect("127.0.0.1:1"), ours)
    await client._open()
    return client, raw


@virtual
async def test_answers_that_are_too_large_or_malformed_fail_their_call_alone() -> None:
    client, raw = await raw_server()
    calls = [asyncio.create_task(outcome(client.request("x"))) for _ in range(3)]
    await raw.expect(frames.REQUEST, 3)
    raw.send(encode_frame(frames.RESPONSE, 0, bytes(5 << 20), frames.END))
    raw.send(encode_frame(frames.RESPONSE, 2, b"\xc1", frames.END))
    raw.send(encode_frame(frames.ERROR, 4, b"\xc1", frames.END, "text", None, -1, 8))
    large, malformed, details = await asyncio.gather(*calls)
    assert isinstance(large, ResourceExhausted)
    assert "message_size" in large.message
    assert type(malformed).__name__ == "InvalidPayload"
    assert (details.message, details.details) == ("text", None)
    await client.close()


@virtual
async def test_goaway_refuses_what_is_new_and_lets_finish_what_runs() -> None:
    client, raw = await raw_server()
    running = asyncio.create_task(client.request("x"))
    unserved = asyncio.create_task(outcome(client.request("x")))
    await raw.expect(frames.REQUEST, 2)
    control = 3
    data = encode_frame(frames.GOAWAY, 2, b"bye", 0, None, None, 1_000_000, Close.GOING_AWAY)
    raw.engine.send_stream(control, data, False)
    raw.connection.wake()
    await turns(20)
    refused = await outcome(client.request("y"))
    assert isinstance(refused, Unavailable)
    assert (refused.method, "bye" in refused.message) == ("y", True)
    assert (await unserved).unserved
    assert refused.unserved
    raw.send(encode_frame(frames.RESPONSE, 0, encode(5), frames.END))
    assert await running == 5
    await client.close()


@virtual
async def test_an_error_for_a_stream_is_not_one_for_a_call_of_the_same_id() -> None:
    client, raw = await raw_server()
    call = asyncio.create_task(outcome(client.request("x")))
    opened = asyncio.create_task(outcome(client.create_stream("s")))
    (asked,) = await raw.expect(frames.REQUEST)
    (opening_,) = await raw.expect(frames.STREAM_OPEN)
    assert asked.id == opening_.id
    flags = frames.END | frames.MARK
    raw.send(encode_frame(frames.ERROR, opening_.id, b"", flags, "no", None, -1, Status.ABORTED))
    assert (await opened).status == Status.ABORTED
    await turns()
    assert not call.done()
    raw.send(encode_frame(frames.RESPONSE, asked.id, encode(1), frames.END))
    assert await call == 1
    await client.close()


def test_hello_survives_the_wire() -> None:
    hello = Hello(limits=Limits(calls=3))
    assert Hello.decode(hello.encode()) == hello


@virtual
async def test_datagrams_that_come_faster_than_they_are_taken_are_dropped_and_counted() -> None:
    async with raw_client(server()) as (started, raw):
        raw.send(opening(0, flags=frames.MARK))
        await raw.expect(frames.STREAM_ACCEPT)
        session = await session_of(started)
        inbox = session._live_peer.protocol.inbox
        sequence = 0
        most = 0
        for _ in range(300):  # without a turn of the loop between them, as from one socket read
            each = range(sequence, sequence + 50)
            inbox.receive_datagram(b"".join(encode_media(0, 0, n, n, b"") for n in each))
            sequence += 50
            most = max(most, len(inbox._events))
        assert most <= DATAGRAM_BACKLOG + 50
        session._live_peer.pump()
        await turns(20)
        assert len(inbox._events) == 0
        (receiver,) = session._live_peer.receivers.values()
        statistics = session.statistics()
        assert statistics.datagrams_overrun == 300 - -(-DATAGRAM_BACKLOG // 50)
        assert receiver.statistics().packets + 50 * statistics.datagrams_overrun == sequence
