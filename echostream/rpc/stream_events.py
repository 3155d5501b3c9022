"""What comes about the media streams of either side of one connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echostream.protocol import events as ev

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["StreamEvents"]


class StreamEvents:
    """Hands it to the ends in ``peer.senders`` and ``peer.receivers``."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._senders = peer.senders
        self._receivers = peer.receivers

    def accepted(self, event: ev.StreamAccepted) -> None:
        """The peer takes a stream of ours."""
        sender = self._senders.get(event.alias)
        if sender is not None:
            sender.accepted(event.options)
        else:
            self._peer.stray()

    def media(self, event: ev.MediaReceived) -> None:
        """A packet."""
        receiver = self._receivers.get(event.alias)
        if receiver is not None and receiver.realtime == (event.stream_id < 0):
            receiver.deliver(event)
        else:
            self._peer.dispatcher.stream_handlers.unclaimed += 1

    def ended(self, event: ev.StreamEnded) -> None:
        """The clean end of a stream of the peer."""
        receiver = self._receivers.get(event.alias)
        if receiver is not None:
            receiver.ended(event.packets)
        else:
            self._peer.stray()

    def aborted(self, event: ev.StreamAborted) -> None:
        """The peer gave a stream up: its own, or ours."""
        receiver = self._receivers.get(event.alias)
        if receiver is not None:
            receiver.aborted(event.code, event.message)
        else:
            self._peer.dispatcher.stream_handlers.given_up(event.alias)
        sender = self._senders.get(event.alias)
        if sender is not None:
            sender.stopped(event.code, event.message)
        elif receiver is None:
            self._peer.stray()

    def flushed(self, event: ev.StreamFlushed) -> None:
        """The peer dropped what it had queued of a stream."""
        receiver = self._receivers.get(event.alias)
        if receiver is not None:
            receiver.flushed(event.epoch)
        else:
            self._peer.stray()

    def stopped(self, stream_id: int, code: int) -> None:
        """STOP_SENDING came for a QUIC stream of ours."""
        for sender in list(self._senders.values()):
            if sender.stream_id == stream_id:
                sender.stopped(code, "")
