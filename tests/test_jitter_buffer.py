"""What a jitter buffer must do, on the compiled ring and on its plain twin.

Behaviours that the suites of aiortc, NetEq, GStreamer, LiveKit and Roc ask for are marked with
the name; scripts, numbers and limits are written anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from echostream._ext import jitter_ring as compiled
from echostream.errors import ConfigurationError
from echostream.media import jitter, jitter_twin
from echostream.media.jitter import JitterBuffer, JitterStatistics

MS = 1_000_000
RATE = 8000
FRAME = 160  # 20 ms
FRAME_NS = 20 * MS
STEP = 40  # 5 ms, one pull


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled if request.param == "compiled" else jitter_twin
    monkeypatch.setattr(jitter, "JitterRing", module.JitterRing)


class Pair:
    """A sender of a counting signal and a buffer, in virtual time."""

    def __init__(self, **options: Any) -> None:
        self.buffer = JitterBuffer(RATE, **{"start_delay_ms": 0.0, **options})
        self.now = 0
        self.heard: list[float] = []

    def push(self, sequence: int, at_ms: float, **fields: Any) -> int:
        """Packet ``sequence`` with its number as every sample; pulls up to its arrival first."""
        self.until(at_ms)
        fields.setdefault("timestamp", sequence * FRAME)
        samples = np.full(fields.pop("frames", FRAME), sequence + 1, dtype=np.float32)
        return self.buffer.push(
            fields.pop("number", sequence), fields.pop("timestamp"), samples, self.now, **fields
        )

    def until(self, at_ms: float) -> None:
        out = np.zeros((STEP, 1), dtype=np.float32)
        while self.now + 5 * MS <= at_ms * MS:
            self.buffer.pull_into(out, self.now)
            self.heard.extend(out[:, 0].tolist())
            self.now += 5 * MS

    @property
    def stats(self) -> JitterStatistics:
        return self.buffer.statistics()

    def order(self) -> list[int]:
        """Packets in the order in which they were heard, silence left out."""
        packets = [round(value) for value in self.heard if value and value == round(value)]
        return [p - 1 for p, before in zip(packets, [0, *packets], strict=False) if p != before]

    @property
    def delay_ms(self) -> float:
        return self.now / MS - self.buffer.ring.cursor_timestamp * 1000 / RATE


@pytest.mark.parametrize("arrival", [(0, 1, 2, 3), (0, 3, 2, 1), (0, 2, 1, 3)])
def test_reordered_packets_are_played_in_order(arrival: tuple[int, ...]) -> None:
    """GStreamer: push order 0123, 0321, 0213."""
    pair = Pair(start_delay_ms=80.0, min_delay_ms=80.0)
    for sequence in arrival:
        pair.push(sequence, 0)
    pair.until(300)
    assert pair.order() == [0, 1, 2, 3]
    assert pair.stats.late == pair.stats.lost == 0


@pytest.mark.parametrize("bits", [16, 32])
def test_sequence_numbers_wrap(bits: int) -> None:
    """NetEq's wrap tests, Pion's with its modulus put right: the top number is a number too."""
    top = 2**bits
    pair = Pair(sequence_bits=bits, start_delay_ms=20.0)
    for n in range(40):
        pair.push(n, n * 20, number=(top - 20 + n) % top)
        if n == 30:
            assert pair.push(n, n * 20, number=(top - 20 + 18) % top) == compiled.DUPLICATE
    pair.until(900)
    assert pair.order() == list(range(40))
    assert pair.stats.expected == pair.stats.received == pair.stats.played == 40


def test_timestamps_wrap() -> None:
    pair = Pair(timestamp_bits=32, start_delay_ms=20.0)
    for n in range(40):
        pair.push(n, n * 20, timestamp=(2**32 - 20 * FRAME + n * FRAME) % 2**32)
    pair.until(900)
    assert pair.order() == list(range(40))


def test_duplicates_are_counted_and_change_nothing() -> None:
    pair = Pair(start_delay_ms=20.0)
    for n in range(50):
        assert pair.push(n, n * 20) == compiled.ACCEPTED
        assert pair.push(n, n * 20) == compiled.DUPLICATE
    pair.until(1100)
    assert pair.order() == list(range(50))
    assert (pair.stats.received, pair.stats.duplicates, pair.stats.late) == (50, 50, 0)


def test_one_lost_packet_leaves_no_standing_delay() -> None:
    """aiortc's buffer goes from 80 to 280 ms here and throws four more packets away."""
    pair = Pair(start_delay_ms=40.0, min_delay_ms=40.0, max_delay_ms=40.0)
    for n in range(100):
        if n != 30:
            pair.push(n, n * 20)
        if n == 29:
            before = pair.delay_ms
    assert pair.delay_ms == before
    pair.until(2040)
    assert pair.order() == [n for n in range(100) if n != 30]
    assert (pair.stats.lost, pair.stats.late, pair.stats.concealment_events) == (1, 0, 1)
    assert pair.stats.concealed_frames == FRAME


def test_gaps_are_one_event_each() -> None:
    """NetEq, TestConcealmentEvents: 19 gaps of 1 to 19 packets are 19 events."""
    pair = Pair(start_delay_ms=20.0, min_delay_ms=20.0, max_delay_ms=20.0)
    n = 0
    for gap in range(1, 20):
        for _ in range(20):
            pair.push(n, n * 20)
            n += 1
        n += gap
    pair.push(n, n * 20)
    pair.until(n * 20 + 20)
    assert pair.stats.concealment_events == 19
    assert pair.stats.lost == sum(range(1, 20))
    assert pair.stats.concealed_frames == pair.stats.lost * FRAME


def test_late_is_not_lost() -> None:
    pair = Pair(start_delay_ms=20.0, min_delay_ms=20.0, max_delay_ms=20.0)
    for n in range(30):
        if n != 10:
            pair.push(n, n * 20)
        if n == 15:
            pair.push(10, n * 20)
    assert (pair.stats.late, pair.stats.lost) == (1, 0)
    assert 10 not in pair.order()


def test_what_is_left_of_a_late_packet_is_heard() -> None:
    pair = Pair(start_delay_ms=0.0, max_delay_ms=0.0)
    for n in range(10):
        pair.push(n, n * 20 + (10 if n == 5 else 0))
    pair.until(220)
    assert pair.stats.late == 1
    assert pair.heard.count(6.0) == FRAME // 2


def test_recovery_from_a_freeze() -> None:
    """NetEq's freeze of 5 s: the newest packets are heard at once, nothing is flushed."""
    pair = Pair(start_delay_ms=40.0)
    for n in range(1500):
        pair.push(n, n * 20)
    before = pair.delay_ms
    for n in range(1500, 1750):
        pair.push(n, 1750 * 20)
    for n in range(1750, 1800):
        pair.push(n, n * 20)
        if n == 1765:  # 300 ms after the freeze
            assert pair.delay_ms <= before + 6.0
            assert pair.order()[-1] >= 1763
    assert pair.stats.flushed_frames == pair.stats.overflows == 0
    assert pair.stats.late >= 240
    assert pair.delay_ms <= before + 6.0


def test_an_epoch_restarts_and_flushes() -> None:
    """Barge-in: what is queued of the old epoch is never heard, whatever the new numbers are."""
    pair = Pair(start_delay_ms=200.0, min_delay_ms=200.0, max_delay_ms=200.0)
    for n in range(40):
        pair.push(n, n * 20)
    pair.until(800)
    queued = pair.order()[-1]
    for n in range(40, 80):
        pair.push(n, n * 20, number=n - 40, timestamp=(n - 40) * FRAME + 12345, epoch=1)
    pair.until(1800)
    heard = pair.order()
    assert heard == [*range(queued + 1), *range(40, 80)]
    assert pair.stats.restarts == 1
    assert pair.stats.flushed_frames > 0
    assert pair.push(80, 1800, number=40, epoch=0) == compiled.STALE


def test_epochs_wrap() -> None:
    pair = Pair(start_delay_ms=20.0)
    pair.push(0, 0, epoch=65535)
    assert pair.push(1, 20, number=0, epoch=0) == compiled.ACCEPTED
    assert pair.push(2, 40, number=1, epoch=65535) == compiled.STALE


def test_a_restart_needs_four_consistent_packets() -> None:
    """LiveKit and GStreamer: one stray packet is no restart, a file loop is."""
    pair = Pair(start_delay_ms=40.0)
    for n in range(100):
        pair.push(n, n * 20)
        if n == 50:
            assert pair.push(n, n * 20, number=40_000) == compiled.REJECTED
    outcomes = [
        pair.push(n, n * 20, number=n + 100_000, timestamp=n * FRAME + 9_999_999)
        for n in range(100, 150)
    ]
    assert outcomes == [compiled.REJECTED] * 3 + [compiled.ACCEPTED] * 47
    pair.until(3200)
    assert pair.order() == [*range(100), *range(103, 150)]
    assert pair.stats.restarts == 1


def test_timestamps_that_jump_back_are_followed() -> None:
    """A sender whose clock restarts while its numbers go on (rtptime backwards)."""
    pair = Pair(start_delay_ms=40.0, max_delay_ms=500.0)
    for n in range(200):
        pair.push(n, n * 20, timestamp=n * FRAME + (800_000 if n < 100 else 0))
    pair.until(4200)
    heard = pair.order()
    assert heard[:100] == list(range(100))
    assert heard[-90:] == list(range(110, 200))


def test_a_huge_forward_jump_heals() -> None:
    """A timestamp far ahead is no reason to wait for it, or to be silent for long after it."""
    pair = Pair(start_delay_ms=40.0, max_delay_ms=500.0)
    for n in range(200):
        pair.push(n, n * 20, timestamp=2**40 if n == 100 else n * FRAME)
    pair.until(4200)
    assert pair.order()[-80:] == list(range(120, 200))


@pytest.mark.parametrize("first", [0, 2**40, 2**63 - 10_000_000])
def test_any_timestamp_may_be_the_first(first: int) -> None:
    pair = Pair(start_delay_ms=40.0)
    for n in range(60):
        pair.push(n, n * 20, timestamp=first + n * FRAME)
        if n == 30:
            stray = (first + 2**62) % 2**63
            assert pair.push(n, n * 20, number=31, timestamp=stray) == compiled.REJECTED
    pair.until(1300)
    assert pair.order() == list(range(60))


def test_silence_is_not_concealed() -> None:
    """DTX: an announced pause costs nothing, and what follows it is not lost."""
    pair = Pair(start_delay_ms=40.0)
    for n in range(20):
        pair.push(n, n * 20, silence=n == 19)
    for n in range(20, 60):
        pair.push(n, n * 20 + 3000, timestamp=n * FRAME + 3000 * 8)
    pair.until(4200)
    assert pair.order() == list(range(60))
    assert pair.stats.concealment_events == 0
    assert pair.stats.lost == pair.stats.late == 0


def test_an_empty_packet_announces_silence() -> None:
    pair = Pair(start_delay_ms=20.0)
    pair.push(0, 0)
    pair.push(1, 20, frames=0, silence=True)
    pair.until(500)
    assert pair.stats.concealed_frames == 0
    with pytest.raises(ValueError, match="payload"):
        pair.push(2, 500, frames=0)


def test_frame_size_may_change() -> None:
    """Roc, overlapping packets; NetEq, 10 to 120 ms: timestamps say where samples belong."""
    pair = Pair(start_delay_ms=130.0, min_delay_ms=130.0)
    stamp = 0
    for n, ms in enumerate([20, 20, 60, 10, 10, 120, 5, 20, 20]):
        pair.push(n, stamp / 8, timestamp=stamp, frames=ms * 8)
        stamp += ms * 8
    pair.until(stamp / 8 + 130)
    assert pair.order() == list(range(9))
    assert pair.stats.played_frames == stamp
    assert pair.stats.concealed_frames == 0


def test_int16_and_channels() -> None:
    buffer = JitterBuffer(RATE, 2, sample_type="int16", start_delay_ms=0.0)
    block = np.array([[1000, -1000], [32767, -32768]], dtype=np.int16)
    buffer.push(0, 0, block, 0)
    out = np.empty((2, 2), dtype=np.float32)
    assert buffer.pull_into(out, 0) == 2
    assert np.array_equal(out, block / np.float32(32768.0))


def test_an_empty_buffer_can_hold_the_playout() -> None:
    pair = Pair(start_delay_ms=0.0, hold_ms=1000.0)
    for n in range(50):
        pair.push(n, n * 20 + (100 if n >= 20 else 0))
    pair.until(1200)
    assert pair.order() == list(range(50))
    assert pair.stats.late == 0


def test_overflow_drops_the_oldest() -> None:
    """NetEq flushes everything at 200 packets; here the newest capacity is kept."""
    pair = Pair(capacity=64, start_delay_ms=0.0, max_delay_ms=5000.0)
    for n in range(100):
        pair.push(n, 0, timestamp=n * STEP, frames=STEP)
    pair.until(2000)
    assert pair.stats.overflows == 36
    assert pair.order()[0] == 36
    assert pair.stats.flushed_frames == 0


def test_a_burst_is_caught_up() -> None:
    """30 packets at once: nothing is dropped, the delay falls by stretching to the target."""
    pair = Pair(start_delay_ms=0.0)
    for n in range(30):
        pair.push(n, 0)
    for n in range(30, 600):
        pair.push(n, (n - 29) * 20)
    assert pair.stats.skipped_frames == pair.stats.late == 0
    assert pair.buffer.ring.buffered_frames <= 2 * FRAME
    assert pair.stats.lowered_frames > 20 * FRAME


def test_a_consumer_that_pauses_comes_back_to_the_live_edge() -> None:
    pair = Pair(start_delay_ms=40.0)
    for n in range(50):
        pair.push(n, n * 20)
    out = np.zeros((STEP, 1), dtype=np.float32)
    for n in range(50, 300):
        pair.buffer.push(n, n * FRAME, np.full(FRAME, n + 1, dtype=np.float32), n * FRAME_NS)
    pair.now = 300 * FRAME_NS
    pair.buffer.pull_into(out, pair.now)
    assert pair.delay_ms <= 45.0
    assert pair.stats.skipped_frames > 200 * FRAME


STALLS = {
    "A": (100, [(k, 0, 1000) for k in range(1, 11)]),
    "B": (
        200,
        [
            (278, 21920, 31695),
            (37, 5920, 89911),
            (173, 13600, 108078),
            (30, 27200, 190920),
            (-20, 43840, 150552),
            (42, 4480, 131498),
        ],
    ),
    "C": (200, [(39, 4960, 58), (-28, -5280, 1000)]),
    "D": (400, [(1, 160, 2_000_000), (62, 9920, 0), (-13, -2080, 10_000)] + [(1, 160, 0)] * 5),
    "E": (200, [(201, -1440, 185_591), (265, 1, 0)]),
}


@pytest.mark.parametrize("name", STALLS)
def test_no_sequence_of_packets_stalls_the_playout(name: str) -> None:
    """GStreamer's stall regressions: after each list of jumps clean packets come out again."""
    latency, jumps = STALLS[name]
    pair = Pair(start_delay_ms=float(latency), sequence_bits=16, timestamp_bits=32)
    clean = latency // 20 + 5
    for n in range(clean):
        pair.push(n, n * 20)
    number, stamp, clock = clean - 1, (clean - 1) * FRAME, (clean - 1) * 20.0
    for sequence_step, stamp_step, sleep_us in jumps:
        number, stamp = (number + sequence_step) % 2**16, (stamp + stamp_step) % 2**32
        clock += sleep_us / 1000
        pair.push(0, clock, number=number, timestamp=stamp)
    for n in range(50):
        number, stamp, clock = (number + 1) % 2**16, (stamp + FRAME) % 2**32, clock + 20
        pair.push(1000 + n, clock, number=number, timestamp=stamp)
    pair.until(clock + 1000)
    assert sum(packet >= 1000 for packet in pair.order()) >= 10


def test_pieces_for_a_time_stretch() -> None:
    """schedule, peek_into, take_into and hold are pull_into in parts."""
    buffer = JitterBuffer(RATE, start_delay_ms=60.0, min_delay_ms=60.0)
    signal = np.arange(1, FRAME + 1, dtype=np.float32)
    out = np.zeros((STEP, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="schedule"):
        buffer.take_into(out, STEP)
    for n in range(4):
        buffer.push(n, n * FRAME, signal, n * FRAME_NS)
    assert buffer.schedule(60 * MS) == 0
    ahead = np.zeros((2 * FRAME, 1), dtype=np.float32)
    assert buffer.peek_into(ahead) == 2 * FRAME
    assert np.array_equal(ahead[:FRAME, 0], signal)
    assert buffer.take_into(out, 2 * STEP) == STEP
    assert np.array_equal(out[:, 0], signal[:STEP])
    assert buffer.schedule(70 * MS) == -5 * MS
    buffer.hold(STEP)
    assert buffer.schedule(75 * MS) == -10 * MS
    statistics = buffer.statistics()
    assert (statistics.raised_frames, statistics.concealed_frames) == (STEP, STEP)


def test_push_many_is_push() -> None:
    count = 8
    numbers = np.arange(count, dtype=np.int64)
    payloads = np.repeat(np.arange(1.0, count + 1, dtype=np.float32)[:, None], FRAME, axis=1)
    buffer = JitterBuffer(RATE, start_delay_ms=0.0, min_delay_ms=200.0)
    arrivals = np.zeros(count, dtype=np.int64)
    stamps = numbers * FRAME
    assert buffer.push_many(numbers, stamps, payloads.view(np.uint8), arrivals) == count
    assert buffer.push_many(numbers, stamps, payloads.view(np.uint8), arrivals) == 0
    with pytest.raises(ValueError, match="one length"):
        buffer.push_many(numbers[1:], stamps, payloads.view(np.uint8), arrivals)
    assert buffer.statistics().duplicates == count


@pytest.mark.parametrize(
    "options",
    [
        {"sample_rate": 0},
        {"channels": 0},
        {"channels": 1000},
        {"sample_type": "int24"},
        {"target_late": 0.0},
        {"target_late": float("nan")},
        {"profile": "opera"},
        {"min_delay_ms": 50.0, "max_delay_ms": 40.0},
        {"start_delay_ms": -1.0},
        {"hold_ms": -1.0},
        {"capacity": 100},
        {"max_packet_ms": 0.0},
        {"sequence_bits": 17},
    ],
)
def test_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        JitterBuffer(**{"sample_rate": RATE, **options})


def bad_calls() -> Iterator[Any]:
    silence = np.zeros(FRAME, dtype=np.float32)
    yield lambda b: b.push(-1, 0, silence, 0)
    yield lambda b: b.push(2**32, 0, silence, 0)
    yield lambda b: b.push(0, -1, silence, 0)
    yield lambda b: b.push(0, 0, silence, 0, epoch=70_000)
    yield lambda b: b.push(0, 0, silence, 2**62 + 1)
    yield lambda b: b.push(0, 0, silence, -(2**62) - 1)
    yield lambda b: b.push(0, 0, b"123", 0)
    yield lambda b: b.push(0, 0, np.zeros(FRAME * 7, dtype=np.float32), 0)
    yield lambda b: b.pull_into(np.zeros((8, 1)), 0)
    yield lambda b: b.pull_into(np.zeros((RATE, 1), dtype=np.float32), 0)
    yield lambda b: b.peek_into(np.zeros((8, 1), dtype=np.float32), -1)
    yield lambda b: b.hold(-1)


@pytest.mark.parametrize("call", list(bad_calls()))
def test_bad_calls_raise_and_change_nothing(call: Any) -> None:
    buffer = JitterBuffer(RATE)
    with pytest.raises(ValueError):
        call(buffer)
    assert buffer.statistics() == JitterBuffer(RATE).statistics()


@pytest.mark.parametrize(
    "value",
    [2**63, 2**64 - 1, 1 << 20_000, -(2**63) - 1],
    ids=["2**63", "2**64 - 1", "huge", "below"],
)
@pytest.mark.parametrize("name", ["sequence_number", "timestamp", "arrival_ns", "epoch"])
def test_a_number_that_no_64_bits_hold_is_named(name: str, value: int) -> None:
    """It used to be an OverflowError of the C conversion, which named nothing."""
    buffer = JitterBuffer(RATE)
    good = {"sequence_number": 0, "timestamp": 0, "arrival_ns": 0, "epoch": 0}
    silence = np.zeros(FRAME, dtype=np.float32)
    with pytest.raises(ValueError, match=name):
        buffer.push(payload=silence, **{**good, name: value})
    with pytest.raises(ValueError, match=name):
        buffer.ring.push_late(**{**good, name: value})
    assert buffer.statistics() == JitterBuffer(RATE).statistics()
    assert buffer.push(payload=silence, **{**good, "timestamp": 2**63 - 1}) == compiled.ACCEPTED


def test_push_and_pull_allocate_nothing() -> None:
    """Blocks left over by 30,000 operations; each of them would leave its own if it kept one."""
    buffer = JitterBuffer(RATE)
    if type(buffer.ring) is not compiled.JitterRing:
        pytest.skip("the twin is made of Python objects")
    payload = np.zeros((FRAME, 1), dtype=np.float32)
    out = np.zeros((STEP, 1), dtype=np.float32)

    def run(first: int, last: int) -> None:
        for n in range(first, last):
            buffer.push(n, n * FRAME, payload, n * FRAME_NS)
            buffer.pull_into(out, n * FRAME_NS)
            buffer.pull_into(out, n * FRAME_NS + 5 * MS)

    run(0, 100)
    before = sys.getallocatedblocks()
    run(100, 10_000)
    assert sys.getallocatedblocks() - before < 100
