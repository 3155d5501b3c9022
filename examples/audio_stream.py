"""A live audio stream, reliable or in real time: sent at its own pace, received frame by frame.

    python examples/audio_stream.py [reliable|realtime]

The sender is a "microphone" that hums for a second. The receiver measures how loud it is and how
old a sample is when it arrives: the 10 ms that its frame took to fill, and the way (both ends are
on one machine, so one clock is right for both).
"""

import asyncio
import statistics
import sys
import time

import numpy as np

from echostream import (
    AudioFormat,
    Identity,
    RpcClient,
    RpcServer,
    Session,
    StreamReceiver,
    handler,
    run,
    stream_handler,
)

FORMAT = AudioFormat(sample_rate=48_000, channels=1, frame=480)  # float32 in frames of 10 ms
FRAME_NS = 10_000_000
SECONDS = 1.0


# `formats` is what this receiver can take; anything else is refused when the stream is opened.
@stream_handler("audio.stream", formats=[FORMAT])
async def on_audio(session: Session, stream: StreamReceiver) -> None:
    peak, ages_ms = 0.0, []
    async for frame in stream:  # AudioFrame: samples are a numpy array (frames, channels)
        peak = max(peak, float(np.abs(frame.samples).max()))
        ages_ms.append((time.monotonic_ns() - frame.capture_ts) / 1e6)
    seen = stream.statistics()
    print(f"server: {seen.packets} packets, {seen.lost} lost, peak {peak:.2f}")
    print(f"server: {statistics.median(ages_ms):.1f} ms from capture to arrival (median)")
    session.get("finished", asyncio.Event).set()


@handler("audio.finished")
async def finished(session: Session) -> None:
    await session.get("finished", asyncio.Event).wait()


async def prepare(session: Session) -> None:
    session.set("finished", asyncio.Event())


def hum() -> np.ndarray:
    time_s = np.arange(int(SECONDS * FORMAT.sample_rate)) / FORMAT.sample_rate
    return (0.5 * np.sin(2 * np.pi * 220 * time_s)).astype(np.float32).reshape(-1, 1)


async def main(delivery: str) -> None:
    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral())
        .on_connect(prepare)
        .stream_handler(on_audio)
        .handler(finished)
        .build()
    )
    async with (
        server,
        RpcClient.connect(server.address, fingerprint=server.fingerprint) as client,
    ):
        samples = hum()
        # realtime: DATAGRAMs; what is lost stays lost and holds nothing up. A frame that does not
        # fit one packet is sent as several. reliable: all of it, in order, and `send` waits while
        # the receiver is slow.
        stream = await client.create_stream("audio.stream", format=FORMAT, delivery=delivery)
        async with stream:  # ends the stream cleanly, or aborts it on an error
            begin = time.monotonic()
            for start in range(0, len(samples), FORMAT.frame):
                # A frame exists once its last sample was captured. Each has a due time of its own:
                # sleeping 10 ms a hundred times would drift.
                due = begin + (start + FORMAT.frame) / FORMAT.sample_rate
                await asyncio.sleep(max(due - time.monotonic(), 0))
                captured_ns = time.monotonic_ns() - FRAME_NS  # of the frame's first sample
                await stream.send_with_timestamp(samples[start : start + FORMAT.frame], captured_ns)
        print(f"client: {stream.statistics().packets} packets sent, {delivery}")
        await client.request("audio.finished", timeout=5.0)


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "realtime"
    if chosen not in ("reliable", "realtime"):
        sys.exit(f"{chosen!r}: give reliable or realtime")
    run(main(chosen))
