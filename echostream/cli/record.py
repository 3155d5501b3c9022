"""``echostream record``: a server's stream, into a file or to the speaker.

STREAM is a name. This side takes the first stream of that name that the server opens; so that the
server knows, its handler of the same name is called, if it has one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from echostream.builder import ClientBuilder
from echostream.cli.audio_options import add_audio_arguments, check_seconds, device_of
from echostream.cli.connection import add_connection_arguments, client_builder, parse_json
from echostream.cli.errors import BadInput
from echostream.cli.recording import Recording, check_output
from echostream.client import RpcClient
from echostream.contrib import audio
from echostream.errors import ConnectionClosed, DeadlineExceeded, MethodNotFound
from echostream.media.playout import PlayoutStatistics
from echostream.rpc.context import ClientContext
from echostream.rpc.receiver import StreamReceiver
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]

SPEAKER = "speaker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser)
    parser.add_argument(
        "stream",
        metavar="STREAM",
        help="name of the stream that the server opens; its handler of that name is called, "
        "if there is one",
    )
    parser.add_argument(
        "target", metavar="OUT.wav|speaker", help="a file (.wav, .flac, ...), or the speaker"
    )
    parser.add_argument("--ask", metavar="JSON", help="payload for the server's handler")
    parser.add_argument(
        "--profile",
        choices=["voice", "music"],
        help="as it is heard, with jitter buffer and concealment (speaker: voice where not "
        "given; a file: what arrives, gaps as silence)",
    )
    add_audio_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Take the stream until it ends, Ctrl-C, or ``--seconds``."""
    check_seconds(args)
    builder, payload = client_builder(args), parse_json(args.ask)
    is_speaker = args.target == SPEAKER
    device = device_of(args, used=is_speaker)
    path = None if is_speaker else Path(args.target)
    if path is not None:
        check_output(path)
    taking = _Taking(args, path, device)
    try:
        run_loop(_record(builder, taking, payload))
    except KeyboardInterrupt:
        if not taking.facts:
            raise
    _report(args, taking.facts)
    return 0


class _Taking:
    """The stream handler of this side. ``begun`` is set when the stream is there, ``done`` when it
    was taken to its end."""

    def __init__(
        self, args: argparse.Namespace, path: Path | None, device: int | str | None
    ) -> None:
        self.args = args
        self.facts: dict[str, Any] = {}
        self._path = path
        self._device = device
        self.begun = asyncio.Event()
        self.done: asyncio.Future[None] | None = None

    async def take(self, ctx: ClientContext, stream: StreamReceiver) -> None:
        """Called for each stream of that name; the first one is taken."""
        if self.begun.is_set():
            return
        self.begun.set()
        assert self.done is not None
        try:
            if not self.args.json:
                print(f"recording {stream.name!r}; Ctrl-C ends", file=sys.stderr, flush=True)
            await self._take(stream)
        except asyncio.CancelledError:
            self._tell(ConnectionClosed("the connection ended"))
            raise
        except Exception as exc:
            self._tell(exc)
        else:
            self._tell(None)

    def _tell(self, exc: Exception | None) -> None:
        assert self.done is not None
        if self.done.done():  # Ctrl-C: nobody asks any more
            return
        if exc is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(exc)

    async def _take(self, stream: StreamReceiver) -> None:
        if stream.format is None:
            raise BadInput(f"stream {stream.name!r} carries bytes, not audio")
        seconds = self.args.seconds
        rate = stream.format.sample_rate
        recording = None
        heard_s = 0.0
        try:
            if self._path is None:
                playing = stream.playout(profile=self.args.profile or "voice")
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await audio.play(playing, device=self._device)
            else:
                most = None if seconds is None else max(round(seconds * rate), 1)
                recording = Recording(self._path, stream.format, most)
                await self._write(stream, recording)
        finally:
            if recording is not None:
                recording.close()
                heard_s = recording.frames / rate
            self.facts.update(_facts(stream, self.args.target, recording, heard_s))

    async def _write(self, stream: StreamReceiver, recording: Recording) -> None:
        if self.args.profile is None:
            async for frame in stream:
                assert not isinstance(frame, bytes)
                recording.add(frame)
                if recording.full:
                    return
            return
        assert stream.format is not None
        playout = stream.playout(profile=self.args.profile)
        async for block in playout.blocks(stream.format.sample_rate // 100):
            if playout.buffer.ring.playing:
                recording.write(block)
            if recording.full:
                return


def _facts(
    stream: StreamReceiver, target: str, recording: Recording | None, seconds: float
) -> dict[str, Any]:
    assert stream.format is not None
    seen, rate = stream.statistics(), stream.format.sample_rate
    concealed = late = 0
    if isinstance(seen.playout, PlayoutStatistics):
        concealed, late = seen.playout.buffer.concealed_frames, seen.playout.buffer.late
        seconds = seconds or seen.playout.pulled_frames / rate
    return {
        "stream": stream.name,
        "target": target,
        "delivery": "realtime" if stream.realtime else "reliable",
        "codec": stream.codec.name,
        "sample_rate": rate,
        "channels": stream.format.channels,
        "seconds": round(seconds, 3),
        "packets": seen.packets,
        "lost": seen.lost,
        "late": seen.late + late,
        "undecodable": seen.undecodable,
        "missing_ms": round(1000 * recording.missing / rate, 1) if recording else 0.0,
        "concealed_ms": round(1000 * concealed / rate, 1),
    }


async def _record(builder: ClientBuilder, taking: _Taking, payload: Any) -> None:
    args = taking.args
    taking.done = asyncio.get_running_loop().create_future()
    async with builder.stream_handler(args.stream, taking.take).build() as client:
        asking = asyncio.create_task(_ask(client, args.stream, payload))
        closed = asyncio.create_task(client.wait_closed())
        begun = asyncio.create_task(taking.begun.wait())
        try:
            await _until_begun(args, asking, begun, closed)
            await asyncio.wait((taking.done, closed), return_when=asyncio.FIRST_COMPLETED)
            if not taking.done.done():  # the stream learns of it, too, and ends
                await asyncio.wait((taking.done,), timeout=args.timeout)
            if not taking.done.done():
                raise ConnectionClosed("the server closed the connection")
            await taking.done
        finally:
            taking.done.cancel()
            for task in (asking, closed, begun):
                task.cancel()
            await asyncio.wait((asking, closed, begun))


async def _until_begun(
    args: argparse.Namespace,
    asking: asyncio.Task[None],
    begun: asyncio.Task[Any],
    closed: asyncio.Task[Any],
) -> None:
    """Wait for the stream. Raises what the server answered, or ``DeadlineExceeded``."""
    deadline = asyncio.get_running_loop().time() + args.timeout
    waiting: set[asyncio.Task[Any]] = {asking, begun, closed}
    while not begun.done():
        left = deadline - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait(
            waiting, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
        )
        if begun.done():
            return
        if closed in done:
            raise ConnectionClosed("the server closed the connection")
        if asking in done:
            asking.result()
            waiting.discard(asking)
        elif not done:
            raise DeadlineExceeded(
                f"the server opened no stream {args.stream!r} within {args.timeout:g} s: it has to "
                f"call session.create_stream, for example in its handler {args.stream!r}"
            )


async def _ask(client: RpcClient, name: str, payload: Any) -> None:
    """Tell the server, if it wants to be told. Its handler may last as long as the stream."""
    with suppress(MethodNotFound):
        await client.request(name, payload, timeout=None)


def _report(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(facts))
        return
    print(
        f"{facts['target']}: {facts['seconds']:.1f} s of {facts['stream']!r} "
        f"({facts['codec']}, {facts['delivery']}), {facts['packets']} packets, "
        f"{facts['lost']} lost, {facts['late']} late"
    )
