"""What a network does to datagrams: one seeded model for the virtual network and the relay."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

__all__ = ["Impairer", "Impairment", "PathStatistics"]

CE = 3
"""Congestion experienced (RFC 3168, section 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """Faults of one direction of a path. The default is a perfect one.

    Probabilities are per datagram, from 0 to 1. ``burst_start`` and ``burst_end`` are the
    probabilities with which a Gilbert-Elliott channel goes bad and good again; while it is bad,
    it loses everything, so bursts last ``1 / burst_end`` datagrams on average.
    """

    delay: float = 0.0
    """Seconds, one way."""
    jitter: float = 0.0
    """Seconds: the delay is uniform between ``delay - jitter`` and ``delay + jitter``. Datagrams
    overtake each other when this is larger than the gap between them."""
    tail: float = 0.0
    """Seconds: mean of an exponentially distributed delay on top."""
    stall_every: float = 0.0
    """Seconds: mean pause between stalls, as Wi-Fi has them; 0 is none. What is sent in one leaves
    at its end, in order."""
    stall: float = 0.15
    """Seconds: a stall lasts from a fifth of this to all of it."""
    loss: float = 0.0
    burst_start: float = 0.0
    burst_end: float = 0.3
    duplicate: float = 0.0
    corrupt: float = 0.0
    """One bit is flipped."""
    truncate: float = 0.0
    """The end is cut off; at least one byte arrives."""
    rate: float = 0.0
    """Bytes per second; 0 is unlimited."""
    queue: int = 1000
    """Datagrams that wait for the rate; what comes on top is lost."""
    mtu: int = 65535
    """Larger datagrams vanish (a path MTU black hole)."""
    blackhole: bool = False
    """Everything vanishes."""
    ce: float = 0.0
    """Of the datagrams that are marked ECT, as many are marked CE instead of lost (RFC 3168)."""
    ecn: str = "carried"
    """What happens to marks: ``"carried"``, ``"cleared"``, or ``"dropped"`` with their datagrams.
    Only the network in memory has any; the relay always clears them."""

    def __post_init__(self) -> None:
        if self.ecn not in ("carried", "cleared", "dropped"):
            raise ValueError(f"ecn is 'carried', 'cleared' or 'dropped', not {self.ecn!r}")
        for name in ("loss", "burst_start", "burst_end", "duplicate", "corrupt", "truncate", "ce"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability: {getattr(self, name)!r}")
        for name in ("delay", "jitter", "tail", "stall_every", "stall", "rate", "queue", "mtu"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more: {getattr(self, name)!r}")

    @property
    def perfect(self) -> bool:
        """Whether nothing happens to a datagram, and it takes no time."""
        return self == _PERFECT


_PERFECT = Impairment()


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """What happened to the datagrams of one direction so far."""

    received: int
    delivered: int
    """Includes duplicates, and what is still on its way."""
    lost: int
    overflowed: int
    """Of those lost: dropped by a full queue."""
    duplicated: int
    corrupted: int
    truncated: int
    marked: int
    """As CE."""


class Impairer:
    """The state of one direction. ``impairment`` may be set at any time.

    The same seed, sizes and times give the same fate to every datagram.
    """

    def __init__(self, impairment: Impairment, seed: int | str) -> None:
        self.impairment = impairment
        self._random = random.Random(seed)
        self._bad = False
        self._free_at = 0.0
        self._stall: tuple[float, float] | None = None  # the current or next one
        self._waiting: deque[float] = deque()  # when each of those in the queue leaves it
        self._received = self._delivered = self._lost = self._overflowed = 0
        self._duplicated = self._corrupted = self._truncated = self._marked = 0

    def statistics(self) -> PathStatistics:
        """A snapshot of the counters."""
        return PathStatistics(
            received=self._received,
            delivered=self._delivered,
            lost=self._lost,
            overflowed=self._overflowed,
            duplicated=self._duplicated,
            corrupted=self._corrupted,
            truncated=self._truncated,
            marked=self._marked,
        )

    def datagram(self, data: bytes, now: float) -> list[tuple[float, bytes]]:
        """When, and as what, a datagram sent now arrives: once, twice, or never."""
        fault, chance = self.impairment, self._random.random
        arrival = self.arrival(len(data), now)
        if arrival is None:
            return []
        if fault.corrupt and data and chance() < fault.corrupt:
            self._corrupted += 1
            position = self._random.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            data = bytes(flipped)
        if fault.truncate and len(data) > 1 and chance() < fault.truncate:
            self._truncated += 1
            data = data[: self._random.randrange(1, len(data))]
        arrivals = [(arrival, data)]
        if fault.duplicate and chance() < fault.duplicate:
            self._duplicated += 1
            self._delivered += 1
            arrivals.append((self._free_or(now) + self._delay(), data))
        return arrivals

    def mark(self, ecn: int) -> int:
        """What becomes of a datagram's ECN bits on the way; below 0: it vanishes for them."""
        fault = self.impairment
        if not ecn or fault.ecn == "cleared":
            return 0
        if fault.ecn == "dropped":
            self._received += 1
            self._lost += 1
            return -1
        if fault.ce and self._random.random() < fault.ce:
            self._marked += 1
            return CE
        return ecn

    def arrival(self, size: int, now: float, *, bounded: bool = True) -> float | None:
        """When ``size`` bytes sent now arrive, or ``None`` if they are lost. What a damaged
        datagram means is the caller's business. Unless ``bounded``, the queue has no end."""
        fault = self.impairment
        self._received += 1
        if fault.burst_start or self._bad:
            edge = fault.burst_end if self._bad else fault.burst_start
            self._bad ^= self._random.random() < edge
        if (
            fault.blackhole
            or self._bad
            or size > fault.mtu
            or (fault.loss and self._random.random() < fault.loss)
        ):
            self._lost += 1
            return None
        if fault.rate:
            while self._waiting and self._waiting[0] <= now:
                self._waiting.popleft()
            if bounded and len(self._waiting) > fault.queue:  # the first of them is being sent
                self._lost += 1
                self._overflowed += 1
                return None
            self._free_at = max(now, self._free_at) + size / fault.rate
            self._waiting.append(self._free_at)
        self._delivered += 1
        return self._free_or(now) + self._delay()

    def segment(self, size: int, now: float, *, bounded: bool = True) -> float | None:
        """When a packet with a checksum arrives: a damaged one is a lost one."""
        arrival = self.arrival(size, now, bounded=bounded)
        fault = self.impairment
        if arrival is None or not (fault.corrupt or fault.truncate):
            return arrival
        damaged = 1.0 - (1.0 - fault.corrupt) * (1.0 - fault.truncate)
        return None if self._random.random() < damaged else arrival

    def _free_or(self, now: float) -> float:
        if self.impairment.stall_every:
            now = self._after_stall(now)
        return max(now, self._free_at) if self.impairment.rate else now

    def _after_stall(self, now: float) -> float:
        """When what is sent now leaves."""
        fault, draw = self.impairment, self._random
        if self._stall is None:
            self._stall = (now, now)  # one has just ended
        while now >= self._stall[1]:
            begin = self._stall[1] + draw.expovariate(1.0 / fault.stall_every)
            self._stall = (begin, begin + draw.uniform(0.2, 1.0) * fault.stall)
        return self._stall[1] if now >= self._stall[0] else now

    def _delay(self) -> float:
        fault = self.impairment
        delay = fault.delay
        if fault.jitter:
            delay += self._random.uniform(-fault.jitter, fault.jitter)
        if fault.tail:
            delay += self._random.expovariate(1.0 / fault.tail)
        return max(0.0, delay)
