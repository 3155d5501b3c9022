"""Players with skewed clocks and sound cards on the virtual network, and what they truly played."""

from __future__ import annotations

import asyncio
from itertools import combinations
from random import Random

import numpy as np

from echostream import AudioFormat, RpcClient
from echostream.contrib.group_player import GroupPlayer
from echostream.media.sync_playout import SyncPlayout
from echostream.testing import Impairment

SECOND = 1_000_000_000
RATE = 16_000
FORMAT = AudioFormat(RATE, 1)
RAMP = 1 << 14
BLOCK = 160


LAN = Impairment(delay=0.001, jitter=0.005, loss=0.01)
"""5 ms of jitter on a path of 1 ms."""
JITTER = Impairment(delay=0.0035, jitter=0.0025, loss=0.01)
"""At least 1 ms, and anything up to 5 ms on top."""
WIFI = Impairment(delay=0.001, tail=0.0015, stall_every=2.0, stall=0.15)
"""Trace T3: 1.5 ms of exponential jitter, and a stall of 30 to 150 ms every 2 s or so."""


def true_ns() -> int:
    return round(asyncio.get_running_loop().time() * 1e9)


def ramp(first: int, count: int) -> np.ndarray:
    """Samples that say which they are; a resampler leaves a straight line as it is."""
    return (((np.arange(first, first + count) % RAMP) / RAMP)[:, None] - 0.5).astype(np.float32)


class Player:
    """One client: its clock is ``ahead`` by seconds and gains ``ppm``, its sound card ``card_ppm``;
    ``latency`` (s, by that clock) passes in the card, which the player knows of."""

    def __init__(
        self, group: str, ppm: float, card_ppm: float, ahead: float = 0.0, latency: float = 0.0
    ) -> None:
        self._ppm, self._ahead = ppm, ahead
        self._period = SECOND / RATE / (1.0 + card_ppm * 1e-6)
        self._latency_ns = latency * SECOND / (1.0 + ppm * 1e-6)
        self.begin = 0
        self.heard: list[np.ndarray] = []
        self.cues: list[tuple[int, object]] = []
        self.bounds: list[float] = []
        self.plugin = GroupPlayer(group, self._play, output_latency=latency)

    def clock(self) -> int:
        now = true_ns()
        return now + round(self._ahead * SECOND) + round(now * self._ppm * 1e-6)

    def true_of(self, local: int) -> int:
        """The true time of one of this player's clock."""
        return round((local - round(self._ahead * SECOND)) / (1.0 + self._ppm * 1e-6))

    def builder(self):
        builder = RpcClient.builder().plugin(self.plugin)
        builder._now_ns = self.clock  # .local_clock() asks it at once
        return builder

    async def _play(self, playout: SyncPlayout) -> None:
        loop = asyncio.get_running_loop()
        self.begin, count = true_ns(), 0
        while True:
            await asyncio.sleep((self.begin + count * self._period) / 1e9 - loop.time())
            out = np.empty((BLOCK, 1), np.float32)
            if playout.pull_into(out, self.clock()) < BLOCK:
                return
            stats = playout.statistics()
            self.heard.append(out[:, 0])
            self.bounds.append(stats.error_bound_ns)
            self.cues += playout.passed_cues()
            count += BLOCK

    def errors(self, due_of_0: int, times: np.ndarray) -> np.ndarray:
        """How much too late (ns) it played at true times; NaN where that cannot be said."""
        samples = np.array(self.heard)  # (blocks, BLOCK)
        block, inside = self._blocks(times)
        result = np.full(len(times), np.nan)
        chosen = samples[block[inside]]
        true = (
            self.begin
            + self._latency_ns
            + (block[inside, None] * BLOCK + np.arange(BLOCK)) * self._period
        )
        number = (chosen + 0.5) * RAMP
        wrap = RAMP * SECOND / RATE
        error = (true - due_of_0 - number * SECOND / RATE + wrap / 2) % wrap - wrap / 2
        place = (true - due_of_0) * RATE / SECOND % RAMP
        clean = ((place > 300) & (place < RAMP - 300)).all(axis=1) & (np.ptp(error, axis=1) < 5e3)
        result[inside] = np.where(clean, np.median(error, axis=1), np.nan)
        return result

    def error_bounds(self, times: np.ndarray) -> np.ndarray:
        """What it said then that its errors are at most (ns); NaN where it did not play."""
        block, inside = self._blocks(times)
        result = np.full(len(times), np.nan)
        result[inside] = np.array(self.bounds)[block[inside]]
        return result

    def _blocks(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which block was heard at true times, and whether there was one."""
        block = ((times - self.begin - self._latency_ns) / (BLOCK * self._period)).astype(int)
        return block, (block >= 0) & (block < len(self.heard))


def cast(count: int, group: str = "music", seed: int = 1) -> list[Player]:
    """Players with clocks and cards of +-50 ppm."""
    draw = Random(seed)
    return [
        Player(
            group,
            draw.uniform(-50, 50),
            draw.uniform(-50, 50),
            draw.uniform(-1e5, 1e5),
            draw.choice([0.0, 0.005, 0.02]),
        )
        for _ in range(count)
    ]


def pairwise(errors: list[np.ndarray]) -> np.ndarray:
    """Magnitudes of all differences between two of them, where both are known."""
    apart = np.concatenate([np.abs(a - b) for a, b in combinations(errors, 2)])
    return apart[~np.isnan(apart)]
