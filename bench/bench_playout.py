"""Playout: how many stereo 48 kHz streams one core plays.

    python -m pytest bench/bench_playout.py -o addopts="" --benchmark-columns=median,iqr,rounds

A round is two seconds of a stream that is under way: packets of 20 ms and pulls of 10 ms (as from
an audio callback), with jitter, a sender 100 ppm fast, and 1 % loss, in virtual time. Processor
time is what counts. ``streams`` in ``extra_info`` (and in the line that is printed) is two
seconds over the median. The bounds are well under what a small machine reaches: a regression by
a factor fails, a slow machine does not.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from echostream.media.frame import AudioFormat
from echostream.media.playout import Playout

RATE, FRAME, PULL = 48_000, 960, 480
SECOND = 1_000_000_000


class Stream:
    """A stream without an end, 20 ms further with each call."""

    def __init__(self, profile, sample_type="float32", loss=0.01):
        self.playout = Playout(AudioFormat(RATE, 2, sample_type), profile=profile)
        rng = np.random.default_rng(1)
        self.jitter = np.abs(rng.normal(0, 2e6, 4096)).astype(np.int64).tolist()
        self.lost = (rng.random(4096) < loss).tolist()
        t = np.arange(RATE) / RATE
        wave = sum(np.sin(2 * np.pi * k * 150 * t + k) / (5 * k) for k in range(1, 9))
        wave = np.stack([wave, -wave], axis=1).astype(np.float32)
        if sample_type == "int16":
            wave = (wave * 32767).astype(np.int16)
        self.packets = [wave[i : i + FRAME].tobytes() for i in range(0, RATE, FRAME)]
        self.out = np.empty((PULL, 2), wave.dtype)
        self.number = self.sent = 0

    def __call__(self):
        playout = self.playout
        now = SECOND + self.number * SECOND // 50
        self.number += 1
        for due in (now, now + SECOND // 100):
            self.push_until(due)
            playout.pull_into(self.out, due)

    def push_until(self, now):
        """What has arrived by then, so that a sender that is faster delivers more packets."""
        while True:
            number = self.sent
            arrival = SECOND + number * 19_998_000 + self.jitter[number & 4095]
            if arrival > now:
                return
            self.sent += 1
            if not self.lost[number & 4095]:
                payload = self.packets[number % 50]
                self.playout.push_packet(number, number * FRAME, payload, arrival)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("sample_type", ["float32", "int16"])
@pytest.mark.parametrize(("profile", "floor"), [("voice", 500), ("music", 250)])
def test_streams_per_core(benchmark, profile, floor, sample_type):
    stream = Stream(profile, sample_type)
    for _ in range(500):
        stream()
    benchmark.pedantic(stream, rounds=15, iterations=100)
    stats = stream.playout.statistics()
    assert stats.buffer.played_frames > 0.9 * stats.pulled_frames
    if benchmark.stats is None:  # --benchmark-disable
        return
    count = 0.02 / benchmark.stats.stats.median
    benchmark.extra_info["streams"] = round(count)
    print(f"\n{benchmark.name}: {count:.0f} stereo 48 kHz streams per core")
    assert count > floor


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("profile", ["voice", "music"])
def test_int16_costs_no_more_than_float32(benchmark, profile):
    """Turn by turn in one run, the best of each: what else the machine does hits both."""
    streams = [Stream(profile, kind) for kind in ("int16", "float32")]
    spent = [[], []]
    for stream in streams * 500:
        stream()

    def turn():
        for stream, times in zip(streams, spent, strict=True):
            start = time.process_time()
            for _ in range(100):
                stream()
            times.append(time.process_time() - start)

    benchmark.pedantic(turn, rounds=15)
    if benchmark.stats is None:  # --benchmark-disable
        return
    ratio = min(spent[0]) / min(spent[1])
    benchmark.extra_info["ratio"] = round(ratio, 3)
    print(f"\n{benchmark.name}: {ratio:.3f} times the processor time of float32")
    assert ratio < 1.15
