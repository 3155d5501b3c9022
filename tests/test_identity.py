"""Identities: made once and kept, loaded from whatever people's PEM files look like, or refused."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from echostream.errors import ConfigurationError, IdentityError
from echostream.transport import identity as identity_module
from echostream.transport.identity import Identity, fingerprint_of

PROJECT = Path(__file__).parents[1]


def leaf(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.certificate_pem)


def der(identity: Identity) -> bytes:
    return leaf(identity).public_bytes(Encoding.DER)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate(key, *, start: int = -1, end: int = 1, name: str = "test") -> bytes:
    """A certificate in PEM that is valid from ``start`` to ``end`` days from now."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + timedelta(days=start))
    builder = builder.not_valid_after(now + timedelta(days=end))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def key_pem(key, encryption=NoEncryption()) -> bytes:  # noqa: B008 - immutable
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ECHOSTREAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


# --- made here ---


def test_it_is_made_once_and_kept(home: Path) -> None:
    first = Identity.self_signed()
    assert Identity.self_signed() == first
    assert mode(home) == 0o700
    assert mode(home / "default.pem") == 0o600
    assert Identity.self_signed("other").fingerprint != first.fingerprint


def test_a_directory_can_be_named(tmp_path: Path, home: Path) -> None:
    made = Identity.self_signed("studio", directory=tmp_path / "keys")
    assert Identity.from_pem(tmp_path / "keys" / "studio.pem") == made
    assert not home.exists()


def test_the_data_directory_follows_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("ECHOSTREAM_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    Identity.self_signed()
    assert (tmp_path / ".local/share/echostream/default.pem").exists()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    Identity.self_signed()
    assert (tmp_path / "xdg/echostream/default.pem").exists()


def test_the_certificate_holds_for_what_it_should() -> None:
    made = Identity.ephemeral(names=["Studio.Example", "192.168.1.5", "*.rooms.example"])
    names = leaf(made).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "studio.example", "*.rooms.example"} <= set(
        names.get_values_for_type(x509.DNSName)
    )
    addresses = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "::1", "192.168.1.5"} <= addresses
    assert isinstance(leaf(made).public_key(), ec.EllipticCurvePublicKey)
    assert made.not_after > datetime.now(UTC) + timedelta(days=3000)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "studio.example"])
def test_the_certificate_verifies_when_it_is_given_as_the_authority(name: str) -> None:
    made = Identity.ephemeral(names=["studio.example"])
    tls.verify_certificate(leaf(made), server_name=name, cadata=made.certificate_pem)
    with pytest.raises(tls.AlertBadCertificate):
        tls.verify_certificate(leaf(made), server_name="other", cadata=made.certificate_pem)


def test_the_fingerprint_is_that_of_the_key() -> None:
    made = Identity.ephemeral()
    spki = leaf(made).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert made.fingerprint == "sha256:" + hashlib.sha256(spki).hexdigest()
    assert fingerprint_of(der(made)) == made.fingerprint
    assert Identity.ephemeral().fingerprint != made.fingerprint


def test_the_key_is_not_in_the_repr() -> None:
    assert "PRIVATE" not in repr(Identity.ephemeral())


def test_more_names_renew_the_certificate_and_keep_the_key(home: Path) -> None:
    first = Identity.self_signed(names=["a.example"])
    second = Identity.self_signed(names=["b.example"])
    assert second.certificate_pem != first.certificate_pem
    assert second.fingerprint == first.fingerprint
    assert Identity.self_signed(names=["a.example", "b.example"]) == second
    assert Identity.self_signed() == second


def test_a_certificate_that_ends_soon_is_renewed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(identity_module, "_VALIDITY", timedelta(days=29))
        old = Identity.self_signed()
    new = Identity.self_signed()
    assert new.not_after > old.not_after + timedelta(days=3000)
    assert new.fingerprint == old.fingerprint


def test_processes_that_start_at_once_get_the_same_one(home: Path) -> None:
    program = (
        "import sys; from echostream.transport.identity import Identity; print(flush=True); "
        "sys.stdin.read(); print(Identity.self_signed().fingerprint)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        for _ in range(4)
    ]
    for process in started:
        process.stdout.readline()  # everything is imported
    for process in started:
        process.stdin.close()  # go
    prints = {process.stdout.read().strip() for process in started}
    assert [process.wait() for process in started] == [0] * 4
    for process in started:
        process.stdout.close()
    assert prints == {Identity.self_signed().fingerprint}


def test_a_key_that_others_could_read_is_closed_with_a_warning(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Identity.self_signed()
    path = home / "default.pem"
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert Identity.self_signed() == made
    assert mode(path) == 0o600
    assert str(path) in caplog.text


def test_a_key_that_others_could_write_is_refused(home: Path) -> None:
    Identity.self_signed()
    (home / "default.pem").chmod(0o620)
    with pytest.raises(IdentityError, match=r"default\.pem.*0620.*chmod 600"):
        Identity.self_signed()


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(IdentityError, match="chmod o-w"):
        Identity.self_signed(directory=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff\x00", Identity.ephemeral().certificate_pem]
)
def test_a_file_that_is_no_identity_is_refused_and_left_alone(home: Path, content: bytes) -> None:
    home.mkdir(mode=0o700)
    path = home / "default.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=r"default\.pem.*remove it"):
        Identity.self_signed()
    assert path.read_bytes() == content


def test_a_directory_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match=r"file.*ECHOSTREAM_HOME"):
        Identity.self_signed(directory=tmp_path / "file" / "keys")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(IdentityError, match="ECHOSTREAM_HOME"):
        Identity.self_signed(directory=tmp_path)
    tmp_path.chmod(0o700)


def test_a_write_that_fails_leaves_nothing_behind(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(IdentityError, match="No space left"):
            Identity.self_signed()
    assert [path.name for path in home.iterdir()] == [".default.pem.lock"]
    Identity.self_signed()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 200])
def test_a_name_that_is_no_file_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        Identity.self_signed(name)


@pytest.mark.parametrize("names", ["host.example", ["white space"], [""], ["-x"], ["a..b"]])
def test_names_that_are_none_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        Identity.ephemeral(names=names)


# --- loaded from files ---


@pytest.fixture
def files(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    (tmp_path / "cert.pem").write_bytes(certificate(key))
    (tmp_path / "key.pem").write_bytes(key_pem(key))
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_a_pair_of_files(files: tuple[Path, Path], key: ec.EllipticCurvePrivateKey) -> None:
    loaded = Identity.from_pem(*files)
    assert loaded.certificate_pem == files[0].read_bytes()
    assert loaded.private_key_pem == key_pem(key)
    assert Identity.from_pem(str(files[0]), str(files[1])) == loaded


def test_line_ends_and_blank_lines_do_not_cost_the_chain(files: tuple[Path, Path]) -> None:
    """Given as they are, these bytes would reach TLS without their chain, or not at all."""
    intermediate = certificate(ec.generate_private_key(ec.SECP384R1()), name="authority")
    clean = files[0].read_bytes() + intermediate
    messy = b"# comment\r\n" + clean.replace(b"\n", b"\r\n").replace(b"-\r\n-", b"-\r\n\r\n-")
    files[0].write_bytes(messy + b"\r\n\r\n")
    loaded = Identity.from_pem(*files)
    assert loaded.certificate_pem == clean
    assert len(tls.load_pem_x509_certificates(loaded.certificate_pem)) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_kinds_of_key_that_work(tmp_path: Path, make) -> None:
    key = make()
    path = tmp_path / "both.pem"
    path.write_bytes(certificate(key) + key_pem(key))
    assert Identity.from_pem(path).fingerprint.startswith("sha256:")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: rsa.generate_private_key(65537, 1024),
        lambda: dsa.generate_private_key(1024),
    ],
)
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_kinds_of_key_that_do_not(files: tuple[Path, Path], make) -> None:
    files[1].write_bytes(key_pem(make()))
    with pytest.raises(IdentityError, match=r"key\.pem is of a kind"):
        Identity.from_pem(*files)


def test_missing_files(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(IdentityError, match=r"none\.pem: No such file"):
        Identity.from_pem(tmp_path / "none.pem", files[1])
    with pytest.raises(IdentityError, match=r"none\.pem: No such file"):
        Identity.from_pem(files[0], tmp_path / "none.pem")
    with pytest.raises(IdentityError, match="Is a directory"):
        Identity.from_pem(tmp_path, files[1])


def test_files_that_hold_something_else(files: tuple[Path, Path]) -> None:
    with pytest.raises(IdentityError, match=r"cert\.pem holds no private key"):
        Identity.from_pem(files[0], files[0])
    with pytest.raises(IdentityError, match=r"key\.pem holds no certificate"):
        Identity.from_pem(files[1], files[1])


def test_a_key_of_another_certificate(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(IdentityError, match="does not belong"):
        Identity.from_pem(*files)


def test_an_encrypted_key(files: tuple[Path, Path], key: ec.EllipticCurvePrivateKey) -> None:
    files[1].write_bytes(key_pem(key, BestAvailableEncryption(b"secret")))
    with pytest.raises(IdentityError, match=r"is encrypted.*openssl pkey"):
        Identity.from_pem(*files)


def test_dates(files: tuple[Path, Path], key: ec.EllipticCurvePrivateKey) -> None:
    files[0].write_bytes(certificate(key, start=-3, end=-2))
    with pytest.raises(IdentityError, match="ended on"):
        Identity.from_pem(*files)
    files[0].write_bytes(certificate(key, start=2, end=3))
    with pytest.raises(IdentityError, match="clock"):
        Identity.from_pem(*files)


# --- what a peer shows ---

GOOD = der(Identity.ephemeral())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    with pytest.raises(IdentityError):
        fingerprint_of(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_damaged_certificate_gives_a_fingerprint_or_an_identity_error(
    at: int, value: int
) -> None:
    try:
        result = fingerprint_of(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])
    except IdentityError:
        return
    assert len(result) == len("sha256:") + 64


def test_a_derived_key_follows_from_secret_and_user() -> None:
    first, again = (Identity.derived("correct horse", "ada") for _ in range(2))
    assert first.private_key_pem == again.private_key_pem
    assert (
        first.fingerprint
        == "sha256:b114d730bfffb77e89d45ef13cc005552631e636864e01ddfde8d91e40ebcd39"
    )
    others = [Identity.derived("correct horse", "adb"), Identity.derived("correct hors", "eada")]
    assert len({each.fingerprint for each in [first, *others]}) == 3
    (name,) = x509.load_pem_x509_certificate(first.certificate_pem).subject
    assert name.value == "derived"
