"""``echostream demo``, hurried: the table, the files, the hashes, and every bad input."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import LIMIT_S, PROJECT, Result, environment
from test_wav import wav

from echostream.cli import demo
from echostream.cli.demo import CLIP
from echostream.cli.wav import read_wav, write_wav

Cli = Callable[..., Result]


@pytest.fixture
def short(tmp_path: Path, seed: int) -> Path:
    """A clip of half a second, mono at an odd rate, its last frame not whole."""
    random = np.random.default_rng(seed)
    samples = random.integers(-32768, 32767, (22_077, 1), np.int16, endpoint=True)
    write_wav(tmp_path / "short.wav", samples, 44_100)
    return tmp_path / "short.wav"


def test_the_demo_as_it_is_shown(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--speed", 50)
    assert done.status == 0, done
    assert done.err == ""
    rows = {line[:22].strip(): line.split()[-2:] for line in done.out.splitlines()}
    assert rows["frames sent"] == ["1,200", "1,200"]
    assert rows["frames received"][0] == "1,200"
    assert rows["bytes received"][0] == "1,152,000"
    assert rows["lost"][0] == "0"
    assert all(int(calls) > 0 for calls in rows["calls to the client"])
    assert all(int(calls) > 0 for calls in rows["calls to the server"])
    assert all(int(events) > 0 for events in rows["events to the client"])
    assert "one way, p99" in rows
    assert "reliable  out.wav: the PCM is identical to what was sent" in done.out
    assert "│" in done.out
    assert any("⠁" <= character <= "⣿" for character in done.out)
    assert "\x1b" not in done.out
    assert np.array_equal(read_wav(tmp_path / "out.wav").samples, read_wav(CLIP).samples)
    assert read_wav(tmp_path / "out-realtime.wav").sample_rate == 48_000
    assert (tmp_path / "out-latency.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {
        "out.wav",
        "out-realtime.wav",
        "out-latency.png",
    }


def test_another_clip_and_output_as_json(cli: Cli, tmp_path: Path, short: Path) -> None:
    done = cli("demo", "--input", short, "--output", tmp_path / "x.wav", "--speed", 20, "--json")
    assert (done.status, done.err) == (0, "")
    facts = json.loads(done.out)
    reliable, realtime = facts["deliveries"]
    assert facts["reliable_identical"] is True
    assert reliable["sha256"] == facts["sha256"]
    assert reliable["frames_sent"] == reliable["frames_received"] == realtime["frames_sent"] == 101
    assert realtime["frames_received"] + realtime["lost"] == 101
    assert reliable["bytes_received"] == 2 * 22_077
    assert reliable["events_received"] == reliable["events_emitted"] > 0
    assert 0 < reliable["frame_p50_ms"] <= reliable["frame_p99_ms"]
    assert all(Path(path).exists() for path in facts["files"].values())
    assert facts["files"]["realtime"] == str(tmp_path / "x-realtime.wav")
    assert np.array_equal(read_wav(tmp_path / "x.wav").samples, read_wav(short).samples)


def test_many_channels_are_cut_to_packets(cli: Cli, tmp_path: Path) -> None:
    """One packet a frame: no frame seems to arrive before it was sent."""
    write_wav(tmp_path / "eight.wav", np.ones((1000, 8), np.int16), 96_000)
    done = cli("demo", "--input", tmp_path / "eight.wav", "--json")
    facts = json.loads(done.out)
    assert done.status == 0
    for each in facts["deliveries"]:
        assert each["frames_sent"] == -(-1000 // 64)
        assert each["frame_p50_ms"] > 0


def test_audio_that_differs_is_exit_status_1(
    cli: Cli, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_sha256", lambda clip: "0" * 64)
    done = cli("demo", "--input", short, "--speed", 50)
    assert done.status == 1
    assert "NOT what was sent" in done.out


def test_a_server_that_cannot_write_is_exit_status_1(
    cli: Cli, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "output_variable", lambda delivery: "ECHOSTREAM_DEMO_RELIABLE")
    monkeypatch.setattr(demo.Path, "absolute", lambda self: Path("/nowhere/at/all.wav"))
    done = cli("demo", "--input", short, "--speed", 50)
    assert done.status == 1
    assert "the server cannot write its file: No such file" in done.err
    assert done.err.count("\n") == 1


def test_a_server_that_does_not_start_is_exit_status_1(
    cli: Cli, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    cli("demo", "--input", short).complains(1, "the server process did not start")


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "1e9", "fast"])
def test_a_wrong_speed(cli: Cli, speed: str) -> None:
    cli("demo", "--speed", speed).complains(2, "--speed")


@pytest.mark.parametrize(
    ("name", "width", "frames", "format", "said"),
    [
        ("24.wav", 3, 10, 1, "24-bit"),
        ("float.wav", 4, 10, 3, "not 16-bit PCM"),
        ("empty.wav", 2, 0, 1, "0 frames"),
    ],
)
def test_a_wrong_wav(
    cli: Cli, tmp_path: Path, name: str, width: int, frames: int, format: int, said: str
) -> None:
    path = wav(tmp_path / name, width, frames, format)
    cli("demo", "--input", path).complains(2, name, said)


def test_a_wrong_input(cli: Cli, tmp_path: Path) -> None:
    cli("demo", "--input", "absent.wav").complains(2, "absent.wav", "No such file")
    cli("demo", "--input", tmp_path).complains(2, str(tmp_path))
    (tmp_path / "text.wav").write_text("no sound " * 100)
    cli("demo", "--input", "text.wav").complains(2, "not a WAV file")
    write_wav(tmp_path / "slow.wav", np.zeros((9, 1), np.int16), 4000)
    cli("demo", "--input", "slow.wav").complains(2, "sample_rate is 4000")
    write_wav(tmp_path / "many.wav", np.zeros((9, 65), np.int16), 48_000)
    cli("demo", "--input", "many.wav").complains(2, "channels is 65")


def test_a_wrong_output(cli: Cli, tmp_path: Path, short: Path) -> None:
    before = short.read_bytes()
    for output, said in (
        ("absent/out.wav", "cannot write absent/out.wav: No such file"),
        (str(tmp_path), "not a regular file"),
        ("", "names no file"),
        (os.devnull, "not a regular file"),
        (str(short), "is the input"),
    ):
        cli("demo", "--input", short, "--output", output).complains(2, said)
    assert short.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["short.wav"]


def processes(parent: int) -> list[int]:
    """The children of a process, as Linux counts them."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "echostream.cli", "demo"],
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stderr is not None
    while not (children := processes(process.pid)) and process.poll() is None:
        os.sched_yield()
    (child,) = children
    watch = os.pidfd_open(child)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == (130 if number == signal.SIGINT else -number), err
    assert wait_for_end(watch)
    os.close(watch)
    assert err == ""


def wait_for_end(watch: int) -> bool:
    import select

    return bool(select.select([watch], [], [], LIMIT_S)[0])


def test_the_clip_is_what_its_generator_makes() -> None:
    """A sine may differ in the last bit from one C library to another, a sample by one step."""
    assert CLIP.stat().st_size < 1_500_000
    made = runpy.run_path(str(PROJECT / "tools" / "make_clip.py"))["make"]()
    shipped = read_wav(CLIP)
    assert shipped.sample_rate == 48_000
    assert made.shape == shipped.samples.shape == (288_000, 2)
    assert np.abs(made.astype(int) - shipped.samples).max() <= 1
