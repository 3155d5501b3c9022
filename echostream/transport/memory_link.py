"""The path between two memory engines."""

from __future__ import annotations

from echostream.transport.impairment import Impairer, Impairment

__all__ = ["MemoryLink"]


class MemoryLink:
    """The path between two memory engines. ``up`` is from the client to the server.

    Both may be set while it is in use. Duplication has no effect (QUIC drops duplicates), and a
    damaged segment is a lost one.
    """

    def __init__(
        self, *, up: Impairment | None = None, down: Impairment | None = None, seed: int = 1
    ) -> None:
        self._up = Impairer(up or Impairment(), f"{seed} up")
        self._down = Impairer(down or Impairment(), f"{seed} down")
        self._measure()

    @property
    def up(self) -> Impairment:
        """Faults from the client to the server."""
        return self._up.impairment

    @up.setter
    def up(self, impairment: Impairment) -> None:
        self._up.impairment = impairment
        self._measure()

    @property
    def down(self) -> Impairment:
        """Faults from the server to the client."""
        return self._down.impairment

    @down.setter
    def down(self, impairment: Impairment) -> None:
        self._down.impairment = impairment
        self._measure()

    def impairer(self, *, from_client: bool) -> Impairer:
        """The state of one direction."""
        return self._up if from_client else self._down

    def _measure(self) -> None:
        up, down = self.up, self.down
        self.round_trip = up.delay + down.delay
        """Seconds, without jitter and queueing."""
        self.retransmission = self.round_trip + 4 * (up.jitter + down.jitter) + 0.025
        """Seconds after which a lost segment is sent again (RFC 9002, section 6.2.1)."""
        self.perfect = {True: up.perfect, False: down.perfect}
        """By whether the client sends."""
