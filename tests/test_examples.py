"""Every example runs, ends by itself, and prints what its text says."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "examples"
LIMIT_S = 60

# What is printed, in the order of each side: lines of the two sides may change places.
SIMPLE_RPC = [
    r"server: Ada at 127\.0\.0\.1 speaks English",
    r"client: logged in: User\(name='Ada', visits=1\)",
    r"client: plain: \{'name': 'ADA', 'visits': 1\}",
    r"client: refused: .*`int`.*visits.*",
    r"client: too late",
]
EVENT_BUS = [
    r"server: lights from .* to 1",
    r"server: music from .* to 2",
    r"kitchen heard \['lights: on', 'music: play', 'music: louder'\]",
    r"garden heard \['music: play', 'music: louder'\]",
]
REALTIME = [
    r"client: (1\d\d|200) packets sent, realtime",  # fewer as packets grow
    r"server: \d+ packets, \d+ lost, peak 0\.50",
    r"server: \d+\.\d ms from capture to arrival \(median\)",
]
RELIABLE = [r"client: 100 packets sent, reliable", r"server: 100 packets, 0 lost, peak 0\.50"]
DISCOVERY = [
    r"client: found AudioService",
    r"client: remembers sha256:.{8}…",
    r"client: (refuses sha256:.{8}…, which it does not know|multicast does not work here, .*)",
]
JITTER = [
    r"before the buffer( +\d+\.\d){4}",
    r"after it( +\d+\.\d){4}",
    r"packets: 9\d\d received, \d+ lost, \d+ late \(0\.\d%; asked for 1 %\)",
    r"audio: 0\.\d+ s concealed in \d+ gaps, \d+ pitch periods put in or left out",
]
ROOMS = [
    r"Ada is number 1",
    r"Ada sees Bob come in",
    r"Bob hears Ada: hello",
    r"heard by 1",
    r"Cleo hears Ada: hello",
    r"Bob sees Cleo come in",
]
MULTIROOM = [
    r"server: 4 players, \d+ ms of delay",
    r"player 0: its card is -\d+ ppm off, \d+ packets late, error bound \d+ µs",
    r"player 3: its card is \+\d+ ppm off, \d+ packets late, error bound \d+ µs",
    r"apart, of \d{2,} comparisons of two recordings: median \d+\.\d µs, p99 \d+\.\d µs, .*",
    r"all within the error bounds",
]
AUTH = [
    r"server: alice is authenticated",
    r"alice: I am alice",
    r"alice: the vault opened",
    r"server: alice left",
    r"bob: PERMISSION_DENIED: 'vault\.open' requires vault, .*",
]

RECONNECT = [
    r"server: a client wants alarms",
    r"client: the connection is gone",
    r"client: the next server answered",
    r"server: 300 readings, once and in order: True",
    r"client: 2 connections",
]


def example(name: str, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "ECHOSTREAM_HOME": str(home / "home")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "words", "lines"),
    [
        ("simple_rpc", [], SIMPLE_RPC),
        ("event_bus", [], EVENT_BUS),
        ("audio_stream", [], REALTIME),
        ("audio_stream", ["reliable"], RELIABLE),
        ("service_discovery", [f"Test {secrets.token_hex(4)}"], DISCOVERY),
        ("auth_plugin", [], AUTH),
        ("jitter_lab", [], JITTER),
        ("reconnect", [], RECONNECT),
        ("rooms", [], ROOMS),
        ("multiroom", [], MULTIROOM),
    ],
)
def test_an_example(name: str, words: list[str], lines: list[str], tmp_path: Path) -> None:
    done = example(name, *words, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    printed = done.stdout.splitlines()
    for line in lines:
        assert any(re.fullmatch(line, each) for each in printed), (line, printed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("simple_rpc", "42", "NOT_FOUND: '42' is not a name"),
        ("audio_stream", "carrier pigeon", "give reliable or realtime"),
        ("service_discovery", "x" * 64, "cannot name a service"),
        ("auth_plugin", "guess", "authentication failed"),
        ("multiroom", "nowhere.wav", "nowhere.wav: "),
        ("rooms", " ", "Ada: say something"),
    ],
)
def test_a_wrong_input(name: str, word: str, said: str, tmp_path: Path) -> None:
    done = example(name, word, home=tmp_path)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "simple_rpc",
        "event_bus",
        "audio_stream",
        "service_discovery",
        "auth_plugin",
        "jitter_lab",
        "reconnect",
        "rooms",
        "multiroom",
    }
