"""Datagram packetization layer path-MTU discovery (RFC 8899, as RFC 9000, section 14.3, has it).

How large a datagram the path carries is found by sending larger ones that nobody needs, and not by
believing ICMP. This is the search alone, without I/O: whoever builds packets asks :attr:`due`
which size to probe, and tells what became of it.
"""

from __future__ import annotations

__all__ = ["PathMtu"]

MAX_PROBES = 3
"""Probes of one size before it counts as too large (RFC 8899, section 5.1.2)."""

STEP = 20
"""Bytes of uncertainty that are not worth another probe."""

ETHERNET = 1452
"""What a frame of plain Ethernet has room for, over IPv6."""

RAISE_AFTER = 600.0
"""Seconds until larger sizes are tried again (RFC 8899, section 5.1.1)."""

FIRST_RETRY = 0.1
"""Seconds until a path is asked again whether it is fast; then ten times as long each time."""

COOL_DOWN = 60.0
"""Seconds until they are tried again after a path stopped to carry them."""

MAX_LOSSES = MAX_TIMEOUTS = 3
"""Times that large packets are lost while none so large arrives, and probe timeouts in a row (what
they send again is as large): then the path is taken for a black hole (RFC 8899, section 4.3)."""


class PathMtu:
    """One path's search. Sizes are UDP payloads in bytes, times seconds.

    It begins at ``base``, which every QUIC path carries, and tries what plain Ethernet carries, or
    ``limit`` if that is less: most paths are Ethernet all along. Where that does not arrive, or is
    beyond the congestion window, it halves the interval. Where it does, and the path is fast, it
    tries ``limit``: a path carries jumbo frames, or it does not.
    """

    __slots__ = (
        "_candidate",
        "_failures",
        "_later",
        "_losses",
        "_refused",
        "_searching",
        "_stale",
        "_started",
        "base",
        "in_flight",
        "limit",
        "search_at",
        "size",
    )

    def __init__(self, base: int, limit: int) -> None:
        self.base = self.size = base
        self.limit = max(base, limit)
        self.in_flight = False
        """Whether a probe is on its way: to be set by who sends it."""
        self.search_at: float | None = None
        """When to call :meth:`search`; ``None``: not before something happens."""
        self._searching = self._stale = False
        self._candidate = self._refused = 0
        self._failures = self._losses = 0
        self._started = 0.0
        self._later = FIRST_RETRY
        self.restart()

    @property
    def due(self) -> int:
        """The size to probe now; 0: none."""
        return self._candidate if self._searching and not self.in_flight else 0

    def search(self, now: float, window: int, *, fast: bool) -> None:
        """Begin, from the size that is known to work. ``window``: the congestion window. ``fast``:
        a packet of ``limit`` bytes would not hold up others."""
        self.search_at = None
        self._started = now
        highest = self.limit if self.size >= ETHERNET else min(self.limit, ETHERNET)
        if highest > ETHERNET and not fast:
            self.postpone()
            return
        self._refused = highest + 1
        self._searching = True
        self._failures = 0
        self._candidate = min(highest, window)

    def postpone(self) -> None:
        """Now is no time for the limit: the path was not seen to be fast, or has no room."""
        self._searching = False
        self.search_at = self._started + self._later
        self._later = min(10 * self._later, RAISE_AFTER)

    def _end(self) -> None:
        self._searching = False
        self.search_at = self._started + RAISE_AFTER if self.size < self.limit else None

    def settled(self, arrived: bool, *, fast: bool) -> None:
        """What became of the probe."""
        self.in_flight = False
        if self._stale:
            self._stale = False
            return
        if arrived:
            self.size = self._candidate
        else:
            self._failures += 1
            if self._failures < MAX_PROBES:
                return
            self._refused = self._candidate
        self._failures = 0
        if self.size >= ETHERNET:
            if not arrived or self.size == self.limit:
                self._end()
            elif fast:
                self._candidate = self.limit
            else:
                self.postpone()
            return
        self._candidate = (self.size + self._refused) // 2
        if self._refused - self.size <= STEP or self.size == self.limit:
            self._end()

    def passed_over(self, now: float) -> bool:
        """Large packets were lost, and none as large has arrived since the last time. Whether that
        makes the path a black hole."""
        self._losses += 1
        if self._losses < MAX_LOSSES:
            return False
        self.black_hole(now)
        return True

    def passed(self) -> None:
        """One as large as those that were lost arrived."""
        self._losses = 0

    def black_hole(self, now: float) -> None:
        """Back to what every path carries."""
        self.restart()
        if self.search_at is not None:
            self.search_at = now + COOL_DOWN

    def restart(self) -> None:
        """The path may be another one: nothing is known of it (RFC 9000, section 14.3)."""
        self.size = self.base
        self._losses = 0
        self._later = FIRST_RETRY
        self._searching = False
        self._stale = self.in_flight
        self.search_at = 0.0 if self.limit > self.base else None
