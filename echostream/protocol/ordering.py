"""Order of events across QUIC streams (wire format, section 2, EVENT)."""

from __future__ import annotations

from collections import deque

from echostream.errors import ProtocolError
from echostream.protocol.events import EventReceived

__all__ = ["EventOrder"]

MAX_AHEAD = 65_536
MAX_HELD_BYTES = 16 * 1024 * 1024


class EventOrder:
    """Holds an event until the one that it names as predecessor was released.

    Numbers count from 1 in one direction of one connection. What came is remembered as a
    contiguous run plus the numbers beyond it, so the usual case costs one comparison.
    """

    __slots__ = ("_beyond", "_held", "_held_bytes", "_next", "_waiting")

    def __init__(self) -> None:
        self._next = 1
        self._beyond: set[int] = set()
        self._waiting: dict[str, deque[tuple[int, EventReceived]]] = {}
        self._held = 0
        self._held_bytes = 0

    @property
    def held(self) -> int:
        """Events that wait for a predecessor."""
        return self._held

    @property
    def delivered(self) -> int:
        """All events up to this number were released: the offset for a resumption."""
        return self._next - 1

    def accept(self, event: EventReceived, predecessor: int) -> list[EventReceived] | None:
        """Take one event. Returns what may be delivered now, in order; ``None`` for a repeated
        number. Raises ``ProtocolError`` where the peer asks to hold more than the bounds."""
        number = event.number
        if number < self._next or number in self._beyond:
            return None
        if number >= self._next + MAX_AHEAD:
            raise ProtocolError(f"event number {number} is too far ahead of {self._next}")
        if not self._waiting and (predecessor <= 0 or self._released(predecessor)):
            self._mark(number)
            return [event]
        queue = self._waiting.get(event.name)
        if queue is None and (predecessor <= 0 or self._released(predecessor)):
            self._mark(number)
            return [event, *self._drain()]
        if predecessor >= number:
            raise ProtocolError(f"event {number} names {predecessor} as its predecessor")
        if queue is None:
            queue = self._waiting[event.name] = deque()
        if any(waiting.number == number for _, waiting in queue):
            return None
        queue.append((predecessor, event))
        self._held += 1
        self._held_bytes += len(event.payload)
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

    def _drain(self) -> list[EventReceived]:
        out: list[EventReceived] = []
        progress = True
        while progress:
            progress = False
            for name in list(self._waiting):
                queue = self._waiting[name]
                while queue and (queue[0][0] <= 0 or self._released(queue[0][0])):
                    _, event = queue.popleft()
                    self._held -= 1
                    self._held_bytes -= len(event.payload)
                    self._mark(event.number)
                    out.append(event)
                    progress = True
                if not queue:
                    del self._waiting[name]
        return out
