"""What a running handler can ask about its own call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType

from echostream.errors import DeadlineExceeded, InvalidPayload
from echostream.protocol import payload as payloads

__all__ = ["Call", "current_call", "decode_metadata", "encode_metadata"]

Metadata = Mapping[str, str | bytes]
MAX_METADATA = 16 * 1024
TRACEPARENT = "traceparent"
TRACE = (TRACEPARENT, "tracestate")
NO_METADATA: Metadata = MappingProxyType({})


class Call:
    """The call that the current task serves. ``deadline`` is a time of the connection's clock,
    which is ``time.monotonic()`` but on virtual time; ``None`` without one. ``event_number``: for a
    listener, the event's number in its event session, the same when it is sent again; else 0.
    ``max_age`` (s) is for the handler to set: a result of many that waited longer to leave is
    dropped and counted.

    While it is served, calls that its handler makes inherit the deadline, and its trace context
    (``traceparent`` and ``tracestate``, W3C Trace Context) goes along with them.
    """

    __slots__ = (
        "_clock",
        "_response",
        "deadline",
        "event_number",
        "max_age",
        "metadata",
        "method",
        "over",
    )

    def __init__(
        self,
        method: str,
        metadata: Metadata = NO_METADATA,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        event_number: int = 0,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.deadline = deadline
        self.over = False
        self.max_age: float | None = None
        self._clock = clock
        self.event_number = event_number
        self._response: dict[str, str | bytes] | None = None

    @property
    def time_remaining(self) -> float | None:
        """Seconds until the deadline, never below 0; ``None`` without one."""
        return None if self.deadline is None else max(self.deadline - self._clock(), 0.0)

    @property
    def response_metadata(self) -> dict[str, str | bytes]:
        """What goes to the caller along with the result, or with the error: set entries here."""
        if self._response is None:
            self._response = {}
        return self._response

    def inherit(
        self, timeout: float | None, metadata: Metadata | None
    ) -> tuple[float | None, Metadata | None]:
        """Timeout and metadata of a call that is made while this one is served. Raises
        ``DeadlineExceeded`` when no time is left."""
        if self.over:
            return timeout, metadata
        if self.deadline is not None:
            left = self.deadline - self._clock()
            if left <= 0:
                raise DeadlineExceeded(f"the deadline of {self.method!r} has passed")
            timeout = left if timeout is None else min(timeout, left)
        return timeout, self.trace(metadata)

    def trace(self, metadata: Metadata | None) -> Metadata | None:
        """Metadata with this call's trace context, where it has one and the metadata has none."""
        if self.over or TRACEPARENT not in self.metadata:
            return metadata
        own = {key: self.metadata[key] for key in TRACE if key in self.metadata}
        return {**own, **(metadata or {})}


_current: ContextVar[Call | None] = ContextVar("echostream_call", default=None)


def current_call() -> Call:
    """The call that this task serves. Raises ``LookupError`` outside a handler."""
    call = _current.get()
    if call is None:
        raise LookupError("no call here: current_call() works inside a handler or listener")
    return call


def encode_metadata(metadata: Metadata | None) -> bytes | None:
    """Metadata for the wire. Raises ``InvalidPayload`` for what is not str to str or bytes."""
    if not metadata:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidPayload(f"metadata is a dict of str, got {type(metadata).__name__}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str | bytes):
            raise InvalidPayload(
                f"metadata maps str to str or bytes; {key!r} maps to {type(value).__name__}"
            )
    data = payloads.encode(dict(metadata))
    if len(data) > MAX_METADATA:
        raise InvalidPayload(f"metadata takes {len(data)} bytes, the limit is {MAX_METADATA}")
    return data


def decode_metadata(data: bytes | None) -> Metadata:
    """Metadata from the wire."""
    if data is None:
        return {}
    found = payloads.decode(data)
    if not isinstance(found, dict) or not all(isinstance(v, str | bytes) for v in found.values()):
        raise InvalidPayload("metadata must map str to str or bytes")
    return found
