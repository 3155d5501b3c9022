"""Who an endpoint is: a certificate with its private key.

A *fingerprint* is ``sha256:`` and 64 hexadecimal digits, the SHA-256 of the certificate's
SubjectPublicKeyInfo (RFC 5280, section 4.1; pinned this way in RFC 7469, section 2.4). It names
the key, not the certificate: a renewed certificate for the same key keeps it. The same with
OpenSSL::

    openssl x509 -in cert.pem -noout -pubkey | openssl pkey -pubin -outform der | sha256sum
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeGuard

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from echostream.errors import ConfigurationError, IdentityError
from echostream.transport.private_files import (
    data_directory,
    locked,
    read_private,
    write_private,
)
from echostream.transport.succession import Links, extension_for, links_in, with_link

__all__ = ["Identity", "fingerprint_of", "rotate"]

_VALIDITY = timedelta(days=3650)
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SKEW = timedelta(days=1)  # a peer whose clock is behind takes a new certificate too
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

_PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and the private key that belongs to it, checked when it is made.

    Make one with :meth:`self_signed`, :meth:`from_pem`, :meth:`ephemeral` or :meth:`derived`.
    Immutable; whatever is wrong with a file is an :class:`~echostream.errors.IdentityError` that
    names it.
    """

    certificate_pem: bytes
    """The certificate, then its chain; LF line ends, nothing between and after the blocks."""
    private_key_pem: bytes = field(repr=False)
    """PKCS #8, not encrypted."""
    fingerprint: str
    """``sha256:`` and 64 hexadecimal digits, as :func:`fingerprint_of` gives it."""
    not_after: datetime
    """End of validity, in UTC."""

    @classmethod
    def self_signed(
        cls,
        name: str = "default",
        *,
        names: Iterable[str] = (),
        directory: str | os.PathLike[str] | None = None,
    ) -> Identity:
        """The identity that is kept under ``name``, made at its first use.

        Key and certificate are one file, ``NAME.pem`` with mode 0600, in ``directory`` or else in
        :func:`~echostream.transport.private_files.data_directory`. Processes that start at the
        same time get the same one. The certificate holds for ``localhost``, the loopback
        addresses, this host's name and ``names`` (host names or IP addresses). When it ends soon,
        or ``names`` asks for more, it is renewed with the same key, so that the fingerprint stays.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise ConfigurationError(
                f"{name!r} cannot name an identity: letters, digits, '.', '_' and '-' only"
            )
        folder = data_directory() if directory is None else Path(directory).absolute()
        path = folder / f"{name}.pem"
        wanted = _general_names(names)
        kept = _load_kept(path)
        if kept is not None and _serves(kept, wanted):
            return kept
        with locked(path):
            kept = _load_kept(path)  # another process may have been first
            if kept is None:
                made = _issue(name, [*_own_names(), *wanted], _new_key())
            elif _serves(kept, wanted):
                return kept
            else:
                key = _load_key(kept.private_key_pem, path)
                made = _issue(name, [*_names_in(kept), *wanted], key, _links_in(kept))
            write_private(path, made.private_key_pem + made.certificate_pem)
            return made

    @classmethod
    def from_pem(
        cls,
        certificate: str | os.PathLike[str],
        private_key: str | os.PathLike[str] | None = None,
    ) -> Identity:
        """The identity in two PEM files, or in one that holds both.

        ``certificate`` holds the certificate first and then the chain. Refused are: a key that does
        not belong to the certificate, is encrypted, or of a kind that TLS 1.3 as spoken here
        cannot use (ECDSA on P-256 and P-384, RSA from 2048 bits, Ed25519 and Ed448 can be),
        and a certificate that has ended or is not valid yet.
        """
        certificate_path = Path(certificate)
        key_path = certificate_path if private_key is None else Path(private_key)
        identity = _parse(_read(certificate_path), certificate_path, _read(key_path), key_path)
        _check_dates(x509.load_pem_x509_certificate(identity.certificate_pem), certificate_path)
        return identity

    @classmethod
    def ephemeral(cls, name: str = "ephemeral", *, names: Iterable[str] = ()) -> Identity:
        """A new self-signed identity that lives in memory only. Its fingerprint is a new one each
        time, so no client can know it beforehand: for tests and one-off programs."""
        return _issue(name, [*_own_names(), *_general_names(names)], _new_key())

    @classmethod
    def derived(cls, secret: str, user: str) -> Identity:
        """The identity of a ``user`` who knows ``secret``: the same key wherever it is derived, and
        a new certificate, in which neither is named.

        A server that sees the key prove itself can guess at the secret as fast as it can compute,
        so the secret is a long random one (``secrets.token_urlsafe()``), no password of a person.
        """
        return _issue("derived", [], _derived_key(secret, user))


def rotate(name: str = "default", *, directory: str | os.PathLike[str] | None = None) -> Identity:
    """Give the identity that is kept under ``name`` a new key, for which the old one vouches.

    Clients that know the old key take the new one at their next connection; see
    :mod:`echostream.transport.succession`. Pins and tickets name a key, and have to be given out
    anew. Running servers keep the old key until they are started again. ``IdentityError`` where
    there is no such identity.
    """
    folder = data_directory() if directory is None else Path(directory).absolute()
    path = folder / f"{name}.pem"
    with locked(path):
        kept = _load_kept(path)
        if kept is None:
            raise IdentityError(f"there is no identity in {path} whose key could be renewed")
        old = _load_key(kept.private_key_pem, path)
        new = _new_key()
        made = _issue(name, _names_in(kept), new, with_link(_links_in(kept), old, new))
        write_private(path, made.private_key_pem + made.certificate_pem)
        return made


def fingerprint_of(der: bytes) -> str:
    """Fingerprint of a certificate in DER, as a peer sends it.

    Raises :class:`~echostream.errors.IdentityError` for what is not a certificate.
    """
    try:
        with warnings.catch_warnings():
            # What cryptography tolerates for old certificates is refused from a peer.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            return _fingerprint(x509.load_der_x509_certificate(der))
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        CryptographyDeprecationWarning,
    ) as error:
        raise IdentityError("the peer's certificate cannot be read") from error


def _fingerprint(certificate: x509.Certificate) -> str:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(spki).hexdigest()


# --- certificates that are made here ---


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _derived_key(secret: str, user: str) -> ec.EllipticCurvePrivateKey:
    """HKDF-SHA-256 (RFC 5869), and of its 40 bytes a private key on P-256 (FIPS 186-5, A.2.1)."""
    info = b"EchoStream key from a secret, version 1" + user.encode()
    seed = HKDF(hashes.SHA256(), length=40, salt=None, info=info).derive(secret.encode())
    scalar = int.from_bytes(seed, "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def _own_names() -> list[x509.GeneralName]:
    names = ["localhost", "127.0.0.1", "::1"]
    host = socket.gethostname()
    if _is_host_name(host):
        names += [host] if "." in host else [host, f"{host}.local"]
    return _general_names(names)


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    if isinstance(names, str):
        raise ConfigurationError(f"names= takes several names: names=[{names!r}]")
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _is_host_name(name.removeprefix("*.")):
        raise ConfigurationError(f"{name!r} is neither a host name nor an IP address")
    return x509.DNSName(name.lower())


def _is_host_name(name: str) -> bool:
    return len(name) <= 253 and all(
        re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", label) for label in name.split(".")
    )


def _issue(
    name: str, names: list[x509.GeneralName], key: _PrivateKey, links: Links = ()
) -> Identity:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName(dict.fromkeys(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
    )
    if links:
        builder = builder.add_extension(extension_for(links), critical=False)
    is_edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    certificate = builder.sign(key, None if is_edwards else hashes.SHA256())
    return Identity(
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        private_key_pem=_key_pem(key),
        fingerprint=_fingerprint(certificate),
        not_after=certificate.not_valid_after_utc,
    )


def _load_kept(path: Path) -> Identity | None:
    data = read_private(path, secret=True)
    if data is None:
        return None
    try:
        return _parse(data, path, data, path)
    except IdentityError as error:
        raise IdentityError(
            f"{error}. Put a copy of the file back, or remove it: a new identity, "
            "with another fingerprint, is then made"
        ) from error


def _serves(kept: Identity, wanted: Iterable[x509.GeneralName]) -> bool:
    lasts = kept.not_after > datetime.now(UTC) + _RENEW_BEFORE
    return lasts and set(wanted) <= set(_names_in(kept))


def _links_in(identity: Identity) -> Links:
    return links_in(x509.load_pem_x509_certificate(identity.certificate_pem))


def _names_in(identity: Identity) -> list[x509.GeneralName]:
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    try:
        return list(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except (x509.ExtensionNotFound, ValueError):
        return []


# --- certificates that come from files ---


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error


def _parse(
    certificate_data: bytes, certificate_path: Path, key_data: bytes, key_path: Path
) -> Identity:
    key = _load_key(key_data, key_path)
    try:
        chain = x509.load_pem_x509_certificates(certificate_data)
        public = chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        # Written anew: a file with CRLF line ends or blank lines would reach TLS without its chain.
        certificate_pem = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise IdentityError(f"{certificate_path} holds no certificate in PEM: {error}") from error
    own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public != own:
        raise IdentityError(
            f"the private key in {key_path} does not belong to the first certificate in "
            f"{certificate_path}; the server's own certificate stands first, then its chain"
        )
    return Identity(
        certificate_pem=certificate_pem,
        private_key_pem=_key_pem(key),
        fingerprint=_fingerprint(chain[0]),
        not_after=chain[0].not_valid_after_utc,
    )


def _load_key(data: bytes, path: Path) -> _PrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise IdentityError(
            f"the private key in {path} is encrypted; write it without a password: "
            f"openssl pkey -in {path} -out plain.pem"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{path} holds no private key in PEM") from error
    if not _is_usable(key):
        raise IdentityError(
            f"the private key in {path} is of a kind that is not supported; make one for ECDSA on "
            "P-256: openssl ecparam -name prime256v1 -genkey -noout"
        )
    return key


def _is_usable(key: object) -> TypeGuard[_PrivateKey]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.curve.name in {"secp256r1", "secp384r1"}
    if isinstance(key, rsa.RSAPrivateKey):
        return key.key_size >= 2048
    return isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)


def _check_dates(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise IdentityError(
            f"the certificate in {path} ended on {certificate.not_valid_after_utc:%Y-%m-%d}; "
            "renew it"
        )
    if now < certificate.not_valid_before_utc:
        raise IdentityError(
            f"the certificate in {path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} "
            "on only; is this machine's clock right?"
        )


def _key_pem(key: _PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
