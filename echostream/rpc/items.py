"""The asynchronous ends of a streaming call's items: a reader and a writer, on either side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from echostream.errors import ConfigurationError, InvalidPayload
from echostream.protocol.flow import RECEIVE_BYTES, Flow
from echostream.protocol.outbox import AHEAD

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["ArgumentStream", "ItemEnds"]

T = TypeVar("T")

SEND_HIGH = 256 * 1024
"""Unacknowledged bytes of one streaming call above which its sender waits."""
SEND_LOW = 128 * 1024


class ItemEnds:
    """Reads and writes the items of one :class:`Flow`; at most one task does each."""

    __slots__ = ("_peer", "_reader", "_writer", "flow")

    def __init__(self, peer: Peer, flow: Flow) -> None:
        self._peer = peer
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.flow = flow
        flow.wake = self.wake

    def wake(self, _: object = None) -> None:
        """Something changed: whoever waits looks again."""
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def take(self) -> bytes:
        """The next item; one must be there."""
        peer, flow = self._peer, self.flow
        payload = peer.protocol.take_item(flow)
        if flow.paused and flow.held <= RECEIVE_BYTES // 2:
            flow.paused = False
            peer.resume(flow.stream_id)
        elif peer.ended is None:
            peer.connection.wake()
        return payload

    async def changed(self) -> None:
        """Wait for anything to read, or the end of it."""
        if self._reader is not None:
            raise ConfigurationError("two tasks read the items of one call: give each its own")
        self._reader = self._peer.loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def write(self, value: Any, max_age: float | None = None) -> bool:
        """Send one item when the other side takes it; ``False`` when it takes no more. One that
        waited longer than ``max_age`` s is dropped and counted."""
        peer, flow = self._peer, self.flow
        data = peer.encode(value)
        engine = peer.connection.engine
        expires_at = peer.expiry(max_age)
        waited = False
        while not flow.over:
            if flow.credit <= 0:
                self._writer = peer.loop.create_future()
                try:
                    await self._writer
                finally:
                    self._writer = None
            elif engine.buffered(flow.stream_id) > SEND_HIGH:
                await peer.room.wait_stream(flow.stream_id, SEND_LOW)
            elif max_age is not None and engine.unsent(flow.stream_id) > AHEAD:
                await peer.room.wait_sent(flow.stream_id, AHEAD)
            elif peer.connection.clock() > expires_at:
                peer.outbox.expired += 1
                return True
            elif peer.sending.refuses and not waited:
                await peer.room.wait_share()
                waited = True
            else:
                peer.protocol.send_item(flow, data)
                peer.connection.wake()
                return True
        return False


class ArgumentStream(Generic[T]):
    """What a handler iterates over: the arguments of one call, as they come.

    An item of another type than was declared raises ``InvalidPayload`` that names it; a handler
    that lets it pass answers with it, one that catches it may go on.
    """

    def __init__(self, ends: ItemEnds, decode: Callable[[bytes], T]) -> None:
        self._ends = ends
        self._decode = decode
        self._count = 0

    def __aiter__(self) -> ArgumentStream[T]:
        return self

    async def __anext__(self) -> T:
        flow = self._ends.flow
        while not flow.waiting:
            if flow.complete:
                raise StopAsyncIteration
            await self._ends.changed()
        payload = self._ends.take()
        self._count += 1
        try:
            return self._decode(payload)
        except InvalidPayload as exc:
            exc.message = f"item {self._count}: {exc.message}"
            raise
