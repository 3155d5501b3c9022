"""What one side keeps of an event session over several connections (wire format, section 7).

Sans-IO. The sender journals what it wrote until the receiver has handled it; the receiver remembers
what it has handled. With both, what a lost connection took with it is sent again, once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from typing import NamedTuple

from echostream.codes import Status
from echostream.errors import InvalidPayload, ProtocolError
from echostream.protocol import payload as payloads
from echostream.protocol.stream_journal import Places

__all__ = [
    "JOURNAL_BYTES",
    "JOURNAL_SPAN",
    "Delivered",
    "Entry",
    "Journal",
    "Outcomes",
    "Resumption",
]

JOURNAL_BYTES = 4 * 1024 * 1024
"""What was written and is not acknowledged; above it, events wait to be written."""
JOURNAL_SPAN = 32_768
"""The same for the distance from the oldest of them to the newest."""
ENTRY_OVERHEAD = 256
"""Bytes that an entry counts beyond its payload: what Python needs to keep one."""
MAX_BEYOND = 65_536
MAX_RANGES = 64
"""Runs of numbers beyond the contiguous one that an acknowledgement names."""
MAX_FAILURES = 1024
"""Statuses other than OK that are remembered."""
OUTCOMES = "echostream.outcomes"
"""Where RESUME has them in its metadata."""


class Entry(NamedTuple):
    """One event. ``number`` is 0 until it is written for the first time; ``deadline`` is a time of
    the loop's clock, ``inf`` for none. With a ``token`` (not -1) it is to be acknowledged."""

    number: int
    deadline: float
    name: str
    payload: bytes
    metadata: bytes | None
    priority: int
    token: int = -1


class Delivered:
    """The numbers of events that were handled here: all up to :attr:`upto`, and some beyond."""

    __slots__ = ("beyond", "upto")

    def __init__(self, upto: int = 0) -> None:
        self.upto = upto
        self.beyond: set[int] = set()

    def add(self, number: int) -> None:
        """This event was handled. Raises ``ProtocolError`` where too many are missing before it."""
        if number == self.upto + 1:
            self.upto = number
            self._close_up()
        elif number > self.upto:
            self.beyond.add(number)
            if len(self.beyond) > MAX_BEYOND:
                raise ProtocolError(f"event {self.upto + 1} is missing and {MAX_BEYOND} came after")

    def begin(self, first: int) -> int:
        """Nothing before ``first`` will come any more; returns how many were never handled."""
        if first <= self.upto + 1:
            return 0
        before = {number for number in self.beyond if number < first}
        missing = first - 1 - self.upto - len(before)
        self.beyond -= before
        self.upto = first - 1
        self._close_up()
        return missing

    @property
    def ranges(self) -> list[int]:
        """The first runs beyond :attr:`upto`: first and last number of each, in one flat list."""
        flat: list[int] = []
        for number in sorted(self.beyond):
            if flat and flat[-1] == number - 1:
                flat[-1] = number
            elif len(flat) == 2 * MAX_RANGES:
                break
            else:
                flat += (number, number)
        return flat

    def _close_up(self) -> None:
        while self.upto + 1 in self.beyond:
            self.upto += 1
            self.beyond.discard(self.upto)


class Outcomes:
    """What came of the handled events that wanted to be acknowledged. For numbers from
    :attr:`since` on it is known: OK, unless there is a failure."""

    __slots__ = ("failures", "since")

    def __init__(self, since: int = 1) -> None:
        self.since = since
        self.failures: dict[int, int] = {}

    def note(self, number: int, status: int) -> None:
        """This came of an event."""
        if status != Status.OK:
            self.failures[number] = status
            if len(self.failures) > MAX_FAILURES:
                oldest = min(self.failures)
                del self.failures[oldest]
                self.since = max(self.since, oldest + 1)

    def of(self, number: int) -> int:
        """What came of an event that was handled; UNAVAILABLE where that is not known."""
        if number < self.since:
            return Status.UNAVAILABLE
        return self.failures.get(number, Status.OK)

    def encode(self) -> dict[str, str | bytes]:
        """The metadata of a RESUME."""
        flat = [each for item in self.failures.items() for each in item]
        return {OUTCOMES: payloads.encode([self.since, *flat])}

    @classmethod
    def decode(cls, metadata: bytes | None) -> Outcomes | None:
        """Those that a RESUME tells, ``None`` for one that tells nothing. Raises
        ``ProtocolError``."""
        try:
            body = None if metadata is None else payloads.decode(metadata)
            told = body.get(OUTCOMES) if isinstance(body, dict) else None
            flat = None if told is None else payloads.decode(told)
        except (InvalidPayload, TypeError) as exc:
            raise ProtocolError("RESUME with outcomes that cannot be read") from exc
        if flat is None:
            return None
        if (
            not isinstance(flat, list)
            or not len(flat) % 2
            or not all(type(each) is int and each > 0 for each in flat)
        ):
            raise ProtocolError("the outcomes of RESUME are a number, and numbers with statuses")
        outcomes = cls(flat[0])
        outcomes.failures.update(zip(flat[1::2], flat[2::2], strict=True))
        return outcomes


class Journal:
    """Events that were written and not acknowledged, by number."""

    __slots__ = ("_entries", "last", "size")

    def __init__(self) -> None:
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self.last = 0
        """The number that was given last."""
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    @property
    def first(self) -> int:
        """The number of the oldest event that can be sent again, the next one where there is
        none."""
        return next(iter(self._entries), self.last + 1)

    @property
    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        return list(self._entries.values())

    @property
    def full(self) -> bool:
        """Whether nothing more should be written before something is acknowledged."""
        return self.size >= JOURNAL_BYTES or self.last - self.first >= JOURNAL_SPAN

    def record(self, entry: Entry) -> None:
        """An event was written for the first time."""
        self.last = entry.number
        self.size += len(entry.payload) + ENTRY_OVERHEAD
        self._entries[entry.number] = entry

    def acknowledge(self, upto: int, ranges: list[int]) -> list[Entry]:
        """All up to ``upto`` were handled, and what ``ranges`` names as :attr:`Delivered.ranges`
        does; returns those of them that were here. Raises ``ProtocolError`` for what was never
        sent, or is no list of ranges."""
        if len(ranges) > 2 * MAX_RANGES or len(ranges) % 2 or ranges != sorted(ranges):
            raise ProtocolError("an acknowledgement names at most 64 ranges, in order")
        if max([upto, *ranges]) > self.last:
            raise ProtocolError(f"an event after {self.last}, the last one, was acknowledged")
        handled = []
        for number in self._entries:
            if number > upto:
                index = bisect_left(ranges, number)
                if index == len(ranges):
                    break
                if not index % 2 and ranges[index] != number:
                    continue  # between two ranges
            handled.append(number)
        gone = [self._entries.pop(number) for number in handled]
        self.size -= sum(len(entry.payload) + ENTRY_OVERHEAD for entry in gone)
        return gone


class Resumption:
    """Both directions of one event session. ``token`` names it; who knows it can take it over.
    ``known``: both sides have agreed on it once. ``pending``: events that no connection has written
    yet, in order. ``resent`` and ``lost`` count events: written again, and given up."""

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.known = False
        self.journal = Journal()
        self.delivered = Delivered()
        self.outcomes = Outcomes()
        self.places = Places()
        self.pending: deque[Entry] = deque()
        self.pending_bytes = 0
        self.resent = 0
        self.lost = 0

    def keep(self, entry: Entry) -> None:
        """Keep an event for the next connection."""
        self.pending.append(entry)
        self.pending_bytes += len(entry.payload) + ENTRY_OVERHEAD

    def take(self) -> list[Entry]:
        """What the next connection has to write: what may have been lost, then what is new."""
        self.resent += len(self.journal)
        return [*self.journal.entries, *self.take_pending()]

    def take_pending(self) -> list[Entry]:
        """What is new."""
        entries = list(self.pending)
        self.pending.clear()
        self.pending_bytes = 0
        return entries
