"""``echostream demo``: a server process and a client process, and live audio between them."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from echostream.cli.child import serving_process
from echostream.cli.demo import report
from echostream.cli.demo.client import Outcome, format_of, stream_clip
from echostream.cli.demo.server import output_variable
from echostream.cli.errors import BadInput
from echostream.cli.plot import braille
from echostream.cli.progress import ProgressBar
from echostream.cli.wav import Clip, read_wav
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]

CLIP = Path(__file__).parents[1] / "data" / "clip.wav"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--input", metavar="FILE.wav", type=Path, default=CLIP, help="another clip, 16-bit PCM"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.wav",
        type=Path,
        default=Path("out.wav"),
        help="what the server receives (default: out.wav; next to it, by their names, come the "
        "real-time one and the picture)",
    )
    parser.add_argument(
        "--speed", metavar="N", type=float, default=1.0, help="N times as fast as live (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")


class Outputs(NamedTuple):
    """The files that the demo writes."""

    reliable: Path
    realtime: Path
    picture: Path


def run(args: argparse.Namespace) -> int:
    """Stream the clip twice, and say what came of it; 1 when reliable audio differs."""
    if not (math.isfinite(args.speed) and 0 < args.speed <= 1000):
        raise BadInput(f"--speed {args.speed:g}: give more than 0, and up to 1000")
    clip = read_wav(args.input)
    format_of(clip)  # a rate that cannot be streamed is bad input
    outputs = _outputs(args.output, args.input)

    bar = ProgressBar(clip.duration, silent=args.json)
    begin = time.monotonic()
    with _server(outputs) as (address, fingerprint), bar:
        if not args.json:
            print(f"{args.input.name}: {clip.duration:.1f} s, {_described(clip)}")
            print(f"server process on {address[0]}:{address[1]}, key {fingerprint[:23]}…")
        outcomes = run_loop(stream_clip(address, fingerprint, clip, args.speed, bar.show))
    took = time.monotonic() - begin

    series = report.latency_series(outcomes)
    outputs.picture.write_bytes(report.picture(series))
    columns = [report.facts(outcome) for outcome in outcomes]
    verdict = _verdict(clip, outcomes, outputs)
    if args.json:
        files = {name: str(path) for name, path in outputs._asdict().items()}
        print(json.dumps({"deliveries": columns, "files": files, **verdict}))
    else:
        print(*["", *report.table(columns), ""], sep="\n")
        print(*braille(series, ascii_only=not _can_show("⠿│")), sep="\n")
        print(*["", *_summary(clip, outcomes, outputs, verdict, took)], sep="\n")
    return 0 if verdict["reliable_identical"] else 1


def _described(clip: Clip) -> str:
    channels = {1: "mono", 2: "stereo"}.get(clip.samples.shape[1])
    return f"{clip.sample_rate} Hz, {channels or f'{clip.samples.shape[1]} channels'}, 16 bit"


def _outputs(output: Path, source: Path) -> Outputs:
    """The paths, each of which can be written. Raises ``BadInput``."""
    if not output.name:
        raise BadInput(f"--output {str(output)!r} names no file")
    outputs = Outputs(
        output,
        output.with_name(f"{output.stem}-realtime.wav"),
        output.with_name(f"{output.stem}-latency.png"),
    )
    for path in outputs:
        if path.exists() and path.samefile(source):
            raise BadInput(f"{path} is the input: give another --output")
        if path.exists() and not path.is_file():
            raise BadInput(f"cannot write {path}: it is not a regular file")
        try:
            made = not path.exists()
            with path.open("ab"):
                pass
            if made:
                path.unlink()
        except OSError as exc:
            raise BadInput(f"cannot write {path}: {exc.strerror}") from None
    return outputs


@contextmanager
def _server(outputs: Outputs) -> Iterator[tuple[tuple[str, int], str]]:
    paths = {
        output_variable("reliable"): str(outputs.reliable.absolute()),
        output_variable("realtime"): str(outputs.realtime.absolute()),
    }
    with serving_process("echostream.cli.demo.server:make", paths) as served:
        yield served


def _verdict(clip: Clip, outcomes: list[Outcome], outputs: Outputs) -> dict[str, Any]:
    """Whether what was sent, what was received and what is in the file are the same."""
    sent = _sha256(clip)
    reliable, realtime = (outcome.received.sha256 for outcome in outcomes)
    return {
        "sha256": sent,
        "reliable_identical": sent == reliable == _sha256(read_wav(outputs.reliable)),
        "realtime_identical": sent == realtime,
    }


def _sha256(clip: Clip) -> str:
    return hashlib.sha256(clip.samples.astype("<i2", copy=False).tobytes()).hexdigest()


def _summary(
    clip: Clip, outcomes: list[Outcome], outputs: Outputs, verdict: dict[str, Any], took: float
) -> list[str]:
    sent, got = verdict["sha256"], outcomes[0].received.sha256
    lost = outcomes[1].received.lost
    missing = f"{lost} frames were lost and are silence" if lost else "the PCM differs"
    same = "the PCM is identical to what was sent"
    wrong = f"NOT what was sent: sent {sent}, received {got}"
    return [
        f"reliable  {outputs.reliable}: " + (same if verdict["reliable_identical"] else wrong),
        f"          SHA-256 {sent}",
        f"realtime  {outputs.realtime}: " + (same if verdict["realtime_identical"] else missing),
        f"picture   {outputs.picture}: the latency of each frame",
        f"two streams of {clip.duration:.1f} s in {took:.1f} s, one QUIC connection, two processes",
    ]


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
