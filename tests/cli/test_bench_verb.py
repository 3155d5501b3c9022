"""``echostream bench``, short: every figure is there, and a wrong server is named."""

from __future__ import annotations

import json
from collections.abc import Callable

from running import Result, Served

Cli = Callable[..., Result]


def test_each_figure_is_measured(cli: Cli) -> None:
    done = cli("bench", "--seconds", "0.06", "--json")
    assert (done.status, done.err) == (0, "")
    figures = {figure["name"]: figure for figure in json.loads(done.out)}
    assert list(figures) == [
        "UDP datagram and back",
        "call and answer",
        "call and answer, slowest",
        "calls, 64 in flight",
        "events",
        "reliable stream",
        "realtime frames, 1000/s",
    ]
    for figure in figures.values():
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    assert figures["realtime frames, 1000/s"]["high"] <= 100


def test_the_table_has_a_line_for_each(cli: Cli) -> None:
    done = cli("bench", "--seconds", "0.01")
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) == 2 + 7


def test_a_server_without_the_methods_is_told_what_to_run(cli: Cli, server: Served) -> None:
    done = cli("bench", server.address, "--seconds", "0.01")
    assert (done.status, done.out) == (1, "")
    assert "echostream.cli.bench_server:make_public" in done.err


def test_bad_seconds_are_refused(cli: Cli) -> None:
    for text in ("0", "-1", "nan", "1e9"):
        done = cli("bench", "--seconds", text)
        assert (done.status, done.out) == (2, "")
        assert "--seconds" in done.err
