"""What all connections of a server hold for sending, against one limit.

Each connection has bounds of its own, but a thousand slow readers are a thousand times those. So
what is queued, and what was handed to the transport and is not acknowledged, is added up; once it
passes the limit, whoever wants to send more waits, connections in turn. A connection that holds
little is never refused, so that readers who are slow cannot starve one who is not.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["GUARANTEED", "SendBudget", "SendShare"]

GUARANTEED = 64 * 1024
"""Bytes up to which one connection is not refused, or its part of the limit where that is less."""


class SendBudget:
    """``limit`` bytes for all members. ``held`` may pass it by what is guaranteed to each, and by
    one message each: who is let in may bring one of any size.

    ``tight``: the limit is passed, or somebody waits; until then nobody needs to ask more.
    """

    __slots__ = ("_guaranteed", "_members", "_passing", "_turns", "held", "limit", "tight")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.tight = False
        self._members = 0
        self._guaranteed = min(GUARANTEED, limit)
        self._turns: dict[SendShare, None] = {}
        self._passing = False

    @property
    def members(self) -> int:
        """Connections that have a share."""
        return self._members

    @property
    def guaranteed(self) -> int:
        """What one of them may hold, whatever the others do."""
        return self._guaranteed

    def join(self, change: int) -> None:
        """A member more, or less."""
        self._members += change
        self._guaranteed = min(GUARANTEED, self.limit // max(self._members, 1))

    def queue(self, share: SendShare) -> None:
        """Somebody waits for ``share``: it has its turn after those who came before."""
        self.tight = True
        self._turns[share] = None

    def ease(self) -> None:
        """Less is held, or somebody gave up: let the next one pass, and one at a time, because what
        it brings counts when it is there."""
        if self._passing or self.held > self.limit:
            return
        while self._turns:
            share = next(iter(self._turns))
            del self._turns[share]
            if share.release():
                self._passing = True
                if share.waiting:
                    self._turns[share] = None
                return
        self.tight = False

    def passed(self) -> None:
        """Who was let pass has brought what it wanted to."""
        self._passing = False
        self.ease()


class SendShare:
    """What one connection holds of a budget."""

    __slots__ = ("_budget", "_loop", "_waiters", "held")

    def __init__(self, budget: SendBudget, loop: asyncio.AbstractEventLoop) -> None:
        self.held = 0
        self._budget = budget
        self._loop = loop
        self._waiters: deque[asyncio.Future[None]] = deque()
        budget.join(1)

    @property
    def refuses(self) -> bool:
        """Whether the connection must wait before it takes more."""
        budget = self._budget
        return budget.tight and self.held > budget.guaranteed

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def charge(self, amount: int) -> None:
        """``amount`` bytes more are queued. :meth:`settle` says how many there really are."""
        budget = self._budget
        self.held += amount
        budget.held += amount
        if budget.held > budget.limit:
            budget.tight = True

    def settle(self, held: int) -> None:
        """So many bytes are queued or not acknowledged now."""
        budget = self._budget
        budget.held += held - self.held
        self.held = held
        if budget.held > budget.limit:
            budget.tight = True
        if budget.tight:
            if self._waiters and held <= budget.guaranteed:
                self.release()
            budget.ease()

    async def wait(self) -> None:
        """Wait for this connection's turn. What it was waited for must be charged at once."""
        budget = self._budget
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        budget.queue(self)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._loop.call_soon(self._passed, budget)

    def release(self) -> bool:
        """Let one pass who waits; ``False`` where nobody does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    def close(self) -> None:
        """Give everything back, for good. Whoever waits looks again. Idempotent."""
        budget, self._budget = self._budget, SendBudget(1 << 62)
        budget.held -= self.held
        self.held = 0
        budget.join(-1)
        while self.release():
            pass
        budget.ease()

    def _passed(self, budget: SendBudget) -> None:
        if self._waiters and self.held <= budget.guaranteed:
            self.release()
        budget.passed()
