"""What each side keeps of a media stream that goes on over several connections (wire format, 8).

Sans-IO. The sender journals items until the other side's program has read them; the receiver
remembers how far it has read. With both, what a lost connection took with it is sent again, once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from echostream.errors import ProtocolError

__all__ = ["Item", "Place", "Places", "StreamJournal"]

STREAM_JOURNAL_BYTES = 1024 * 1024
"""Of items that were sent and not read, with :data:`ITEM_OVERHEAD` each; above it, senders wait."""
ITEM_OVERHEAD = 256
MAX_PLACES = 256
"""Streams of one session whose place is remembered; those that have ended give way, then the
oldest."""


class Item(NamedTuple):
    """One packet of the stream. ``number`` counts from 0 over all connections."""

    number: int
    payload: bytes
    timestamp: int
    capture_ts: int | None


class StreamJournal:
    """Items that were sent and not read, in order. All before :attr:`first` were read."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self.first = 0
        self.next = 0
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether nothing more should be sent before something is read."""
        return self.size >= STREAM_JOURNAL_BYTES

    def record(self, payload: bytes, timestamp: int, capture_ts: int | None) -> Item:
        """The next item."""
        item = Item(self.next, payload, timestamp, capture_ts)
        self._items.append(item)
        self.next += 1
        self.size += len(payload) + ITEM_OVERHEAD
        return item

    def acknowledge(self, upto: int) -> None:
        """All before ``upto`` were read. Raises ``ProtocolError`` for what was never sent."""
        if upto > self.next:
            raise ProtocolError(f"item {upto - 1} was acknowledged, {self.next - 1} is the last")
        while self.first < upto:
            self.size -= len(self._items.popleft().payload) + ITEM_OVERHEAD
            self.first += 1

    @property
    def items(self) -> list[Item]:
        """All that may have to be sent again."""
        return list(self._items)


class Place:
    """How far a stream was read here. ``owner`` reads it now: the last one who came."""

    __slots__ = ("ended", "next", "owner")

    def __init__(self) -> None:
        self.next = -1
        """The number of the next item; -1: not known here."""
        self.ended = False
        self.owner: object = None


class Places:
    """The places of the streams of one session, by their names."""

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def of(self, name: bytes) -> Place:
        """The place of a stream, a new one where it is not known."""
        place = self._places.setdefault(name, Place())
        self._places.move_to_end(name)
        if len(self._places) > MAX_PLACES:
            ended = (key for key, each in self._places.items() if each.ended)
            del self._places[next(ended, next(iter(self._places)))]
        return place
