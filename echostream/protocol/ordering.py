"""Order of events across QUIC streams (wire format, section 2, EVENT)."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from echostream.errors import ProtocolError
from echostream.protocol.events import EventReceived

__all__ = ["EventOrder"]

MAX_AHEAD = 65_536
MAX_HELD_BYTES = 16 * 1024 * 1024
HELD_OVERHEAD = 256
"""Bytes that an event is counted for beyond its payload."""


class EventOrder:
    """Holds an event until the one that it names as predecessor was released.

    Numbers count from 1 in one direction of one connection. What came is remembered as a
    contiguous run plus the numbers beyond it, so the usual case costs one comparison. Whatever the
    peer sends, an event costs at most the logarithm of how many are held.
    """

    __slots__ = ("_beyond", "_held", "_held_bytes", "_next", "_queues", "_wanted")

    def __init__(self) -> None:
        self._next = 1
        self._beyond: set[int] = set()
        self._held: set[int] = set()
        self._held_bytes = 0
        # Per name what is held, as a heap of (number, predecessor, event); per number the names
        # whose first may wait for it.
        self._queues: dict[str, list[tuple[int, int, EventReceived]]] = {}
        self._wanted: dict[int, list[str]] = {}

    @property
    def held(self) -> int:
        """Events that wait for a predecessor."""
        return len(self._held)

    @property
    def delivered(self) -> int:
        """All events up to this number were released: the offset for a resumption."""
        return self._next - 1

    def accept(self, event: EventReceived, predecessor: int) -> list[EventReceived] | None:
        """Take one event. Returns what may be delivered now, in order; ``None`` for a repeated
        number. Raises ``ProtocolError`` where the peer asks to hold more than the bounds."""
        number = event.number
        if self._released(number) or number in self._held:
            return None
        if number >= self._next + MAX_AHEAD:
            raise ProtocolError(f"event number {number} is too far ahead of {self._next}")
        queue = self._queues.get(event.name)
        first = queue is None or number < queue[0][0]
        if first and (predecessor <= 0 or self._released(predecessor)):
            self._mark(number)
            return [event, *self._released_by(number)] if self._held else [event]
        if predecessor >= number:
            raise ProtocolError(f"event {number} names {predecessor} as its predecessor")
        if queue is None:
            queue = self._queues[event.name] = []
        if first:
            self._wanted.setdefault(predecessor, []).append(event.name)
        heappush(queue, (number, predecessor, event))
        self._held.add(number)
        self._held_bytes += len(event.payload) + HELD_OVERHEAD
        if self._held_bytes > MAX_HELD_BYTES:
            raise ProtocolError(f"events that wait for predecessors exceed {MAX_HELD_BYTES} bytes")
        return []

    def _released(self, number: int) -> bool:
        return number < self._next or number in self._beyond

    def _mark(self, number: int) -> None:
        if number == self._next:
            self._next += 1
            while self._next in self._beyond:
                self._beyond.discard(self._next)
                self._next += 1
        else:
            self._beyond.add(number)

    def _released_by(self, number: int) -> list[EventReceived]:
        """What the release of ``number`` sets free."""
        out: list[EventReceived] = []
        released = deque([number])
        while released:
            for name in self._wanted.pop(released.popleft(), ()):
                queue = self._queues.get(name)
                while queue:
                    _, predecessor, event = queue[0]
                    if predecessor > 0 and not self._released(predecessor):
                        self._wanted.setdefault(predecessor, []).append(name)
                        break
                    heappop(queue)
                    self._held.discard(event.number)
                    self._held_bytes -= len(event.payload) + HELD_OVERHEAD
                    self._mark(event.number)
                    released.append(event.number)
                    out.append(event)
                if queue is not None and not queue:
                    del self._queues[name]
        return out
