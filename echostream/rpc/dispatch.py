"""Runs what the peer asks for: handlers, listeners, stream handlers.

Each runs in a task that the dispatcher owns. What the program raises is logged here and never
reaches the connection; the peer learns a status, not a text. Nothing runs before the
``on_connect`` hooks are through: it waits, bounded.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from echostream.codes import Close, Reset, Status
from echostream.errors import ConnectionClosed, InvalidPayload, RpcError
from echostream.protocol import events as ev
from echostream.protocol.outbox import QUEUE_HIGH
from echostream.rpc.call import NO_METADATA, Call, _current, decode_metadata, encode_metadata
from echostream.rpc.registry import Registry, Route
from echostream.rpc.scheduled import Schedule, take_at
from echostream.rpc.serving import ServedItems, shape_fault

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer
    from echostream.rpc.receiver import StreamReceiver

__all__ = ["Dispatcher", "Routes"]

_Queued: TypeAlias = "tuple[Route, ev.RequestReceived | ev.CallOpened, Any, float | None]"

logger = logging.getLogger("echostream.rpc")

MAX_UNHANDLED_EVENTS = 1024
MAX_UNHANDLED_BYTES = 1024 * 1024
MAX_WAITING_BYTES = 8 * 1024 * 1024
"""Bytes of the calls that wait for a handler's turn, or for ``on_connect``."""
HINTS = 32
"""Unknown names of one peer that are compared with the known ones: that is dear, and whoever meant
well has read it by then."""
MAX_EARLY_CANCELS = 4096
"""Calls that were cancelled and not seen: their REQUEST may still come, on another QUIC stream."""
CANCELLED = "the handler was cancelled"
LISTENER_GRACE_S = 5.0
"""How long listeners may go on with what had arrived before the peer left."""
YIELD_EVERY = 64
STOP_S = 1.0
"""How long the end of a connection waits for its tasks to take their cancellation."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The three registries of one side."""

    handlers: Registry
    listeners: Registry
    streams: Registry


class Dispatcher:
    """The receiving side of calls, events and streams of one connection.

    At most ``max_calls`` handlers run. As many calls again wait here: handlers may take a while to
    end whose deadline has passed, and whose callers have been told.
    """

    def __init__(self, peer: Peer, routes: Routes, context: Any, max_calls: int) -> None:
        self._peer = peer
        self._routes = routes
        self._context = context
        self._max_calls = max_calls
        self._flows = peer.protocol.flows
        self._started = False
        self._confirmed = peer.connection.engine.is_client
        self._ready = False
        self._over = False
        self._grace_s = STOP_S
        self._waiting: dict[int, tuple[ev.RequestReceived | ev.CallOpened, float]] = {}
        self._waiting_bytes = 0
        self._hints = HINTS
        self._calls: dict[int, asyncio.Task[None] | None] = {}  # None: it has not begun
        self._queued: deque[_Queued] = deque()
        self._outside = copy_context()  # what each call begins with
        self._worker: asyncio.Task[None] | None = None
        self._serving: Route | None = None
        self._waiting_routes: set[str] = set()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._silenced: set[int] = set()
        self._early_cancels: dict[int, None] = {}
        self.schedule = Schedule(
            peer.clock,
            is_reference=not peer.connection.engine.is_client,
            virtual=getattr(peer.loop, "virtual_time", False),
        )
        self._early_streams: list[ev.StreamOpened] = []
        self._streams: dict[asyncio.Task[None], StreamReceiver] = {}
        self._queues: dict[str, deque[tuple[Any, ev.EventReceived]]] = {}
        self._listeners: set[asyncio.Task[None]] = set()
        self._unhandled = 0
        self._unhandled_bytes = 0
        self._paused: set[int] = set()
        self._refusal = ""
        self._refused_from = 0
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
    def has_early_events(self) -> bool:
        """Whether :meth:`start` would find events to handle."""
        return not self._ready and bool(self._queues)

    @property
    def tasks(self) -> int:
        """Tasks that this dispatcher owns."""
        return len(self._calls) + len(self._streams) + len(self._listeners)

    def start(self) -> None:
        """The ``on_connect`` hooks are through: serve what came meanwhile, and all that follows; of
        0-RTT data only idempotent calls, before the handshake is complete."""
        self._started = True
        if self._confirmed:
            self._go()
            return
        for call_id, (event, arrived) in list(self._waiting.items()):
            if event.idempotent and len(self._calls) < self._max_calls:
                self._leave_waiting(call_id)
                self._start(event, _deadline_of(event, arrived))

    def confirm(self) -> None:
        """The handshake is complete: what came before is no replay."""
        if not self._confirmed:
            self._confirmed = True
            if self._started:
                self._go()

    def _go(self) -> None:
        self._ready = True
        for name, queue in self._queues.items():
            route = self._routes.listeners.match(name)
            assert route is not None
            if route.requires and not route.requires <= self._peer.grants:
                for _, dropped in queue:
                    self._event_handled(len(dropped.payload))
                    self._drop(dropped, Status.PERMISSION_DENIED)
                    self.unclaimed_events += 1
                queue.clear()
            self._start_listener(route, name, queue)
        early, self._early_streams = self._early_streams, []
        for event in early:
            self.stream_opened(event)
            self._peer.resume(event.stream_id)
        self._start_waiting()

    def refuse_calls(self, message: str) -> None:
        """From now on new calls and streams are answered with ``UNAVAILABLE``. A call that was made
        before the latest one that came is not new: it only took another lane."""
        self._refusal = message
        self._refused_from = self._peer.protocol.last_peer_call + 1

    async def wait_idle(self) -> None:
        """Wait until no call and no listener runs or waits to run."""
        while self._calls or self._listeners or self._waiting:
            future: asyncio.Future[None] = self._peer.loop.create_future()
            self._idle_waiters.append(future)
            await future

    def connection_lost(self, *, orderly: bool) -> None:
        """Cancel what serves this connection. Stream handlers are not: their stream tells them, and
        what it held when the connection ended can still be read. Where the peer left in an
        ``orderly`` way, the events that it emitted before are handled: it knows that they came."""
        self._over = True
        self._early_streams.clear()
        self._early_cancels.clear()
        self._waiting.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for call_id in list(self._calls):
            self._stop(call_id)
        kept = self._peer.events.kept
        self._grace_s = LISTENER_GRACE_S if (orderly or kept) and self._queues else STOP_S
        if kept and not orderly:
            self._keep_running_listeners()
        elif not orderly:
            self._cancel_listeners()
        self._task_done()

    def _keep_running_listeners(self) -> None:
        """They end what they do; the events behind it come again with the next connection."""
        for queue in self._queues.values():
            queue.clear()
        if not self._ready:
            self._queues.clear()

    def _cancel_listeners(self) -> None:
        self._queues.clear()
        for task in self._listeners:
            task.cancel()

    async def wait_stopped(self) -> None:
        """After :meth:`connection_lost`: wait until the tasks took it, ``STOP_S`` at most, or
        ``LISTENER_GRACE_S`` for listeners that go on. Stream handlers are then cancelled, but
        those go on whose stream had ended cleanly."""
        tasks = [*filter(None, self._calls.values()), *self._streams, *self._listeners]
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=self._grace_s)
        self._cancel_listeners()
        for task in pending:
            receiver = self._streams.get(task)
            if task in self._listeners:
                continue
            if receiver is None:
                logger.warning("%s goes on after its connection has ended", task.get_coro())
            elif not receiver.ended_cleanly:
                task.cancel()

    # Calls.

    def request(self, event: ev.RequestReceived | ev.CallOpened) -> None:
        """Serve a call, or let it wait its turn."""
        peer = self._peer
        call_id = event.call_id
        if call_id > peer.protocol.last_peer_call:
            peer.protocol.last_peer_call = call_id
        if call_id in self._early_cancels:
            del self._early_cancels[call_id]
            peer.refuse(call_id, Status.CANCELLED, CANCELLED)
        elif self._refusal and call_id >= self._refused_from:
            peer.refuse(call_id, Status.UNAVAILABLE, self._refusal, unserved=True)
        elif call_id in self._calls or call_id in self._waiting:
            peer.close(Close.PROTOCOL_ERROR, f"call id {call_id} is in use")
        elif (self._ready and len(self._calls) < self._max_calls and not self._waiting) or (
            self._started
            and event.idempotent
            and not self._confirmed
            and len(self._calls) < self._max_calls
        ):
            self._start(event, _deadline_of(event, peer.connection.clock()))
        elif (
            len(self._waiting) >= self._max_calls
            or self._waiting_bytes + len(event.payload) > MAX_WAITING_BYTES
        ):
            peer.refuse(
                call_id,
                Status.RESOURCE_EXHAUSTED,
                f"limit calls={self._max_calls} of handlers running for one connection",
            )
        else:
            self._waiting[call_id] = event, peer.connection.clock()
            self._waiting_bytes += len(event.payload)

    def cancel(self, event: ev.CallCancelled) -> None:
        """The peer does not want the result any more."""
        call_id = event.call_id
        if call_id in self._calls:
            if not self._stop(call_id):
                self._peer.refuse(call_id, Status.CANCELLED, CANCELLED)
        elif call_id in self._waiting:
            self._leave_waiting(call_id)
            self._peer.refuse(call_id, Status.CANCELLED, CANCELLED)
            self._task_done()
        else:
            self._early_cancels[call_id] = None
            if len(self._early_cancels) > MAX_EARLY_CANCELS:
                del self._early_cancels[next(iter(self._early_cancels))]
            self._peer.stray()

    def _start(self, event: ev.RequestReceived | ev.CallOpened, deadline: float | None) -> None:
        peer = self._peer
        call_id = event.call_id
        route = self._routes.handlers.get(event.method)
        if route is None:
            hint = self._hint(self._routes.handlers, event.method)
            peer.refuse(call_id, Status.UNIMPLEMENTED, f"no handler {event.method[:128]!r}{hint}")
            return
        if route.requires and not route.requires <= peer.grants:
            peer.refuse(call_id, Status.PERMISSION_DENIED, self._lacks(route))
            return
        try:
            if route.streaming or self._flows:
                fault = shape_fault(route, event)
                if fault:
                    peer.refuse(call_id, Status.UNIMPLEMENTED, fault)
                    return
            argument: Any = None
            if route.streaming:
                assert isinstance(event, ev.CallOpened)
                argument = ServedItems(peer, route, event)
            elif route.decode is not None:
                argument = route.decode(event.payload)
        except InvalidPayload as exc:
            peer.refuse(call_id, Status.INVALID_ARGUMENT, exc.message)
            return
        if route.name in self._waiting_routes:
            self._calls[call_id] = self._task(self._serve(route, event, argument, deadline))
        else:
            self._calls[call_id] = None
            self._queued.append((route, event, argument, deadline))
            if self._worker is None:
                self._hire()
        if deadline is not None:
            self._timers[call_id] = peer.loop.call_at(deadline, self._expire, call_id)

    # Most handlers do not wait, and a task for each call would cost more than the call: so one task
    # serves what is queued. As soon as a handler does wait, that task is its own, and the others
    # get theirs.

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._peer.loop.create_task(coroutine, context=self._outside.copy())

    def _hire(self) -> None:
        self._worker = self._task(self._work())
        self._peer.loop.call_soon(self._relieve, self._worker)  # right behind its first step

    async def _work(self) -> None:
        worker = self._worker
        assert worker is not None
        while self._queued:
            queued = self._queued.popleft()
            self._calls[queued[1].call_id] = worker
            self._serving = queued[0]
            await self._serve(*queued)
            if self._worker is not worker:  # it waited
                return
            if worker.cancelling() or copy_context() != self._outside:
                break
        self._worker = self._serving = None
        if self._queued:
            self._hire()

    def _relieve(self, worker: asyncio.Task[None]) -> None:
        if self._worker is not worker:
            return
        self._worker = None
        if self._serving is not None:
            self._waiting_routes.add(self._serving.name)
            self._serving = None
        queued, self._queued = self._queued, deque()
        for each in queued:
            self._calls[each[1].call_id] = self._task(self._serve(*each))

    def _start_waiting(self) -> None:
        """Start what waits, as far as there is room."""
        while self._waiting and self._ready and len(self._calls) < self._max_calls:
            call_id = next(iter(self._waiting))
            event, arrived = self._leave_waiting(call_id)
            self._start(event, _deadline_of(event, arrived))

    def _leave_waiting(self, call_id: int) -> tuple[ev.RequestReceived | ev.CallOpened, float]:
        event, arrived = self._waiting.pop(call_id)
        self._waiting_bytes -= len(event.payload)
        return event, arrived

    def _expire(self, call_id: int) -> None:
        """Answer at once, whatever the handler does about its cancellation."""
        if call_id in self._silenced:
            return
        self._peer.refuse(
            call_id, Status.DEADLINE_EXCEEDED, "the deadline passed before the handler was done"
        )
        self.silence(call_id)

    def silence(self, call_id: int) -> None:
        """The call was answered: what its handler comes to does not matter any more."""
        if call_id in self._calls:
            self._silenced.add(call_id)
            self._stop(call_id)

    def _stop(self, call_id: int) -> bool:
        """Cancel a call. One that has not begun (``False``) will never run: nobody else cleans up
        after it."""
        task = self._calls[call_id]
        if task is None:
            self._queued = deque(each for each in self._queued if each[1].call_id != call_id)
            begun = False
        else:
            coroutine = task.get_coro()
            assert inspect.iscoroutine(coroutine)
            begun = inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED
            task.cancel()
        if not begun:
            self._call_done(call_id)
        return begun

    def _call_done(self, call_id: int) -> None:
        self._calls.pop(call_id, None)
        self._silenced.discard(call_id)
        if self._timers:
            timer = self._timers.pop(call_id, None)
            if timer is not None:
                timer.cancel()
        if self._waiting:
            self._start_waiting()
        self._task_done()

    async def _serve(
        self,
        route: Route,
        event: ev.RequestReceived | ev.CallOpened,
        argument: Any,
        deadline: float | None,
    ) -> None:
        call_id = event.call_id
        peer = self._peer
        call = token = None
        try:
            if event.metadata is None:
                call = Call(route.name, NO_METADATA, deadline, peer.connection.clock)
                token = _current.set(call)
            else:
                metadata, at = take_at(decode_metadata(event.metadata))
                call = Call(route.name, metadata, deadline, peer.connection.clock)
                token = _current.set(call)
                if at is not None:
                    await self.schedule.wait_until(at)
            result = await route.call(self._context, argument)
            if peer.outbox.call_bytes > QUEUE_HIGH or peer.budget.tight:
                await peer.wait_call_room()  # the call counts as running until there is room
            if call_id not in self._silenced and not self._over:
                self._answer(route, event, result, call)
        except asyncio.CancelledError:
            self._fail(call_id, Status.CANCELLED, CANCELLED)
        except ConnectionClosed as exc:
            if not self._over:
                self._failed(route, call_id, exc)
        except RpcError as exc:
            self._fail_with(route, call_id, exc, call)
        except Exception as exc:
            self._failed(route, call_id, exc)
        finally:
            if call is not None:
                call.over = True
            if token is not None:
                _current.reset(token)
            self._call_done(call_id)
            if not self._over:
                peer.connection.wake()

    def _answer(
        self, route: Route, event: ev.RequestReceived | ev.CallOpened, result: Any, call: Call
    ) -> None:
        peer = self._peer
        try:
            data = peer.encode(result)
            metadata = None if call._response is None else encode_metadata(call._response)
        except InvalidPayload as exc:  # the handler's fault, not the caller's
            self._failed(route, event.call_id, exc)
            return
        peer.protocol.answer_call(event.call_id, data, event.priority, metadata)
        self.calls_served += 1

    def _fail_with(self, route: Route, call_id: int, exc: RpcError, call: Call | None) -> None:
        """What the handler raised to answer with. It may hold anything."""
        try:
            status = int(exc.status)
            details = b"" if exc.details is None else self._peer.encode(exc.details)
            metadata = None
            if exc.metadata or (call is not None and call._response):
                own = call._response if call is not None and call._response else {}
                metadata = encode_metadata({**own, **exc.metadata})
        except Exception as broken:
            self._failed(route, call_id, broken)
            return
        if not 0 < status < 1 << 30:
            status = Status.UNKNOWN
        self._fail(call_id, status, str(exc.message), details, metadata)

    def _failed(self, route: Route, call_id: int, exc: Exception) -> None:
        logger.error("handler %r failed", route.name, exc_info=exc)
        self._fail(call_id, Status.INTERNAL, "the handler failed; its side has logged why")

    def _fail(
        self,
        call_id: int,
        status: int,
        message: str,
        details: bytes = b"",
        metadata: bytes | None = None,
    ) -> None:
        if call_id not in self._silenced and not self._over:
            self._peer.protocol.fail_call(call_id, status, message, details, metadata)

    @staticmethod
    def _is_asked_to_stop() -> bool:
        """Whether a CancelledError means this task, and was not raised by what it called."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    # Events.

    def event(self, event: ev.EventReceived) -> None:
        """Queue an event for its listener. Where too many wait, the stream it came on is paused."""
        route = self._routes.listeners.match(event.name)
        if route is None:
            self.unclaimed_events += 1
            self._drop(event, Status.UNIMPLEMENTED)
            return
        if self._ready and route.requires and not route.requires <= self._peer.grants:
            self.unclaimed_events += 1
            self._drop(event, Status.PERMISSION_DENIED)
            return
        if self._unhandled >= MAX_UNHANDLED_EVENTS or self._unhandled_bytes >= MAX_UNHANDLED_BYTES:
            if event.stream_id < 0:
                self.dropped_events += 1
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
        if self._ready:
            self._start_listener(route, event.name, queue)

    def event_skipped(self, event: ev.EventSkipped) -> None:
        """An event was not delivered."""
        self._drop(event, event.status)

    def _drop(self, event: ev.EventReceived | ev.EventSkipped, status: Status | int) -> None:
        """No listener will have this event."""
        self._acknowledge(event, status)
        self._peer.events.handled(event.number)

    def _acknowledge(self, event: ev.EventReceived | ev.EventSkipped, status: Status | int) -> None:
        if event.ack and not self._over:
            self._peer.protocol.acknowledge(event.number, status)
            self._peer.connection.wake()

    def _start_listener(
        self, route: Route, name: str, queue: deque[tuple[Any, ev.EventReceived]]
    ) -> None:
        task = self._peer.loop.create_task(self._listen(route, name, queue))
        self._listeners.add(task)
        task.add_done_callback(self._listener_done)

    def _listener_done(self, task: asyncio.Task[None]) -> None:
        self._listeners.discard(task)
        self._task_done()

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
                if self._is_asked_to_stop():
                    raise
                logger.error("listener %r was cancelled from inside", route.name)
            except Exception as exc:
                if isinstance(exc, RpcError) and 0 < exc.status < 1 << 30:
                    status = exc.status
                if not self._over or not isinstance(exc, ConnectionClosed):
                    logger.error("listener %r failed", route.name, exc_info=exc)
            finally:
                if call is not None:
                    call.over = True
                if event.ack:
                    self._acknowledge(event, status)
                self.events_handled += 1
                self._event_handled(len(event.payload))
                self._peer.events.handled(event.number)
            if not self.events_handled % YIELD_EVERY:
                await asyncio.sleep(0)  # a backlog must not keep the loop
        self._queues.pop(name, None)

    async def _is_time(self, name: str, at: int) -> bool:
        try:
            await self.schedule.wait_until(at)
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

    # Streams.

    def stream_opened(self, event: ev.StreamOpened) -> None:
        """Accept or refuse a media stream of the peer, and run its handler."""
        peer = self._peer
        alias = event.alias
        if alias in peer.receivers or any(alias == early.alias for early in self._early_streams):
            peer.close(Close.PROTOCOL_ERROR, f"alias {alias} is in use")
            return
        limit = peer.protocol.limits.streams
        route = self._routes.streams.get(event.name)
        if self._refusal:
            self._refuse_stream(alias, Status.UNAVAILABLE, self._refusal)
        elif len(peer.receivers) + len(self._early_streams) >= limit:
            message = f"limit streams={limit} open for one connection"
            self._refuse_stream(alias, Status.RESOURCE_EXHAUSTED, message)
        elif route is None:
            hint = self._hint(self._routes.streams, event.name)
            message = f"no stream handler {event.name[:128]!r}{hint}"
            self._refuse_stream(alias, Status.UNIMPLEMENTED, message)
        elif not self._ready:
            self._early_streams.append(event)
            peer.protocol.inbox.pause(event.stream_id)
        elif route.requires and not route.requires <= peer.grants:
            self._refuse_stream(alias, Status.PERMISSION_DENIED, self._lacks(route))
        else:
            self._accept_stream(route, event)

    def stream_given_up(self, alias: int) -> None:
        """The peer aborted a stream. One that waits for :meth:`start` is forgotten."""
        self._early_streams = [early for early in self._early_streams if early.alias != alias]

    def _accept_stream(self, route: Route, event: ev.StreamOpened) -> None:
        from echostream.rpc.receiver import StreamReceiver

        peer = self._peer
        try:
            receiver = StreamReceiver(peer, event, route.formats)
        except RpcError as exc:
            self._refuse_stream(event.alias, exc.status, exc.message)
            return
        peer.receivers[event.alias] = receiver
        receiver.accept()
        task = peer.loop.create_task(self._receive(route, receiver))
        self._streams[task] = receiver
        task.add_done_callback(self._stream_done)

    def _stream_done(self, task: asyncio.Task[None]) -> None:
        self._streams.pop(task).close(Reset.CANCELLED)

    def _refuse_stream(self, alias: int, status: int, message: str) -> None:
        self._peer.protocol.inbox.stop(alias, Reset.REFUSED)
        self._peer.protocol.refuse_media(alias, status, message)
        self._peer.connection.wake()

    async def _receive(self, route: Route, receiver: StreamReceiver) -> None:
        _current.set(Call(route.name, receiver.metadata, None, self._peer.connection.clock))
        try:
            await route.call(self._context, receiver)
        except asyncio.CancelledError:
            if self._is_asked_to_stop():
                raise
            receiver.close(Reset.HANDLER_FAILED)
        except Exception as exc:
            if not self._over or not isinstance(exc, ConnectionClosed):
                logger.error("stream handler %r failed", route.name, exc_info=exc)
            receiver.close(Reset.HANDLER_FAILED)

    def _lacks(self, route: Route) -> str:
        missing = ", ".join(sorted(route.requires - self._peer.grants))
        return f"{route.name!r} requires {missing}, which this client was not granted"

    def _hint(self, known: Registry, name: str) -> str:
        if self._hints <= 0:
            return ""
        self._hints -= 1
        return known.suggestion(name)

    # Tasks.

    def _task_done(self) -> None:
        if self._idle_waiters and not (self._calls or self._listeners or self._waiting):
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _deadline_of(event: ev.RequestReceived | ev.CallOpened, arrived: float) -> float | None:
    return None if event.timeout_us < 0 else arrived + event.timeout_us / 1e6
