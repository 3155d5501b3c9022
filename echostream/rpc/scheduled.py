"""Calls and events that are to run at a time of the shared clock.

The shared clock is the server's. A time on it means the same on both sides of a connection and,
because all clients follow one server, in all of its clients.
"""

from __future__ import annotations

import asyncio

from echostream.codes import Status
from echostream.errors import ConfigurationError, InvalidPayload, RpcError, Unavailable
from echostream.rpc.aligned import wait_synchronized
from echostream.rpc.call import Metadata
from echostream.rpc.clock import ClockDriver

__all__ = ["AT", "Schedule", "add_at", "take_at"]

AT = "echostream.at"
MAX_AHEAD_NS = 60_000_000_000
SPIN_NS = 1_500_000
"""Event loops wake to the millisecond; the rest is waited for one loop turn after the other."""
STEP_S = 1.0
"""A longer wait is cut into such pieces, because the clock's map gets better meanwhile."""


def add_at(metadata: Metadata | None, at: int) -> Metadata:
    """Metadata that carries ``at``. Raises ``ConfigurationError``."""
    if not isinstance(at, int) or not -(2**63) <= at < 2**63:
        raise ConfigurationError(
            f"at={at!r} must be ns of the shared clock as a whole number: "
            "shared_time_ns() + 200_000_000"
        )
    return {**(metadata or {}), AT: at.to_bytes(8, "big", signed=True)}


def take_at(metadata: Metadata) -> tuple[Metadata, int | None]:
    """Metadata without it, and the time. Raises ``InvalidPayload``."""
    if AT not in metadata:
        return metadata, None
    rest = dict(metadata)
    value = rest.pop(AT)
    if not isinstance(value, bytes) or len(value) != 8:
        raise InvalidPayload(f"metadata {AT!r} must be 8 bytes")
    return rest, int.from_bytes(value, "big", signed=True)


class Schedule:
    """The shared clock of one connection, and the waiting for its times."""

    def __init__(self, clock: ClockDriver, *, is_reference: bool, virtual: bool) -> None:
        self._clock = clock
        self._is_reference = is_reference
        self._spin_ns = 0 if virtual else SPIN_NS
        self.late = 0
        """Handlers whose time had passed when their call or event came: they ran at once."""
        self.refused = 0
        """Calls and events for a time too far ahead."""

    def now_ns(self) -> int:
        """The shared clock. Raises ``Unavailable`` while this side does not know it."""
        local = self._clock.now_ns()
        if self._is_reference:
            return local
        self._clock.start()
        if not self._clock.sync.synchronized:
            raise Unavailable(
                "the clock is not synchronised: await clock.wait_synchronized() first"
            )
        return self._clock.sync.to_remote(local)

    async def wait_until(self, at: int) -> None:
        """Wait for shared time ``at``; not at all when it has passed, which is counted.

        Raises ``RpcError`` (INVALID_ARGUMENT) for more than 60 s ahead, ``DeadlineExceeded`` when
        the clock cannot be synchronised.
        """
        if not self._is_reference:
            self._clock.start()
            await wait_synchronized(self._clock)
        left = self._left(at)
        if left > MAX_AHEAD_NS:
            self.refused += 1
            raise RpcError(
                f"at is {left / 1e9:.1f} s ahead, the limit is {MAX_AHEAD_NS // 10**9} s",
                status=Status.INVALID_ARGUMENT,
            )
        if left < 0:
            self.late += 1
        while left > 0:
            await asyncio.sleep(min(max(left - self._spin_ns, 0) / 1e9, STEP_S))
            left = self._left(at)

    def _left(self, at: int) -> int:
        local = at if self._is_reference else self._clock.sync.to_local(at)
        return local - self._clock.now_ns()
