"""The frame of the command line: verbs, errors, exit statuses, a light start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from running import LIMIT_S, Result, environment

import echostream
from echostream import cli as package
from echostream.cli import VERBS

Cli = Callable[..., Result]


def test_version(cli: Cli) -> None:
    assert cli("--version") == Result(0, f"echostream {echostream.__version__}\n", "")


def test_help_names_every_verb(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.status == 0
    assert all(f"  {verb} " in shown.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_its_help_and_its_two_functions(cli: Cli, verb: str) -> None:
    shown = cli(verb, "--help")
    assert shown.status == 0
    assert f"echostream {verb}" in shown.out
    module = import_module(f"echostream.cli.{verb.replace('-', '_')}")
    assert set(module.__all__) >= {"add_arguments", "run"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "VERB"),
        (["fly"], "'fly'"),
        (["--fly"], "VERB"),
        (["call"], "ADDR"),
        (["call", "localhost:1"], "METHOD is missing"),
        (["call", "localhost:1", "x", "--timeout", "soon"], "--timeout"),
        (["call", "localhost:1", "x", "--insecure", "--ca", "x"], "not allowed with"),
        (["doctor", "--fly"], "--fly"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_status_2(
    cli: Cli, words: list[str], said: str
) -> None:
    cli(*words).complains(2, said, "--help")


def test_a_bug_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("echostream.cli.doctor.run", bug)
    with pytest.raises(ZeroDivisionError):
        cli("doctor")


def test_interrupting_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("echostream.cli.doctor.run", interrupt)
    assert cli("doctor") == Result(130, "", "")


def test_only_the_verb_that_is_asked_for_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from echostream.cli import main; main(['--version']);"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('echostream', 'numpy', 'aioquic')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert set(loaded) == {
        "echostream",
        "echostream._version",
        package.__name__,
        "echostream.cli.errors",
    }


def test_a_result_that_the_terminal_cannot_show_does_not_fail(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "echostream.cli", "serve", "zürich:x"],
        env={**environment(tmp_path), "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 2
    assert "z\\xfcrich" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "echostream.cli", "--help"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(LIMIT_S) == 0
