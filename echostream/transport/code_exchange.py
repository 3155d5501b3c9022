"""A short code that two machines share becomes a proof that nobody stands between them.

SPAKE2 (RFC 9382 describes the family; M. Abdalla and D. Pointcheval, "Simple Password-Based
Encrypted Key Exchange Protocols", CT-RSA 2005), as the package ``spake2`` has it, over Ed25519. Who
does not know the code learns nothing from an exchange but whether *one* guess was right. The
fingerprints of both keys are part of it: with somebody between, who must show keys of his own, the
two sides never agree, whatever he forwards.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from echostream.errors import ConfigurationError, IdentityError
from echostream.transport.signatures import statement

__all__ = ["CodeExchange"]

_TEXT = b"EchoStream pairing, version 1"
MISMATCH = (
    "the two sides did not agree: the code is another one, or somebody stands between the two "
    "machines. Nothing was believed; begin again with a new code"
)


class CodeExchange:
    """One side of one exchange, for one guess. ``client`` and ``server`` are the fingerprints of
    the keys that *this side* sees at the two ends. Raises ``ConfigurationError`` where the extra
    ``pair`` is not installed."""

    def __init__(self, code: str, *, client: str, server: str, is_client: bool) -> None:
        try:
            from spake2 import SPAKE2_A, SPAKE2_B
        except ImportError:
            raise ConfigurationError("pairing needs spake2: pip install 'echostream[pair]'") from (
                None
            )
        side = SPAKE2_A if is_client else SPAKE2_B
        self._side: Any = side(code.encode(), idA=client.encode(), idB=server.encode())
        self._own, self._other = (b"client", b"server") if is_client else (b"server", b"client")
        self._key: bytes | None = None
        self.message: bytes = self._side.start()
        """For the other side."""

    def agree(self, message: object) -> None:
        """Take the other side's message. Raises ``IdentityError`` for what is none."""
        if not isinstance(message, bytes) or len(message) != len(self.message):
            raise IdentityError("the other side's part of the pairing is malformed")
        try:
            self._key = self._side.finish(message)
        except Exception as error:  # no point of the curve, or our own message
            raise IdentityError("the other side's part of the pairing is malformed") from error

    def proof(self, said: bytes) -> bytes:
        """That this side has come to the same key, and means ``said``."""
        return self._mac(self._own, said)

    def verify(self, proof: object, said: bytes) -> None:
        """That the other side has. Raises ``IdentityError``."""
        wanted = self._mac(self._other, said)
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, wanted):
            raise IdentityError(MISMATCH)

    def _mac(self, side: bytes, said: bytes) -> bytes:
        assert self._key is not None, "agree() comes first"
        return hmac.digest(self._key, statement(_TEXT, side, said), hashlib.sha256)
