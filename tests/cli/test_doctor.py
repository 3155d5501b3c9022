"""``echostream doctor``: each check can fail, and says what to do when it does."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Result

from echostream.cli import doctor

Cli = Callable[..., Result]


def findings(cli: Cli) -> dict[str, dict[str, Any]]:
    return {each["check"]: each for each in json.loads(cli("doctor", "--json").out)}


def test_this_machine_is_well_enough(cli: Cli) -> None:
    done = cli("doctor")
    assert done.status == 0, done.out
    assert all(name in done.out for name in doctor.CHECKS)
    assert "fail" not in done.out


def test_json_has_every_check_and_advice_for_what_is_not_ok(cli: Cli) -> None:
    found = findings(cli)
    assert list(found) == list(doctor.CHECKS)
    assert all(bool(each["advice"]) == (each["state"] != "ok") for each in found.values())


def test_another_python(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_implementation", lambda: "PyPy")
    assert findings(cli)["python"]["state"] == "warn"


def test_missing_extensions(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(doctor, "import_module", missing)
    found = findings(cli)["extensions"]
    assert found["state"] == "warn"
    assert "frame_codec" in found["text"]


def test_missing_uvloop(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert findings(cli)["event loop"]["advice"] == "pip install uvloop"
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    assert doctor.event_loop().state == "ok"


def test_no_udp(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(family: socket.AddressFamily, host: str) -> float:
        raise OSError("not permitted")

    monkeypatch.setattr(doctor, "_echo", refused)
    assert cli("doctor").status == 1
    found = findings(cli)
    assert found["udp"]["state"] == "fail"
    assert found["ipv6"]["state"] == "warn"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_small_socket_buffers(cli: Cli, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(doctor, "SOCKET_BUFFER", 1 << 30)
    monkeypatch.setattr(doctor.sys, "platform", platform)
    found = doctor.socket_buffers()
    assert found.state == "warn"
    assert ("sysctl" in found.advice) == (platform != "win32")


def test_a_coarse_clock(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.monotonic_ns
    monkeypatch.setattr(doctor.time, "monotonic_ns", lambda: real() // 2_000_000 * 2_000_000)
    assert findings(cli)["clock"]["state"] == "warn"


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_the_data_directory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    assert "made at the first use" in findings(cli)["data directory"]["text"]
    home.mkdir(mode=0o700)
    assert findings(cli)["data directory"]["state"] == "ok"
    for mode, state in ((0o770, "warn"), (0o777, "fail")):
        home.chmod(mode)
        found = findings(cli)["data directory"]
        assert found["state"] == state
        assert "chmod" in found["advice"]
    home.chmod(0o700)
    (home / "known_hosts").write_text("")
    (home / "known_hosts").chmod(0o666)
    assert findings(cli)["data directory"]["state"] == "fail"
    monkeypatch.setenv("ECHOSTREAM_HOME", str(home / "known_hosts" / "below"))
    assert findings(cli)["data directory"]["state"] == "fail"
