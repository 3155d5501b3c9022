"""``echostream play``: a file, or the microphone, as a live stream to a server."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.builder import ClientBuilder
from echostream.cli.audio_options import add_audio_arguments, check_seconds, device_of
from echostream.cli.connection import add_connection_arguments, client_builder
from echostream.cli.errors import BadInput
from echostream.cli.wav import read_wav
from echostream.contrib import audio
from echostream.media.codec import find_codec
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.rpc.sender import StreamSender
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]

MICROPHONE = "mic"
CODEC_RATE = 48_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser)
    parser.add_argument(
        "source", metavar="FILE.wav|mic", help="a sound file, or the microphone (until Ctrl-C)"
    )
    parser.add_argument(
        "--stream",
        metavar="NAME",
        default="audio.stream",
        help="the server's stream handler (default: audio.stream)",
    )
    parser.add_argument("--delivery", choices=["reliable", "realtime"], default="realtime")
    parser.add_argument("--codec", default="pcm", help="pcm, or opus (default: pcm)")
    parser.add_argument("--bitrate", metavar="BIT/S", type=int, help="of Opus")
    parser.add_argument(
        "--rate", metavar="HZ", type=int, help="sample rate (default: the file's; mic: 48000)"
    )
    parser.add_argument("--channels", metavar="N", type=int, help="of the microphone (default: 1)")
    parser.add_argument(
        "--frame-ms", metavar="MS", type=float, default=20.0, help="audio in a frame (default: 20)"
    )
    add_audio_arguments(parser)


@dataclass(frozen=True, slots=True)
class _Source:
    """``samples``: a whole file, or ``None`` for the microphone."""

    format: AudioFormat
    samples: NDArray[Any] | None
    device: int | str | None = None


def run(args: argparse.Namespace) -> int:
    """Stream until the end of the file, or Ctrl-C."""
    check_seconds(args)
    builder, codec, source = client_builder(args), _codec(args), _source(args)
    codec.check(source.format)
    outcome: dict[str, Any] = {}
    try:
        run_loop(_play(builder, args, codec, source, outcome))
    except KeyboardInterrupt:
        if not outcome:
            raise
    _report(args, outcome)
    return 0


def _codec(args: argparse.Namespace) -> Any:
    if args.bitrate is None:
        return find_codec(args.codec)
    if args.codec != "opus":
        raise BadInput(f"--bitrate: {args.codec} has none; it goes with --codec opus")
    from echostream.contrib.opus import Opus

    return Opus(bitrate=args.bitrate)


def _source(args: argparse.Namespace) -> _Source:
    """What to send, and in which format. Raises ``BadInput`` or ``ConfigurationError``."""
    is_mic = args.source == MICROPHONE
    device = device_of(args, used=is_mic)
    if is_mic:
        rate = args.rate or CODEC_RATE
        return _Source(_format(args, rate, args.channels or 1, "int16"), None, device)
    if args.channels is not None:
        raise BadInput("--channels: a file has its own; it goes with mic")
    samples, file_rate = _read(args.source)
    rate = args.rate or file_rate
    if args.codec != "pcm" and args.rate is None:
        rate = CODEC_RATE
    if args.seconds is not None:
        samples = samples[: max(round(args.seconds * file_rate), 1)]
    format = _format(args, rate, samples.shape[1], samples.dtype.name)
    return _Source(format, audio.resample(samples, file_rate, rate))


def _read(path: str) -> tuple[NDArray[Any], int]:
    if Path(path).suffix.lower() == ".wav":
        try:
            clip = read_wav(path)
        except BadInput:  # float or 24-bit samples, perhaps
            if not Path(path).is_file():
                raise
            try:
                return audio.read_audio(path)
            except audio.AudioFileError:
                pass
            raise
        return clip.samples, clip.sample_rate
    try:
        return audio.read_audio(path)
    except audio.AudioFileError as exc:
        raise BadInput(str(exc)) from None


def _format(args: argparse.Namespace, rate: int, channels: int, kind: Any) -> AudioFormat:
    if not 1 <= args.frame_ms <= 1000:
        raise BadInput(f"--frame-ms {args.frame_ms:g}: give 1 to 1000")
    return AudioFormat(rate, channels, kind, frame=max(round(rate * args.frame_ms / 1000), 1))


async def _play(
    builder: ClientBuilder,
    args: argparse.Namespace,
    codec: Any,
    source: _Source,
    outcome: dict[str, Any],
) -> None:
    async with builder.build() as client:
        stream = await client.create_stream(
            args.stream,
            format=source.format,
            codec=codec,
            delivery=args.delivery,
            timeout=args.timeout,
        )
        if not args.json:
            what = args.source if source.samples is not None else "the microphone; Ctrl-C ends"
            print(f"playing {what}", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            async with stream, aclosing(_frames(args, source)) as frames:
                try:
                    async for frame in frames:
                        await stream.send(frame)
                except asyncio.CancelledError:  # Ctrl-C: a clean end of the stream all the same
                    await stream.end()
                    raise
        finally:
            outcome.update(_facts(stream, time.monotonic() - begin))


async def _frames(args: argparse.Namespace, source: _Source) -> AsyncGenerator[AudioFrame, None]:
    """A file at its own pace: a frame is sent when its last sample would have been captured."""
    format = source.format
    if source.samples is None:
        async with aclosing(audio.capture(format, device=source.device)) as captured:
            async for frame in captured:
                yield frame
                captured_s = (frame.timestamp + format.frame) / format.sample_rate
                if args.seconds is not None and captured_s >= args.seconds:
                    return
        return
    begin = time.monotonic()
    for start in range(0, len(source.samples), format.frame):
        samples = np.ascontiguousarray(source.samples[start : start + format.frame])
        due = begin + (start + len(samples)) / format.sample_rate
        await asyncio.sleep(max(due - time.monotonic(), 0))
        captured_ns = int((begin + start / format.sample_rate) * 1e9)
        yield AudioFrame(samples, format, start, captured_ns)


def _facts(stream: StreamSender, took: float) -> dict[str, Any]:
    assert stream.format is not None
    sent = stream.statistics()
    return {
        "stream": stream.name,
        "delivery": "realtime" if stream.realtime else "reliable",
        "codec": stream.codec.name,
        "sample_rate": stream.format.sample_rate,
        "channels": stream.format.channels,
        "packets": sent.packets,
        "bytes": sent.bytes,
        "refused": sent.refused,
        "seconds": round(took, 3),
    }


def _report(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(facts))
    else:
        print(
            f"{facts['stream']}: {facts['packets']} packets, {facts['bytes']} bytes of "
            f"{facts['codec']} in {facts['seconds']:.1f} s, {facts['delivery']}"
        )
