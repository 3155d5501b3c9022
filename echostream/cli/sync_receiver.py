"""One player of ``echostream sync-lab``, in a process of its own: its clock and its sound card are
wrong on purpose, and because the machine's own clock is there it can tell what it truly played.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echostream.client import RpcClient
from echostream.contrib.group_player import GroupPlayer
from echostream.media.sync_playout import SyncPlayout
from echostream.runner import run as run_loop

__all__ = ["BLOCK", "GROUP", "RATE", "WRAP_NS", "Skew", "ramp", "receive"]

SECOND = 1_000_000_000
GROUP = "sync-lab"
RATE = 16_000
BLOCK = 160
PERIOD = 1 << 15
WRAP_NS = PERIOD * SECOND // RATE
"""The ramp says no more than where in this time a sample is."""
EDGE = 256


def ramp(first: int, count: int) -> NDArray[np.float32]:
    """Samples that tell which they are; a resampler leaves a straight line as it is."""
    place = np.arange(first, first + count) % PERIOD
    return (place / PERIOD - 0.5).astype(np.float32)[:, None]


@dataclass(frozen=True, slots=True)
class Skew:
    """How wrong a player's clock is, since the machine's time ``since_ns``, and its sound card."""

    since_ns: int
    ahead_ns: int
    clock_ppm: float
    card_ppm: float

    def clock(self) -> int:
        """The player's clock."""
        return self.at(time.monotonic_ns())

    def at(self, true_ns: int) -> int:
        """The player's clock at a time of the machine's."""
        return true_ns + self.ahead_ns + round((true_ns - self.since_ns) * self.clock_ppm * 1e-6)


def receive(words: list[str]) -> int:
    """Play until the stream ends; then print, as JSON, when which sample was played."""
    port, fingerprint, skew = int(words[0]), words[1], Skew(**json.loads(words[2]))
    rows: list[tuple[int, float, float]] = []

    async def play(playout: SyncPlayout) -> None:
        rows.extend(await _play(playout, skew))
        finished.set()

    finished = asyncio.Event()

    async def main() -> None:
        builder = RpcClient.builder().connect(("127.0.0.1", port)).trust(fingerprint=fingerprint)
        builder.local_clock(skew.clock).plugin(GroupPlayer(GROUP, play))
        async with builder.build():
            await finished.wait()

    run_loop(main())
    print(json.dumps(rows), flush=True)
    return 0


async def _play(playout: SyncPlayout, skew: Skew) -> list[tuple[int, float, float]]:
    """Pull as a sound card does. For each block that can be read: the true time at which it was
    heard, by how much its samples are then past their number (ns, modulo ``WRAP_NS``), and the
    error bound that the player reported."""
    period = SECOND / RATE / (1.0 + skew.card_ppm * 1e-6)
    begin, count = time.monotonic_ns(), 0
    out = np.empty((BLOCK, 1), np.float32)
    rows: list[tuple[int, float, float]] = []
    while True:
        true = begin + round(count * period)
        await asyncio.sleep((true - time.monotonic_ns()) / SECOND)
        if playout.pull_into(out, skew.at(true)) < BLOCK:
            return rows
        count += BLOCK
        past = _past(out[:, 0], true, period)
        if past is not None:
            rows.append((true, past, playout.statistics().error_bound_ns))


def _past(samples: NDArray[np.float32], true: int, period: float) -> float | None:
    number = (samples.astype(np.float64) + 0.5) * PERIOD
    if number.min() < EDGE or number.max() > PERIOD - EDGE:
        return None  # the filter smears the ramp's edge
    past = np.arange(len(samples)) * period - number * SECOND / RATE
    if np.ptp(past) > 10_000:  # silence, or concealed
        return None
    return float((true % WRAP_NS + np.median(past)) % WRAP_NS)
