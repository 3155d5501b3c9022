"""``call``, ``emit`` and ``listen`` against a server in another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import LIMIT_S, Result, Served, environment

Cli = Callable[..., Result]

VERBS = [("call", "hello"), ("emit", "say"), ("listen", "tick")]


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["math.double", "21"], "42\n"),
        (["hello", '"Ada"'], "hello Ada\n"),
        (["hello", '"Ada"', "--json"], '"hello Ada"\n'),
        (["hello", '"Zoë"', "--json"], '"hello Zoë"\n'),
    ],
)
def test_call_prints_the_result(cli: Cli, server: Served, words: list[str], out: str) -> None:
    assert cli("call", server.address, *words) == Result(0, out, "")


def test_what_json_does_not_have_is_written_as_what_it_has(cli: Cli, server: Served) -> None:
    done = cli("call", server.address, "mixed", "--json")
    assert done.out.count("\n") == 1
    assert json.loads(done.out) == {
        "bytes": "YWI=",
        "array": [1.0, 2.5],
        "when": "2026-01-01 00:00:00+00:00",
    }
    assert json.loads(cli("call", server.address, "mixed").out) == json.loads(done.out)


def test_call_prints_many_results(cli: Cli, server: Served) -> None:
    assert cli("call", server.address, "count", "5", "--stream") == Result(0, "5\n6\n7\n", "")
    done = cli("call", server.address, "count", "5")
    assert done.status == 1
    assert "request_stream" in done.err


def test_call_lists_what_there_is(cli: Cli, server: Served) -> None:
    lines = cli("call", server.address, "--list").out.splitlines()
    assert "method math.double (integer) -> integer" in lines
    assert "method count (integer) -> any...  # Count on." in lines
    assert "event say (string)" in lines
    found = json.loads(cli("call", server.address, "--list", "--json").out)
    assert "hello" in [entry["name"] for entry in found["methods"]]
    document = json.loads(cli("call", server.address, "--schema").out)
    assert document["channels"]["hello"]["messages"]["argument"] == {"payload": {"type": "string"}}
    assert cli("call", server.address, "hello", "--list").status == 2
    assert cli("call", server.address).status == 2


def test_an_event_arrives(cli: Cli, server: Served) -> None:
    assert cli("emit", server.address, "say", '"good evening"') == Result(0, "", "")
    assert cli("call", server.address, "said") == Result(0, "good evening\n", "")


def test_listen_prints_one_event_per_line(cli: Cli, server: Served) -> None:
    done = cli("listen", server.address, "tick", "--count", 3)
    assert done.status == 0
    assert [json.loads(line) for line in done.out.splitlines()] == [
        {"number": 0},
        {"number": 1},
        {"number": 2},
    ]
    assert "Ctrl-C" in done.err
    assert cli("listen", server.address, "text", "--count", 1).out == "line 0\\nand more\n"
    done = cli("listen", server.address, "text", "--count", 1, "--json")
    assert json.loads(done.out) == "line 0\nand more"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_listening_cleanly(server: Served, tmp_path: Path) -> None:
    process = listening(server, "tick", tmp_path)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"number": 0}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert err.splitlines() == ["listening for 'tick'; Ctrl-C ends"]


@pytest.mark.skipif(os.name != "posix", reason="pipes break otherwise there")
def test_a_reader_that_leaves_ends_listening(server: Served, tmp_path: Path) -> None:
    process = listening(server, "tick", tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(LIMIT_S) == 0


def test_listening_to_a_server_that_hangs_up_is_exit_status_1(
    cli: Cli, server: Served, tmp_path: Path
) -> None:
    process = listening(server, "tick", tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    cli("emit", server.address, "hang up")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "echostream listen: the server closed the connection"


def listening(server: Served, event: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "echostream.cli", "listen", server.address, event],
        env=environment(home / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hello", "Ada"], "not JSON"),
        (["hello", "[" * 100_000], "nested too deeply"),
        (["hello", "[" * 100 + "]" * 100], "cannot be sent"),
        (["hello", "123456789012345678901234567890"], "cannot be sent"),
        (["", "1"], "name must be 1 to"),
        (["hello", "--timeout", "0"], "timeout=0"),
        (["hello", "--timeout", "nan"], "timeout=nan"),
        (["hello", "--fingerprint", "abc"], "not a fingerprint"),
        (["hello", "--ca", "nowhere.pem"], "nowhere.pem"),
        (["hello", "--ca", __file__], "no certificate in PEM"),
    ],
)
def test_bad_input_is_exit_status_2(cli: Cli, server: Served, words: list[str], said: str) -> None:
    cli("call", server.address, *words).complains(2, said)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost", "no port"),
        ("localhost:http", "not a port"),
        ("localhost:70000", "out of range"),
        (":5000", "give host and port"),
        ("::1:5000", "brackets"),
    ],
)
@pytest.mark.parametrize(("verb", "name"), VERBS)
def test_a_wrong_address_is_exit_status_2(
    cli: Cli, verb: str, name: str, address: str, said: str
) -> None:
    cli(verb, address, name).complains(2, said)


def test_a_count_below_one_is_exit_status_2(cli: Cli) -> None:
    cli("listen", "localhost:1", "tick", "--count", 0).complains(2, "--count 0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["helo"], "did you mean 'hello'?"),
        (["hello", "3"], "Expected `str`"),
        (["fail"], "INTERNAL in 'fail'"),
        (["leave"], "PERMISSION_DENIED in 'leave': not you"),
    ],
)
def test_an_error_answer_is_exit_status_1(
    cli: Cli, server: Served, words: list[str], said: str
) -> None:
    done = cli("call", server.address, *words)
    done.complains(1, said)
    assert "a text that stays here" not in done.err


@pytest.mark.parametrize(("verb", "name"), VERBS)
def test_a_failed_connection_is_exit_status_1(cli: Cli, verb: str, name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        cli(verb, address, name, "--timeout", "0.2").complains(1, address)


@pytest.mark.parametrize("host", ["a..b", "x" * 80])  # refused before anybody is asked
def test_a_host_that_does_not_exist_is_exit_status_1(cli: Cli, host: str) -> None:
    cli("call", f"{host}:5000", "hello").complains(1, f"{host!r} cannot be resolved")


def test_trust(cli: Cli, server: Served, tmp_path: Path) -> None:
    """The first contact is remembered; a pin is checked; nothing is believed silently."""
    pin = server.fingerprint
    words = ("call", server.address, "math.double", "1")
    assert cli(*words, "--fingerprint", pin).status == 0
    assert not (tmp_path / "home" / "known_hosts").exists()
    wrong = "sha256:" + "0" * 64
    cli(*words, "--fingerprint", wrong).complains(1, "fingerprint= asks for")

    assert cli(*words).status == 0
    line = (tmp_path / "home" / "known_hosts").read_text()
    assert line.startswith(f"{server.address} {pin} ")
    (tmp_path / "home" / "known_hosts").write_text(line.replace(pin, wrong))
    cli(*words).complains(1, "has changed", "delete line 1 of")
    assert cli(*words, "--insecure").status == 0
