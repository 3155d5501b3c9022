"""How a client decides whom it talks to. There is always an answer, and never a silent one.

The first of these that applies:

1. ``fingerprint=``: the server's key has this fingerprint.
2. ``ca=``: the certificate was issued by this authority, for the name that was asked for.
3. The server is in the known-hosts file: its key is the one in the file.
4. A public name or address: the certificate was issued by an authority that this system trusts.
5. A loopback, private or link-local address: trust on first use, as SSH does. The key is
   written into the known-hosts file, and from then on point 3 applies.

What the caller names (1, 2) comes before what is remembered (3): it is the stronger statement.
``insecure=True`` takes everything, and logs a warning every time.

The decision has two halves. A :class:`Plan` is made *before* the handshake: it says whether TLS
verifies the certificate and against what. Its :meth:`~Plan.check` or :meth:`~Plan.accept` runs
*after* the handshake and before the first application byte. Where TLS does not verify the
certificate, it still proves that the peer holds the certificate's key (RFC 8446, section 4.4.3).
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import ssl
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from echostream.errors import ConfigurationError, IdentityError
from echostream.transport.identity import fingerprint_of
from echostream.transport.known_hosts import KnownHost, KnownHosts, host_key
from echostream.transport.succession import predecessors

__all__ = ["Authorities", "Plan", "Rule", "Trust", "decide", "is_near"]

logger = logging.getLogger(__name__)

Rule: TypeAlias = Literal["fingerprint", "authority", "known_host", "first_use", "insecure"]

_NEAR = [
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",  # loopback, RFC 1122
        "::1/128",
        "0.0.0.0/32",  # connecting to "any address" reaches this host
        "::/128",
        "10.0.0.0/8",  # private use, RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",  # unique local, RFC 4193
        "169.254.0.0/16",  # link-local, RFC 3927
        "fe80::/10",
    )
]

# No public authority may vouch for these: RFC 6761, 6762, 8375, and the ICANN resolution
# on .internal of 2024.
_LOCAL_NAMES = (".localhost", ".local", ".home.arpa", ".internal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whom a client trusts. Without any option, what the module describes.

    ``fingerprint`` is the server's (``sha256:`` and 64 hexadecimal digits; upper case and colons
    between the bytes are taken too). ``ca`` is a file of certificates in PEM, or its bytes.
    ``known_hosts`` is the file to use instead of the one in the data directory.
    """

    fingerprint: str | None = None
    ca: str | os.PathLike[str] | bytes | None = None
    insecure: bool = False
    known_hosts: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        options = {"fingerprint": self.fingerprint, "ca": self.ca, "insecure": self.insecure}
        given = [name for name, value in options.items() if value not in (None, False)]
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(given)} contradict each other; give one")
        if self.fingerprint is not None:
            object.__setattr__(self, "fingerprint", _normalised(self.fingerprint))

    def plan(self, host: str, port: int, address: str, *, hint: str | None = None) -> Plan:
        """:func:`decide` with what the known-hosts file says. Reads files."""
        known = None
        if self.fingerprint is None and self.ca is None and not self.insecure:
            known = KnownHosts(self.known_hosts).lookup(host, port)
        return decide(self, host, port, address, known=known, hint=hint)


@dataclass(frozen=True, slots=True)
class Authorities:
    """Certificates to verify against; the fields are those that TLS libraries take. All three
    ``None``: the TLS library's own list."""

    pem: bytes | None = None
    file: str | None = None
    directory: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was decided before the handshake with one server."""

    rule: Rule
    host: str
    port: int
    server_name: str
    """Name or address that the certificate has to hold for where ``authorities`` are given, and
    the one that goes into SNI where it is a name."""
    authorities: Authorities | None
    """What TLS verifies the certificate against; ``None``: TLS does not verify it."""
    expected: str | None
    """The fingerprint that the server must have."""
    known: KnownHost | None = None
    """The line that says so."""
    known_hosts: str | os.PathLike[str] | None = None

    def check(self, certificate: bytes | None, *, resumed: str | None = None) -> str:
        """The server's fingerprint, or :class:`~echostream.errors.IdentityError`. Touches no file.

        ``certificate`` is the leaf in DER. A resumed session sends none: then ``resumed`` is
        the fingerprint that the session had in which the ticket was given.
        """
        if certificate is None and resumed is None:
            raise IdentityError(f"{self._where} showed no certificate")
        shown = resumed if certificate is None else fingerprint_of(certificate)
        assert shown is not None
        if (
            self.expected is not None
            and shown != self.expected
            and not self._succeeds(certificate, {self.expected})
        ):
            raise IdentityError(self._mismatch(self.expected, shown))
        return shown

    def accept(self, certificate: bytes | None, *, resumed: str | None = None) -> str:
        """:meth:`check`, and on a first use the line in the known-hosts file.

        A key that cannot be written down is refused: each time would be the first time.
        """
        shown = self.check(certificate, resumed=resumed)
        if self.rule == "known_host" and shown != self.expected:
            KnownHosts(self.known_hosts).replace(self.host, self.port, shown)
            logger.info("%s has a new key, %s, which its old one signed", self._where, shown)
        if self.rule == "first_use":
            line = KnownHosts(self.known_hosts).record(self.host, self.port, shown)
            if line.fingerprint != shown:  # another process was first, and met another key
                raise IdentityError(_changed(self._where, line, shown))
            logger.info("first connection to %s: its key %s is trusted now", self._where, shown)
        return shown

    def _succeeds(self, certificate: bytes | None, known: Collection[str]) -> bool:
        """Whether a key that is remembered vouches for the one that is shown. A key that the caller
        named is that key and no other."""
        return (
            self.rule == "known_host"
            and certificate is not None
            and any(old in known for old in predecessors(certificate))
        )

    def refused(self, reason: str) -> IdentityError:
        """The error for a certificate that TLS did not accept, for the given reason."""
        return IdentityError(
            f"the certificate of {self._where} was not accepted: {reason}. If the server has a "
            "certificate of its own making, ask for its fingerprint and give it as fingerprint=; "
            "if its authority is a private one, give that one's certificate as ca="
        )

    @property
    def _where(self) -> str:
        return host_key(self.host, self.port)

    def _mismatch(self, expected: str, shown: str) -> str:
        if self.known is not None:
            return _changed(self._where, self.known, shown)
        if self.rule == "first_use":
            return (
                f"{self._where} has the key {shown}, but was announced with {expected}: the "
                "announcement is wrong, or somebody answers in the server's place. If you know "
                "that the key is right, give it as fingerprint="
            )
        return (
            f"{self._where} has the key {shown}, but fingerprint= asks for {expected}: this is "
            "another server, or it was set up anew. Ask whoever runs it for its fingerprint"
        )


def decide(
    trust: Trust,
    host: str,
    port: int,
    address: str,
    *,
    known: KnownHost | None,
    hint: str | None = None,
) -> Plan:
    """Which rule applies to the server that was asked for as ``host`` and found at ``address``.

    ``known`` is its line in the known-hosts file. ``hint`` is a fingerprint from an unauthenticated
    announcement (mDNS): a first use is held to it, and it never overrides anything else.
    Raises :class:`~echostream.errors.IdentityError` for a ``ca`` that cannot be read.
    """

    def plan(
        rule: Rule, *, authorities: Authorities | None = None, expected: str | None = None
    ) -> Plan:
        return Plan(
            rule=rule,
            host=host,
            port=port,
            server_name=host.strip("[]").rstrip("."),
            authorities=authorities,
            expected=expected,
            known=known if rule == "known_host" else None,
            known_hosts=trust.known_hosts,
        )

    if trust.insecure:
        logger.warning(
            "insecure=True: whoever answers as %s is believed, and may read and change everything",
            host_key(host, port),
        )
        return plan("insecure")
    if trust.fingerprint is not None:
        return plan("fingerprint", expected=trust.fingerprint)
    if trust.ca is not None:
        return plan("authority", authorities=Authorities(pem=_read_authorities(trust.ca)))
    if known is not None:
        return plan("known_host", expected=known.fingerprint)
    if is_near(address) and not _has_public_name(host):
        return plan("first_use", expected=None if hint is None else _normalised(hint))
    return plan("authority", authorities=_system_authorities())


def _changed(where: str, known: KnownHost, shown: str) -> str:
    since = f", known since {known.since}" if known.since else ""
    return (
        f"the key of {where} has changed.\n"
        f"  expected: {known.fingerprint} (line {known.line} of {known.path}{since})\n"
        f"  shown:    {shown}\n"
        "Either the server was set up anew, or somebody answers in its place and would read and "
        "change everything. Ask whoever runs the server for its fingerprint. If it is the one "
        f"shown, delete line {known.line} of {known.path} and connect again."
    )


def is_near(address: str) -> bool:
    """Whether trust on first use may apply: a loopback, private or link-local address."""
    found = ipaddress.ip_address(address.strip("[]"))
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found.version == network.version and found in network for network in _NEAR)


def _has_public_name(host: str) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." in name and not name.endswith(_LOCAL_NAMES)
    return False


def _normalised(fingerprint: str) -> str:
    digits = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ConfigurationError(
            f"{fingerprint!r} is not a fingerprint: it is 'sha256:' and 64 hexadecimal digits"
        )
    return f"sha256:{digits}"


def _read_authorities(ca: str | os.PathLike[str] | bytes) -> bytes:
    """The certificates in PEM, written anew: TLS libraries differ in the line ends they take."""
    source = "ca=" if isinstance(ca, bytes) else os.fspath(ca)
    try:
        data = ca if isinstance(ca, bytes) else Path(ca).read_bytes()
        certificates = x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise IdentityError(f"cannot read {source}: {error.strerror}") from error
    except ValueError as error:
        raise IdentityError(f"{source} holds no certificate in PEM: {error}") from error
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _system_authorities() -> Authorities:
    if sys.platform == "win32":
        ders = ssl.create_default_context().get_ca_certs(binary_form=True)
        return Authorities(pem="".join(map(ssl.DER_cert_to_PEM_cert, ders)).encode())
    paths = ssl.get_default_verify_paths()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    return Authorities(file=paths.cafile, directory=paths.capath)
