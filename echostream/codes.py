"""Numbers that travel: status of a call, reason of a close, code of a stream reset."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Close", "Reset", "Status"]


class Status(IntEnum):
    """Outcome of a call. The values are those of gRPC, which its users know by heart."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Close(IntEnum):
    """Application error code of CONNECTION_CLOSE (RFC 9000, section 19.19)."""

    OK = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    GOING_AWAY = 0x3
    IDENTITY_REFUSED = 0x4
    AUTHENTICATION_FAILED = 0x5
    VERSION_MISMATCH = 0x6
    EXCESSIVE_LOAD = 0x7
    TIMEOUT = 0x8


class Reset(IntEnum):
    """Application error code of RESET_STREAM and STOP_SENDING (RFC 9000, sections 19.4, 19.5)."""

    CANCELLED = 0x10
    EXPIRED = 0x11
    REFUSED = 0x12
    NOT_FOUND = 0x13
    HANDLER_FAILED = 0x14
    PROTOCOL_ERROR = 0x15
    TOO_LARGE = 0x16
    FLUSHED = 0x17
    TOO_SLOW = 0x18
