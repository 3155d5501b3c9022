"""Room to send: who waits for it, until there is some or the connection ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

from echostream.errors import ConnectionClosed, DeadlineExceeded, RpcError
from echostream.protocol.outbox import QUEUE_HIGH, QUEUE_LOW

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Room"]

_Waiters = deque[asyncio.Future[None]]


class Room:
    """Those of one connection who wait until what they have to send can be queued.

    Every wait raises ``ConnectionClosed``, as certainly not sent, when the connection ends.
    """

    __slots__ = ("_calls", "_drained", "_events", "_peer", "_streams", "slots")

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._calls: _Waiters = deque()
        self._events: _Waiters = deque()
        self._drained: _Waiters = deque()
        self.slots: _Waiters = deque()
        """Those who wait until the peer takes one more call."""
        self._streams: dict[int, list[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        waiting = self._calls or self._events or self.slots or self._streams
        return bool(waiting) or self._peer.sending.waiting

    @property
    def idle(self) -> bool:
        """Whether :meth:`release` would find nobody."""
        return not (self._streams or self._calls or self._events or self._drained)

    async def wait_call_slot(self, timeout: float | None) -> None:
        """Wait until the peer takes one more call and there is room to queue it."""
        peer = self._peer
        try:
            async with asyncio.timeout(timeout):
                await self.wait_call()
                while len(peer.calls) >= peer.call_limit:
                    await self._wait(self.slots)
                    await self.wait_call()
        except TimeoutError:
            self.release_slot()
            raise DeadlineExceeded(
                f"not sent within {timeout} s: the peer does not read, or its limit calls="
                f"{peer.call_limit} is used up"
            ) from None
        except BaseException:
            self.release_slot()  # it may have been this waiter's turn
            raise
        if peer.going_away:
            self.release_slot()
            raise peer.leaving_error()

    async def wait_turn(
        self, method: str, timeout: float | None, max_age: float | None
    ) -> float | None:
        """Wait until a call may leave; returns what is left of ``timeout``."""
        clock = self._peer.connection.clock
        started = clock()
        limits = [limit for limit in (timeout, max_age) if limit is not None]
        try:
            await self.wait_call_slot(min(limits, default=None))
        except RpcError as exc:
            exc.method = method
            raise
        return None if timeout is None else max(timeout - (clock() - started), 0.0)

    async def wait_call(self) -> None:
        """Wait until a call, or an answer, can be queued."""
        outbox = self._peer.outbox
        await self._wait_queue(self._calls, lambda: outbox.call_bytes > QUEUE_HIGH)

    async def wait_event(self, most: int = QUEUE_HIGH) -> None:
        """Wait until at most ``most`` bytes of events are queued."""
        peer = self._peer
        await self._wait_queue(self._events, lambda: peer.outbox.event_bytes > most)
        if peer.going_away and peer.events.leaves_behind:
            raise peer.leaving_error()

    async def _wait_queue(self, waiters: _Waiters, full: Callable[[], bool]) -> None:
        self._peer.check_open()
        while True:
            while full():
                await self._wait(waiters)
            if not self._peer.sending.refuses:
                return
            await self.wait_share()
            if not full():  # this was its turn: nobody may ask it to wait again
                return

    async def wait_share(self) -> None:
        """Wait until all connections together hold less."""
        await self._peer.sending.wait()
        self._peer.check_open()

    async def wait_stream(self, stream_id: int, low: int) -> None:
        """Wait until at most ``low`` bytes of a QUIC stream of ours are unacknowledged."""
        self._peer.check_open()
        future: asyncio.Future[None] = self._peer.loop.create_future()
        self._streams.setdefault(stream_id, []).append((low, future))
        await future

    async def wait_drained(self) -> None:
        """Wait until nothing is queued here and all that was sent is acknowledged."""
        while not self._peer.outbox.idle or self._peer.connection.engine.buffered_total:
            await self._wait(self._drained)

    async def _wait(self, waiters: _Waiters) -> None:
        self._peer.check_open()
        future: asyncio.Future[None] = self._peer.loop.create_future()
        waiters.append(future)
        try:
            await future
        except BaseException:
            if future in waiters:
                waiters.remove(future)
            raise

    def release(self) -> None:
        """Something left: let those go on for whom there is room now."""
        outbox = self._peer.outbox
        if self._streams:
            self._release_streams()
        if self._calls and outbox.call_bytes <= QUEUE_LOW:
            _release(self._calls)
        if self._events and outbox.event_bytes <= QUEUE_LOW:
            _release(self._events)
        if self._drained:
            _release(self._drained)

    def _release_streams(self) -> None:
        buffered = self._peer.connection.engine.buffered
        for stream_id in list(self._streams):
            level = buffered(stream_id)
            left = []
            for low, future in self._streams[stream_id]:
                if future.done():
                    continue
                if level <= low:
                    future.set_result(None)
                else:
                    left.append((low, future))
            if left:
                self._streams[stream_id] = left
            else:
                del self._streams[stream_id]

    def release_slot(self) -> None:
        """Let the next go on who waits for a call's slot; who was cancelled meanwhile does not."""
        peer = self._peer
        while self.slots and len(peer.calls) < peer.call_limit:
            waiter = self.slots.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def refuse_slots(self) -> None:
        """The peer takes no new calls."""
        for waiter in self.slots:
            if not waiter.done():
                waiter.set_exception(self._peer.leaving_error())

    def connection_lost(self, error: ConnectionClosed) -> None:
        """There will be none."""
        waiters: list[asyncio.Future[Any]] = [
            *self._calls,
            *self._events,
            *self._drained,
            *self.slots,
            *(future for entries in self._streams.values() for _, future in entries),
        ]
        for waiter in waiters:
            if not waiter.done():
                lost = copy(error)  # each gets a traceback of its own
                lost.unserved = True
                waiter.set_exception(lost)
        self._streams.clear()


def _release(waiters: _Waiters) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
