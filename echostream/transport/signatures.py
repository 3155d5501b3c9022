"""Signatures of statements, with any key that TLS can use here."""

from __future__ import annotations

import struct
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

__all__ = ["sign", "statement", "verify"]

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


def statement(*parts: bytes) -> bytes:
    """The parts, each with its length before it. The first says what kind of statement it is, so
    that none can be taken for another, nor for what TLS signs (RFC 8446, section 4.4.3)."""
    return b"".join(struct.pack("!I", len(part)) + part for part in parts)


def sign(key: Any, data: bytes) -> bytes:
    """A signature: ECDSA with the curve's hash, RSA-PSS with SHA-256, Ed25519 or Ed448."""
    signature: bytes
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(data, ec.ECDSA(_hash_for(key.curve)))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, _PSS, hashes.SHA256())
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
        signature = key.sign(data)
    return signature


def verify(key: Any, signature: bytes, data: bytes) -> None:
    """Raises ``InvalidSignature``, also for a key of a kind that is not used here."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, data, ec.ECDSA(_hash_for(key.curve)))
    elif isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 8192:
        key.verify(signature, data, _PSS, hashes.SHA256())
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, data)
    else:
        raise InvalidSignature("a key of a kind that is not supported")


def _hash_for(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    return hashes.SHA384() if isinstance(curve, ec.SECP384R1) else hashes.SHA256()
