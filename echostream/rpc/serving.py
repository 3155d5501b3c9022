"""Streaming calls on the side that serves them: how a handler gets items, and gives them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from echostream.codes import Reset, Status
from echostream.errors import ProtocolError
from echostream.protocol import events as ev
from echostream.rpc.call import _current
from echostream.rpc.items import ArgumentStream, ItemEnds

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer
    from echostream.rpc.registry import Route

__all__ = ["FlowEvents", "ServedItems", "served_call", "shape_fault"]


class ServedItems:
    """What a streaming handler is called with: its argument, and where its results go."""

    __slots__ = ("argument", "write")

    def __init__(self, peer: Peer, route: Route, event: ev.CallOpened) -> None:
        ends = ItemEnds(peer, peer.protocol.flows[event.call_id])
        self.write = ends.write
        self.argument: Any = None
        if route.takes_items:
            assert route.decode is not None
            self.argument = ArgumentStream(ends, route.decode)
        elif route.decode is not None:
            self.argument = route.decode(event.payload)


def served_call(call: Callable[[Any, Any], Any], yields: bool) -> Callable[[Any, Any], Any]:
    """Make ``call(context, argument)`` of a streaming handler one that takes ``ServedItems``."""

    async def take(context: Any, served: ServedItems) -> Any:
        return await call(context, served.argument)

    async def give(context: Any, served: ServedItems) -> None:
        async with aclosing(call(context, served.argument)) as results:
            async for item in results:
                own = _current.get()
                if not await served.write(item, None if own is None else own.max_age):
                    return

    return give if yields else take


def shape_fault(route: Route, event: ev.RequestReceived | ev.CallOpened) -> str:
    """Why a call does not have its handler's shape; empty where it has."""
    more, back = False, False
    if isinstance(event, ev.CallOpened):
        more, back = event.more, event.credit >= 0
    if route.yields and not back:
        return f"{route.name!r} answers with many results: call it with request_stream()"
    if back and not route.yields:
        return f"{route.name!r} answers with one result: call it with request()"
    if route.takes_items and not more:
        return f"{route.name!r} takes a stream of arguments: call it with an async iterator"
    if more and not route.takes_items:
        return f"{route.name!r} takes one argument, not an async iterator of them"
    return ""


class FlowEvents:
    """Takes what comes about streaming calls of either side of one connection."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def opened(self, event: ev.CallOpened) -> None:
        """The peer makes a streaming call."""
        peer = self._peer
        if event.call_id in peer.protocol.flows:
            peer.violation(f"call id {event.call_id} is in use")
            return
        peer.protocol.take_call(event)
        peer.dispatcher.handlers.request(event)

    def item(self, event: ev.ItemReceived) -> None:
        """An argument or a result. What comes after the end of its call is dropped."""
        peer = self._peer
        flow = peer.protocol.flows.get(event.call_id)
        if flow is None:
            return
        try:
            room = flow.receive(event.payload, event.end)
        except ProtocolError as exc:
            peer.violation(str(exc))
            return
        if not room and not flow.paused:
            flow.paused = True
            peer.protocol.inbox.pause(flow.stream_id)

    def refused(self, event: ev.ItemRefused) -> None:
        """An item was too large."""
        peer = self._peer
        if event.call_id in peer.calls:
            peer.answers.fail(event.call_id, Status.RESOURCE_EXHAUSTED, event.message)
        elif event.call_id in peer.protocol.flows:
            peer.refuse(event.call_id, Status.RESOURCE_EXHAUSTED, event.message)
            peer.dispatcher.handlers.silence(event.call_id)

    def credit(self, event: ev.CreditReceived) -> None:
        """The other side takes more items. For a call that is over, this is normal."""
        flow = self._peer.protocol.flows.get(event.call_id)
        if flow is not None:
            flow.allow(event.credit)

    def stream_ended(self, event: ev.CallStreamEnded) -> None:
        """The other half of a call's QUIC stream is over: an end without an answer is one too."""
        peer = self._peer
        call_id = event.call_id
        if call_id in peer.calls:
            if event.code == Reset.EXPIRED:
                status, text = Status.DEADLINE_EXCEEDED, "the deadline passed on the other side"
            elif event.code == Reset.TOO_LARGE:
                status, text = Status.RESOURCE_EXHAUSTED, "a limit of the other side was passed"
            else:
                status, text = Status.CANCELLED, "the other side gave the call up"
            peer.answers.fail(call_id, status, text)
            return
        flow = peer.protocol.flows.get(call_id)
        if flow is not None and not flow.complete:
            peer.dispatcher.handlers.cancel(ev.CallCancelled(call_id))

    def stopped(self, stream_id: int) -> bool:
        """STOP_SENDING came: whether it was about a streaming call."""
        for flow in self._peer.protocol.flows.values():
            if flow.stream_id == stream_id:
                flow.over = True
                flow.wake()
                return True
        return False

    def connection_lost(self) -> None:
        """Nothing comes any more."""
        flows = self._peer.protocol.flows
        for flow in flows.values():
            flow.end()
        flows.clear()
