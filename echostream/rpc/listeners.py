"""Runs the listeners of one connection: each name's events one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from echostream.codes import Status
from echostream.errors import ConnectionClosed, InvalidPayload, RpcError
from echostream.protocol import events as ev
from echostream.rpc.call import NO_METADATA, Call, _current, decode_metadata
from echostream.rpc.gate import STOP_S, Gate, is_asked_to_stop
from echostream.rpc.registry import Registry, Route
from echostream.rpc.scheduled import Schedule, take_at

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["LISTENER_GRACE_S", "Listeners"]

logger = logging.getLogger("echostream.rpc")

MAX_UNHANDLED_EVENTS = 1024
MAX_UNHANDLED_BYTES = 1024 * 1024
LISTENER_GRACE_S = 5.0
"""How long listeners may go on with what had arrived before the peer left."""
YIELD_EVERY = 64


class Listeners:
    """The events that a peer emits. ``on_idle`` is called when one name's listener is done."""

    def __init__(
        self,
        peer: Peer,
        routes: Registry,
        context: Any,
        gate: Gate,
        schedule: Schedule,
        on_idle: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._routes = routes
        self._context = context
        self._gate = gate
        self._schedule = schedule
        self._on_idle = on_idle
        self._queues: dict[str, deque[tuple[Any, ev.EventReceived]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unhandled = 0
        self._unhandled_bytes = 0
        self._paused: set[int] = set()
        self.grace_s = STOP_S
        """How long the end of the connection waits for them."""
        self.unclaimed = 0
        self.dropped = 0
        self.handled = 0

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Those that run listeners."""
        return self._tasks

    @property
    def waiting(self) -> bool:
        """Whether events wait."""
        return bool(self._queues)

    def start(self) -> None:
        """Listeners may run: handle what came before."""
        for name, queue in self._queues.items():
            route = self._routes.match(name)
            assert route is not None
            if not self._gate.permits(route):
                for _, dropped in queue:
                    self._event_handled(len(dropped.payload))
                    self._drop(dropped, Status.PERMISSION_DENIED)
                    self.unclaimed += 1
                queue.clear()
            self._start_listener(route, name, queue)

    def connection_lost(self, *, orderly: bool) -> None:
        """What had arrived goes on where the peer left in an ``orderly`` way: it knows that it
        came. Where an event session goes on with the next connection, the listeners that run end
        what they do, and the events behind it come again. Else they are cancelled."""
        kept = self._peer.events.kept
        if (orderly or kept) and self._queues:
            self.grace_s = LISTENER_GRACE_S
        if kept and not orderly:
            for queue in self._queues.values():
                queue.clear()
            if not self._gate.ready:
                self._queues.clear()
        elif not orderly:
            self.cancel()

    def cancel(self) -> None:
        """Cancel what runs and forget what waits."""
        self._queues.clear()
        for task in self._tasks:
            task.cancel()

    def receive(self, event: ev.EventReceived) -> None:
        """Queue an event for its listener. Where too many wait, the stream it came on is paused."""
        route = self._routes.match(event.name)
        if route is None:
            self.unclaimed += 1
            self._drop(event, Status.UNIMPLEMENTED)
            return
        if self._gate.ready and route.requires and not self._gate.permits(route):
            self.unclaimed += 1
            self._drop(event, Status.PERMISSION_DENIED)
            return
        if self._unhandled >= MAX_UNHANDLED_EVENTS or self._unhandled_bytes >= MAX_UNHANDLED_BYTES:
            if event.stream_id < 0:
                self.dropped += 1
                return
            self._paused.add(event.stream_id)
            self._peer.protocol.inbox.pause(event.stream_id)
        try:
            argument = None if route.decode is None else route.decode(event.payload)
        except InvalidPayload as exc:
            logger.warning(
                "event %r from %s dropped: %s", event.name, self._peer.peer_addr, exc.message
            )
            self._drop(event, Status.INVALID_ARGUMENT)
            return
        self._unhandled += 1
        self._unhandled_bytes += len(event.payload)
        queue = self._queues.get(event.name)
        if queue is not None:
            queue.append((argument, event))
            return
        self._queues[event.name] = queue = deque([(argument, event)])
        if self._gate.ready:
            self._start_listener(route, event.name, queue)

    def skipped(self, event: ev.EventSkipped) -> None:
        """An event was not delivered."""
        self._drop(event, event.status)

    def _drop(self, event: ev.EventReceived | ev.EventSkipped, status: Status | int) -> None:
        """No listener will have this event."""
        self._acknowledge(event, status)
        self._peer.events.handled(event.number)

    def _acknowledge(self, event: ev.EventReceived | ev.EventSkipped, status: Status | int) -> None:
        if event.ack and not self._gate.over:
            self._peer.protocol.acknowledge(event.number, status)
            self._peer.connection.wake()

    def _start_listener(
        self, route: Route, name: str, queue: deque[tuple[Any, ev.EventReceived]]
    ) -> None:
        task = self._peer.loop.create_task(self._listen(route, name, queue))
        self._tasks.add(task)
        task.add_done_callback(self._listener_done)

    def _listener_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._on_idle()

    async def _listen(
        self, route: Route, name: str, queue: deque[tuple[Any, ev.EventReceived]]
    ) -> None:
        """Handle the events of one name, one after the other, until none is left."""
        clock = self._peer.connection.clock
        while queue:
            argument, event = queue.popleft()
            status: Status | int = Status.INTERNAL
            call = None
            try:
                if event.metadata is None:
                    call = Call(name, NO_METADATA, None, clock, event.number)
                    _current.set(call)
                else:
                    metadata, at = take_at(decode_metadata(event.metadata))
                    call = Call(name, metadata, None, clock, event.number)
                    _current.set(call)
                    if at is not None and not await self._is_time(name, at):
                        status = Status.INVALID_ARGUMENT
                        continue
                await route.call(self._context, argument)
                status = Status.OK
            except asyncio.CancelledError:
                if is_asked_to_stop():
                    raise
                logger.error("listener %r was cancelled from inside", route.name)
            except Exception as exc:
                if isinstance(exc, RpcError) and 0 < exc.status < 1 << 30:
                    status = exc.status
                if not self._gate.over or not isinstance(exc, ConnectionClosed):
                    logger.error("listener %r failed", route.name, exc_info=exc)
            finally:
                if call is not None:
                    call.over = True
                if event.ack:
                    self._acknowledge(event, status)
                self.handled += 1
                self._event_handled(len(event.payload))
                self._peer.events.handled(event.number)
            if not self.handled % YIELD_EVERY:
                await asyncio.sleep(0)  # a backlog must not keep the loop
        self._queues.pop(name, None)

    async def _is_time(self, name: str, at: int) -> bool:
        try:
            await self._schedule.wait_until(at)
        except RpcError as exc:
            logger.warning("event %r from %s dropped: %s", name, self._peer.peer_addr, exc.message)
            return False
        return True

    def _event_handled(self, size: int) -> None:
        self._unhandled -= 1
        self._unhandled_bytes -= size
        if (
            self._paused
            and self._unhandled <= MAX_UNHANDLED_EVENTS // 2
            and self._unhandled_bytes <= MAX_UNHANDLED_BYTES // 2
        ):
            paused, self._paused = self._paused, set()
            for stream_id in paused:
                self._peer.resume(stream_id)
