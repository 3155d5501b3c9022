"""Events that are acknowledged: who waits for which."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING

from echostream.codes import Status
from echostream.errors import ConnectionClosed, DeadlineExceeded, ResourceExhausted, error_for
from echostream.protocol import events as ev

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Acknowledgements"]

MAX_UNACKNOWLEDGED = 65_536
_TEXTS: dict[int, str] = {
    Status.UNIMPLEMENTED: "nothing on the other side listens to it",
    Status.INTERNAL: "its listener failed; its side has logged why",
    Status.INVALID_ARGUMENT: "its payload does not have the type that the listener declares",
}


class Acknowledgements:
    """The emitters of one side that wait until a listener has run."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def token(self) -> int:
        """A new one, for the next event that wants an acknowledgement. Raises
        ``ResourceExhausted`` where too many are missing."""
        if len(self._peer.outbox.acked) >= MAX_UNACKNOWLEDGED:
            raise ResourceExhausted(f"limit acks={MAX_UNACKNOWLEDGED} of events not acknowledged")
        self._next += 1
        self._waiting[self._next] = self._peer.loop.create_future()
        return self._next

    async def wait(self, token: int, name: str, timeout: float | None) -> None:
        """Wait for it. Raises ``RpcError`` where the listener failed or there is none."""
        try:
            async with asyncio.timeout(timeout):
                await self._waiting[token]
        except TimeoutError:
            raise DeadlineExceeded(f"not acknowledged within {timeout:g} s", method=name) from None
        finally:
            self.forget(token)

    def forget(self, token: int) -> None:
        """Nobody waits any more."""
        self._waiting.pop(token, None)

    def received(self, event: ev.EventAcknowledged) -> None:
        """The other side answered."""
        token = self._peer.outbox.acked.pop(event.number, None)
        if token is None:
            self._peer.stray()
            return
        future = self._waiting.get(token)
        if future is None or future.done():
            return
        if event.status == Status.OK:
            future.set_result(None)
        else:
            future.set_exception(error_for(event.status, _TEXTS.get(event.status, "")))

    def fail_expired(self) -> None:
        """Events were too old before they could leave."""
        expired, self._peer.outbox.expired_acks = self._peer.outbox.expired_acks, []
        for token in expired:
            future = self._waiting.get(token)
            if future is not None and not future.done():
                future.set_exception(DeadlineExceeded("older than max_age before it could leave"))

    def connection_lost(self, error: ConnectionClosed) -> None:
        """No answer will come."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(copy(error))
