"""Order of events across QUIC streams (wire format, section 2, EVENT)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from echostream.errors import ProtocolError
from echostream.protocol.events import EventReceived

__all__ = ["EventOrder"]

MAX_AHEAD = 65_536
MAX_HELD_BYTES = 16 * 1024 * 1024


class EventOrder:
    """Holds an event until the one that it names as predecessor was released.

    Numbers count from 1 in one direction of one connection. What came is remembered as a
    contiguous run plus the numbers beyond it, so the usual case costs one comparison. An event that
    is held holds those of its name with higher numbers; each queue is found by the number that its
    head waits for, so that releasing one costs the same however many wait.
    """

    __slots__ = ("_beyond", "_held", "_held_bytes", "_next", "_queues", "_waiting")

    def __init__(self, upto: int = 0, beyond: Iterable[int] = ()) -> None:
        """All up to ``upto``, and what is in ``beyond``, came over an earlier connection."""
        self._next = upto + 1
        self._beyond = set(beyond)
        self._queues: dict[str, list[tuple[int, int, EventReceived]]] = {}
        self._waiting: dict[int, list[str]] = {}
        self._held: set[int] = set()
        self._held_bytes = 0

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
        if (
            number == self._next
            and predecessor < number
            and not (self._beyond or self._waiting or self._queues)
        ):
            self._next = number + 1  # nothing is missing, nothing waits
            return [event]
        if self._known(number):
            return None
        queue = self._queues.get(event.name) if self._queues else None
        first = queue is None or number < queue[0][0]
        if first and (predecessor <= 0 or self._released(predecessor)):
            out = [event]
            self._release(number, out)
            return out
        if predecessor >= number:
            raise ProtocolError(f"event {number} names {predecessor} as its predecessor")
        self._held.add(number)
        self._held_bytes += len(event.payload)
        if self._held_bytes > MAX_HELD_BYTES:
            raise ProtocolError(f"events that wait for predecessors exceed {MAX_HELD_BYTES} bytes")
        if queue is None:
            queue = self._queues[event.name] = []
        heappush(queue, (number, predecessor, event))
        if first:
            self._waiting.setdefault(predecessor, []).append(event.name)
        return []

    def skip(self, number: int) -> list[EventReceived]:
        """This number will never be delivered; returns what waited for it. Raises as
        :meth:`accept`."""
        out: list[EventReceived] = []
        if not self._known(number):
            self._release(number, out)
        return out

    def _known(self, number: int) -> bool:
        """Whether it came before. Raises ``ProtocolError`` for one that is too far ahead."""
        if number >= self._next + MAX_AHEAD:
            raise ProtocolError(f"event number {number} is too far ahead of {self._next}")
        return self._released(number) or number in self._held

    def _released(self, number: int) -> bool:
        return number < self._next or number in self._beyond

    def _release(self, number: int, out: list[EventReceived]) -> None:
        """Mark a number, and append to ``out`` all that it held up, directly or not."""
        self._mark(number)
        if not self._waiting:
            return
        released = deque([number])
        while released:
            for name in self._waiting.pop(released.popleft(), ()):
                queue = self._queues.get(name)
                if queue is None:
                    continue
                while queue:
                    following, predecessor, event = queue[0]
                    if predecessor > 0 and not self._released(predecessor):
                        self._waiting.setdefault(predecessor, []).append(name)
                        break
                    heappop(queue)
                    self._held.discard(following)
                    self._held_bytes -= len(event.payload)
                    self._mark(following)
                    released.append(following)
                    out.append(event)
                else:
                    del self._queues[name]

    def _mark(self, number: int) -> None:
        if number == self._next:
            self._next += 1
            while self._next in self._beyond:
                self._beyond.discard(self._next)
                self._next += 1
        else:
            self._beyond.add(number)
