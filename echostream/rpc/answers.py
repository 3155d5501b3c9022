"""What comes of the calls that this side made."""

from __future__ import annotations

import asyncio
import logging
from copy import copy
from typing import TYPE_CHECKING

from echostream.codes import Status
from echostream.errors import ConnectionClosed, DeadlineExceeded, InvalidPayload, error_for
from echostream.protocol import events as ev
from echostream.rpc.call import decode_metadata

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["Answers"]

logger = logging.getLogger("echostream.rpc")


class Answers:
    """Takes what comes about the calls in ``peer.calls``.

    A call is there until it is answered, so that the peer's limit is kept; one that was cancelled
    has no future any more. ``late``: answers to what is not there.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._calls = peer.calls
        self.late = 0

    def response(self, event: ev.ResponseReceived) -> None:
        """A result."""
        future = self._settled(event.call_id)
        if event.metadata is not None and event.call_id in self._peer.trailers:
            self._peer.trailers[event.call_id].append(event.metadata)
        if future is not None:
            future.set_result(event.payload)

    def error(self, event: ev.ErrorReceived) -> None:
        """A status, for a call or for a stream that was opened."""
        peer = self._peer
        details = None
        if event.details:
            try:
                details = peer.decode(event.details)
            except InvalidPayload:
                logger.debug("details of an error from %s cannot be read", peer.peer_addr)
        error = error_for(event.status, event.message, details=details)
        if event.metadata is not None:
            try:
                error.metadata = decode_metadata(event.metadata)
            except InvalidPayload:
                logger.debug("metadata of an error from %s cannot be read", peer.peer_addr)
        if event.unserved:
            error.unserved = True
            peer.take_leave(event.message)
        if event.stream:
            sender = peer.senders.get(event.id)
            if sender is not None:
                sender.refused(error)
            return
        future = self._settled(event.id)
        if future is not None:
            future.set_exception(error)

    def fail(self, call_id: int, status: Status, message: str) -> None:
        """A call ends without an answer of its handler."""
        future = self._settled(call_id)
        if future is not None:
            future.set_exception(error_for(status, message))

    def fail_expired(self) -> None:
        """Calls were too old before they could leave."""
        expired, self._peer.outbox.expired_calls = self._peer.outbox.expired_calls, []
        for call_id in expired:
            future = self._settled(call_id)
            if future is not None:
                future.set_exception(DeadlineExceeded("older than max_age before it could leave"))

    def refuse_from(self, first_unserved: int) -> None:
        """The peer leaves, and will not run calls from this one on."""
        for call_id, future in self._calls.items():
            if call_id >= first_unserved and future is not None:
                self._calls[call_id] = None  # its answer is still to come
                if not future.done():
                    future.set_exception(self._peer.leaving_error())

    def connection_lost(self, error: ConnectionClosed) -> None:
        """None comes any more."""
        unsent = set(self._peer.outbox.unsent_calls)
        for call_id, future in self._calls.items():
            if future is not None and not future.done():
                lost = copy(error)  # each gets a traceback of its own
                lost.unserved = call_id in unsent
                future.set_exception(lost)
        self._calls.clear()
        self._peer.trailers.clear()

    def _settled(self, call_id: int) -> asyncio.Future[bytes] | None:
        """The future that an answer is for, if somebody waits for it."""
        peer = self._peer
        if call_id not in self._calls:
            self.late += 1
            peer.stray()
            return None
        future = self._calls.pop(call_id)
        if peer.protocol.flows:
            peer.protocol.close_flow(call_id)
        if peer.room.slots:
            peer.room.release_slot()
        return None if future is None or future.done() else future
