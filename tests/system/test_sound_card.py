"""A sound card in real time: JACK's dummy driver, which calls back at the right pace, with what is
played looped back to what is captured."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LIMIT_S = 60


def _missing() -> str:
    for tool in ("jackd", "jack_connect", "jack_wait"):
        if shutil.which(tool) is None:
            return f"{tool} is not here (Debian: apt install jackd2)"
    if importlib.util.find_spec("sounddevice") is None:
        return "sounddevice is not here: pip install 'echostream[audio]'"
    try:
        importlib.import_module("sounddevice")
    except OSError:
        return "PortAudio is not here (Debian: apt install libportaudio2)"
    return ""


pytestmark = [
    pytest.mark.sound_card,
    pytest.mark.skipif(bool(_missing()), reason=_missing() or "-"),
]

# Plays a tone to the card and captures what comes back; run where JACK is the only card.
LOOP = """
import asyncio, json, subprocess, sys, time
from contextlib import aclosing

import numpy as np

from echostream import AudioFormat, AudioFrame, Playout
from echostream.contrib import audio

FORMAT = AudioFormat(48_000, 1)
TONE = (0.4 * np.sin(2 * np.pi * 1000 * np.arange(96_000) / 48_000)).astype(np.float32)[:, None]


async def main():
    playout, frames, ages = Playout(FORMAT), [], []

    async def listen():
        async with aclosing(audio.capture(FORMAT)) as captured:
            async for frame in captured:
                frames.append(frame)
                ages.append(time.monotonic_ns() - frame.capture_ts)

    listening = asyncio.create_task(listen())
    playing = asyncio.create_task(audio.play(playout))
    while not frames:
        await asyncio.sleep(0.01)
    join = ("jack_connect", "-s", sys.argv[1], "PortAudio:out_0", "PortAudio:in_0")
    while subprocess.run(join, capture_output=True).returncode:
        await asyncio.sleep(0.05)
    begin = time.monotonic()
    for number in range(100):
        part = TONE[number * 960 : (number + 1) * 960]
        playout.push(AudioFrame(part, FORMAT, number * 960, None, number))
        await asyncio.sleep(max(begin + (number + 1) * 0.02 - time.monotonic(), 0))
    playout.end()
    await playing  # it ends by itself
    listening.cancel()
    await asyncio.wait([listening])
    heard = np.concatenate([frame.samples for frame in frames])[:, 0]
    loud = np.flatnonzero(np.abs(heard) > 0.2)
    middle = heard[loud[0] + 24_000 : loud[0] + 72_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    stats = playout.statistics().buffer
    print(json.dumps({
        "rms": float(np.sqrt(np.mean(middle**2))),
        "hz": float(np.argmax(spectrum) * 48_000 / len(middle)),
        "in order": all(b.timestamp - a.timestamp == 960 for a, b in zip(frames, frames[1:])),
        "captured before it came": min(ages) > 0,
        "received": stats.received,
        "sounding": int(loud[-1] - loud[0]),
    }))


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def card() -> Iterator[dict[str, str]]:
    """The environment in which JACK is the sound card."""
    name = f"echostream-{os.getpid()}"
    server = subprocess.Popen(
        [*("jackd", "--no-realtime", "-n", name, "-d", "dummy"), *("-r", "48000", "-p", "480")],
        env={**os.environ, "JACK_NO_AUDIO_RESERVATION": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ready = subprocess.run(
            ["jack_wait", "-s", name, "-w", "-t", "10"], capture_output=True, text=True, check=False
        )
        if ready.returncode:
            server.kill()
            pytest.skip(f"jackd does not run here: {server.communicate()[0][-200:]}")
        yield {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "JACK_DEFAULT_SERVER": name,
            "JACK_NO_START_SERVER": "1",
        }
    finally:
        server.terminate()
        server.communicate(timeout=LIMIT_S)


def test_what_is_played_is_captured(card: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOP, card["JACK_DEFAULT_SERVER"]],
        env=card,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    print(facts)
    assert facts["received"] == 100
    assert facts["in order"]
    assert facts["captured before it came"]
    assert abs(facts["hz"] - 1000) <= 2
    assert 0.2 < facts["rms"] < 0.3  # 0.4 / sqrt(2), less what a loaded machine conceals
    assert facts["sounding"] > 80_000


def test_the_verbs_use_the_card(card: dict[str, str], tmp_path: Path) -> None:
    """The microphone to a server, and from there to the speaker."""
    (tmp_path / "app.py").write_text(
        """
from echostream import RpcServer, Session, handler, stream_handler

frames = []


@stream_handler("audio.stream")
async def take(stream):
    frames.extend([frame async for frame in stream])


@handler("radio")
async def radio(session: Session):
    stream = await session.create_stream("radio", format=frames[0].format, codec="pcm")
    async with stream:
        for frame in frames:
            await stream.send(frame)


def make():
    return RpcServer.builder().bind("127.0.0.1:0").stream_handler(take).handler(radio)
"""
    )
    env = {**card, "ECHOSTREAM_HOME": str(tmp_path / "home")}

    def cli(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "echostream.cli", *words],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    server = cli("serve", "app:make", "--json")
    try:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        address = f"{told['host']}:{told['port']}"
        sending = cli("play", address, "mic", "--seconds", "1", "--delivery", "reliable", "--json")
        out, err = sending.communicate(timeout=LIMIT_S)
        assert sending.returncode == 0, err
        sent = json.loads(out)
        assert sent["packets"] == 50
        assert sent["channels"] == 1
        hearing = cli("record", address, "radio", "speaker", "--json")
        out, err = hearing.communicate(timeout=LIMIT_S)
        assert hearing.returncode == 0, err
        heard = json.loads(out)
        assert heard["packets"] == 50
        assert heard["target"] == "speaker"
        assert heard["seconds"] > 0.8  # a loaded machine passes over what comes too late
    finally:
        server.terminate()
        server.communicate(timeout=LIMIT_S)
