"""What a driven connection reports to the floor above."""

from __future__ import annotations

from typing import Protocol

from echostream.transport.engine import EngineEvent

__all__ = ["ConnectionHandler"]


class ConnectionHandler(Protocol):
    """The session's side of :class:`echostream.transport.connection.Connection`."""

    def engine_event(self, event: EngineEvent) -> None:
        """One event of the engine, in order. ``Closed`` is the last."""

    def before_flush(self, now: float) -> None:
        """The loop's turn ends and datagrams are about to be built: write what is queued, most
        urgent first. Called also after every receipt and timer, so that waits for buffer space
        can be looked at again."""

    @property
    def idle(self) -> bool:
        """Whether :meth:`before_flush` has nothing to do: nothing is queued, nobody waits."""
