"""``ping`` against a server in another process, and ``sync-lab`` with players in theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Result, Served

Cli = Callable[..., Result]


def test_ping_tells_the_way_and_the_clock(cli: Cli, server: Served) -> None:
    done = cli("ping", server.address, "--count", 3, "--interval", 0.05)
    assert done.status == 0
    *lines, summary = done.out.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert line.split()[0] == str(number)
        assert {"rtt", "offset", "drift", "bound"} <= set(line.split())
    assert summary.startswith("3 of 3 answered; round trip ")


def test_ping_as_json(cli: Cli, server: Served) -> None:
    done = cli("ping", server.address, "--count", 2, "--interval", 0.05, "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["number"] for row in rows] == [1, 2]
    for row in rows:
        assert row["rtt_ms"] >= row["min_rtt_ms"] > 0
        assert abs(row["offset_ns"]) <= row["bound_ms"] * 1e6  # one machine has one clock
        assert row["exchanges"] >= 6


@pytest.mark.parametrize(
    "words",
    [
        ["ping", "127.0.0.1:9", "--count", 0],
        ["ping", "127.0.0.1:9", "--interval", 0],
        ["sync-lab", "--receivers", 1],
        ["sync-lab", "--seconds", 1],
        ["sync-lab", "--skew", 1000],
        ["sync-lab", "--loss", 200],
    ],
)
def test_what_cannot_work_is_one_line(cli: Cli, words: list[object]) -> None:
    done = cli(*words)
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1


def test_the_lab_draws_and_no_error_passes_its_bound(cli: Cli, tmp_path: Path) -> None:
    picture = tmp_path / "lab.png"
    words = ("--receivers", 2, "--seconds", 3, "--jitter", 1, "--delay", 1)
    done = cli("sync-lab", *words, "--png", picture, "--json")
    assert done.status == 0, done.err
    assert done.err == ""
    found = json.loads(done.out)
    assert len(found["players"]) == 2
    pairs = found["pairs"]
    assert pairs["comparisons"] >= 5
    assert pairs["beyond_bound"] == 0
    assert 0 <= pairs["error_p50_ms"] <= pairs["error_p99_ms"] <= pairs["bound_p50_ms"] * 10
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
