"""Events that are acknowledged: who waits for which."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from copy import copy
from itertools import count
from typing import TYPE_CHECKING, Any

from echostream.codes import Status
from echostream.errors import (
    ConnectionClosed,
    DeadlineExceeded,
    EchoStreamError,
    ResourceExhausted,
    RpcError,
    error_for,
)
from echostream.protocol import events as ev
from echostream.protocol.outbox import QUEUE_HIGH
from echostream.protocol.resumption import Entry, Outcomes
from echostream.rpc.call import Metadata, encode_metadata

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Acknowledgements", "Emitters"]

MAX_UNACKNOWLEDGED = 65_536
_TEXTS: dict[int, str] = {
    Status.UNIMPLEMENTED: "nothing on the other side listens to it",
    Status.INTERNAL: "its listener failed; its side has logged why",
    Status.INVALID_ARGUMENT: "its payload does not have the type that the listener declares",
    Status.DEADLINE_EXCEEDED: "it was older than max_age when it came",
    Status.RESOURCE_EXHAUSTED: "it is larger than the other side's limit message_size",
    Status.UNAVAILABLE: "it was handled, and what came of it is not known any more",
}
_tokens = count(1)


class Emitters:
    """Those who wait until a listener has run, each by the token of its event: at one connection,
    or at all those of a link."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self.handled: dict[int, int] = {}
        """Tokens of events, by number, that were handled over connections that are over: what came
        of them is not known yet."""

    def __len__(self) -> int:
        return len(self._waiting)

    def token(self) -> int:
        """A new one, for the next event that wants an acknowledgement."""
        token = next(_tokens)
        self._waiting[token] = asyncio.get_running_loop().create_future()
        return token

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

    def settle(self, token: int, status: int, text: str = "") -> None:
        """This came of it."""
        future = self._waiting.get(token)
        if future is None or future.done():
            return
        if status == Status.OK:
            future.set_result(None)
        else:
            future.set_exception(error_for(status, text or _TEXTS.get(status, "")))

    def fail(self, error: EchoStreamError) -> None:
        """No answer will come to any of them."""
        self.handled.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(copy(error))


class Acknowledgements:
    """The acknowledged events of one connection."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._emitters = Emitters()
        self._outlived = False

    def __len__(self) -> int:
        return len(self._emitters)

    def take_along(self, emitters: Emitters) -> None:
        """The events go on with the next connection, and so do those who wait."""
        self._emitters = emitters
        self._outlived = True

    async def emit(
        self,
        event: str,
        payload: Any,
        metadata: Metadata | None,
        priority: int,
        max_age: float | None,
        timeout: float | None,
    ) -> None:
        """Emit and wait until the listener has run."""
        peer = self._peer
        data = peer.encode(payload)
        extra = None if metadata is None else encode_metadata(metadata)
        expires_at = peer.expiry(max_age)
        if peer.busy or peer.outbox.event_bytes > QUEUE_HIGH or peer.budget.tight:
            await peer.room.wait_event()
        token = self.token()
        own = -1 if priority == 3 else priority
        try:
            peer.protocol.emit(event, data, extra, own, expires_at, token)
            peer.connection.wake()
            await self._emitters.wait(token, event, timeout)
        except RpcError as exc:
            exc.method = exc.method or event
            raise
        finally:
            self._emitters.forget(token)

    def token(self) -> int:
        """As :meth:`Emitters.token`. Raises ``ResourceExhausted`` where too many are missing."""
        if len(self._peer.outbox.acked) >= MAX_UNACKNOWLEDGED:
            raise ResourceExhausted(f"limit acks={MAX_UNACKNOWLEDGED} of events not acknowledged")
        return self._emitters.token()

    def received(self, event: ev.EventAcknowledged) -> None:
        """The other side answered."""
        token = self._peer.outbox.acked.pop(event.number, None)
        if token is None:
            self._peer.stray()
        else:
            self._emitters.settle(token, event.status)

    def settle(self, entry: Entry, status: Status) -> None:
        """An event of the session came to its end without an EVENT_ACK."""
        if entry.token >= 0:
            self._emitters.settle(entry.token, status)

    def settle_handled(self, entries: Iterable[Entry], outcomes: Outcomes) -> None:
        """These were handled over earlier connections, and those that had not come to an answer."""
        tokens = {entry.number: entry.token for entry in entries if entry.token >= 0}
        for number, token in (self._emitters.handled | tokens).items():
            self._emitters.settle(token, outcomes.of(number))
        self._emitters.handled.clear()

    def fail_expired(self) -> None:
        """Events were too old before they could leave."""
        expired, self._peer.outbox.expired_acks = self._peer.outbox.expired_acks, []
        for token in expired:
            self._emitters.settle(
                token, Status.DEADLINE_EXCEEDED, "older than max_age before it could leave"
            )

    def connection_lost(self, error: ConnectionClosed) -> None:
        """No answer will come over this connection; what its session keeps is sent again."""
        if not self._outlived:
            self._emitters.fail(error)
            return
        journal = self._peer.events.journal
        for number, token in self._peer.outbox.acked.items():
            if journal is None:
                self._emitters.settle(token, Status.UNAVAILABLE)
            elif number not in journal:
                self._emitters.handled[number] = token
        for entry in self._peer.events.unwritten:
            self.settle(entry, Status.UNAVAILABLE)
