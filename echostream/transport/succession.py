"""A new key that the old one vouches for: clients that know the old key take the new one.

The certificate of the new key carries *links*, the oldest first. A link is an older public key and
its signature over the next one. A client that knows any of the older keys follows the links from
there to the key that the server shows. Whoever has an old private key can make such links: a key
that was stolen is not rotated, it is given up (remove its file, tell the clients).

The links are the value of one extension that is not critical: a count (1 byte), then for each link
the public key (SubjectPublicKeyInfo) and the signature, each with its length (2 bytes, big-endian).
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from echostream.transport.signatures import sign, statement, verify

__all__ = ["Links", "extension_for", "links_in", "predecessors", "with_link"]

Links: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Public keys in DER, each with its signature over the next; the last signs the current key."""

MAX_LINKS = 4
OID = x509.ObjectIdentifier("2.25.228117519363254839418117354083172561")
_TEXT = b"EchoStream key succession, version 1"


def with_link(links: Links, old_key: Any, new_key: Any) -> Links:
    """The links of the key that follows ``old_key``; private keys."""
    old, new = _public(old_key), _public(new_key)
    return (*links, (old, sign(old_key, statement(_TEXT, old, new))))[-MAX_LINKS:]


def extension_for(links: Links) -> x509.UnrecognizedExtension:
    """What goes into the certificate."""
    parts = [part for link in links for part in link]
    sized = b"".join(struct.pack("!H", len(part)) + part for part in parts)
    return x509.UnrecognizedExtension(OID, bytes([len(links)]) + sized)


def links_in(certificate: x509.Certificate) -> Links:
    """The links that a certificate carries, not verified; none where they cannot be read."""
    try:
        value = certificate.extensions.get_extension_for_oid(OID).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ()
    if not isinstance(value, x509.UnrecognizedExtension):
        return ()
    data = value.value
    parts, at = [], 1
    try:
        for _ in range(2 * min(data[0], MAX_LINKS)):
            (size,) = struct.unpack_from("!H", data, at)
            parts.append(data[at + 2 : at + 2 + size])
            if len(parts[-1]) != size:
                return ()
            at += 2 + size
    except (IndexError, struct.error):
        return ()
    return tuple(zip(parts[::2], parts[1::2], strict=True))


def predecessors(der: bytes) -> tuple[str, ...]:
    """The fingerprints of the older keys that vouch for a certificate's key, the latest first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            links = links_in(certificate)
            following = _spki(certificate.public_key()) if links else b""
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return ()
    found = []
    for public, signature in reversed(links):
        try:
            key = load_der_public_key(public)
            verify(key, signature, statement(_TEXT, public, following))
        except (ValueError, UnsupportedAlgorithm, InvalidSignature):
            break
        found.append("sha256:" + hashlib.sha256(public).hexdigest())
        following = public
    return tuple(found)


def _public(private_key: Any) -> bytes:
    return _spki(private_key.public_key())


def _spki(public_key: Any) -> bytes:
    der: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der
