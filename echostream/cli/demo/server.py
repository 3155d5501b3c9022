"""The demo's server. It runs in a process of its own, by the verb that anybody would use::

    echostream serve echostream.cli.demo.server:make --json

Its key lives in its memory only; the client is told the fingerprint through a pipe, and pins it.
It ends when standard input does, so that it cannot outlive the client's process.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echostream.builder import ServerBuilder
from echostream.cli.child import end_with_stdin
from echostream.cli.wav import write_wav
from echostream.codes import Status
from echostream.errors import RpcError
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.rpc.receiver import StreamReceiver
from echostream.rpc.registry import handler, stream_handler
from echostream.rpc.session import Session
from echostream.server import RpcServer
from echostream.transport.identity import Identity

__all__ = ["Level", "Received", "make", "output_variable"]

LEVEL_EVERY_S = 0.1
ASK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Level:
    """Payload of the event ``demo.level``: how far the stream has come, and how loud it is."""

    delivery: str
    seconds: float
    peak: float


@dataclass(frozen=True, slots=True)
class Received:
    """What the server knows about one finished stream. Times are monotonic, in ns: one host has
    one such clock, so the difference of two of them is a latency."""

    sha256: str
    frames: int
    bytes: int
    lost: int
    late: int
    captured_ns: NDArray[np.int64]
    arrived_ns: NDArray[np.int64]
    asked_ns: NDArray[np.int64]
    """Round trips of the calls from here to the client."""
    answers: list[float]
    """What the client answered: its position in the stream, s."""
    events: int


def output_variable(delivery: str) -> str:
    """The environment variable with the path to write what came by ``delivery``. It is not the
    client who says so: a peer must not choose which file of this user is written."""
    return f"ECHOSTREAM_DEMO_{delivery.upper()}"


def make() -> ServerBuilder:
    """The server, on a free port of the loopback interface, with a key of this run alone."""
    return (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral("echostream-demo"))
        .on_start(end_with_stdin)
        .on_connect(expect_streams)
        .handler(ping)
        .handler(report)
        .stream_handler(receive)
    )


async def expect_streams(session: Session) -> None:
    loop = asyncio.get_running_loop()
    for delivery in ("reliable", "realtime"):
        session.set(delivery, loop.create_future())


@handler("demo.ping")
async def ping(value: int) -> int:
    return value


@handler("demo.report")
async def report(session: Session, delivery: str) -> Received:
    """What came by ``delivery``; waits for the end of that stream."""
    if delivery not in ("reliable", "realtime"):
        raise RpcError(f"no stream was {delivery!r}", status=Status.NOT_FOUND)
    finished = session.get(delivery, asyncio.Future)
    received = await asyncio.shield(finished)
    assert isinstance(received, Received)
    return received


@stream_handler("demo.audio")
async def receive(session: Session, stream: StreamReceiver) -> None:
    """Take the stream, and tell whoever asks with ``demo.report`` how it was."""
    delivery = "realtime" if stream.realtime else "reliable"
    finished = session.get(delivery, asyncio.Future)
    try:
        finished.set_result(await _received(session, stream, delivery))
    except OSError as exc:
        text = f"the server cannot write its file: {exc.strerror}"
        finished.set_exception(RpcError(text, status=Status.DATA_LOSS))


async def _received(session: Session, stream: StreamReceiver, delivery: str) -> Received:
    if stream.format is None or stream.format.sample_type != "int16":
        raise RpcError("demo.audio is a stream of int16", status=Status.INVALID_ARGUMENT)
    format = stream.format
    arrivals: list[tuple[int, int]] = []
    frames: list[AudioFrame] = []
    answers: list[tuple[int, float]] = []
    events, next_level, next_question = 0, LEVEL_EVERY_S, ASK_EVERY_S
    async with asyncio.TaskGroup() as questions:
        async for frame in stream:
            assert isinstance(frame, AudioFrame)
            arrivals.append((frame.capture_ts or 0, time.monotonic_ns()))
            frames.append(frame)
            position = (frame.timestamp + len(frame.samples)) / format.sample_rate
            if position >= next_level:
                next_level = position + LEVEL_EVERY_S
                peak = float(np.abs(frame.samples.astype(np.int32)).max()) / 32768
                await session.emit("demo.level", Level(delivery, position, peak))
                events += 1
            if position >= next_question:  # not awaited here: the stream must not wait for it
                next_question = position + ASK_EVERY_S
                questions.create_task(_ask(session, answers))
    samples = _joined(frames, format)
    path = os.environ.get(output_variable(delivery))
    if path:
        await asyncio.to_thread(write_wav, path, samples, format.sample_rate)
    statistics = stream.statistics()
    times = np.array(arrivals, np.int64).reshape(-1, 2)
    return Received(
        sha256=hashlib.sha256(samples.astype("<i2", copy=False).tobytes()).hexdigest(),
        frames=len(frames),
        bytes=statistics.bytes,
        lost=statistics.lost + statistics.dropped,
        late=statistics.late,
        captured_ns=np.ascontiguousarray(times[:, 0]),
        arrived_ns=np.ascontiguousarray(times[:, 1]),
        asked_ns=np.array([took for took, _ in answers], np.int64),
        answers=[answer for _, answer in answers],
        events=events,
    )


async def _ask(session: Session, answers: list[tuple[int, float]]) -> None:
    """Call the client in the middle of its stream."""
    begin = time.monotonic_ns()
    answer = await session.request("demo.position", returns=float, timeout=10.0)
    answers.append((time.monotonic_ns() - begin, answer))


def _joined(frames: list[AudioFrame], format: AudioFormat) -> NDArray[np.int16]:
    """All frames at their places; what never came is silence."""
    end = max((frame.timestamp + len(frame.samples) for frame in frames), default=0)
    samples = np.zeros((end, format.channels), np.int16)
    for frame in frames:
        samples[frame.timestamp : frame.timestamp + len(frame.samples)] = frame.samples
    return samples
