"""The benchmark harness works on a tiny scale, reports rightly, and leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.harness import cli
from bench.harness.machine import StealMeter
from bench.harness.measure import Figures, Plan
from bench.harness.registry import CONTENDERS, Contender
from bench.harness.report import BEGIN, END, Report, summarize, write_between_markers
from bench.harness.run import Cell, run
from bench.harness.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[1]
HERE = [name for name in ("udp", "tls-msgpack", "echostream") if not CONTENDERS[name].missing()]


def test_every_scenario_runs_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    arguments = ["--smoke", "--json", "--contenders", ",".join(HERE), "--plot", str(plot)]
    assert cli.main(arguments) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["scenario"], row["contender"]) for row in rows} == {
        (scenario, name) for name in HERE for scenario in CONTENDERS[name].scenarios
    }
    for row in rows:
        assert row["median"] > 0 or row["scenario"] == "memory"
        if row["contender"] == "udp":
            assert row["ratios"]["udp"] == 1.0


def test_contender_that_fails_is_named_and_the_others_go_on() -> None:
    absent = Contender("nobody", "not in the registry", "udp", frozenset({"serial"}))
    plan = Plan([absent, CONTENDERS["udp"]], [SCENARIOS["serial"]], rounds=1, seconds=0.01)
    cells, failures = asyncio.run(run(plan, lambda text: None))
    assert [cell.contender for cell in cells] == ["udp"]
    assert len(failures) == 1
    assert "nobody server" in failures[0]
    assert "KeyError: 'nobody'" in failures[0]


def test_missing_peer_is_said() -> None:
    assert Contender("x", "", "udp", frozenset(), ("no_such_module",)).missing() == (
        "the module 'no_such_module' is not installed"
    )
    assert Contender("x", "", "udp", frozenset(), ("json:nothing",)).missing() == (
        "'json' has no 'nothing'"
    )
    assert Contender("x", "", "udp", frozenset(), ("json:loads",)).missing() is None


def test_ratios_are_taken_within_a_round_and_above_1_is_better() -> None:
    def cells(scenario: str, contender: str, *values: float) -> list[Cell]:
        return [
            Cell(scenario, contender, i, Figures(value), None) for i, value in enumerate(values)
        ]

    rows = summarize(
        cells("events", "grpc", 10, 20, 40)
        + cells("events", "udp", 20, 80, 80)
        + cells("serial", "grpc", 10, 20, 40)
        + cells("serial", "udp", 5, 5, 5),
        ["udp"],
    )
    assert [(row.scenario, row.contender) for row in rows] == [
        ("serial", "grpc"),
        ("serial", "udp"),
        ("events", "grpc"),
        ("events", "udp"),
    ]
    assert [row.ratios["udp"] for row in rows] == [0.25, 1.0, 0.5, 1.0]
    assert (rows[2].median, rows[2].low, rows[2].high) == (20, 10, 40)


def test_table_goes_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    cells = [Cell("events", "udp", 0, Figures(1234.0, 1.5, 2.5), 0.5)]
    report = Report("a command", {"cores": "2"}, cells, ["udp", "grpc"], {"zenoh": "why"}, [])
    write_between_markers(readme, report.as_markdown())
    write_between_markers(readme, report.as_markdown())
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert text.count("a command") == 1
    assert "old" not in text
    assert "| udp | 1,234 |" in text
    assert "x grpc" not in text
    with pytest.raises(ValueError, match=r"notes\.md has no"):
        write_between_markers(_written(tmp_path / "notes.md", "no markers"), "x")


def test_steal_is_percent_of_one_core(tmp_path: Path) -> None:
    stat = _written(tmp_path / "stat", "cpu 1 0 2 3 0 0 0 100 0 0\n")
    meter = StealMeter(stat)
    assert meter.percent() == 0.0
    _written(stat, "cpu 1 0 2 3 0 0 0 150 0 0\n")
    assert (meter.percent() or 0.0) > 0.0
    assert StealMeter(tmp_path / "absent").percent() is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd and /proc")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_child_outlives_the_harness(number: signal.Signals, status: int) -> None:
    arguments = ["--contenders", "udp", "--scenarios", "serial", "--rounds", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.harness", *arguments, "--seconds", "0.5"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("serial: round 2"):  # both children are up and at work
                break
        with _watched(_children(process.pid)) as children:
            assert len(children) == 2
            process.send_signal(number)
            for child in children:
                assert select.select([child], [], [], 20.0)[0], "a child is still there"
        assert process.wait(20.0) == status


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


@contextmanager
def _watched(pids: list[int]) -> Iterator[list[int]]:
    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
