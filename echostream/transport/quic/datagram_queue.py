"""DATAGRAM frames that wait to leave: bounded in number and in age."""

from __future__ import annotations

from collections import deque

__all__ = ["DatagramQueue"]


class DatagramQueue:
    """First in, first out. When full the oldest is dropped: it is worth the least.

    Age counts from the first flush that could not send the entry, so that :meth:`put` needs no
    clock. Entries that have such a deadline always come before those that have none yet; a deadline
    of its own that an entry was given is looked at apart.
    """

    __slots__ = ("_capacity", "_deadlines", "_entries", "_max_age", "_own", "_timed", "dropped")

    def __init__(self, capacity: int, max_age: float) -> None:
        self._capacity = capacity
        self._max_age = max_age
        self._entries: deque[bytes] = deque()
        self._deadlines: deque[float] = deque()
        self._own: deque[float | None] = deque()
        self._timed = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def head(self) -> bytes:
        """The oldest entry. There must be one."""
        return self._entries[0]

    def put(self, data: bytes, deadline: float | None = None) -> None:
        """Append; the oldest is dropped when the queue is full."""
        if len(self._entries) >= self._capacity:
            self.drop()
        self._entries.append(data)
        self._own.append(deadline)
        if deadline is not None:
            self._timed += 1

    def pop(self) -> None:
        """The head was sent."""
        self._entries.popleft()
        if self._own.popleft() is not None:
            self._timed -= 1
        if self._deadlines:
            self._deadlines.popleft()

    def drop(self) -> None:
        """The head will never be sent."""
        self.pop()
        self.dropped += 1

    def expire(self, now: float) -> None:
        """Drop what waited too long."""
        while self._deadlines and self._deadlines[0] <= now:
            self.drop()
        if self._timed and any(own is not None and own < now for own in self._own):
            deadlines = list(self._deadlines)
            entries = list(zip(self._entries, self._own, strict=True))
            self.clear()
            for index, (data, own) in enumerate(entries):
                if own is not None and own < now:
                    self.dropped += 1
                    continue
                self.put(data, own)
                if index < len(deadlines):
                    self._deadlines.append(deadlines[index])

    def held_back(self, now: float) -> None:
        """What is left could not be sent by the flush at ``now``."""
        self._deadlines.extend([now + self._max_age] * (len(self._entries) - len(self._deadlines)))

    def clear(self) -> None:
        """Forget all entries."""
        self._entries.clear()
        self._deadlines.clear()
        self._own.clear()
        self._timed = 0
