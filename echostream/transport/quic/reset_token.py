"""Stateless reset: tokens from a static key, and the packet (RFC 9000, section 10.3)."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

__all__ = ["SMALLEST_RESET", "reset_datagram", "reset_token", "static_key_from"]

SMALLEST_RESET = 21
"""Bytes of the shortest datagram that can be a stateless reset."""


def static_key_from(private_key: bytes) -> bytes:
    """A key for tokens that is the same after a restart with the same TLS key."""
    return hmac.digest(private_key, b"echostream stateless reset", hashlib.sha256)


def reset_token(static_key: bytes, connection_id: bytes) -> bytes:
    """The 16-byte token of a connection ID (RFC 9000, section 10.3.2)."""
    return hmac.digest(static_key, connection_id, hashlib.sha256)[:16]


def reset_datagram(token: bytes, received: int) -> bytes | None:
    """A stateless reset to answer a datagram of ``received`` bytes with, or ``None`` when that
    was too short: a reset is always shorter, so that two endpoints cannot answer each other's
    for ever (RFC 9000, section 10.3.3)."""
    if received <= SMALLEST_RESET:
        return None
    size = received - 1 if received <= 43 else 42 + secrets.randbelow(min(received, 96) - 42)
    noise = bytearray(os.urandom(size - 16))
    noise[0] = noise[0] & 0x3F | 0x40  # it looks like a short header
    return bytes(noise) + token
