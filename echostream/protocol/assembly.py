"""Messages that have begun to arrive: how much of them is held, and whether they still grow.

A peer may begin a message on each of its streams and finish none. Flow control does not see that:
the bytes were taken out of their streams. So they are counted here, against a limit of the
connection and one of the whole server, and each message has to grow.
"""

from __future__ import annotations

__all__ = ["Account", "Progress"]

KIB = 1024


class Account:
    """Bytes that are held, against a limit of one's own and that of ``total``, which is shared.

    A member that holds less than its share of the total is not refused because of the others: so
    the total can reach twice its limit, and greedy members cannot starve modest ones.
    """

    __slots__ = ("_members", "_total", "held", "limit")

    def __init__(self, limit: int, total: Account | None = None) -> None:
        self.limit = limit
        self.held = 0
        self._members = 0
        self._total = total
        if total is not None:
            total._members += 1

    def change(self, amount: int) -> bool:
        """Count ``amount`` more, or less. ``False`` when a limit is passed; it counts even so."""
        self.held += amount
        total = self._total
        if total is not None:
            total.held += amount
            if total.held > total.limit and self.held * total._members > total.limit:
                return False
        return self.held <= self.limit

    def close(self) -> None:
        """Give everything back, for good. Idempotent."""
        total, self._total = self._total, None
        if total is not None:
            total.held -= self.held
            total._members -= 1
        self.held = 0


class Progress:
    """Whether one unfinished message grows by 1 KiB per second, looked at every ``stall`` s."""

    __slots__ = ("_due", "_grown", "_stall")

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._due = -1.0
        self._grown = 0

    def restart(self) -> None:
        """Another message, or none, or it was this side that did not read."""
        self._due = -1.0
        self._grown = 0

    def grew(self, amount: int) -> None:
        """``amount`` bytes more have come."""
        self._grown += amount

    def stalled(self, now: float) -> bool:
        """Whether it is time to give the message up. The first look starts the clock."""
        if self._due < 0:
            self._due = now + self._stall
        elif now >= self._due:
            if self._grown < self._stall * KIB:
                return True
            self._due = now + self._stall
        else:
            return False
        self._grown = 0
        return False
