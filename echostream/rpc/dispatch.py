"""Runs what the peer asks for: handlers, listeners, stream handlers.

Each runs in a task that the dispatcher owns. What the program raises is logged here and never
reaches the connection; the peer learns a status, not a text. Nothing runs before the
``on_connect`` hooks are through: it waits, bounded.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echostream.codes import Close, Reset, Status
from echostream.errors import ConnectionClosed, InvalidPayload, RpcError
from echostream.protocol import events as ev
from echostream.protocol import payload as payloads
from echostream.rpc.call import Call, _current, decode_metadata
from echostream.rpc.registry import Registry, Route

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Dispatcher", "Routes"]

logger = logging.getLogger("echostream.rpc")

MAX_UNHANDLED_EVENTS = 1024
MAX_UNHANDLED_BYTES = 1024 * 1024
MAX_EARLY = 4096
LISTENER_GRACE_S = 5.0
"""How long listeners may go on with what had arrived before the peer left."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The three registries of one side."""

    handlers: Registry
    listeners: Registry
    streams: Registry


class Dispatcher:
    """The receiving side of calls, events and streams of one connection."""

    def __init__(self, peer: Peer, routes: Routes, context: Any, max_calls: int) -> None:
        self._peer = peer
        self._routes = routes
        self._context = context
        self._max_calls = max_calls
        self._ready = False
        self._early: deque[Any] = deque()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._expired: set[int] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._queues: dict[str, deque[tuple[Any, ev.EventReceived]]] = {}
        self._listeners: set[asyncio.Task[None]] = set()
        self._unhandled = 0
        self._unhandled_bytes = 0
        self._paused: set[int] = set()
        self._refusal = ""
        self._idle_waiters: list[asyncio.Future[None]] = []
        self.unclaimed_packets = 0
        self.unclaimed_events = 0
        self.dropped_events = 0
        self.calls_served = 0
        self.events_handled = 0

    @property
    def running_calls(self) -> int:
        """Handlers that run now."""
        return len(self._calls)

    @property
    def waiting_events(self) -> int:
        """What :meth:`start` would handle of a peer that has left."""
        return len(self._early)

    @property
    def tasks(self) -> int:
        """Tasks that this dispatcher owns."""
        return len(self._calls) + len(self._streams) + len(self._listeners)

    def start(self) -> None:
        """The ``on_connect`` hooks are through: serve what came meanwhile, and all that follows."""
        self._ready = True
        early, self._early = self._early, deque()
        for event in early:
            if isinstance(event, ev.RequestReceived):
                self.request(event)
            elif isinstance(event, ev.EventReceived):
                self.event(event)
            else:
                self.stream_opened(event)

    def refuse_calls(self, message: str) -> None:
        """From now on new calls and streams are answered with ``UNAVAILABLE``."""
        self._refusal = message

    async def wait_idle(self) -> None:
        """Wait until no call and no listener runs."""
        while self._calls or self._listeners:
            future: asyncio.Future[None] = self._peer.loop.create_future()
            self._idle_waiters.append(future)
            await future

    def connection_lost(self, *, orderly: bool) -> None:
        """Cancel everything that serves this connection. Where the peer left in an ``orderly`` way,
        the events that it emitted before are handled first: it knows that they have arrived."""
        early, self._early = self._early, deque()
        if orderly:
            self._early.extend(each for each in early if isinstance(each, ev.EventReceived))
        for call_id in list(self._calls):
            self._stop(call_id)
        for task in self._streams:
            task.cancel()
        if self._early or (orderly and self._listeners):
            self._peer.loop.call_later(LISTENER_GRACE_S, self._cancel_listeners)
        else:
            self._cancel_listeners()

    def _cancel_listeners(self) -> None:
        self._early.clear()
        self._queues.clear()
        for task in self._listeners:
            task.cancel()

    # Calls.

    def request(self, event: ev.RequestReceived) -> None:
        """Serve a call."""
        if not self._ready:
            self._defer(event)
            return
        peer = self._peer
        call_id = event.call_id
        if call_id > peer.protocol.last_peer_call:
            peer.protocol.last_peer_call = call_id
        if self._refusal:
            peer.refuse(call_id, Status.UNAVAILABLE, self._refusal)
            return
        route = self._routes.handlers.get(event.method)
        if route is None:
            hint = self._routes.handlers.suggestion(event.method)
            peer.refuse(call_id, Status.UNIMPLEMENTED, f"no handler {event.method[:128]!r}{hint}")
            return
        if len(self._calls) >= self._max_calls:
            peer.refuse(
                call_id,
                Status.RESOURCE_EXHAUSTED,
                f"limit calls={self._max_calls} of handlers running for one connection",
            )
            return
        if call_id in self._calls:
            peer.close(Close.PROTOCOL_ERROR, f"call id {call_id} is in use")
            return
        try:
            argument = None if route.decode is None else route.decode(event.payload)
        except InvalidPayload as exc:
            peer.refuse(call_id, Status.INVALID_ARGUMENT, exc.message)
            return
        task = peer.loop.create_task(self._serve(route, event, argument))
        self._calls[call_id] = task
        if event.timeout_us >= 0:
            timer = peer.loop.call_later(event.timeout_us / 1e6, self._expire, call_id)
            task.add_done_callback(lambda _: timer.cancel())

    def cancel(self, event: ev.CallCancelled) -> None:
        """The peer does not want the result any more."""
        if event.call_id in self._calls:
            self._stop(event.call_id)
            return
        for early in self._early:
            if isinstance(early, ev.RequestReceived) and early.call_id == event.call_id:
                self._early.remove(early)
                return

    def _expire(self, call_id: int) -> None:
        if call_id in self._calls:
            self._expired.add(call_id)
            if not self._stop(call_id):
                self._answer_expired(call_id)

    def _answer_expired(self, call_id: int) -> None:
        self._expired.discard(call_id)
        self._peer.refuse(
            call_id, Status.DEADLINE_EXCEEDED, "the deadline passed before the handler was done"
        )

    def _stop(self, call_id: int) -> bool:
        """Cancel a call; ``False`` when it had not begun, and its coroutine will never run."""
        task = self._calls[call_id]
        coroutine = task.get_coro()
        assert inspect.iscoroutine(coroutine)
        begun = inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED
        if not begun:
            del self._calls[call_id]
        task.cancel()
        if not begun:
            self._task_done()
        return begun

    async def _serve(self, route: Route, event: ev.RequestReceived, argument: Any) -> None:
        call_id = event.call_id
        peer = self._peer
        try:
            _current.set(
                Call(
                    route.name,
                    decode_metadata(event.metadata),
                    None if event.timeout_us < 0 else time.monotonic() + event.timeout_us / 1e6,
                )
            )
            result = await route.call(self._context, argument)
            peer.protocol.answer_call(call_id, payloads.encode(result), event.priority)
            self.calls_served += 1
        except asyncio.CancelledError:
            if call_id in self._expired:
                self._answer_expired(call_id)
            elif peer.ended is None and self._cancelled_from_inside():
                peer.protocol.fail_call(call_id, Status.CANCELLED, "the handler was cancelled")
        except ConnectionClosed as exc:
            if peer.ended is None:
                self._failed(route, call_id, exc)
        except RpcError as exc:
            details = b"" if exc.details is None else payloads.encode(exc.details)
            peer.protocol.fail_call(call_id, exc.status, exc.message, details)
        except Exception as exc:
            self._failed(route, call_id, exc)
        finally:
            self._expired.discard(call_id)
            self._calls.pop(call_id, None)
            self._task_done()
            if peer.ended is None:
                peer.connection.wake()

    @staticmethod
    def _cancelled_from_inside() -> bool:
        """Whether the handler raised CancelledError by itself: nobody asked its task to stop."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() == 0

    def _failed(self, route: Route, call_id: int, exc: Exception) -> None:
        logger.error("handler %r failed", route.name, exc_info=exc)
        self._peer.protocol.fail_call(
            call_id, Status.INTERNAL, "the handler failed; its side has logged why"
        )

    # Events.

    def event(self, event: ev.EventReceived) -> None:
        """Queue an event for its listener. One that is full pauses the stream it came on."""
        if not self._ready:
            self._defer(event)
            return
        route = self._routes.listeners.get(event.name)
        if route is None:
            self.unclaimed_events += 1
            return
        try:
            argument = None if route.decode is None else route.decode(event.payload)
        except InvalidPayload as exc:
            logger.warning(
                "event %r from %s dropped: %s", event.name, self._peer.peer_addr, exc.message
            )
            return
        if self._unhandled >= MAX_UNHANDLED_EVENTS or self._unhandled_bytes >= MAX_UNHANDLED_BYTES:
            if event.stream_id < 0:
                self.dropped_events += 1
                return
            self._paused.add(event.stream_id)
            self._peer.protocol.inbox.pause(event.stream_id)
        self._unhandled += 1
        self._unhandled_bytes += len(event.payload)
        queue = self._queues.get(event.name)
        if queue is not None:
            queue.append((argument, event))
            return
        self._queues[event.name] = deque([(argument, event)])
        self._own(self._listen(route, self._queues[event.name]), self._listeners)

    async def _listen(self, route: Route, queue: deque[tuple[Any, ev.EventReceived]]) -> None:
        try:
            while queue:
                argument, event = queue.popleft()
                try:
                    _current.set(Call(route.name, decode_metadata(event.metadata)))
                    await route.call(self._context, argument)
                except Exception as exc:
                    if self._peer.ended is None:
                        logger.error("listener %r failed", route.name, exc_info=exc)
                finally:
                    self.events_handled += 1
                    self._event_handled(len(event.payload))
        finally:
            self._queues.pop(route.name, None)

    def _event_handled(self, size: int) -> None:
        self._unhandled -= 1
        self._unhandled_bytes -= size
        if (
            self._paused
            and self._unhandled <= MAX_UNHANDLED_EVENTS // 2
            and self._unhandled_bytes <= MAX_UNHANDLED_BYTES // 2
            and self._peer.ended is None
        ):
            paused, self._paused = self._paused, set()
            for stream_id in paused:
                self._peer.resume(stream_id)

    # Streams.

    def stream_opened(self, event: ev.StreamOpened) -> None:
        """Accept or refuse a media stream of the peer, and run its handler."""
        from echostream.rpc.stream import StreamReceiver

        if not self._ready:
            self._defer(event)
            return
        peer = self._peer
        refusal = self._stream_refusal(event)
        route = self._routes.streams.get(event.name)
        if refusal is None and route is not None:
            try:
                receiver = StreamReceiver(peer, event, route.formats)
            except RpcError as exc:
                refusal = (Status(exc.status), exc.message)
            else:
                peer.receivers[event.alias] = receiver
                receiver.accept()
                self._own(self._receive(route, receiver), self._streams)
                return
        if refusal is None:
            hint = self._routes.streams.suggestion(event.name)
            refusal = (Status.UNIMPLEMENTED, f"no stream handler {event.name[:128]!r}{hint}")
        peer.protocol.inbox.stop(event.alias, Reset.REFUSED)
        peer.refuse(event.alias, *refusal)

    def _stream_refusal(self, event: ev.StreamOpened) -> tuple[Status, str] | None:
        if self._refusal:
            return Status.UNAVAILABLE, self._refusal
        limit = self._peer.protocol.limits.streams
        if len(self._peer.receivers) >= limit:
            return Status.RESOURCE_EXHAUSTED, f"limit streams={limit} open for one connection"
        if event.alias in self._peer.receivers:
            return Status.ALREADY_EXISTS, f"alias {event.alias} is in use"
        return None

    async def _receive(self, route: Route, receiver: Any) -> None:
        try:
            await route.call(self._context, receiver)
        except asyncio.CancelledError:
            receiver.close(Reset.CANCELLED)
            raise
        except Exception as exc:
            if not isinstance(exc, ConnectionClosed) or self._peer.ended is None:
                logger.error("stream handler %r failed", route.name, exc_info=exc)
            receiver.close(Reset.HANDLER_FAILED)
        else:
            receiver.close(Reset.CANCELLED)

    # Tasks.

    def _defer(self, event: Any) -> None:
        if len(self._early) >= MAX_EARLY:
            self._peer.close(Close.EXCESSIVE_LOAD, "too much before the session was accepted")
            return
        self._early.append(event)

    def _own(self, coroutine: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = self._peer.loop.create_task(coroutine)
        group.add(task)

        def done(task: asyncio.Task[None]) -> None:
            group.discard(task)
            self._task_done()

        task.add_done_callback(done)

    def _task_done(self) -> None:
        if self._idle_waiters and not self._calls and not self._listeners:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
