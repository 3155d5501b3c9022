"""The playout that decodes: order, gaps, late and hostile packets, restarts."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from opus_support import needs_opus

from echostream import AudioFormat, AudioFrame, ConfigurationError
from echostream.contrib.opus import Opus
from echostream.media import jitter, jitter_twin, playout_py
from echostream.media.codec import PCM
from echostream.media.decoded import CodecPlayout

pytestmark = needs_opus

SEED = 4
MS = 1_000_000
FORMAT = AudioFormat(48_000, 1)
FRAME = FORMAT.frame


@pytest.fixture(params=["compiled", "twin"])
def ring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Both rings, each with its loop."""
    if request.param == "twin":
        monkeypatch.setattr(jitter, "JitterRing", jitter_twin.JitterRing)
        monkeypatch.setattr("echostream.media.playout.PlayoutLoop", playout_py.PlayoutLoop)
    return jitter


def tone(seconds: float, frequency: float = 440.0) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * frequency / 48_000 * np.arange(int(seconds * 48_000)))
    return wave.astype(np.float32)[:, None]


def encoded(signal: np.ndarray) -> list[bytes]:
    encoder = Opus(bitrate=48_000).encoder(FORMAT)
    return [encoder.encode(signal[at : at + FRAME]) for at in range(0, len(signal), FRAME)]


def play(
    playout: CodecPlayout,
    arrivals: list[tuple[float, int]],
    packets: list[bytes],
    until_ms: int = 10_000,
    end: bool = True,
) -> np.ndarray:
    """Push (arrival in ms, number) and pull blocks of 10 ms; what was heard, to the end."""
    waiting = sorted(arrivals)
    block = np.zeros((480, 1), np.float32)
    heard = []
    for now in range(0, until_ms, 10):
        while waiting and waiting[0][0] <= now:
            at, number = waiting.pop(0)
            playout.push_packet(number, number * FRAME, packets[number], int(at * MS))
        if end and not waiting:
            playout.end()
        real = playout.pull_into(block, now * MS)
        heard.append(block[:real].copy())
        if real < 480:
            break
    return np.concatenate(heard)[:, 0]


def steady(count: int, jitter_ms: float = 8.0, lost: frozenset[int] = frozenset()) -> list:
    rng = np.random.default_rng(SEED)
    return [
        (20.0 * number + 30 + float(rng.uniform(0, jitter_ms)), number)
        for number in range(count)
        if number not in lost
    ]


def sounding(heard: np.ndarray) -> np.ndarray:
    there = np.flatnonzero(np.abs(heard) > 1e-3)
    return heard[there[0] : there[-1] + 1]


def test_what_the_ring_makes_of_patches_and_late_packets(ring: ModuleType) -> None:
    buffer = ring.JitterBuffer(16_000, 1, start_delay_ms=0.0)
    core = buffer.ring
    half = np.full((160, 1), 0.5, np.float32)
    assert core.patch(0, half) == 0  # nothing plays yet
    assert buffer.push(0, 0, half, 0) == 0
    out = np.zeros((80, 1), np.float32)
    core.schedule(0)
    core.take_into(out, 80)
    assert core.cursor_timestamp == 80
    assert core.position(160) == 160
    assert core.patch(160, half * 0.5) == 160
    assert core.patch(40, half * 0.2) == 120  # its first 40 frames were played
    assert core.patch(0, half[:80]) == 0  # all of it was
    out = np.zeros((240, 1), np.float32)
    assert core.take_into(out, 240) == 240
    assert np.allclose(out[:120], 0.1)
    assert np.allclose(out[120:], 0.25)
    assert core.patch(10**9, half) == 0  # beyond the ring
    with pytest.raises(ValueError, match="payload"):
        core.patch(320, b"123")
    stats = buffer.statistics()
    assert stats.concealed_frames == 160 + 120
    assert stats.concealment_events == 1  # the second lies before the first
    assert stats.played_frames == 320 - 280
    assert core.push_late(1, 160, 30 * MS) == 0
    assert core.push_late(1, 160, 30 * MS) == 1  # a duplicate
    stats = buffer.statistics()
    assert (stats.received, stats.late, stats.duplicates, stats.played) == (2, 1, 1, 1)


@pytest.mark.parametrize("profile", ["voice", "music"])
def test_all_of_it_is_played_to_its_end(ring: ModuleType, profile: str) -> None:
    playout = CodecPlayout(FORMAT, Opus(), profile=profile)
    heard = play(playout, steady(100), encoded(tone(2)))
    stats = playout.statistics()
    assert stats.codec.decoded == 100
    assert stats.codec.concealed_frames == stats.codec.undecodable == stats.codec.dropped == 0
    assert stats.buffer.received == stats.buffer.played == 100
    assert len(sounding(heard)) == pytest.approx(2 * 48_000, rel=0.02)
    assert np.abs(np.diff(sounding(heard), 2))[1000:].max() < 0.01  # no click


@pytest.mark.parametrize("profile", ["voice", "music"])
def test_the_codec_fills_the_gaps(ring: ModuleType, profile: str) -> None:
    lost = frozenset({20, 41, 42, 70})
    playout = CodecPlayout(FORMAT, Opus(), profile=profile)
    heard = play(playout, steady(100, lost=lost), encoded(tone(2)))
    stats = playout.statistics()
    assert stats.codec.decoded == 96
    assert stats.codec.concealed_frames == stats.buffer.concealed_frames == 4 * FRAME
    assert stats.buffer.concealment_events == 3
    assert stats.buffer.lost == 4
    assert len(sounding(heard)) == pytest.approx(2 * 48_000, rel=0.03)
    assert np.abs(np.diff(sounding(heard), 2))[1000:].max() < 0.01


def test_what_comes_in_another_order_is_decoded_in_the_right_one(ring: ModuleType) -> None:
    straight, turned = (CodecPlayout(FORMAT, Opus(), min_delay=0.08) for _ in range(2))
    packets = encoded(tone(1))
    arrivals = steady(50, 0.0)
    swapped = list(arrivals)
    for number in range(10, 40, 5):  # each fifth comes behind its successor
        swapped[number] = (arrivals[number + 1][0] + 1, number)
    assert swapped != arrivals
    play(straight, arrivals, packets)
    play(turned, swapped, packets)
    for playout in (straight, turned):
        stats = playout.statistics()
        assert stats.codec.decoded == 50
        assert stats.codec.concealed_frames == 0
        assert stats.buffer.late == 0


def test_what_comes_too_late_is_counted_and_learned_from(ring: ModuleType) -> None:
    arrivals = [(at + 150 * (number % 25 == 24), number) for at, number in steady(200, 1.0)]
    playout = CodecPlayout(FORMAT, Opus(), target_late=0.01)
    play(playout, arrivals, encoded(tone(4)))
    stats = playout.statistics()
    assert stats.buffer.received == 200
    assert 1 <= stats.buffer.late < 8  # the delay has grown: the later ones are in time
    assert stats.codec.decoded + stats.buffer.late >= 199
    assert stats.buffer.target_delay_ns > 100 * MS


def test_a_stall_is_filled_a_while_and_fades(ring: ModuleType) -> None:
    playout = CodecPlayout(FORMAT, Opus())
    heard = play(playout, steady(50), encoded(tone(1)), until_ms=2000, end=False)
    there = np.flatnonzero(np.abs(heard) > 1e-3)
    over = there[0] + 48_000
    assert np.abs(heard[over : over + 2400]).max() > 0.1  # it goes on...
    assert np.abs(heard[over + 14_400 :]).max() < 1e-3  # ...and is silent after 0.3 s
    assert FRAME <= playout.statistics().codec.concealed_frames <= 5 * FRAME


def test_undecodable_packets_are_counted_and_concealed(ring: ModuleType) -> None:
    packets = encoded(tone(2))
    rng = np.random.default_rng(SEED)
    packets[20], packets[21], packets[50] = b"", b"\xff" + rng.bytes(50), bytes(9000)
    playout = CodecPlayout(FORMAT, Opus())
    heard = play(playout, steady(100), packets)
    stats = playout.statistics()
    assert stats.codec.undecodable == 3
    assert stats.codec.decoded == 97
    assert stats.codec.concealed_frames == 3 * FRAME
    assert len(sounding(heard)) == pytest.approx(2 * 48_000, rel=0.03)


def test_random_packets_never_raise(ring: ModuleType) -> None:
    rng = np.random.default_rng(SEED)
    playout = CodecPlayout(FORMAT, Opus())
    good = encoded(tone(0.2))
    out = np.zeros((480, 1), np.float32)
    epoch = 0
    for now in range(600):
        for _ in range(int(rng.integers(0, 4))):
            number = int(rng.choice([now, rng.integers(0, 1 << 32)]))
            at = int(rng.choice([now * 480, rng.integers(0, 1 << 62), number * FRAME]))
            payload = good[0] if rng.random() < 0.5 else rng.bytes(int(rng.integers(0, 1500)))
            epoch = (epoch + int(rng.random() < 0.02)) & 0xFFFF
            silence = bool(rng.random() < 0.1)
            playout.push_packet(number, at, payload, now * 10 * MS, epoch, silence)
        playout.pull_into(out, now * 10 * MS)
        assert np.isfinite(out).all()
        if rng.random() < 0.02:
            playout.flush()
    stats = playout.statistics().codec
    assert stats.decoded > 50
    assert stats.undecodable > 50


def test_a_straggler_is_none_and_four_are_a_restart(ring: ModuleType) -> None:
    playout = CodecPlayout(FORMAT, Opus())
    packets = encoded(tone(3))
    out = np.zeros((480, 1), np.float32)

    def run(begin: int, end: int, now: int) -> int:
        for number in range(begin, end):
            playout.push_packet(number, number * FRAME, packets[number], now * MS)
            if number == 100:
                playout.push_packet(3, 3 * FRAME, packets[3], now * MS)
            playout.pull_into(out, now * MS)
            playout.pull_into(out, (now + 10) * MS)
            now += 20
        return now

    now = run(0, 150, 0)
    assert playout.statistics().codec.decoded == 150
    assert playout.statistics().codec.concealed_frames == 0
    run(0, 50, now)
    stats = playout.statistics()
    assert stats.codec.decoded == 150 + 50 - 3
    assert stats.buffer.restarts == 1
    assert np.abs(out).max() > 0.2


def test_what_nobody_pulls_is_bounded() -> None:
    playout = CodecPlayout(FORMAT, Opus())
    packet = encoded(tone(0.02))[0]
    outcomes = [playout.push_packet(n, n * FRAME, packet, 0) for n in range(600)]
    assert outcomes == [0] * 512 + [4] * 88
    assert playout.statistics().codec.dropped == 88
    assert playout.push_packet(600, 600 * FRAME, bytes(8193), 0) == 3
    for bad in (-1, 1 << 62):
        with pytest.raises(ValueError, match="timestamp"):
            playout.push_packet(601, bad, packet, 0)
    with pytest.raises(ConfigurationError, match="push_packet"):
        playout.push(AudioFrame(tone(0.02), FORMAT))


def test_duplicates_and_stale_epochs_are_counted(ring: ModuleType) -> None:
    playout = CodecPlayout(FORMAT, Opus())
    packets = encoded(tone(0.2))
    out = np.zeros((480, 1), np.float32)
    for epoch, number in [(1, 0), (0, 3), (1, 0), (1, 2), (1, 2)]:
        playout.push_packet(number, number * FRAME, packets[number], number * 20 * MS, epoch)
        playout.pull_into(out, number * 20 * MS)
    stats = playout.statistics()
    assert stats.codec.duplicates == 1  # of 2, which waits for 1
    assert stats.buffer.duplicates == 1  # of 0, which was decoded
    assert stats.codec.dropped == 1  # of a past epoch


def test_flush_drops_what_waits_and_a_new_epoch_is_heard(ring: ModuleType) -> None:
    playout = CodecPlayout(FORMAT, Opus())
    packets = encoded(tone(2))
    play(playout, steady(60, lost=frozenset({58})), packets, until_ms=1000, end=False)
    unplayed = playout.flush()
    assert 40 * FRAME < unplayed < 50 * FRAME
    out = np.zeros((480, 1), np.float32)
    quiet = []
    for now in range(1010, 1300, 10):
        playout.pull_into(out, now * MS)
        quiet.append(out.copy())
    assert np.abs(np.concatenate(quiet)[480:]).max() < 1e-3
    for number in range(20):
        at = (1300 + 20 * number) * MS
        playout.push_packet(number, 60 * FRAME + number * FRAME, packets[number], at, 1)
        playout.pull_into(out, at)
        playout.pull_into(out, at + 10 * MS)
    assert np.abs(out).max() > 0.2
    assert playout.statistics().buffer.restarts == 1


def test_announced_silence_is_not_concealed(ring: ModuleType) -> None:
    playout = CodecPlayout(FORMAT, Opus())
    packets = encoded(tone(1))
    out = np.zeros((480, 1), np.float32)
    for now in range(0, 1500, 10):
        if now < 500 and now % 20 == 0:
            number = now // 20
            last = number == 24
            payload = b"" if last else packets[number]
            playout.push_packet(number, number * FRAME, payload, now * MS, 0, last)
        playout.pull_into(out, now * MS)
    stats = playout.statistics()
    assert stats.codec.concealed_frames == stats.buffer.concealed_frames == 0
    assert stats.codec.decoded == 24


def test_pcm_can_be_decoded_too() -> None:
    playout = CodecPlayout(FORMAT, PCM)
    signal = tone(2)
    packets = [signal[at : at + FRAME].tobytes() for at in range(0, len(signal), FRAME)]
    heard = play(playout, steady(100, lost=frozenset({30})), packets)
    stats = playout.statistics()
    assert stats.codec.decoded == 99
    assert stats.codec.concealed_frames == 0  # that of the profile was used
    assert stats.buffer.concealed_frames == FRAME
    assert len(sounding(heard)) == pytest.approx(2 * 48_000, rel=0.03)
