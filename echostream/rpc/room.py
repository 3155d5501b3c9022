"""Room to send: who waits for it, until there is some or the connection ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any

from echostream.errors import ConnectionClosed, DeadlineExceeded, RpcError
from echostream.protocol.outbox import QUEUE_HIGH, QUEUE_LOW, USUAL

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Room", "share"]

_Waiters = deque[asyncio.Future[None]]
_OnStream = tuple[Callable[[int], int], int, asyncio.Future[None]]
"""Which level of a stream has to fall, how low, and who waits for it."""


class Room:
    """Those of one connection who wait until what they have to send can be queued.

    Every wait raises ``ConnectionClosed``, as certainly not sent, when the connection ends.
    """

    __slots__ = ("_calls", "_drained", "_events", "_numbers", "_peer", "_streams", "slots")

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._calls: _Waiters = deque()
        self._events: _Waiters = deque()
        self._drained: _Waiters = deque()
        self.slots: list[tuple[int, int, asyncio.Future[None]]] = []
        """A heap of those who wait until the peer takes one more call: priority, number, waiter."""
        self._numbers = count()
        self._streams: dict[int, list[_OnStream]] = {}

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        waiting = self._calls or self._events or self.slots or self._streams
        return bool(waiting) or self._peer.sending.waiting

    @property
    def idle(self) -> bool:
        """Whether :meth:`release` would find nobody."""
        return not (self._streams or self._calls or self._events or self._drained)

    async def wait_call_slot(self, timeout: float | None, priority: int = USUAL) -> None:
        """Wait until the peer takes one more call and there is room to queue it."""
        peer = self._peer
        try:
            async with asyncio.timeout(timeout):
                await self.wait_call(priority)
                while len(peer.calls) >= share(peer.call_limit, priority):
                    await self._wait_slot(priority)
                    await self.wait_call(priority)
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
        self, method: str, timeout: float | None, max_age: float | None, priority: int = USUAL
    ) -> float | None:
        """Wait until a call may leave; returns what is left of ``timeout``."""
        clock = self._peer.connection.clock
        started = clock()
        limits = [limit for limit in (timeout, max_age) if limit is not None]
        try:
            await self.wait_call_slot(min(limits, default=None), priority)
        except RpcError as exc:
            exc.method = method
            raise
        return None if timeout is None else max(timeout - (clock() - started), 0.0)

    async def wait_call(self, priority: int = USUAL) -> None:
        """Wait until a call, or an answer, can be queued."""
        outbox, most = self._peer.outbox, share(QUEUE_HIGH, priority)
        await self._wait_queue(self._calls, lambda: outbox.call_bytes > most)

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
        await self._wait_level(self._peer.connection.engine.buffered, stream_id, low)

    async def wait_sent(self, stream_id: int, low: int) -> None:
        """Wait until at most ``low`` bytes of a QUIC stream of ours have not left."""
        await self._wait_level(self._peer.connection.engine.unsent, stream_id, low)

    async def _wait_level(self, level: Callable[[int], int], stream_id: int, low: int) -> None:
        self._peer.check_open()
        future: asyncio.Future[None] = self._peer.loop.create_future()
        self._streams.setdefault(stream_id, []).append((level, low, future))
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

    async def _wait_slot(self, priority: int) -> None:
        self._peer.check_open()
        future: asyncio.Future[None] = self._peer.loop.create_future()
        waiter = priority, next(self._numbers), future
        heappush(self.slots, waiter)
        try:
            await future
        except BaseException:
            if waiter in self.slots:
                self.slots.remove(waiter)
                heapify(self.slots)
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
        for stream_id in list(self._streams):
            left = []
            for level, low, future in self._streams[stream_id]:
                if future.done():
                    continue
                if level(stream_id) <= low:
                    future.set_result(None)
                else:
                    left.append((level, low, future))
            if left:
                self._streams[stream_id] = left
            else:
                del self._streams[stream_id]

    def release_slot(self) -> None:
        """Let the most urgent go on who waits for a call's slot; who was cancelled meanwhile does
        not."""
        peer = self._peer
        while self.slots and len(peer.calls) < share(peer.call_limit, self.slots[0][0]):
            _, _, waiter = heappop(self.slots)
            if not waiter.done():
                waiter.set_result(None)
                return

    def refuse_slots(self) -> None:
        """The peer takes no new calls."""
        for _, _, waiter in self.slots:
            if not waiter.done():
                waiter.set_exception(self._peer.leaving_error())

    def connection_lost(self, error: ConnectionClosed) -> None:
        """There will be none."""
        waiters: list[asyncio.Future[Any]] = [
            *self._calls,
            *self._events,
            *self._drained,
            *(waiter for _, _, waiter in self.slots),
            *(future for entries in self._streams.values() for _, _, future in entries),
        ]
        for waiter in waiters:
            if not waiter.done():
                lost = copy(error)  # each gets a traceback of its own
                lost.unserved = True
                waiter.set_exception(lost)
        self._streams.clear()


def share(limit: int, priority: int) -> int:
    """What those of a priority may use of a limit: bulk leaves a quarter to others, and what is
    urgent goes a quarter beyond (the peer lets as many calls again wait)."""
    if priority == USUAL:
        return limit
    part = max(limit // 4, 1)
    return limit + part if priority < USUAL else max(limit - part, 1)


def _release(waiters: _Waiters) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
