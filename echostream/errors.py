"""The error tree. The class says whose fault it is; fields carry the facts.

::

    EchoStreamError
    ├── ConfigurationError       the program is wrong: an option, a name, an address
    ├── ConnectionClosed         the connection ended, or never came to be
    ├── ProtocolError            the peer broke the wire format
    ├── RpcError                 the peer answered with a status
    │   ├── Cancelled            1
    │   ├── InvalidPayload       3
    │   ├── DeadlineExceeded     4
    │   ├── PermissionDenied     7
    │   ├── ResourceExhausted    8
    │   ├── MethodNotFound       12
    │   ├── InternalError        13
    │   └── Unavailable          14
    ├── StreamReset              one stream was aborted
    ├── DiscoveryError           nothing was found, or announcing failed
    └── IdentityError            the peer is not who it should be, or a key file is unusable

``OSError``, ``TimeoutError`` and ``CancelledError`` of the local program pass unwrapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from echostream.codes import Status

__all__ = [
    "Cancelled",
    "ConfigurationError",
    "ConnectionClosed",
    "DeadlineExceeded",
    "DiscoveryError",
    "EchoStreamError",
    "IdentityError",
    "InternalError",
    "InvalidPayload",
    "MethodNotFound",
    "PermissionDenied",
    "ProtocolError",
    "ResourceExhausted",
    "RpcError",
    "StreamReset",
    "Unavailable",
    "error_for",
]


class EchoStreamError(Exception):
    """Every error that EchoStream raises is one of these.

    ``unserved``: it is certain that the call which ended so was not run; it may be made again.
    """

    unserved = False


class ConfigurationError(EchoStreamError):
    """An option, name, address or handler that cannot work. Raised at the call that gave it."""


class ConnectionClosed(EchoStreamError):  # noqa: N818 - a fixed public name
    """The connection ended. Every wait that depended on it ends with this error.

    ``code`` is the application close code (:class:`echostream.codes.Close`) or the QUIC
    transport error code, ``reason`` the text that came with it, ``by_peer`` whether the
    other side closed.
    """

    def __init__(self, message: str, *, code: int = 0, reason: str = "", by_peer: bool = False):
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.by_peer = by_peer


class ProtocolError(EchoStreamError):
    """The peer sent what wire format version 1 does not allow."""


class RpcError(EchoStreamError):
    """What a peer answered instead of a result; a handler raises it to answer so.

    ``status`` is a :class:`echostream.codes.Status` (or the bare integer of an unknown
    one), ``message`` a text for people, ``details`` structured data (anything that msgpack
    carries), ``method`` the name that was called, where known, ``metadata`` what the handler sent
    along.
    """

    default_status: ClassVar[Status] = Status.UNKNOWN

    def __init__(
        self,
        message: str = "",
        *,
        status: Status | int | None = None,
        details: Any = None,
        method: str | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
    ):
        super().__init__(message)
        self.metadata: Mapping[str, str | bytes] = {} if metadata is None else metadata
        self.status: Status | int = self.default_status if status is None else status
        self.message = message
        self.details = details
        self.method = method

    def __str__(self) -> str:
        status = self.status.name if isinstance(self.status, Status) else str(self.status)
        where = f" in {self.method!r}" if self.method else ""
        return f"{status}{where}: {self.message}" if self.message else f"{status}{where}"


class Cancelled(RpcError):  # noqa: N818 - a fixed public name
    """The call was cancelled on the side that answered."""

    default_status = Status.CANCELLED


class InvalidPayload(RpcError):  # noqa: N818 - a fixed public name
    """The payload does not have the type that the handler declares; the field is named."""

    default_status = Status.INVALID_ARGUMENT


class DeadlineExceeded(RpcError):  # noqa: N818 - a fixed public name
    """The time that the caller allowed ran out."""

    default_status = Status.DEADLINE_EXCEEDED


class PermissionDenied(RpcError):  # noqa: N818 - a fixed public name
    """The caller may not do this."""

    default_status = Status.PERMISSION_DENIED


class ResourceExhausted(RpcError):  # noqa: N818 - a fixed public name
    """A limit was passed; the message names it."""

    default_status = Status.RESOURCE_EXHAUSTED


class MethodNotFound(RpcError):  # noqa: N818 - a fixed public name
    """Nothing is registered under that name."""

    default_status = Status.UNIMPLEMENTED


class InternalError(RpcError):
    """The handler failed. Its text stays in the log of the side where it happened."""

    default_status = Status.INTERNAL


class Unavailable(RpcError):  # noqa: N818 - a fixed public name
    """The other side cannot take the call now (it is shutting down, or the link is gone)."""

    default_status = Status.UNAVAILABLE


class StreamReset(EchoStreamError):  # noqa: N818 - a fixed public name
    """One stream was aborted; the connection lives. ``code`` says why."""

    def __init__(self, message: str, *, code: int = 0):
        super().__init__(message)
        self.code = code


class DiscoveryError(EchoStreamError):
    """No service was found, or announcing one failed; the message says what was tried."""


class IdentityError(EchoStreamError):
    """The peer's identity was refused, or a certificate or key cannot be used."""


_BY_STATUS: dict[int, type[RpcError]] = {
    cls.default_status: cls
    for cls in (
        Cancelled,
        InvalidPayload,
        DeadlineExceeded,
        PermissionDenied,
        ResourceExhausted,
        MethodNotFound,
        InternalError,
        Unavailable,
    )
}


def error_for(
    status: int, message: str, *, details: Any = None, method: str | None = None
) -> RpcError:
    """The exception for a status that a peer answered with."""
    cls = _BY_STATUS.get(status, RpcError)
    try:
        known: Status | int = Status(status)
    except ValueError:
        known = status
    return cls(message, status=known, details=details, method=method)
