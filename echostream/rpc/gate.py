"""Whether what a peer asks for may run: the state that calls, events and streams are judged by."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer
    from echostream.rpc.registry import Registry, Route

__all__ = ["STOP_S", "Gate", "is_asked_to_stop"]

HINTS = 32
"""Unknown names of one peer that are compared with the known ones: that is dear, and whoever meant
well has read it by then."""
STOP_S = 1.0
"""How long the end of a connection waits for its tasks to take their cancellation."""


class Gate:
    """What is known of one connection before a handler runs.

    ``started``: the ``on_connect`` hooks are through; ``confirmed``: what comes is no replay of
    0-RTT data; ``ready``: both. ``over``: the connection has ended. With a ``refusal`` the calls
    from ``refused_from`` on, and all new streams, are answered with it.
    """

    __slots__ = (
        "_hints",
        "_peer",
        "confirmed",
        "over",
        "ready",
        "refusal",
        "refused_from",
        "started",
    )

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._hints = HINTS
        self.started = False
        self.confirmed = peer.connection.engine.is_client
        self.ready = False
        self.over = False
        self.refusal = ""
        self.refused_from = 0

    def permits(self, route: Route) -> bool:
        """Whether the peer was granted what a handler requires."""
        return route.requires <= self._peer.grants

    def lacks(self, route: Route) -> str:
        """What to tell a peer that was not."""
        missing = ", ".join(sorted(route.requires - self._peer.grants))
        return f"{route.name!r} requires {missing}, which this client was not granted"

    def hint(self, known: Registry, name: str) -> str:
        """What an unknown name may have meant; empty where this peer had its share of hints."""
        if self._hints <= 0:
            return ""
        self._hints -= 1
        return known.suggestion(name)


def is_asked_to_stop() -> bool:
    """Whether a CancelledError means this task, and was not raised by what it called."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
