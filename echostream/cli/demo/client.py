"""The demo's client: streams a clip as live audio and measures what comes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echostream.cli.demo.server import Level, Received
from echostream.cli.wav import Clip
from echostream.client import RpcClient
from echostream.media.frame import AudioFormat
from echostream.rpc.options import Delivery

__all__ = ["Outcome", "Progress", "format_of", "stream_clip"]

FRAME_S = 0.005
MAX_FRAME_BYTES = 1024
PING_EVERY_S = 0.05
REPORT_TIMEOUT_S = 60.0

Progress = Callable[[Delivery, float, float], None]
"""Told at each ``demo.level``: delivery, seconds that have arrived, peak in 0 to 1."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One delivery, from both ends. ``called_ns``: round trips of the calls to the server;
    ``events``: how many of the server's events came."""

    delivery: Delivery
    packets_sent: int
    called_ns: NDArray[np.int64]
    events: int
    received: Received


def format_of(clip: Clip) -> AudioFormat:
    """Frames of 5 ms, or shorter where that many channels would not fit one datagram: then each
    frame is one packet, and its stamp the time when it was handed to ``send``."""
    rate, channels = clip.sample_rate, clip.samples.shape[1]
    fitting = max(MAX_FRAME_BYTES // (2 * channels), 1)
    return AudioFormat(rate, channels, "int16", frame=min(round(rate * FRAME_S), fitting))


async def stream_clip(
    address: tuple[str, int], fingerprint: str, clip: Clip, speed: float, progress: Progress
) -> list[Outcome]:
    """Stream the clip once reliably and once in real time. ``speed`` hurries the time."""
    show = _Show(progress)
    builder = (
        RpcClient.builder()
        .connect(address)
        .trust(fingerprint=fingerprint)
        .handler("demo.position", show.position)
        .listener("demo.level", show.level)
    )
    async with builder.build() as client:
        return [
            await _stream(client, show, clip, "reliable", speed),
            await _stream(client, show, clip, "realtime", speed),
        ]


class _Show:
    """What the server reaches on this side: a handler and a listener."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.sent_s = 0.0
        self.events = 0

    async def position(self) -> float:
        """The server asks in the middle of a stream how far we are."""
        return self.sent_s

    async def level(self, level: Level) -> None:
        self.events += 1
        delivery: Delivery = "realtime" if level.delivery == "realtime" else "reliable"
        self._progress(delivery, level.seconds, level.peak)


async def _stream(
    client: RpcClient, show: _Show, clip: Clip, delivery: Delivery, speed: float
) -> Outcome:
    called: list[int] = []
    show.sent_s, show.events = 0.0, 0
    format = format_of(clip)
    pinging = asyncio.create_task(_ping(client, called, PING_EVERY_S / speed))
    try:
        stream = await client.create_stream("demo.audio", format=format, delivery=delivery)
        async with stream:
            begin = time.monotonic()
            for start in range(0, len(clip.samples), format.frame):
                # A frame exists when its last sample was captured. Each is due at a time of its
                # own: sleeping for the length of a frame each time would drift.
                end = min(start + format.frame, len(clip.samples))
                await _sleep_until(begin + end / clip.sample_rate / speed)
                await stream.send_with_timestamp(clip.samples[start:end], time.monotonic_ns())
                show.sent_s = end / clip.sample_rate
        received = await client.request(
            "demo.report", delivery, returns=Received, timeout=REPORT_TIMEOUT_S
        )
    finally:
        pinging.cancel()
        await asyncio.wait([pinging])
    if not pinging.cancelled() and (error := pinging.exception()) is not None:
        raise error
    sent = stream.statistics()
    return Outcome(delivery, sent.packets, np.array(called, np.int64), show.events, received)


async def _ping(client: RpcClient, called: list[int], every_s: float) -> None:
    """Call the server all the while, beside the stream."""
    due = time.monotonic()
    for number in range(1 << 30):
        begin = time.monotonic_ns()
        answer = await client.request("demo.ping", number, returns=int)
        called.append(time.monotonic_ns() - begin)
        assert answer == number
        due = max(due + every_s, time.monotonic())
        await _sleep_until(due)


async def _sleep_until(when: float) -> None:
    await asyncio.sleep(max(when - time.monotonic(), 0.0))
