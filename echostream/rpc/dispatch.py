"""The receiving side of one connection: what the peer asks for, tells and opens.

Each handler, listener and stream handler runs in a task that is owned here. What the program raises
is logged and never reaches the connection; the peer learns a status, not a text. Nothing runs
before the ``on_connect`` hooks are through: it waits, bounded.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echostream.rpc.gate import Gate
from echostream.rpc.handlers import Handlers
from echostream.rpc.listeners import Listeners
from echostream.rpc.registry import Registry
from echostream.rpc.scheduled import Schedule
from echostream.rpc.stream_handlers import StreamHandlers

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Dispatcher", "Routes"]

logger = logging.getLogger("echostream.rpc")


@dataclass(frozen=True, slots=True)
class Routes:
    """The three registries of one side."""

    handlers: Registry
    listeners: Registry
    streams: Registry


class Dispatcher:
    """What serves one connection: ``handlers`` its calls, ``listeners`` its events,
    ``stream_handlers`` its media streams."""

    def __init__(self, peer: Peer, routes: Routes, context: Any, max_calls: int) -> None:
        self._peer = peer
        self.gate = gate = Gate(peer)
        self.schedule = schedule = Schedule(
            peer.clock,
            is_reference=not peer.connection.engine.is_client,
            virtual=getattr(peer.loop, "virtual_time", False),
        )
        self.handlers = Handlers(
            peer, routes.handlers, context, gate, schedule, max_calls, self._one_done
        )
        self.listeners = Listeners(peer, routes.listeners, context, gate, schedule, self._one_done)
        self.stream_handlers = StreamHandlers(peer, routes.streams, context, gate)
        self._idle_waiters: list[asyncio.Future[None]] = []

    @property
    def has_early_events(self) -> bool:
        """Whether :meth:`start` would find events to handle."""
        return not self.gate.ready and self.listeners.waiting

    @property
    def tasks(self) -> int:
        """Tasks that are owned here, and calls that will have one."""
        return len(self.handlers) + len(self.listeners.tasks) + len(self.stream_handlers.tasks)

    def start(self) -> None:
        """The ``on_connect`` hooks are through: serve what came meanwhile, and all that follows; of
        0-RTT data only idempotent calls, before the handshake is complete."""
        self.gate.started = True
        if self.gate.confirmed:
            self._go()
        else:
            self.handlers.start_idempotent()

    def confirm(self) -> None:
        """The handshake is complete: what came before is no replay."""
        if not self.gate.confirmed:
            self.gate.confirmed = True
            if self.gate.started:
                self._go()

    def _go(self) -> None:
        self.gate.ready = True
        self.listeners.start()
        self.stream_handlers.start()
        self.handlers.start_waiting()

    def refuse_calls(self, message: str) -> None:
        """From now on new calls and streams are answered with ``UNAVAILABLE``. A call that was made
        before the latest one that came is not new: it only took another lane."""
        self.gate.refusal = message
        self.gate.refused_from = self._peer.protocol.last_peer_call + 1

    async def wait_idle(self) -> None:
        """Wait until no call and no listener runs or waits to run."""
        while not self._idle:
            future: asyncio.Future[None] = self._peer.loop.create_future()
            self._idle_waiters.append(future)
            await future

    def connection_lost(self, *, orderly: bool) -> None:
        """Cancel what serves this connection; ``orderly``: the peer left in an orderly way. What
        goes on nevertheless, the parts say."""
        self.gate.over = True
        self.stream_handlers.connection_lost()
        self.handlers.stop_all()
        self.listeners.connection_lost(orderly=orderly)
        self._one_done()

    async def wait_stopped(self) -> None:
        """After :meth:`connection_lost`: wait until the tasks took it, ``STOP_S`` at most, or
        ``LISTENER_GRACE_S`` for listeners that go on. Stream handlers are then cancelled, but
        those go on whose stream had ended cleanly."""
        listeners, streams = self.listeners.tasks, self.stream_handlers.tasks
        tasks = [*self.handlers.tasks, *streams, *listeners]
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=self.listeners.grace_s)
        self.listeners.cancel()
        for task in pending:
            receiver = streams.get(task)
            if task in listeners:
                continue
            if receiver is None:
                logger.warning("%s goes on after its connection has ended", task.get_coro())
            elif not receiver.ended_cleanly:
                task.cancel()

    @property
    def _idle(self) -> bool:
        return self.handlers.idle and not self.listeners.tasks

    def _one_done(self) -> None:
        if self._idle_waiters and self._idle:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
