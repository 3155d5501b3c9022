"""Runs the stream handlers of one connection."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from echostream.codes import Close, Reset, Status
from echostream.errors import ConnectionClosed, RpcError
from echostream.protocol import events as ev
from echostream.rpc.call import Call, _current
from echostream.rpc.gate import Gate, is_asked_to_stop
from echostream.rpc.registry import Registry, Route

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer
    from echostream.rpc.receiver import StreamReceiver

__all__ = ["StreamHandlers"]

logger = logging.getLogger("echostream.rpc")


class StreamHandlers:
    """The media streams that a peer opens."""

    def __init__(self, peer: Peer, routes: Registry, context: Any, gate: Gate) -> None:
        self._peer = peer
        self._routes = routes
        self._context = context
        self._gate = gate
        self._early: list[ev.StreamOpened] = []
        self._running: dict[asyncio.Task[None], StreamReceiver] = {}
        self.unclaimed = 0

    @property
    def tasks(self) -> dict[asyncio.Task[None], StreamReceiver]:
        """Those that run stream handlers, each with its stream."""
        return self._running

    def start(self) -> None:
        """Stream handlers may run: take what was opened before."""
        early, self._early = self._early, []
        for event in early:
            self.opened(event)
            self._peer.resume(event.stream_id)

    def connection_lost(self) -> None:
        """Nothing of what waits will begin. Handlers go on: their stream tells them, and what it
        held when the connection ended can still be read."""
        self._early.clear()

    def opened(self, event: ev.StreamOpened) -> None:
        """Accept or refuse a media stream of the peer, and run its handler."""
        peer = self._peer
        alias = event.alias
        if alias in peer.receivers or any(alias == early.alias for early in self._early):
            peer.close(Close.PROTOCOL_ERROR, f"alias {alias} is in use")
            return
        limit = peer.protocol.limits.streams
        route = self._routes.get(event.name)
        if self._gate.refusal:
            self._refuse_stream(alias, Status.UNAVAILABLE, self._gate.refusal)
        elif len(peer.receivers) + len(self._early) >= limit:
            message = f"limit streams={limit} open for one connection"
            self._refuse_stream(alias, Status.RESOURCE_EXHAUSTED, message)
        elif route is None:
            hint = self._gate.hint(self._routes, event.name)
            message = f"no stream handler {event.name[:128]!r}{hint}"
            self._refuse_stream(alias, Status.UNIMPLEMENTED, message)
        elif not self._gate.ready:
            self._early.append(event)
            peer.protocol.inbox.pause(event.stream_id)
        elif not self._gate.permits(route):
            self._refuse_stream(alias, Status.PERMISSION_DENIED, self._gate.lacks(route))
        else:
            self._accept_stream(route, event)

    def given_up(self, alias: int) -> None:
        """The peer aborted a stream. One that waits for :meth:`start` is forgotten."""
        self._early = [early for early in self._early if early.alias != alias]

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
        self._running[task] = receiver
        task.add_done_callback(self._stream_done)

    def _stream_done(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task).close(Reset.CANCELLED)

    def _refuse_stream(self, alias: int, status: int, message: str) -> None:
        self._peer.protocol.inbox.stop(alias, Reset.REFUSED)
        self._peer.protocol.refuse_media(alias, status, message)
        self._peer.connection.wake()

    async def _receive(self, route: Route, receiver: StreamReceiver) -> None:
        _current.set(Call(route.name, receiver.metadata, None, self._peer.connection.clock))
        try:
            await route.call(self._context, receiver)
        except asyncio.CancelledError:
            if is_asked_to_stop():
                raise
            receiver.close(Reset.HANDLER_FAILED)
        except Exception as exc:
            if not self._gate.over or not isinstance(exc, ConnectionClosed):
                logger.error("stream handler %r failed", route.name, exc_info=exc)
            receiver.close(Reset.HANDLER_FAILED)
