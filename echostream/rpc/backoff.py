"""How a client comes back: how often, and after which waits."""

from __future__ import annotations

import random
from dataclasses import dataclass

from echostream.errors import ConfigurationError

__all__ = ["Backoff", "Reconnect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """How a client comes back. Times in seconds.

    ``attempts``: failures in a row after which it gives up; ``None``: never. Before the nth attempt
    it waits a random time up to ``first_backoff`` * 2**n, at most ``max_backoff`` ("full jitter":
    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). ``keepalive``: after
    this much silence the server is asked for a sign of life, and given up after three times as
    much.
    """

    attempts: int | None = None
    first_backoff: float = 0.1
    max_backoff: float = 3.0
    keepalive: float = 5.0
    early_data: bool = False

    def __post_init__(self) -> None:
        attempts = self.attempts
        if attempts is not None and (
            not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1
        ):
            raise ConfigurationError(f"attempts={attempts!r} must be a whole number above 0")
        if not isinstance(self.early_data, bool):
            raise ConfigurationError(f"early_data={self.early_data!r} must be True or False")
        for name, low in (("first_backoff", 0.001), ("max_backoff", 0.001), ("keepalive", 0.1)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ConfigurationError(f"{name}={value!r} must be a number of seconds")
            if not low <= value <= 1200:
                raise ConfigurationError(f"{name}={value!r} must be seconds, from {low} to 1200")


class Backoff:
    """The waits between attempts."""

    def __init__(self, options: Reconnect) -> None:
        self._options = options
        self.failures = 0

    def reset(self) -> None:
        """It worked."""
        self.failures = 0

    def next(self) -> float | None:
        """Seconds to wait after one more failure; ``None``: give up."""
        options = self._options
        self.failures += 1
        if options.attempts is not None and self.failures >= options.attempts:
            return None
        return random.uniform(0.0, self.ceiling)

    @property
    def ceiling(self) -> float:
        """The longest that the next wait can be."""
        options = self._options
        doublings = min(max(self.failures - 1, 0), 32)
        return min(options.first_backoff * 2.0**doublings, options.max_backoff)
