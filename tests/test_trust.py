"""Whom a client believes: every rule, their order, and what a refusal says."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from echostream.errors import ConfigurationError, IdentityError
from echostream.transport.identity import Identity
from echostream.transport.known_hosts import KnownHost, KnownHosts, host_key
from echostream.transport.trust import Authorities, Trust, decide

PROJECT = Path(__file__).parents[1]
SERVER = Identity.ephemeral()
OTHER = Identity.ephemeral()


def der(identity: Identity) -> bytes:
    return x509.load_pem_x509_certificate(identity.certificate_pem).public_bytes(Encoding.DER)


def line_for(identity: Identity) -> KnownHost:
    return KnownHost("studio.local:5000", identity.fingerprint, "2026-01-02", Path("/k/hosts"), 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


# --- the order of the rules ---


@pytest.mark.parametrize(
    ("trust", "host", "address", "known", "rule"),
    [
        (Trust(fingerprint=SERVER.fingerprint), "example.com", "8.8.8.8", True, "fingerprint"),
        (Trust(ca=SERVER.certificate_pem), "example.com", "8.8.8.8", True, "authority"),
        (Trust(ca=SERVER.certificate_pem), "127.0.0.1", "127.0.0.1", False, "authority"),
        (Trust(), "example.com", "8.8.8.8", True, "known_host"),
        (Trust(), "127.0.0.1", "127.0.0.1", True, "known_host"),
        (Trust(), "example.com", "8.8.8.8", False, "authority"),
        (Trust(), "8.8.8.8", "8.8.8.8", False, "authority"),
        (Trust(), "example.com", "192.168.1.5", False, "authority"),  # a name can be vouched for
        (Trust(), "studio", "8.8.8.8", False, "authority"),
        (Trust(), "100.64.0.1", "100.64.0.1", False, "authority"),  # shared, not private
        (Trust(), "172.32.0.1", "172.32.0.1", False, "authority"),
        (Trust(), "localhost", "127.0.0.1", False, "first_use"),
        (Trust(), "LOCALHOST.", "::1", False, "first_use"),
        (Trust(), "studio.local", "192.168.1.5", False, "first_use"),
        (Trust(), "studio", "10.1.2.3", False, "first_use"),
        (Trust(), "172.31.0.1", "172.31.0.1", False, "first_use"),
        (Trust(), "[::1]", "::1", False, "first_use"),
        (Trust(), "fe80::1%eth0", "fe80::1%eth0", False, "first_use"),
        (Trust(), "fd00::1", "fd00::1", False, "first_use"),
        (Trust(), "::ffff:10.0.0.1", "::ffff:10.0.0.1", False, "first_use"),
        (Trust(), "::ffff:8.8.8.8", "::ffff:8.8.8.8", False, "authority"),
        (Trust(insecure=True), "8.8.8.8", "8.8.8.8", True, "insecure"),
    ],
)
def test_the_first_rule_that_applies(
    trust: Trust, host: str, address: str, known: bool, rule: str
) -> None:
    plan = decide(trust, host, 5000, address, known=line_for(SERVER) if known else None)
    assert plan.rule == rule
    assert (plan.authorities is not None) == (rule == "authority")
    assert (plan.expected is not None) == (rule in {"fingerprint", "known_host"})


@pytest.mark.parametrize(
    ("host", "server_name"),
    [("example.com.", "example.com"), ("[::1]", "::1"), ("127.0.0.1", "127.0.0.1")],
)
def test_the_name_that_the_certificate_has_to_hold_for(host: str, server_name: str) -> None:
    plan = decide(Trust(), host, 5000, "127.0.0.1", known=None)
    assert plan.server_name == server_name


def test_given_authorities_reach_tls_in_the_form_it_takes(tmp_path: Path) -> None:
    clean = SERVER.certificate_pem + OTHER.certificate_pem
    messy = clean.replace(b"\n", b"\r\n") + b"\r\n\r\n"
    (tmp_path / "ca.pem").write_bytes(messy)
    for ca in (messy, tmp_path / "ca.pem", str(tmp_path / "ca.pem")):
        plan = decide(Trust(ca=ca), "example.com", 5000, "8.8.8.8", known=None)
        assert plan.authorities == Authorities(pem=clean)


@pytest.mark.parametrize(("ca", "said"), [(b"garbage", "ca="), ("no/such.pem", "no/such.pem")])
def test_authorities_that_cannot_be_read(ca: bytes | str, said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        decide(Trust(ca=ca), "example.com", 5000, "8.8.8.8", known=None)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a store, not a file")
def test_the_systems_authorities_are_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_bytes(SERVER.certificate_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    plan = decide(Trust(), "example.com", 5000, "8.8.8.8", known=None)
    assert plan.authorities is not None
    assert plan.authorities.file == str(tmp_path / "ca.pem")


# --- options ---


def test_a_fingerprint_is_taken_as_people_write_it() -> None:
    digits = SERVER.fingerprint.removeprefix("sha256:")
    colons = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    for written in (digits, f"SHA256:{digits.upper()}", f" sha256:{colons}\n"):
        assert Trust(fingerprint=written).fingerprint == SERVER.fingerprint


@pytest.mark.parametrize("fingerprint", ["", "sha256:", "sha256:12", "md5:" + "0" * 64, "g" * 64])
def test_what_is_no_fingerprint(fingerprint: str) -> None:
    with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
        Trust(fingerprint=fingerprint)


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match="fingerprint and insecure"):
        Trust(fingerprint=SERVER.fingerprint, insecure=True)
    with pytest.raises(ConfigurationError, match="fingerprint and ca"):
        Trust(fingerprint=SERVER.fingerprint, ca=b"x")


def test_insecure_is_loud_each_time(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        plan = Trust(insecure=True).plan("studio", 5000, "8.8.8.8")
        assert plan.accept(der(OTHER)) == OTHER.fingerprint
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["studio:5000" in record.getMessage() for record in warnings] == [True, True]


# --- after the handshake ---


def test_the_pinned_key_passes_and_no_other() -> None:
    plan = Trust(fingerprint=SERVER.fingerprint).plan("example.com", 5000, "8.8.8.8")
    assert plan.accept(der(SERVER)) == SERVER.fingerprint
    with pytest.raises(IdentityError) as refused:
        plan.accept(der(OTHER))
    assert SERVER.fingerprint in str(refused.value)
    assert OTHER.fingerprint in str(refused.value)


def test_a_resumed_session_inherits_the_pin() -> None:
    plan = Trust(fingerprint=SERVER.fingerprint).plan("example.com", 5000, "8.8.8.8")
    assert plan.accept(None, resumed=SERVER.fingerprint) == SERVER.fingerprint
    with pytest.raises(IdentityError, match=OTHER.fingerprint):
        plan.accept(None, resumed=OTHER.fingerprint)


@pytest.mark.parametrize("certificate", [None, b"", b"garbage"])
@pytest.mark.parametrize("address", ["127.0.0.1", "8.8.8.8"])
def test_no_certificate_is_never_enough(
    file: Path, certificate: bytes | None, address: str
) -> None:
    plan = Trust(known_hosts=file).plan(address, 5000, address)
    with pytest.raises(IdentityError):
        plan.accept(certificate)
    assert not file.exists()


def test_first_use_is_written_down_and_then_binds(file: Path) -> None:
    trust = Trust(known_hosts=file)
    first = trust.plan("studio.local", 5000, "192.168.1.5")
    assert first.rule == "first_use"
    assert first.check(der(SERVER)) == SERVER.fingerprint
    assert not file.exists()  # checking alone writes nothing
    first.accept(der(SERVER))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    second = trust.plan("Studio.local.", 5000, "192.168.1.9")
    assert second.rule == "known_host"
    assert second.accept(der(SERVER)) == SERVER.fingerprint
    assert trust.plan("studio.local", 5001, "192.168.1.5").rule == "first_use"


def test_a_changed_key_is_refused_with_what_to_do_and_doing_it_helps(file: Path) -> None:
    trust = Trust(known_hosts=file)
    file.write_text("# mine\n\n")
    file.chmod(0o600)
    trust.plan("10.0.0.7", 5000, "10.0.0.7").accept(der(SERVER))
    plan = trust.plan("10.0.0.7", 5000, "10.0.0.7")
    with pytest.raises(IdentityError) as refused:
        plan.accept(der(OTHER))
    message = str(refused.value)
    for part in ("10.0.0.7:5000", SERVER.fingerprint, OTHER.fingerprint, f"line 3 of {file}"):
        assert part in message

    lines = file.read_text().splitlines()
    assert SERVER.fingerprint in lines.pop(3 - 1)
    file.write_text("\n".join(lines) + "\n")
    again = trust.plan("10.0.0.7", 5000, "10.0.0.7")
    assert again.accept(der(OTHER)) == OTHER.fingerprint


def test_an_announced_fingerprint_binds_the_first_use_only(file: Path) -> None:
    trust = Trust(known_hosts=file)
    first = trust.plan("studio.local", 5000, "10.0.0.7", hint=SERVER.fingerprint)
    with pytest.raises(IdentityError, match="announced"):
        first.accept(der(OTHER))
    assert not file.exists()
    first.accept(der(SERVER))
    later = trust.plan("studio.local", 5000, "10.0.0.7", hint=OTHER.fingerprint)
    assert later.expected == SERVER.fingerprint


def test_two_that_meet_different_servers_at_once_do_not_both_believe(file: Path) -> None:
    trust = Trust(known_hosts=file)
    one, two = (trust.plan("10.0.0.7", 5000, "10.0.0.7") for _ in range(2))
    one.accept(der(SERVER))
    with pytest.raises(IdentityError, match="has changed"):
        two.accept(der(OTHER))


def test_a_first_use_that_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    plan = decide(Trust(known_hosts=tmp_path / "folder"), "10.0.0.7", 5000, "10.0.0.7", known=None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IdentityError, match="Is a directory"):
        plan.accept(der(SERVER))


def test_what_tls_refused_is_said_with_a_way_out() -> None:
    plan = Trust().plan("example.com", 5000, "8.8.8.8")
    error = plan.refused("unable to get local issuer certificate")
    for part in ("example.com:5000", "local issuer", "fingerprint=", "ca="):
        assert part in str(error)


# --- the file ---


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("Example.COM.", "example.com:5000"),
        ("::1", "[::1]:5000"),
        ("[0:0:0:0:0:0:0:1]", "[::1]:5000"),
        ("::ffff:10.0.0.1", "10.0.0.1:5000"),
        ("fe80::1%eth0", "[fe80::1%eth0]:5000"),
    ],
)
def test_a_server_has_one_spelling(host: str, key: str) -> None:
    assert host_key(host, 5000) == key


@pytest.mark.parametrize("host", ["", " ", "a b", "a\nb", "#"])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(IdentityError):
        host_key(host, 5000)


def test_lines_are_read_recorded_and_forgotten(file: Path) -> None:
    hosts = KnownHosts(file)
    assert hosts.entries() == []
    assert hosts.lookup("a", 1) is None
    assert not hosts.forget("a", 1)
    a = hosts.record("a", 1, SERVER.fingerprint)
    b = hosts.record("::1", 2, OTHER.fingerprint)
    assert hosts.entries() == [a, b]
    assert (a.line, b.line) == (1, 2)
    assert hosts.record("a", 1, OTHER.fingerprint) == a
    assert hosts.forget("a", 1)
    assert [(entry.key, entry.line) for entry in hosts.entries()] == [("[::1]:2", 1)]


def test_comments_and_a_last_line_without_its_end_stay(file: Path) -> None:
    file.write_text(f"# studio\n\nstudio:1 {SERVER.fingerprint}")
    file.chmod(0o600)
    KnownHosts(file).record("b", 2, OTHER.fingerprint)
    assert file.read_text().startswith(f"# studio\n\nstudio:1 {SERVER.fingerprint}\nb:2 sha256:")


@pytest.mark.parametrize(
    "line",
    ["garbage", "a:1", "a:1 sha256:12", f"a {SERVER.fingerprint}", "a:1 md5:" + "0" * 64],
    ids=["garbage", "no key", "short key", "no port", "another hash"],
)
def test_a_line_that_cannot_be_read_is_an_error_that_names_it(file: Path, line: str) -> None:
    file.write_text(f"# first\n{line}\n")
    file.chmod(0o600)
    with pytest.raises(IdentityError, match=f"line 2 of {file}"):
        Trust(known_hosts=file).plan("b", 1, "127.0.0.1")


def test_two_lines_for_one_server_are_an_error(file: Path) -> None:
    file.write_text(f"studio:1 {SERVER.fingerprint}\nStudio.:1 {SERVER.fingerprint}\n")
    file.chmod(0o600)
    with pytest.raises(IdentityError, match="lines 1 and 2"):
        KnownHosts(file).lookup("other", 1)


def test_a_line_that_a_person_wrote_is_found(file: Path) -> None:
    file.write_text(f"[::1]:1 {SERVER.fingerprint}\n  0:0::2:5000\t{OTHER.fingerprint} today\n")
    file.chmod(0o600)
    assert KnownHosts(file).lookup("::2", 5000) is not None
    assert KnownHosts(file).lookup("::1", 1) is not None


def test_a_binary_file_is_an_error(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    file.chmod(0o600)
    with pytest.raises(IdentityError, match="not a text file"):
        KnownHosts(file).entries()


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_file_that_others_may_write_is_refused(file: Path) -> None:
    KnownHosts(file).record("a", 1, SERVER.fingerprint)
    file.chmod(0o666)
    with pytest.raises(IdentityError, match="chmod 600"):
        KnownHosts(file).lookup("a", 1)


def test_the_default_file_is_in_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOSTREAM_HOME", str(tmp_path / "home"))
    Trust().plan("127.0.0.1", 5000, "127.0.0.1").accept(der(SERVER))
    assert "127.0.0.1:5000" in (tmp_path / "home" / "known_hosts").read_text()


def test_processes_that_write_at_once_lose_no_line(file: Path) -> None:
    program = (
        "import sys; from echostream.transport.known_hosts import KnownHosts\n"
        "for port in range(1, 26): KnownHosts(sys.argv[1]).record(sys.argv[2], port, sys.argv[3])"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file), host, SERVER.fingerprint], cwd=PROJECT
        )
        for host in ("a", "b", "c")
    ]
    assert [process.wait() for process in started] == [0, 0, 0]
    keys = {entry.key for entry in KnownHosts(file).entries()}
    assert keys == {f"{host}:{port}" for host in "abc" for port in range(1, 26)}
