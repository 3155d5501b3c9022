"""The progress bar: one line that is drawn anew, and nothing where there is no terminal."""

from __future__ import annotations

import io
import sys

import pytest

from echostream.cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with ProgressBar(2.0) as bar:
        bar.show("reliable", 1.0, 0.5)
        bar.show("reliable", 2.5, 7.0)
    first, second, last = terminal.getvalue().split("\r\x1b[2K")[1:]
    assert first == f"reliable  [{'#' * 15}{'.' * 15}]   1.0 / 2.0 s  level |||||"
    assert second == f"reliable  [{'#' * 30}]   2.5 / 2.0 s  level ||||||||||"
    assert last == ""
    assert "\n" not in terminal.getvalue()


@pytest.mark.parametrize(("stream", "silent"), [(io.StringIO(), False), (Terminal(), True)])
def test_elsewhere_it_is_silent(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, silent: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    with ProgressBar(2.0, silent=silent) as bar:
        bar.show("reliable", 1.0, 0.5)
    assert stream.getvalue() == ""
