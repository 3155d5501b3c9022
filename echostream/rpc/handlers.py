"""Runs the handlers of one connection, within its limit and their deadlines."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeAlias

from echostream.codes import Close, Status
from echostream.errors import ConnectionClosed, InvalidPayload, RpcError
from echostream.protocol import events as ev
from echostream.protocol.outbox import QUEUE_HIGH, USUAL
from echostream.rpc.call import NO_METADATA, Call, _current, decode_metadata, encode_metadata
from echostream.rpc.gate import Gate
from echostream.rpc.keyed import (
    FAILED,
    KEY,
    First,
    answer_of,
    digest,
    failure_of,
    take_key,
)
from echostream.rpc.registry import Registry, Route
from echostream.rpc.scheduled import Schedule, take_at
from echostream.rpc.serving import ServedItems, shape_fault

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Handlers"]

_Asked: TypeAlias = "ev.RequestReceived | ev.CallOpened"
_Queued: TypeAlias = "tuple[Route, _Asked, Any, float | None]"

logger = logging.getLogger("echostream.rpc")

MAX_WAITING_BYTES = 8 * 1024 * 1024
"""Bytes of the calls that wait for a handler's turn, or for ``on_connect``."""
MAX_EARLY_CANCELS = 4096
"""Calls that were cancelled and not seen: their REQUEST may still come, on another QUIC stream."""
CANCELLED = "the handler was cancelled"


class Handlers:
    """The calls that a peer makes.

    At most ``max_calls`` run. As many calls again wait here: handlers may take a while to end whose
    deadline has passed, and whose callers have been told. ``on_idle`` is called when one is done.
    """

    def __init__(
        self,
        peer: Peer,
        routes: Registry,
        context: Any,
        gate: Gate,
        schedule: Schedule,
        max_calls: int,
        on_idle: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._routes = routes
        self._context = context
        self._gate = gate
        self._schedule = schedule
        self._max_calls = max_calls
        self._on_idle = on_idle
        self._flows = peer.protocol.flows
        self._waiting: dict[int, tuple[_Asked, float]] = {}
        self._waiting_bytes = 0
        self._running: dict[int, asyncio.Task[None] | None] = {}  # None: it has not begun
        self._queued: deque[_Queued] = deque()
        self._outside = copy_context()  # what each call begins with
        self._worker: asyncio.Task[None] | None = None
        self._serving: Route | None = None
        self._waiting_routes: set[str] = set()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._silenced: set[int] = set()
        self._early_cancels: dict[int, None] = {}
        self.served = 0

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether none runs or waits to run."""
        return not (self._running or self._waiting)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """Those that run handlers."""
        return [*filter(None, self._running.values())]

    def start_idempotent(self) -> None:
        """Serve of the 0-RTT data that waits what may be replayed."""
        for call_id, (event, arrived) in list(self._waiting.items()):
            if event.idempotent and len(self._running) < self._max_calls:
                self._leave_waiting(call_id)
                self._start(event, _deadline_of(event, arrived))

    def start_waiting(self) -> None:
        """Start what waits, as far as there is room."""
        while self._waiting and self._gate.ready and len(self._running) < self._max_calls:
            event, arrived = self._leave_waiting(min(self._waiting, key=self._priority_of))
            self._start(event, _deadline_of(event, arrived))

    def _priority_of(self, call_id: int) -> int:
        priority = self._waiting[call_id][0].priority
        return USUAL if priority < 0 else priority

    def stop_all(self) -> None:
        """The connection has ended: nobody waits for an answer."""
        self._early_cancels.clear()
        self._waiting.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for call_id in list(self._running):
            self._stop(call_id)

    def request(self, event: _Asked) -> None:
        """Serve a call, or let it wait its turn."""
        peer = self._peer
        call_id = event.call_id
        if call_id > peer.protocol.last_peer_call:
            peer.protocol.last_peer_call = call_id
        if call_id in self._early_cancels:
            del self._early_cancels[call_id]
            peer.refuse(call_id, Status.CANCELLED, CANCELLED)
        elif self._gate.refusal and call_id >= self._gate.refused_from:
            peer.refuse(call_id, Status.UNAVAILABLE, self._gate.refusal, unserved=True)
        elif call_id in self._running or call_id in self._waiting:
            peer.close(Close.PROTOCOL_ERROR, f"call id {call_id} is in use")
        elif (self._gate.ready and len(self._running) < self._max_calls and not self._waiting) or (
            self._gate.started
            and event.idempotent
            and not self._gate.confirmed
            and len(self._running) < self._max_calls
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
        if call_id in self._running:
            if not self._stop(call_id):
                self._peer.refuse(call_id, Status.CANCELLED, CANCELLED)
        elif call_id in self._waiting:
            self._leave_waiting(call_id)
            self._peer.refuse(call_id, Status.CANCELLED, CANCELLED)
            self._on_idle()
        else:
            self._early_cancels[call_id] = None
            if len(self._early_cancels) > MAX_EARLY_CANCELS:
                del self._early_cancels[next(iter(self._early_cancels))]
            self._peer.stray()

    def _start(self, event: _Asked, deadline: float | None) -> None:
        peer = self._peer
        call_id = event.call_id
        route = self._routes.get(event.method)
        if route is None:
            hint = self._gate.hint(self._routes, event.method)
            peer.refuse(call_id, Status.UNIMPLEMENTED, f"no handler {event.method[:128]!r}{hint}")
            return
        if route.requires and not self._gate.permits(route):
            peer.refuse(call_id, Status.PERMISSION_DENIED, self._gate.lacks(route))
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
            self._running[call_id] = self._task(self._serve(route, event, argument, deadline))
        else:
            self._running[call_id] = None
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
            self._running[queued[1].call_id] = worker
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
            self._running[each[1].call_id] = self._task(self._serve(*each))

    def _leave_waiting(self, call_id: int) -> tuple[_Asked, float]:
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
        if call_id in self._running:
            self._silenced.add(call_id)
            self._stop(call_id)

    def _stop(self, call_id: int) -> bool:
        """Cancel a call. One that has not begun (``False``) will never run: nobody else cleans up
        after it."""
        task = self._running[call_id]
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
        self._running.pop(call_id, None)
        self._silenced.discard(call_id)
        if self._timers:
            timer = self._timers.pop(call_id, None)
            if timer is not None:
                timer.cancel()
        if self._waiting:
            self.start_waiting()
        self._on_idle()

    async def _serve(
        self,
        route: Route,
        event: _Asked,
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
                key: str | None = None
                if KEY in metadata:
                    metadata, key, first = take_key(metadata)
                call = Call(route.name, metadata, deadline, peer.connection.clock)
                token = _current.set(call)
                if at is not None:
                    await self._schedule.wait_until(at)
                if key is not None:
                    await self._serve_keyed(route, event, argument, call, key, first)
                    return
            result = await route.call(self._context, argument)
            if peer.outbox.call_bytes > QUEUE_HIGH or peer.budget.tight:
                await peer.room.wait_call()  # the call counts as running until there is room
            if call_id not in self._silenced and not self._gate.over:
                self._answer(route, event, result, call)
        except asyncio.CancelledError:
            self._fail(call_id, Status.CANCELLED, CANCELLED)
        except ConnectionClosed as exc:
            if not self._gate.over:
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
            if not self._gate.over:
                peer.written()

    async def _serve_keyed(
        self,
        route: Route,
        event: _Asked,
        argument: Any,
        call: Call,
        key: str,
        first: First | None,
    ) -> None:
        """Run it, unless it was run for an earlier call with this key."""
        peer = self._peer
        answer = await peer.keyed.answer(
            peer.scope(),
            key,
            digest(event.method, event.payload),
            first,
            lambda: answer_of(peer, route, self._context, argument, call),
            limit=call.time_remaining,
            lost=lambda: self._gate.over,
        )
        if peer.outbox.call_bytes > QUEUE_HIGH or peer.budget.tight:
            await peer.room.wait_call()
        if answer.status != Status.OK:
            status, payload, metadata, text = answer
            self._fail(event.call_id, status, text, payload, metadata)
        elif event.call_id not in self._silenced and not self._gate.over:
            peer.protocol.answer_call(
                event.call_id, answer.payload, event.priority, answer.metadata
            )
            self.served += 1

    def _answer(self, route: Route, event: _Asked, result: Any, call: Call) -> None:
        peer = self._peer
        try:
            data = peer.encode(result)
            metadata = None if call._response is None else encode_metadata(call._response)
        except InvalidPayload as exc:  # the handler's fault, not the caller's
            self._failed(route, event.call_id, exc)
            return
        peer.protocol.answer_call(event.call_id, data, event.priority, metadata)
        self.served += 1

    def _fail_with(self, route: Route, call_id: int, exc: RpcError, call: Call | None) -> None:
        """What the handler raised to answer with. It may hold anything."""
        try:
            status, details, metadata, text = failure_of(self._peer, exc, call)
        except Exception as broken:
            self._failed(route, call_id, broken)
            return
        self._fail(call_id, status, text, details, metadata)

    def _failed(self, route: Route, call_id: int, exc: Exception) -> None:
        logger.error("handler %r failed", route.name, exc_info=exc)
        self._fail(call_id, Status.INTERNAL, FAILED)

    def _fail(
        self,
        call_id: int,
        status: int,
        message: str,
        details: bytes = b"",
        metadata: bytes | None = None,
    ) -> None:
        if call_id not in self._silenced and not self._gate.over:
            self._peer.protocol.fail_call(call_id, status, message, details, metadata)


def _deadline_of(event: _Asked, arrived: float) -> float | None:
    return None if event.timeout_us < 0 else arrived + event.timeout_us / 1e6
