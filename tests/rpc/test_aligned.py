"""Time-synchronised streams: when a frame is to be heard, on clocks that differ."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import numpy as np
import pytest
from rpc_support import raw_client, session_of, virtual

from echostream import (
    AudioFormat,
    AudioFrame,
    ConfigurationError,
    DeadlineExceeded,
    RpcClient,
    RpcError,
    RpcServer,
    StreamReceiver,
    stream_handler,
)
from echostream.codes import Status
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame, encode_media
from echostream.protocol.payload import encode
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

SECOND = 1_000_000_000
PATH = Impairment(delay=0.01, jitter=0.002)


def loop_ns() -> int:
    return round(asyncio.get_running_loop().time() * 1e9)


def fast_and_ahead() -> int:
    """A clock that is 77 s ahead and gains 100 ppm."""
    now = loop_ns()
    return now + 77 * SECOND + now // 10_000


def ahead_client() -> Any:
    client = RpcClient.builder()
    client._now_ns = fast_and_ahead
    return client


class Sink:
    """A stream handler that keeps what it gets, with the local time at which it got it."""

    def __init__(self, pause: float = 0.0) -> None:
        self.got: list[tuple[Any, int, int]] = []
        self.stream: StreamReceiver | None = None
        self.error: BaseException | None = None
        self.done = asyncio.Event()
        self._pause = pause

    def builder(self) -> Any:
        @stream_handler("s")
        async def receive(stream: StreamReceiver) -> None:
            self.stream = stream
            await asyncio.sleep(self._pause)
            try:
                async for frame, aligned_time in stream.aligned():
                    self.got.append((frame, aligned_time, loop_ns()))
            except Exception as exc:
                self.error = exc
            self.done.set()

        return RpcServer.builder().stream_handler(receive)


@virtual
@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
async def test_frames_are_heard_at_their_time(delivery: Literal["reliable", "realtime"]) -> None:
    sink = Sink()
    async with connected_pair(sink.builder(), ahead_client(), up=PATH, down=PATH) as (_, client):
        options: dict[str, Any] = {"delivery": delivery, "playout_delay": 0.05}
        stream = await client.create_stream("s", time_sync=True, **options)
        captured = []
        for number in range(50):
            captured.append(loop_ns())
            if number % 2:
                await stream.send(b"%d" % number)
            else:
                await stream.send_with_timestamp(b"%d" % number, fast_and_ahead())
            await asyncio.sleep(0.02)
        await stream.end()
        await sink.done.wait()
        assert sink.error is None
        assert sink.stream is not None
        assert sink.stream.playout_delay == 0.05
        bound = client._peer.clock.sync.error_bound_ns
        assert [frame for frame, _, _ in sink.got] == [b"%d" % n for n in range(50)]
        for at, (_, aligned_time, _) in zip(captured, sink.got, strict=True):
            assert abs(aligned_time - (at + 50_000_000)) <= max(bound, 3_000_000)
        assert sink.stream.statistics().overdue == sum(t < now for _, t, now in sink.got)
        assert sum(t >= now for _, t, now in sink.got) >= 45


@virtual
async def test_audio_splits_keep_their_time_and_the_default_delay() -> None:
    sink = Sink()
    path = Impairment(delay=0.01)
    async with connected_pair(sink.builder(), up=path, down=path) as (_, client):
        opening = client.create_stream("s", format=AudioFormat(48_000, 2), delivery="realtime")
        stream = await opening.with_time_sync().build()
        await asyncio.sleep(1.0)
        at = loop_ns()
        await stream.send(np.zeros((480, 2), np.float32))
        own = AudioFrame(np.zeros((48, 2), np.float32), AudioFormat(48_000, 2), 480, at + 10)
        await stream.send(own)
        await stream.end()
        await sink.done.wait()
        assert sink.error is None
        start = at + 100_000_000
        for frame, aligned_time, _ in sink.got[:-1]:
            assert abs(aligned_time - start - frame.timestamp * SECOND // 48_000) <= 2
        assert len(sink.got) > 2
        assert abs(sink.got[-1][1] - start - 10) <= 2


@virtual
async def test_late_frames_have_a_time_that_has_passed_and_are_counted() -> None:
    sink = Sink(pause=1.0)
    async with connected_pair(sink.builder(), up=PATH, down=PATH) as (_, client):
        stream = await client.create_stream("s", time_sync=True, playout_delay=0.2)
        await stream.send(b"late")
        await asyncio.sleep(2.0)
        await stream.send(b"in time")
        await stream.end()
        await sink.done.wait()
        (_, late, at), (_, good, then) = sink.got
        assert late < at
        assert good > then
        assert sink.stream is not None
        assert sink.stream.statistics().overdue == 1


@virtual
async def test_the_wait_for_the_clock_is_bounded_and_loses_nothing() -> None:
    sink = Sink()
    async with connected_pair(sink.builder()) as (server, client):
        stream = await client.create_stream("s", time_sync=True)
        session = await session_of(server)
        session._peer.clock.receive = lambda data: None  # type: ignore[method-assign]
        began = loop_ns()
        await stream.send(b"x")
        await sink.done.wait()
        assert isinstance(sink.error, DeadlineExceeded)
        assert loop_ns() - began <= 5.1 * SECOND
        assert sink.stream is not None
        assert sink.stream.statistics().packets == 1


@virtual
async def test_options_and_streams_without_it() -> None:
    sink = Sink()
    async with connected_pair(sink.builder()) as (_, client):
        with pytest.raises(ConfigurationError, match="time_sync=True"):
            client.create_stream("s", playout_delay=0.1)
        for wrong in (-0.1, 11.0, "1", float("nan")):
            with pytest.raises(ConfigurationError, match="playout_delay"):
                client.create_stream("s", time_sync=True, playout_delay=wrong)  # type: ignore[arg-type]
        stream = await client.create_stream("s")
        await sink.done.wait()
        assert isinstance(sink.error, ConfigurationError)
        stream.abort()
        assert sink.stream is not None
        assert sink.stream.playout_delay is None


@virtual
@pytest.mark.parametrize(
    "options",
    [
        {"time_sync": 1},
        {"time_sync": True, "playout_delay": -1},
        {"time_sync": True, "playout_delay": "x"},
    ],
)
async def test_a_wrong_map_is_refused(options: dict[str, Any]) -> None:
    async with raw_client(Sink().builder()) as (_, raw):
        stream = raw.engine.open_stream(False)
        raw.engine.send_stream(
            stream, encode_frame(frames.STREAM_OPEN, 0, encode(options), 0, "s"), False
        )
        raw.connection.wake()
        (answer,) = await raw.expect(frames.ERROR)
        assert answer.number == Status.INVALID_ARGUMENT


@virtual
async def test_a_packet_without_capture_time_aborts() -> None:
    sink = Sink()
    async with raw_client(sink.builder()) as (_, raw):
        stream = raw.engine.open_stream(False)
        options = encode({"time_sync": True, "format": None})
        raw.engine.send_stream(stream, encode_frame(frames.STREAM_OPEN, 0, options, 0, "s"), False)
        raw.connection.wake()
        await raw.expect(frames.STREAM_ACCEPT)
        raw.engine.send_stream(stream, encode_media(0, 0, 0, 0, b"x"), False)
        raw.connection.wake()
        (abort,) = await raw.expect(frames.STREAM_ABORT)
        assert "capture time" in (abort.name or "")


@virtual
async def test_an_acceptor_that_does_not_know_it() -> None:
    async with connected_pair(Sink().builder()) as (server, client):
        session = await session_of(server)
        accept = session._peer.protocol.accept_media
        session._peer.protocol.accept_media = lambda alias, _: accept(  # type: ignore[method-assign]
            alias, encode({"format": None})
        )
        with pytest.raises(RpcError, match="time-synchronised"):
            await client.create_stream("s", time_sync=True)
