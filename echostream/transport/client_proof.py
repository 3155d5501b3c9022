"""How a client proves that it has a key: it signs what this server wants signed, once.

Signed are a fixed text, the fingerprint of the *server's* key, the challenge of this connection and
the certificate that is shown, each with its length. A proof is good for one connection to one
server: whoever gets it, as a server in between, can show it to nobody else. The fixed text keeps
it apart from everything else that the key signs, as a TLS handshake (RFC 8446, section 4.4.3).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from echostream.errors import ConfigurationError, IdentityError
from echostream.transport.identity import Identity, fingerprint_of
from echostream.transport.signatures import sign, statement, verify

__all__ = ["Authorities", "load_authorities", "prove", "verify_chain", "verify_proof"]

Authorities: TypeAlias = tuple[x509.Certificate, ...]

MAX_CHAIN = 5
MAX_CERTIFICATE = 8192
_TEXT = b"EchoStream client proof, version 1"


def prove(identity: Identity, server: str, challenge: bytes) -> dict[str, Any]:
    """The fields of HELLO's ``auth`` that prove ``identity`` to the server with the fingerprint
    ``server``, which asked with ``challenge``."""
    chain = x509.load_pem_x509_certificates(identity.certificate_pem)[:MAX_CHAIN]
    ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
    key = load_pem_private_key(identity.private_key_pem, password=None)
    signature = sign(key, statement(_TEXT, server.encode(), challenge, ders[0]))
    return {"scheme": "certificate", "chain": ders, "signature": signature}


def verify_proof(chain: object, signature: object, server: str, challenge: bytes) -> str:
    """The fingerprint of the key that the client has. ``IdentityError`` says what is wrong.

    Whether that key is one to trust is the caller's question; the end of its certificate's time
    is looked at here.
    """
    ders = _checked_chain(chain)
    if not isinstance(signature, bytes) or len(signature) > 1024:
        raise IdentityError("the client's proof has no signature")
    shown = fingerprint_of(ders[0])
    certificate = x509.load_der_x509_certificate(ders[0])
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise IdentityError(
            f"the client's certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}: "
            "renew it"
        )
    if now < certificate.not_valid_before_utc:
        raise IdentityError("the client's certificate is not valid yet: is its clock right?")
    try:
        verify(
            certificate.public_key(),
            signature,
            statement(_TEXT, server.encode(), challenge, ders[0]),
        )
    except InvalidSignature:
        raise IdentityError(
            "the client's proof does not hold: it was made with another key, for another server "
            "or for another connection"
        ) from None
    return shown


def verify_chain(chain: object, authorities: Authorities) -> tuple[str, ...]:
    """The names in a client's certificate, which one of the ``authorities`` issued for clients
    (RFC 5280, section 6). ``IdentityError`` where none did."""
    ders = _checked_chain(chain)
    leaf, *between = map(x509.load_der_x509_certificate, ders)
    verifier = PolicyBuilder().store(Store(list(authorities))).build_client_verifier()
    try:
        verifier.verify(leaf, between)
    except (VerificationError, UnsupportedAlgorithm, ValueError) as exc:
        reason = str(exc).partition("\n")[0][:120]
        raise IdentityError(
            f"the client's certificate was not issued by an authority that is trusted: {reason}"
        ) from None
    return _names(leaf)


def load_authorities(ca: str | os.PathLike[str] | bytes) -> Authorities:
    """Certificates in PEM, from a file or as bytes. Raises ``ConfigurationError``."""
    try:
        data = ca if isinstance(ca, bytes) else Path(ca).read_bytes()
        return tuple(x509.load_pem_x509_certificates(data))
    except OSError as exc:
        raise ConfigurationError(f"ca={os.fspath(ca)!r} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigurationError(f"ca= holds no certificate in PEM: {exc}") from exc


def _checked_chain(chain: object) -> list[bytes]:
    if (
        not isinstance(chain, list)
        or not 1 <= len(chain) <= MAX_CHAIN
        or not all(isinstance(each, bytes) and len(each) <= MAX_CERTIFICATE for each in chain)
    ):
        raise IdentityError(f"the client's proof must hold 1 to {MAX_CHAIN} certificates")
    for der in chain:
        fingerprint_of(der)
    return chain


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = [str(each.value) for each in subject]
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += found.get_values_for_type(x509.DNSName)
        names += found.get_values_for_type(x509.RFC822Name)
        names += map(str, found.get_values_for_type(x509.IPAddress))
    except x509.ExtensionNotFound:
        pass
    return tuple(dict.fromkeys(names))
