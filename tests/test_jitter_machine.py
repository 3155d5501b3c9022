"""The compiled ring against its twin under any history, and under two real threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from echostream._ext import jitter_ring as compiled
from echostream.media import jitter_twin as plain

RATE = 8000
MS = 1_000_000
OPTIONS = {
    "sample_rate": RATE,
    "channels": 1,
    "int16": False,
    "capacity": 64,
    "max_packet_frames": 960,
    "ring_frames": 8192,
    "sequence_bits": 16,
    "timestamp_bits": 32,
    "late": 0.01,
    "start_ns": 40.0 * MS,
    "minimum_ns": 0.0,
    "maximum_ns": 400.0 * MS,
    "raise_rate": 0.1,
    "lower_rate": 0.06,
    "max_pull": 2000,
}


class TwinRings(RuleBasedStateMachine):
    """Every rule does the same to both; nothing may differ, and nothing may be counted twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000 * MS
        self.sequence, self.stamp, self.epoch = 65_500, 2**32 - 5000, 0
        self.draw(0)

    def draw(self, hold_ms: int) -> None:
        options = {**OPTIONS, "hold_ns": hold_ms * MS}
        self.rings = (compiled.JitterRing(**options), plain.JitterRing(**options))

    @initialize(hold_ms=st.sampled_from([0, 0, 100, 10_000]))
    def begin(self, hold_ms: int) -> None:
        self.draw(hold_ms)

    @rule(
        count=st.integers(20, 150),
        seed=st.integers(0, 2**32 - 1),
        jitter_ms=st.sampled_from([0, 3, 30, 120]),
        loss=st.sampled_from([0.0, 0.05, 0.3]),
        pull=st.sampled_from([40, 80, 130]),
        drift=st.sampled_from([0.97, 1.0, 1.03]),
    )
    def streams(
        self, count: int, seed: int, jitter_ms: int, loss: float, pull: int, drift: float
    ) -> None:
        """An ordinary stream: packets of 20 ms with jitter and loss, pulled by a callback."""
        rng = np.random.default_rng(seed)
        sent = self.now + np.arange(count) * 20 * MS * drift
        came = sent + rng.exponential(jitter_ms * MS, count)
        came[rng.random(count) < loss] = np.inf
        pulled = self.now
        for n in np.argsort(came, kind="stable").tolist():
            if came[n] == np.inf:
                break
            while pulled <= came[n]:
                self.now = int(pulled)
                self.pulls(pull, 1)
                pulled += pull * 125_000
            self.now = int(came[n])
            self.push(self.sequence + n, self.stamp + n * 160, 160, False)
        self.sequence += count
        self.stamp += count * 160
        self.now = max(self.now, int(sent[-1]) + 20 * MS)

    @rule(
        count=st.integers(1, 80),
        frames=st.sampled_from([1, 40, 160, 480]),
        silence=st.booleans(),
        step_ms=st.sampled_from([0, 5, 20, 60]),
    )
    def packets(self, count: int, frames: int, silence: bool, step_ms: int) -> None:
        for n in range(count):
            self.push(self.sequence, self.stamp, frames, silence and n == count - 1)
            self.sequence += 1
            self.stamp += frames
            self.now += step_ms * MS

    @rule(
        jump=st.sampled_from([-200, -64, -63, -5, -1, 0, 1, 2, 30, 63, 64, 1000]),
        stamp_jump=st.sampled_from([-100_000, -160, 0, 160, 4000, 100_000]),
        stays=st.booleans(),
    )
    def stray_packet(self, jump: int, stamp_jump: int, stays: bool) -> None:
        self.push(self.sequence + jump, self.stamp + stamp_jump, 160, False)
        if stays:
            self.sequence += jump
            self.stamp += stamp_jump

    @rule(by=st.sampled_from([1, 2, 40_000]), stamp=st.integers(0, 2**32 - 1))
    def restart(self, by: int, stamp: int) -> None:
        self.epoch = (self.epoch + by) % 65536
        self.sequence, self.stamp = 0, stamp

    @rule(ms=st.sampled_from([1, 20, 300, 1500, 8000]))
    def time_passes(self, ms: int) -> None:
        self.now += ms * MS

    @rule(frames=st.sampled_from([1, 8, 80, 160, 441, 2000]), count=st.integers(1, 30))
    def pulls(self, frames: int, count: int) -> None:
        for _ in range(count):
            outs = [np.full((frames, 1), 9.0, dtype=np.float32) for _ in self.rings]
            real = [
                ring.pull_into(out, self.now) for ring, out in zip(self.rings, outs, strict=True)
            ]
            assert real[0] == real[1]
            np.testing.assert_allclose(outs[0], outs[1], rtol=1e-6, atol=0)
            self.now += frames * 1_000_000_000 // RATE

    @rule(frames=st.integers(1, 300), ahead=st.integers(0, 4000))
    def pieces(self, frames: int, ahead: int) -> None:
        errors = [ring.schedule(self.now) for ring in self.rings]
        assert errors[0] == errors[1]
        outs = [np.zeros((frames, 1), dtype=np.float32) for _ in self.rings]
        real = [ring.peek_into(out, ahead) for ring, out in zip(self.rings, outs, strict=True)]
        assert real[0] == real[1]
        np.testing.assert_array_equal(outs[0], outs[1])

    def push(self, sequence: int, stamp: int, frames: int, silence: bool) -> None:
        payload = np.full(frames, sequence % 1000 + 1, dtype=np.float32)
        outcomes = [
            ring.push(sequence % 65536, stamp % 2**32, payload, self.now, self.epoch, silence)
            for ring in self.rings
        ]
        assert outcomes[0] == outcomes[1]

    @invariant()
    def nothing_differs(self) -> None:
        one, other = self.rings
        assert one.counters() == other.counters()
        assert one.cursor_timestamp == other.cursor_timestamp
        assert one.buffered_frames == other.buffered_frames
        assert abs(one.target_ns - other.target_ns) <= 1
        counts = dict(zip(plain.COUNTERS, one.counters(), strict=True))
        assert counts["played"] + counts["late"] <= counts["received"]
        assert all(value >= 0 for value in counts.values())


TestTwinRings = TwinRings.TestCase
TestTwinRings.settings = settings(
    max_examples=20, stateful_step_count=12, deadline=None, derandomize=True
)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads change places far more often than the 5 ms that are usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("quick_switches")
def test_one_thread_pushes_while_another_pulls(seed: int) -> None:
    """Every sample that comes out belongs where it comes out, and every packet is accounted for.

    Sample ``t`` of the stream has the value ``t % 8191 + 1``: a torn, stale or misplaced copy
    shows. The small ring overflows often, so that both sides claim the same slots.
    """
    options = {**OPTIONS, "hold_ns": 0, "timestamp_bits": 64, "sequence_bits": 32}
    ring = compiled.JitterRing(**options)
    rng = np.random.default_rng(seed)
    packets, frames = 2_000, 160
    signal = (np.arange(packets * frames) % 8191 + 1).astype(np.float32).reshape(packets, frames)
    order = np.argsort(np.arange(packets) + rng.uniform(0, 3, packets), kind="stable").tolist()
    lead = rng.choice([0, 40, 100, 1500], packets // 100).tolist()  # ms; the last overflows 64
    clock, sent = [0], [0]
    turn = threading.Condition()
    outcomes: list[int] = []

    def produce() -> None:
        for n in order:
            now = n * 20 * MS
            with turn:
                turn.wait_for(lambda due=now - lead[n // 100] * MS: clock[0] >= due, 60)
            outcomes.append(ring.push(n, n * frames, signal[n], now))
            with turn:
                sent[0] = max(sent[0], now)
                turn.notify()
        sent[0] = 2**62

    producer = threading.Thread(target=produce)
    out = np.zeros((80, 1), dtype=np.float32)
    wrong = heard = 0
    producer.start()
    try:
        while clock[0] < packets * 20 * MS:
            with turn:
                turn.notify()
                turn.wait_for(lambda: clock[0] <= sent[0] + 60 * MS, 60)
            before = ring.cursor_timestamp
            ring.pull_into(out, clock[0])
            clock[0] += 10 * MS
            after = ring.cursor_timestamp
            real = out[:, 0] != 0.0
            heard += int(real.sum())
            if after - before == 80 and clock[0] > 10 * MS:
                expected = np.arange(before, after) % 8191 + 1
                wrong += int((out[real, 0] != expected[real]).sum())
    finally:
        with turn:
            clock[0] = 2**62
            turn.notify()
        producer.join()
    counts = dict(zip(plain.COUNTERS, ring.counters(), strict=True))
    assert wrong == 0
    assert heard > packets * frames // 10
    assert counts["received"] == outcomes.count(compiled.ACCEPTED)
    assert counts["played"] + counts["late"] <= counts["received"]
    assert len(outcomes) == packets
