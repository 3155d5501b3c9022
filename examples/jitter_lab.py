"""What a jitter buffer does: one voice through a bad network, before and after the playout.

    python examples/jitter_lab.py [PICTURE.png]

A server and a client in one process, on virtual time (twenty seconds take two or three), with a
network of 20 to 80 ms that reorders, and loses 3 % in bursts. The same audio
goes twice: to a handler that takes each frame as it comes, and to a playout. The table and the
picture show the age of the audio in both, and what had to be invented.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from echostream import AudioFormat, RpcServer, Session, StreamReceiver, stream_handler
from echostream.cli.plot import Series, scatter
from echostream.cli.png import encode_png
from echostream.media.playout import PlayoutStatistics
from echostream.testing import Impairment, connected_pair, run_virtual

FORMAT = AudioFormat(sample_rate=16_000, channels=1, sample_type="int16", frame=320)
SECONDS = 20
BAD = Impairment(delay=0.05, jitter=0.03, burst_start=0.012, burst_end=0.4)

raw: list[tuple[float, float]] = []  # seconds, age in ms
played: list[tuple[float, float]] = []
invented: list[tuple[float, float]] = []
results: list[PlayoutStatistics] = []
ended = asyncio.Event()


@stream_handler("raw")
async def on_raw(session: Session, stream: StreamReceiver) -> None:
    clock = asyncio.get_running_loop().time
    start = clock()
    async for frame in stream:
        now = clock()
        raw.append((now - start, now * 1e3 - frame.capture_ts / 1e6))


@stream_handler("voice")
async def on_voice(session: Session, stream: StreamReceiver) -> None:
    playout = stream.playout(target_late=0.01, profile="voice")
    concealed, second = 0, 0.0
    async for block in playout.blocks(160):
        stats = playout.statistics()
        second += len(block) / FORMAT.sample_rate
        row = (second, stats.delay_ns / 1e6)  # beyond the way of the fastest packets
        (invented if stats.buffer.concealed_frames > concealed else played).append(row)
        concealed = stats.buffer.concealed_frames
    results.append(playout.statistics())
    ended.set()


async def main() -> None:
    server = RpcServer.builder().stream_handler(on_raw).stream_handler(on_voice)
    async with connected_pair(server, up=BAD, seed=7) as (_, client):
        streams = [
            await client.create_stream(name, delivery="realtime", format=FORMAT)
            for name in ("raw", "voice")
        ]
        clock = asyncio.get_running_loop().time
        start = clock()
        time = np.arange(SECONDS * FORMAT.sample_rate) / FORMAT.sample_rate
        hum = sum(np.sin(2 * np.pi * 140 * k * time + k) / k for k in range(1, 8))
        samples = (6000 * hum).astype(np.int16)[:, None]
        for number in range(SECONDS * 50):
            await asyncio.sleep(start + number * 0.02 - clock())
            frame = samples[number * FORMAT.frame : (number + 1) * FORMAT.frame]
            for stream in streams:
                await stream.send_with_timestamp(frame, int(clock() * 1e9))
        for stream in streams:
            await stream.end()
        await ended.wait()


def report(picture: Path | None) -> None:
    stats, buffer = results[0], results[0].buffer
    ages = np.array([age for _, age in raw])
    way = min(ages)
    heard = [(second, way + delay) for second, delay in played]
    guessed = [(second, way + delay) for second, delay in invented]
    after = np.array([age for _, age in [*heard, *guessed]])
    print(f"{'age of the audio, ms':24}{'min':>8}{'median':>8}{'99 %':>8}{'max':>8}")
    for name, column in (("before the buffer", ages), ("after it", after)):
        low, middle, high, top = np.percentile(column, [0, 50, 99, 100])
        print(f"{name:24}{low:8.1f}{middle:8.1f}{high:8.1f}{top:8.1f}")
    print(
        f"packets: {buffer.received} received, {buffer.lost} lost, {buffer.late} late "
        f"({buffer.late_rate:.1%}; asked for 1 %)"
    )
    concealed = buffer.concealed_frames / FORMAT.sample_rate
    print(
        f"audio: {concealed:.2f} s concealed in {buffer.concealment_events} gaps, "
        f"{stats.stretched} pitch periods put in or left out"
    )
    if picture is not None:
        series = [
            Series(name, *np.array(rows).T, colour)
            for name, rows, colour in (
                ("before", raw, (150, 160, 175)),
                ("after", heard, (30, 110, 200)),
                ("concealed", guessed, (215, 60, 50)),
            )
            if rows
        ]
        pixels = scatter(series, title="Age of the audio", x_label="s", y_label="ms")
        picture.write_bytes(encode_png(pixels))
        print(f"picture: {picture}")


if __name__ == "__main__":
    run_virtual(main())
    report(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
