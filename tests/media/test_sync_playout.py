"""Group playout on clocks that differ: what is heard when, decoded from the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest

from echostream.errors import ConfigurationError
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.sync_playout import SyncPlayout

RATE = 48_000
SECOND = 1_000_000_000
PACKET = 480
FORMAT = AudioFormat(RATE, 1, frame=PACKET)
START = 10 * SECOND  # true time of frame 0, when it is sent
DELAY = 0.05
RAMP = 1 << 16


class Clock:
    """The sender's clock as a receiver knows it: the receiver's is ``ahead`` and gains ``ppm``."""

    def __init__(self, ahead: int = 0, ppm: float = 0.0, error: int = 0) -> None:
        self.ahead, self.rate, self.error = ahead, ppm * 1e-6, error
        self.synchronized = True

    def local(self, true: float) -> int:
        return round(true + self.ahead + true * self.rate)

    def to_local(self, remote: int) -> int:
        return self.local(remote - self.error)

    def to_remote(self, local: int) -> int:
        return round((local - self.ahead) / (1.0 + self.rate)) + self.error

    def error_bound_at(self, local: int) -> float:
        return abs(self.error)


def ramp(first: int, count: int = PACKET) -> np.ndarray:
    """Samples that say which they are; the resampler leaves a straight line as it is."""
    return (((np.arange(first, first + count) % RAMP) / RAMP)[:, None] - 0.5).astype(np.float32)


class Receiver:
    """A playout, its clock, and a device that is ``ppm`` fast: what it put out when."""

    def __init__(self, clock: Clock, device_ppm: float = 0.0, block: int = 480, **options) -> None:
        self.clock = clock
        self.playout = SyncPlayout(
            FORMAT, clock, **{"playout_delay": DELAY, "now": lambda: 0} | options
        )
        self.period = SECOND / RATE / (1.0 + device_ppm * 1e-6)
        self.block = block
        self.frames = 0
        self.begin = 0.0
        self.heard: list[np.ndarray] = []
        self.noise = np.random.default_rng(1)
        self.jitter = 0.0

    def send(self, first: int, true: float, count: int = PACKET, stamp: float = 0.0) -> None:
        at = START + first * SECOND // RATE + stamp
        frame = AudioFrame(ramp(first, count), FORMAT, first, round(at))
        self.playout.push(frame, self.clock.local(true))

    def pull(self, begin: float, until: float) -> None:
        """Pull in true time."""
        self.begin = self.begin or begin
        while (true := self.begin + self.frames * self.period) < until:
            out = np.empty((self.block, 1), np.float32)
            noise = self.noise.normal(0, self.jitter) if self.jitter else 0.0
            self.playout.pull_into(out, self.clock.local(true + noise))
            self.heard.append(out[:, 0])
            self.frames += self.block

    def errors(self, since: float, shift: int = 0) -> np.ndarray:
        """How much too late (ns) each frame was heard from then on, where it is on the ramp."""
        samples = np.concatenate(self.heard)
        true = self.begin + np.arange(len(samples)) * self.period
        number = (samples + 0.5) * RAMP
        due = START + DELAY * SECOND + number * SECOND / RATE + shift
        wrap = RAMP * SECOND / RATE
        error = (true - due + wrap / 2) % wrap - wrap / 2
        place = (true - START - DELAY * SECOND - shift) * RATE / SECOND % RAMP
        chosen = (true > since) & (place > 300) & (place < RAMP - 300)
        return error[chosen]


def play(receiver: Receiver, seconds: float, *, start: float = 0.0, lost=()) -> None:
    """Packets that take 1 ms, sent in real time; pulled from ``start`` on."""
    for number in range(int(seconds * RATE / PACKET)):
        true = START + number * PACKET * SECOND / RATE + 1e6
        if number not in lost and true > START + start * SECOND:
            receiver.send(number * PACKET, true)
        receiver.pull(START + start * SECOND + 123_456, true)


@pytest.mark.parametrize(("ppm", "device"), [(0, 0), (50, 0), (0, -50), (-50, 50), (200, 150)])
@pytest.mark.parametrize("block", [128, 480, 5000])
def test_every_sample_is_heard_at_its_moment(ppm, device, block):
    receiver = Receiver(Clock(77 * SECOND, ppm), device, block, playout_delay=0.15)
    play(receiver, 6.0)
    errors = receiver.errors(START + 0.16 * SECOND, 100_000_000)
    assert len(errors) > 4.5 * RATE
    assert np.abs(errors).max() < 40e3
    assert np.abs(receiver.errors(START + 4 * SECOND, 100_000_000)).max() < 3e3
    stats = receiver.playout.statistics()
    assert stats.drift_ppm == pytest.approx(-device, abs=2)
    assert stats.jumps == stats.late == stats.concealed_frames == 0
    assert stats.error_bound_ns < 10e3
    assert abs(150e6 - stats.headroom_ns - 11e6 - (block + 24 - 480) * SECOND / RATE) < 40e3


def test_joining_in_the_middle_is_in_time_at_once():
    receiver = Receiver(Clock(-3 * SECOND, 30), 40)
    play(receiver, 6.0, start=2.0)
    assert np.abs(receiver.errors(START + 2.08 * SECOND)).max() < 25e3
    assert np.abs(receiver.errors(START + 4.0 * SECOND)).max() < 1e3


def test_noisy_pulls_and_noisy_stamps_are_averaged():
    receiver = Receiver(Clock(), 20)
    receiver.jitter = 300e3
    stamps = np.random.default_rng(2).normal(0, 200e3, 3000)
    for number in range(3000):
        true = START + number * PACKET * SECOND / RATE + 1e6
        receiver.send(number * PACKET, true, stamp=stamps[number])
        receiver.pull(START, true)
    assert np.sqrt(np.mean(receiver.errors(START + 20 * SECOND) ** 2)) < 30e3
    stats = receiver.playout.statistics()
    assert 100e3 < stats.error_bound_ns < 1e6
    assert stats.jumps == 0


def test_loss_is_concealed_and_keeps_the_time():
    receiver = Receiver(Clock(), 50)
    play(receiver, 6.0, lost={40, 100, 101, 102, 300})
    errors = np.abs(receiver.errors(START + 0.06 * SECOND))
    assert np.quantile(errors, 0.98) < 25e3
    assert errors[-RATE:].max() < 3e3
    stats = receiver.playout.statistics()
    assert stats.concealment_events == 3
    assert abs(stats.concealed_frames - 5 * PACKET) < PACKET


def test_a_pause_of_the_sender_is_silence_and_not_loss():
    receiver = Receiver(Clock(5 * SECOND, -20), 20)
    pause = 1.2345e9
    for number in range(400):
        after = pause if number >= 200 else 0.0
        true = START + number * PACKET * SECOND / RATE + 1e6 + after
        receiver.send(number * PACKET, true, stamp=after)
        receiver.pull(START, true)
    stats = receiver.playout.statistics()
    assert stats.concealed_frames < 0.25 * RATE
    assert stats.jumps == 0
    samples = np.concatenate(receiver.heard)
    silent = samples[int(2.5 * RATE) : int(3.0 * RATE)]
    assert np.all(silent == 0.0)
    late = receiver.errors(START + 3.4 * SECOND, round(pause))
    assert len(late) > RATE // 2
    assert np.abs(late).max() < 25e3


def test_a_clock_that_is_corrected():
    """Slowly below 5 ms, at once above it."""
    receiver = Receiver(Clock(), 0)
    slow: list[float] = []
    for number in range(1500):
        if number == 300:
            receiver.clock.error = 400_000
        if number == 1000:
            receiver.clock.error = 20_000_000
        true = START + number * PACKET * SECOND / RATE + 1e6
        receiver.send(number * PACKET, true)
        receiver.pull(START, true)
        slow.append(abs(receiver.playout.statistics().ratio - 1.0))
    assert max(slow) <= 500.1e-6
    assert receiver.playout.statistics().jumps == 1
    corrected = receiver.errors(START + 8 * SECOND)[: RATE // 2]
    assert np.abs(corrected + 400e3).max() < 5e3
    assert np.abs(receiver.errors(START + 13 * SECOND, -20_000_000)).max() < 25e3


def test_flush_falls_silent_and_what_follows_is_in_time():
    receiver = Receiver(Clock(), 0)
    play(receiver, 1.0)
    first = receiver.playout.flush()
    now = START + 1.0 * SECOND
    heard_until = (now - START) * RATE / SECOND - DELAY * RATE
    assert abs(first - heard_until) <= 2 * 480 + 24
    receiver.pull(0, now + 0.2 * SECOND)
    assert np.all(np.concatenate(receiver.heard[-10:]) == 0.0)
    pause = round(0.3 * SECOND)
    for number in range(100, 300):
        true = START + number * PACKET * SECOND / RATE + 1e6 + pause
        receiver.send(number * PACKET, true, stamp=pause)
        receiver.pull(0, true)
    late = receiver.errors(START + 1.38 * SECOND, pause)
    assert np.abs(late).max() < 25e3
    assert receiver.playout.statistics().concealed_frames == 0


def test_output_latency_is_played_ahead():
    receiver = Receiver(Clock(), 0, output_latency=0.02)
    play(receiver, 3.0)
    assert np.abs(receiver.errors(START + 0.1 * SECOND, -20_000_000)).max() < 25e3
    stats = receiver.playout.statistics()
    assert stats.output_latency_ns == 20_000_000
    assert abs(stats.headroom_ns - 18.5e6) < 20e3


def test_late_packets_are_counted():
    receiver = Receiver(Clock(), 0)
    for number in range(400):
        true = START + number * PACKET * SECOND / RATE + 60e6
        receiver.send(number * PACKET, true)
        receiver.pull(START, true)
    stats = receiver.playout.statistics()
    assert stats.late > 300
    assert stats.headroom_ns < -20e6


def test_cues_are_passed_at_their_moment():
    receiver = Receiver(Clock(4 * SECOND, 40), -30)
    moments = [START + round(x * SECOND) for x in (0.5, 1.00001, 0.7)]
    for number, moment in enumerate(moments):
        receiver.playout.cue(moment, number)
    passed: list[tuple[int, int]] = []
    for number in range(200):
        true = START + number * PACKET * SECOND / RATE + 1e6
        receiver.send(number * PACKET, true)
        receiver.pull(START, true)
        for heard, value in receiver.playout.passed_cues():
            passed.append((heard, value))
            assert abs(true - (moments[value] + DELAY * SECOND)) < 21e6
    assert [value for _, value in passed] == [0, 2, 1]
    for heard, value in passed:
        assert abs(heard - receiver.clock.local(moments[value] + DELAY * SECOND)) <= 1


def test_the_end():
    receiver = Receiver(Clock(), 0)
    play(receiver, 0.5)
    receiver.playout.end()
    out = np.ones((480, 1), np.int16)
    counts = []
    for _ in range(12):
        true = receiver.begin + receiver.frames * receiver.period
        counts.append(receiver.playout.pull_into(out, receiver.clock.local(true)))
        receiver.frames += 480
    assert counts[0] == 480
    assert counts[-1] == 0
    assert np.all(out == 0)
    total = len(receiver.heard) * 480 + sum(counts)
    silent = (START + DELAY * SECOND - receiver.begin) * RATE / SECOND
    assert abs(total - silent - 0.5 * RATE) <= 1


def test_nothing_is_played_before_the_clock_is_known_and_nothing_grows():
    receiver = Receiver(Clock(), 0)
    receiver.clock.synchronized = False
    play(receiver, 2.0)
    assert not np.concatenate(receiver.heard).any()
    assert not receiver.playout.statistics().playing
    assert receiver.playout.statistics().error_bound_ns == float("inf")
    for number in range(200, 2200):
        receiver.send(number * PACKET, START + number * 10_000_000)
    stats = receiver.playout.statistics()
    assert len(receiver.playout._inbox._packets) * PACKET <= receiver.playout._ring.size
    assert stats.early > 1000


def test_what_comes_far_too_early_is_dropped():
    receiver = Receiver(Clock(), 0)
    play(receiver, 0.5)
    for number in range(50, 1000):
        receiver.send(number * PACKET, START + 0.5 * SECOND)
        if number % 100 == 0:
            receiver.pull(0, START + 0.5 * SECOND + number * 100_000)
    receiver.pull(0, START + 1.0 * SECOND)
    assert receiver.playout.statistics().early > 300
    assert np.abs(receiver.errors(START + 0.1 * SECOND)).max() < 25e3


def test_options_and_packets_are_checked():
    for wrong in ({"playout_delay": -1.0}, {"playout_delay": 11.0}, {"output_latency": 6.0}):
        with pytest.raises(ConfigurationError):
            SyncPlayout(FORMAT, Clock(), **wrong)
    playout = SyncPlayout(FORMAT, Clock())
    with pytest.raises(ValueError, match="no packet"):
        playout.push_packet(0, 0, b"123")
    with pytest.raises(ValueError, match="capture_ts"):
        playout.push(AudioFrame(ramp(0), FORMAT))
    with pytest.raises(ValueError, match="shape"):
        playout.pull_into(np.zeros((10, 2), np.float32), 0)
