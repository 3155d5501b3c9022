"""``echostream serve``: what may be served, what is said, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import LIMIT_S, Result, environment, start, stop

from echostream.cli.serve import load
from echostream.server import RpcServer

Cli = Callable[..., Result]


@pytest.fixture
def app(app_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve from the folder with ``app.py``, imported anew."""
    monkeypatch.chdir(app_folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield app_folder
    for name in ("app", "faulty", "unfinished"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["builder", "built", "make"])
def test_a_server_a_builder_and_a_function(app: Path, name: str) -> None:
    assert isinstance(load(f"app:{name}"), RpcServer)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("app", "MODULE:SERVER"),
        ("app:", "MODULE:SERVER"),
        ("app.py:builder.x", "MODULE:SERVER"),
        ("../app:builder", "MODULE:SERVER"),
        ("absent:server", "no module 'absent'"),
        ("app.absent:server", "no module 'app.absent'"),
        ("absent.server:server", "no module 'absent.server'"),
        ("app:absent", "has no 'absent'"),
        ("app:number", "of type int"),
        ("app:coroutine", "of type coroutine"),
        ("app:broken", "ZeroDivisionError"),
        ("app:without_address", "has no address"),
    ],
)
def test_what_cannot_be_served_is_exit_status_2(
    cli: Cli, app: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    monkeypatch.chdir(app)
    cli("serve", target).complains(2, said)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = undefined\n", "NameError"),
        ("def f(:\n", "line 1"),
        ("import nothing_here\n", "nothing_here"),
    ],
)
def test_a_module_that_fails_is_named_with_its_line(
    cli: Cli, app: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (app / "faulty.py").write_text(source)
    monkeypatch.chdir(app)
    cli("serve", "faulty:server").complains(2, said, "faulty.py, line 1")


def test_an_address_that_is_taken_is_exit_status_2(
    cli: Cli, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start("app:make", app)
    try:
        source = "from echostream import RpcServer\n"
        (app / "unfinished.py").write_text(
            source + f"server = RpcServer.builder().bind({served.address!r})\n"
        )
        monkeypatch.chdir(app)
        cli("serve", "unfinished:server").complains(2, served.address.split(":")[1])
    finally:
        stop(served)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(app_folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "echostream.cli", "serve", "app:built"],
        cwd=app_folder,
        env=environment(app_folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("serving on 127.0.0.1:")
    assert "sha256:" in said
    process.send_signal(number)
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log
