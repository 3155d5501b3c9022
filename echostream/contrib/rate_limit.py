"""``RateLimitPlugin``: how often one peer may call and tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.errors import ConfigurationError, ResourceExhausted
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed

__all__ = ["RateLimitPlugin"]

B = TypeVar("B", ServerBuilder, ClientBuilder)


class _Bucket:
    __slots__ = ("at", "left")

    def __init__(self, burst: float, now: float) -> None:
        self.left = burst
        self.at = now


class RateLimitPlugin(Interceptor, ServerPlugin, ClientPlugin):
    """Each peer has a bucket of ``burst`` (default: a second's worth) that fills at ``rate`` per
    second and that every call, event and stream of it takes one from. ``methods`` gives names
    rates of their own, beside it.

    A call beyond that is answered with ``ResourceExhausted``, whose ``details`` have ``limit`` and
    ``retry_after`` (s); an event is dropped and counted in :attr:`dropped_events`; a stream is
    aborted.
    """

    name = "rate_limit"

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        methods: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for value in (rate, *(methods or {}).values(), *(() if burst is None else (burst,))):
            if not isinstance(value, int | float) or not 0 < value < 1e9:
                raise ConfigurationError(f"RateLimitPlugin: {value!r} must be above 0")
        self._rate = rate
        self._burst = max(burst if burst is not None else rate, 1.0)
        self._methods = dict(methods or {})
        self._clock = clock
        self._buckets: WeakKeyDictionary[Any, dict[str, _Bucket]] = WeakKeyDictionary()
        self.refused = 0
        self.dropped_events = 0

    def install(self, builder: B) -> B:
        """Stand around what comes in."""
        return builder.interceptor(self)

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        """Let it in, or refuse it."""
        wait, limit = self._take(call)
        if wait <= 0:
            return await proceed()
        if call.kind == "event":
            self.dropped_events += 1
            return None
        self.refused += 1
        raise ResourceExhausted(
            f"limit {limit} per second; try again in {wait:.3f} s",
            details={"limit": limit, "retry_after": wait},
        )

    def _take(self, call: Invocation) -> tuple[float, str]:
        """How long to wait (0: go on), and for which limit."""
        now = self._clock()
        buckets = self._buckets.setdefault(call.context, {})
        limits = [("", self._rate, self._burst)]
        if call.name in self._methods:
            rate = self._methods[call.name]
            limits.append((call.name, rate, max(rate, 1.0)))
        taken = []
        for key, rate, burst in limits:
            bucket = buckets.setdefault(key, _Bucket(burst, now))
            bucket.left = min(bucket.left + (now - bucket.at) * rate, burst)
            bucket.at = now
            if bucket.left < 1:
                return (1 - bucket.left) / rate, f"rate={rate:g}{' of ' + key if key else ''}"
            taken.append(bucket)
        for bucket in taken:
            bucket.left -= 1
        return 0.0, ""
