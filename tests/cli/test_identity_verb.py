"""``echostream identity``: the key of this user, and the known servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from running import Result

from echostream.transport.identity import Identity
from echostream.transport.known_hosts import KnownHosts

Cli = Callable[..., Result]
PIN = "sha256:" + "ab" * 32


def test_the_identity_is_shown_and_stays(cli: Cli, tmp_path: Path) -> None:
    shown = cli("identity")
    kept = Identity.self_signed()
    assert shown.status == 0
    assert kept.fingerprint in shown.out
    assert str(tmp_path / "home" / "default.pem") in shown.out
    assert f"{kept.not_after:%Y-%m-%d}" in shown.out
    assert cli("identity", "show").out == shown.out


def test_the_identity_as_json(cli: Cli, tmp_path: Path) -> None:
    facts = json.loads(cli("identity", "--json").out)
    kept = Identity.self_signed()
    assert facts == {
        "fingerprint": kept.fingerprint,
        "file": str(tmp_path / "home" / "default.pem"),
        "known_hosts": str(tmp_path / "home" / "known_hosts"),
        "not_after": kept.not_after.isoformat(),
    }
    assert json.loads(cli("identity", "show", "--json").out) == facts
    assert Path(facts["file"]).exists()


def test_known_hosts_are_listed_and_forgotten(cli: Cli) -> None:
    assert "no known hosts" in cli("identity", "known-hosts").out
    KnownHosts().record("192.168.1.5", 5000, PIN)
    KnownHosts().record("::1", 5000, PIN)
    shown = cli("identity", "known-hosts")
    assert [line.split()[:2] for line in shown.out.splitlines()] == [
        ["192.168.1.5:5000", PIN],
        ["[::1]:5000", PIN],
    ]
    listed = json.loads(cli("identity", "known-hosts", "--json").out)
    assert [each["address"] for each in listed] == ["192.168.1.5:5000", "[::1]:5000"]

    assert cli("identity", "forget", "192.168.1.5:5000").status == 0
    assert json.loads(cli("identity", "forget", "[::1]:5000", "--json").out) == {
        "forgotten": "[::1]:5000"
    }
    assert KnownHosts().entries() == []


def test_what_cannot_be_forgotten_is_exit_status_2(cli: Cli) -> None:
    cli("identity", "forget", "192.168.1.5:5000").complains(2, "is not in")
    cli("identity", "forget", "192.168.1.5").complains(2, "no port")
    cli("identity", "fly").complains(2, "fly")


def test_a_damaged_file_is_exit_status_1_and_named(cli: Cli, tmp_path: Path) -> None:
    cli("identity")
    (tmp_path / "home" / "default.pem").write_text("nonsense")
    cli("identity").complains(1, "default.pem")
    (tmp_path / "home" / "known_hosts").write_text("nonsense\n")
    cli("identity", "known-hosts").complains(1, "line 1 of", "known_hosts")


def test_the_key_is_rotated(cli: Cli) -> None:
    cli("identity", "rotate").complains(1, "no identity")
    before = Identity.self_signed()
    shown = json.loads(cli("identity", "rotate", "--json").out)
    assert shown["fingerprint"] == Identity.self_signed().fingerprint != before.fingerprint
