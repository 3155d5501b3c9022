"""Plain-Python twin of :mod:`echostream._ext.clock_map`: its contracts, its oracle in tests, and
what runs where nothing is compiled.
"""

from __future__ import annotations

__all__ = ["ClockMap"]


class ClockMap:
    """The published relation between the clocks: two straight pieces, continuous and rising.

    From local time ``local0`` on the remote clock gains ``rate0`` per local nanosecond, from
    ``local1`` on ``rate1``, which also holds before ``local0``. Both directions are inverses
    within 1 ns where a rate is within 0.2 of 0. Results are clipped to int64. Compiled, readers
    take no lock and may be on any thread; one writer at a time.
    """

    def __init__(self) -> None:
        self._pieces = (0, 0, 0, 0, 0.0, 0.0)
        self.used = False

    def set(self, local0: int, remote0: int, rate0: float, local1: int, rate1: float) -> None:
        """Publish. ``local1`` is not before ``local0``; rates are above -1."""
        remote1 = _clip(remote0 + (local1 - local0) + round((local1 - local0) * rate0))
        self._pieces = (local0, remote0, local1, remote1, rate0, rate1)

    def to_remote(self, local_ns: int) -> int:
        """Remote time at local time ``local_ns``."""
        self.used = True
        return self.peek(local_ns)

    def peek(self, local_ns: int) -> int:
        """As :meth:`to_remote`, without leaving a trace in ``used``."""
        local0, remote0, local1, remote1, rate0, rate1 = self._pieces
        if local_ns >= local1:
            local, remote, rate = local1, remote1, rate1
        else:
            local, remote, rate = local0, remote0, rate0 if local_ns >= local0 else rate1
        elapsed = _clip(local_ns - local)
        return _clip(remote + _clip(elapsed + round(elapsed * rate)))

    def to_local(self, remote_ns: int) -> int:
        """Local time at remote time ``remote_ns``."""
        self.used = True
        local0, remote0, local1, remote1, rate0, rate1 = self._pieces
        if remote_ns >= remote1:
            local, remote, rate = local1, remote1, rate1
        else:
            local, remote, rate = local0, remote0, rate0 if remote_ns >= remote0 else rate1
        elapsed = _clip(remote_ns - remote)
        return _clip(local + _clip(elapsed - round(elapsed * (rate / (1.0 + rate)))))


def _clip(value: int) -> int:
    return max(-(2**63), min(2**63 - 1, value))
