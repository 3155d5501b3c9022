"""``play`` and ``record`` over QUIC, against a server in another process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from running import LIMIT_S, Result, Served, environment, start, stop

from echostream.cli.wav import read_wav, write_wav
from echostream.contrib import opus

Cli = Callable[..., Result]

needs_opus = pytest.mark.skipif(
    not any(opus.open_library(path) for path in opus.libraries()),
    reason="libopus is not here: pip install 'echostream[opus]'",
)
needs_audio = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("soundfile", "soxr")),
    reason="soundfile and soxr are not here: pip install 'echostream[audio]'",
)

APP = """
import asyncio

from echostream import (
    AudioFormat, RpcError, RpcServer, Session, StreamReceiver, StreamReset, handler, stream_handler,
)

taken = {}


@stream_handler("audio.stream")
async def take(session: Session, stream: StreamReceiver) -> None:
    frames = [frame async for frame in stream]
    taken.update(
        frames=frames, format=stream.format, codec=stream.codec.name, realtime=stream.realtime,
        captured=all(frame.capture_ts is not None for frame in frames),
    )
    await session.emit("taken", None)


@handler("taken")
async def told() -> dict:
    while "frames" not in taken:
        await asyncio.sleep(0.01)
    return {"samples": sum(len(frame.samples) for frame in taken["frames"]),
            "rate": taken["format"].sample_rate, "codec": taken["codec"],
            "channels": taken["format"].channels, "kind": taken["format"].sample_type,
            "realtime": taken["realtime"], "captured": taken["captured"]}


@handler("radio")
async def radio(session: Session, options: dict | None) -> None:
    options = options or {}
    format = taken["format"]
    stream = await session.create_stream(
        "radio", format=format, codec=options.get("codec", "pcm"),
        delivery=options.get("delivery", "reliable"),
    )
    try:
        async with stream:
            for frame in taken["frames"]:
                if frame.sequence_number not in options.get("without", []):
                    await stream.send(frame)
                if options.get("live"):
                    await asyncio.sleep(frame.duration)
            await asyncio.sleep(options.get("after", 0))
    except StreamReset:
        pass


@handler("bytes")
async def some_bytes(session: Session) -> None:
    async with await session.create_stream("bytes") as stream:
        await stream.send(b"abc")
        await asyncio.sleep(5)


@handler("locked")
async def locked(session: Session) -> None:
    raise RpcError("not for you", status=7)


def make():
    return (
        RpcServer.builder().bind("127.0.0.1:0").stream_handler(take)
        .handler(told).handler(radio).handler(some_bytes).handler(locked)
    )
"""


@pytest.fixture(scope="module")
def radio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("radio")
    (folder / "radio_app.py").write_text(APP)
    served = start("radio_app:make", folder)
    yield served
    status, log = stop(served)
    assert status == 0, log


def chirp(rate: int = 48_000, seconds: float = 0.4, channels: int = 2) -> np.ndarray:
    t = np.arange(int(rate * seconds)) / rate
    wave_ = 12_000 * np.sin(2 * np.pi * (300 * t + 400 * t * t))
    return np.repeat(wave_[:, None], channels, axis=1).astype(np.int16)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    write_wav(path, chirp(), 48_000)
    return path


def ask(cli: Cli, radio: Served) -> dict:
    return json.loads(cli("call", radio.address, "taken").out)


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
def test_a_file_goes_there_and_comes_back_as_it_was(
    cli: Cli, radio: Served, clip: Path, tmp_path: Path, delivery: str
) -> None:
    done = cli("play", radio.address, clip, "--delivery", delivery, "--json")
    assert done.status == 0, done
    facts = json.loads(done.out)
    assert facts["stream"] == "audio.stream"
    assert facts["delivery"] == delivery
    assert facts["bytes"] == chirp().nbytes
    assert facts["refused"] == 0
    assert ask(cli, radio) == {
        "samples": len(chirp()),
        "rate": 48_000,
        "channels": 2,
        "kind": "int16",
        "codec": "pcm",
        "realtime": delivery == "realtime",
        "captured": True,
    }
    out = tmp_path / "out.wav"
    done = cli("record", radio.address, "radio", out, "--json")
    assert done.status == 0, done
    facts = json.loads(done.out)
    assert facts["seconds"] == 0.4
    assert facts["lost"] == facts["late"] == facts["missing_ms"] == facts["concealed_ms"] == 0
    back = read_wav(out)
    assert back.sample_rate == 48_000
    assert np.array_equal(back.samples, chirp())


@needs_opus
@needs_audio
def test_opus_there_and_back_resampled(cli: Cli, radio: Served, tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.wav", tmp_path / "out.wav"
    write_wav(clip, chirp(44_100, 0.5, 1), 44_100)
    done = cli("play", radio.address, clip, "--codec", "opus", "--bitrate", "48000", "--json")
    assert done.status == 0, done
    facts = json.loads(done.out)
    assert facts["codec"] == "opus"
    assert facts["sample_rate"] == 48_000
    assert 1500 < facts["bytes"] < 5000  # 48 kbit/s for half a second
    assert ask(cli, radio)["codec"] == "opus"
    options = json.dumps({"codec": "opus", "delivery": "realtime", "live": True})
    done = cli("record", radio.address, "radio", out, "--ask", options, "--profile", "music")
    assert done.status == 0, done
    assert "(opus, realtime)" in done.out
    assert "recording 'radio'" in done.err
    back = read_wav(out)
    assert back.sample_rate == 48_000
    assert len(back.samples) / 48_000 == pytest.approx(0.5, abs=0.12)
    assert np.abs(back.samples).max() > 8_000


def test_missing_audio_is_silence_and_counted(
    cli: Cli, radio: Served, clip: Path, tmp_path: Path
) -> None:
    assert cli("play", radio.address, clip, "--delivery", "reliable").status == 0
    ask(cli, radio)
    out = tmp_path / "out.wav"
    options = json.dumps({"without": [3, 7, 8]})
    done = cli("record", radio.address, "radio", out, "--ask", options, "--json")
    assert json.loads(done.out)["missing_ms"] == 60
    back = read_wav(out).samples
    wanted = chirp()
    for number in (3, 7, 8):
        wanted[number * 960 : (number + 1) * 960] = 0
    assert np.array_equal(back, wanted)


@needs_audio
def test_other_files_than_wav(cli: Cli, radio: Served, tmp_path: Path) -> None:
    import soundfile

    source, out = tmp_path / "clip.flac", tmp_path / "out.flac"
    soundfile.write(source, chirp(), 48_000)
    assert cli("play", radio.address, source, "--seconds", "0.2").status == 0
    assert ask(cli, radio)["samples"] == 9_600
    done = cli("record", radio.address, "radio", out, "--seconds", "0.1", "--json")
    assert done.status == 0, done
    assert json.loads(done.out)["seconds"] == 0.1
    samples, rate = soundfile.read(out, dtype="int16", always_2d=True)
    assert rate == 48_000
    assert len(samples) == 4_800
    deep = tmp_path / "deep.wav"
    soundfile.write(deep, chirp() / 32768, 48_000, subtype="FLOAT")
    assert cli("play", radio.address, deep, "--seconds", "0.1").status == 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_recording_with_a_whole_file(
    cli: Cli, radio: Served, clip: Path, tmp_path: Path
) -> None:
    assert cli("play", radio.address, clip, "--delivery", "reliable").status == 0
    ask(cli, radio)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "echostream.cli", "record", radio.address, "radio", "out.wav"),
            *("--ask", '{"after": 30}', "--fingerprint", radio.fingerprint),
        ],
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "recording 'radio'; Ctrl-C ends\n"
    while not (tmp_path / "out.wav").exists() or (tmp_path / "out.wav").stat().st_size < 70_000:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "packets" in out
    assert err == ""
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getnframes() > 15_000


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_playing_with_a_clean_end_of_the_stream(
    cli: Cli, radio: Served, clip: Path, tmp_path: Path
) -> None:
    write_wav(clip, chirp(seconds=30, channels=1, rate=8_000), 8_000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "echostream.cli", "play", radio.address, str(clip)),
            *("--fingerprint", radio.fingerprint),
        ],
        env=environment(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("playing ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "audio.stream: " in out
    assert err == ""
    told = ask(cli, radio)
    assert told["rate"] == 8_000  # its handler came to the end
    assert told["samples"] < 30 * 8_000


BAD = [
    (["play", "ADDR", "missing.wav"], 2, ["missing.wav", "No such file"]),
    (["play", "ADDR", "text.wav"], 2, ["text.wav", "not a WAV"]),
    (["play", "ADDR", "clip.wav", "--codec", "mp7"], 2, ["mp7", "known here: pcm"]),
    (["play", "ADDR", "clip.wav", "--bitrate", "9000"], 2, ["--codec opus"]),
    (["play", "ADDR", "clip.wav", "--delivery", "fast"], 2, ["--delivery"]),
    (["play", "ADDR", "clip.wav", "--frame-ms", "0"], 2, ["--frame-ms"]),
    (["play", "ADDR", "clip.wav", "--seconds", "-1"], 2, ["--seconds"]),
    (["play", "ADDR", "clip.wav", "--seconds", "nan"], 2, ["--seconds"]),
    (["play", "ADDR", "clip.wav", "--device", "0"], 2, ["--device"]),
    (["play", "ADDR", "clip.wav", "--channels", "1"], 2, ["--channels"]),
    (["play", "ADDR", "clip.wav", "--rate", "7"], 2, ["sample_rate"]),
    (["play", "ADDR", "clip.wav", "--stream", "audio.steam"], 1, ["did you mean"]),
    (["play", "ADDR", "clip.wav", "--stream", ""], 2, ["1 to 255"]),
    (["play", "nowhere", "clip.wav"], 2, ["nowhere"]),
    (["record", "ADDR", "radio", "folder"], 2, ["folder"]),
    (["record", "ADDR", "radio", "out"], 2, ["out.wav"]),
    (["record", "ADDR", "radio", "no/such/out.wav"], 2, ["No such file"]),
    (["record", "ADDR", "radio", "out.wav", "--ask", "{"], 2, ["JSON"]),
    (["record", "ADDR", "radio", "out.wav", "--device", "x"], 2, ["--device"]),
    (["record", "ADDR", "radio", "out.wav", "--timeout", "0"], 2, ["--timeout"]),
    (["record", "ADDR", "locked", "out.wav", "--json"], 1, ["not for you"]),
    (["record", "ADDR", "silence", "out.wav", "--timeout", "0.3"], 1, ["opened no stream"]),
    (["record", "ADDR", "bytes", "out.wav", "--json"], 2, ["bytes, not audio"]),
]


@pytest.mark.parametrize(("words", "status", "said"), BAD, ids=[" ".join(w) for w, *_ in BAD])
def test_bad_input_is_one_line(
    cli: Cli, radio: Served, clip: Path, words: list[str], status: int, said: list[str]
) -> None:
    (clip.parent / "text.wav").write_text("no sound")
    (clip.parent / "folder").mkdir()
    address = [radio.address if word == "ADDR" else word for word in words]
    cli(*address).complains(status, *said)


@needs_opus
def test_what_opus_cannot_carry(cli: Cli, radio: Served, clip: Path) -> None:
    write_wav(clip, chirp(channels=3), 48_000)
    cli("play", radio.address, clip, "--codec", "opus").complains(2, "1 or 2 channels")
    write_wav(clip, chirp(), 48_000)
    cli("play", radio.address, clip, "--codec", "opus", "--frame-ms", "15").complains(2, "720")
