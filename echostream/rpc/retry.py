"""When a call that failed is tried again.

Only calls that were made with ``idempotent=True`` are, for nobody else knows whether a second time
does harm, and those of which the error says that they were not run (``error.unserved``). The budget
is gRPC's throttling (proposal A6): retries stop while too many calls fail, so that they do not keep
down a server that is coming up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from echostream.codes import Status
from echostream.errors import ConfigurationError, RpcError

__all__ = ["RetryPolicy"]

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class RetryPolicy:
    """``attempts`` in all; between them a random wait of up to ``backoff`` s, which doubles each
    time up to ``max_backoff`` s, and no less than the ``retry_after`` (s) that the details of the
    error name. ``statuses``: what is worth trying again.

    ``budget``: each failure takes one, each success gives ``refill`` back, and nothing is tried
    again while half or less is left. One policy object has one budget: share it, or do not.
    """

    attempts: int = 3
    backoff: float = 0.05
    max_backoff: float = 1.0
    statuses: Collection[int] = (Status.UNAVAILABLE,)
    budget: float = 10.0
    refill: float = 0.1
    rng: random.Random = field(default_factory=random.Random)
    retries: int = field(default=0, init=False)
    """How often a call was tried again."""
    _left: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or not 1 <= self.attempts <= 100:
            raise ConfigurationError(f"attempts={self.attempts!r} must be 1 to 100")
        for name in ("backoff", "max_backoff", "budget", "refill"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 86_400:
                raise ConfigurationError(f"{name}={value!r} must be a number from 0 to 86400")
        self._left = self.budget

    async def run(
        self,
        attempt: Callable[[float | None], Awaitable[T]],
        timeout: float | None = None,
        *,
        idempotent: bool = True,
    ) -> T:
        """Await ``attempt(seconds that remain of timeout)`` until it succeeds, or this policy says
        that it is enough, or no time is left for another one; the last error is raised."""
        clock = asyncio.get_running_loop().time
        end = None if timeout is None else clock() + timeout
        wait = self.backoff
        for number in range(1, self.attempts + 1):
            try:
                result = await attempt(None if end is None else end - clock())
            except RpcError as error:
                if error.status not in self.statuses or not (idempotent or error.unserved):
                    raise
                self._left = max(self._left - 1, 0.0)
                if number == self.attempts or self._left <= self.budget / 2:
                    raise
                pause = max(self.rng.random() * wait, _retry_after(error))
                if end is not None and clock() + pause >= end:
                    raise
                self.retries += 1
                await asyncio.sleep(pause)
                wait = min(wait * 2, self.max_backoff)
            else:
                self._left = min(self._left + self.refill, self.budget)
                return result
        raise AssertionError("attempts is at least 1")


def _retry_after(error: RpcError) -> float:
    details = error.details
    value = details.get("retry_after") if isinstance(details, dict) else None
    return min(max(float(value), 0.0), 60.0) if isinstance(value, int | float) else 0.0
