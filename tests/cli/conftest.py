"""Fixtures: a running server, and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import APP, Result, Served, start, stop

from echostream.cli import main


@pytest.fixture(scope="session")
def app_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text(APP)
    return folder


@pytest.fixture(scope="session")
def server(app_folder: Path) -> Iterator[Served]:
    served = start("app:builder", app_folder)
    yield served
    status, log = stop(served)
    assert status == 0, log


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """The command line in this process, in an empty folder and with an empty data directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECHOSTREAM_HOME", str(tmp_path / "home"))

    def call(*words: Any) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return call
