"""Playout in virtual time: drift, loss, freezes, flushes, restarts, and every shape of pull."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from audio_signals import log_spectral_distance, music, speech

from echostream.errors import ConfigurationError
from echostream.media import jitter_twin, playout_py
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.playout import Playout

RATE = 48_000
SECOND = 1_000_000_000
START = SECOND
PROFILES = ("voice", "music")


@dataclass
class Run:
    playout: Playout
    out: np.ndarray
    late_by: np.ndarray
    """ns per pull: how much later than now it should play; negative: earlier."""
    ratio: np.ndarray


def tone(seconds, frequency=1000.0, rate=RATE, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * frequency / rate * np.arange(int(seconds * rate)))
    return np.repeat(wave.astype(np.float32)[:, None], channels, axis=1)


def packets_of(signal, frame, *, jitter_ms=0.0, ppm=0.0, lost=(), rate=RATE, seed=1):
    """(arrival_ns, sequence_number, timestamp, samples), in the order of their arrival."""
    rng = np.random.default_rng(seed)
    count = len(signal) // frame
    sent = np.arange(count) * frame / rate * SECOND / (1 + ppm * 1e-6)
    arrival = START + 30e6 + sent + np.abs(rng.normal(0, jitter_ms * 1e6 + 1e-9, count))
    rows = [
        (int(arrival[i]), i, i * frame, signal[i * frame : (i + 1) * frame])
        for i in range(count)
        if i not in lost
    ]
    return sorted(rows, key=lambda row: row[0])


def play(packets, seconds, *, pull=480, dtype=np.float32, rate=RATE, playout=None, **options):
    """Pull ``seconds`` of audio while ``packets`` arrive; everything that came out."""
    if playout is None:
        playout = Playout(AudioFormat(rate, packets[0][3].shape[1]), **options)
    channels = playout.format.channels
    turns = int(seconds * rate / pull)
    out = np.zeros((turns * pull, channels), dtype)
    late_by, ratio = np.empty(turns), np.empty(turns)
    waiting = iter([*packets, None])
    packet = next(waiting)
    for turn in range(turns):
        now = START + turn * pull * SECOND // rate
        while packet is not None and packet[0] <= now:
            playout.push_packet(*packet[1:4], packet[0], *packet[4:])
            packet = next(waiting)
        assert playout.pull_into(out[turn * pull : (turn + 1) * pull], now) == pull
        late_by[turn] = playout._loop.error_ns
        ratio[turn] = playout._loop.ratio
    return Run(playout, out, late_by, ratio)


def distortion_db(samples, frequency=1000.0, rate=RATE, block=4800, notch=60.0):
    """THD+N of a tone per 100 ms block: all that lies outside ``notch`` Hz around it."""
    turn = 2 * np.pi * np.arange(block) / block
    window = (  # Blackman-Harris: side lobes below -92 dB
        0.35875 - 0.48829 * np.cos(turn) + 0.14128 * np.cos(2 * turn) - 0.01168 * np.cos(3 * turn)
    )
    pieces = samples[: len(samples) // block * block].reshape(-1, block) * window
    power = np.abs(np.fft.rfft(pieces, axis=1)) ** 2
    inside = np.abs(np.fft.rfftfreq(block, 1 / rate) - frequency) < notch
    return 10 * np.log10(power[:, ~inside].sum(axis=1) / power[:, inside].sum(axis=1))


def roughness(samples):
    """Largest second difference: what a click has and music has not."""
    return float(np.max(np.abs(np.diff(samples.astype(np.float64), 2, axis=0))))


# Drift.


@pytest.mark.parametrize("jitter_ms", [0.5, 5.0])
@pytest.mark.parametrize("ppm", [-1000, 1000])
def test_ten_minutes_of_a_sender_that_is_off_by_1000_ppm(ppm, jitter_ms):
    """The level error is that of the playout delay against its target, from the first pull that is
    heard to the last: what jitter does to the fill of the buffer is no error."""
    rate = 16_000
    packets = packets_of(tone(601, rate=rate), 320, jitter_ms=jitter_ms, ppm=ppm, rate=rate)
    bounds = {"target_late": 0.0001, "min_delay": 0.01 if jitter_ms < 1 else 0.03}
    run = play(packets, 599, pull=320, rate=rate, profile="music", **bounds)
    stats = run.playout.statistics()
    assert stats.buffer.concealed_frames == stats.buffer.skipped_frames == 0, "underrun or overrun"
    assert stats.buffer.late == stats.buffer.overflows == 0
    heard = int(np.flatnonzero(run.out[:, 0])[0]) // 320 + 1
    assert np.sqrt(np.mean(run.late_by[heard:] ** 2)) < 1e6
    assert np.max(np.abs(np.diff(run.ratio))) <= 1000e-6 * 0.02 + 1e-9
    assert np.max(np.abs(run.ratio - 1)) <= 5000e-6
    assert stats.drift_ppm == pytest.approx(ppm, abs=50)
    distortion = distortion_db(run.out[rate:, 0], rate=rate, block=1600)
    assert np.max(distortion) < -80
    assert np.median(distortion) < -90


@pytest.mark.parametrize("ppm", [-1000, 700, 1000])
def test_no_cycle_slips_in_a_minute(ppm):
    """No period of the tone is longer or shorter than the ratio can make it."""
    run = play(packets_of(tone(61), 960, jitter_ms=0.5, ppm=ppm), 60, pull=960, profile="music")
    heard = run.out[RATE // 10 :, 0].astype(np.float64)
    ups = np.flatnonzero((heard[:-1] < 0) & (heard[1:] >= 0))
    periods = np.diff(ups + heard[ups] / (heard[ups] - heard[ups + 1]))
    assert np.max(np.abs(periods - 48.0)) < 0.35  # 0.5 % of a period, and interpolation


@pytest.mark.parametrize("ppm", [-1000, 1000])
def test_voice_follows_drift_by_pitch_periods(ppm):
    signal = speech(16_000, 40)[:, None]
    run = play(packets_of(signal, 320, ppm=ppm, rate=16_000), 39, pull=160, rate=16_000)
    stats = run.playout.statistics()
    assert stats.buffer.concealed_frames < 0.05 * 16_000, "less than the clocks went apart"
    assert stats.stretched >= 3
    assert stats.ratio == 1.0
    assert np.max(np.abs(run.late_by[1000:])) < 25e6
    assert roughness(run.out) <= 1.2 * roughness(signal)


def test_measured_drift_is_fed_forward():
    playout = Playout(AudioFormat(RATE, 1), profile="music")
    playout.feed_forward_ppm = 800.0
    assert playout.feed_forward_ppm == pytest.approx(800.0)
    run = play(packets_of(tone(41), 960, ppm=800), 40, pull=960, playout=playout)
    assert run.playout.statistics().drift_ppm == pytest.approx(800, abs=15)
    assert np.max(np.abs(run.late_by[1600:])) < 1e6


@pytest.mark.parametrize("profile", PROFILES)
def test_late_rate_is_kept(profile):
    """Asked for 1 %, with jitter that is not bounded."""
    signal = np.zeros((120 * 8000, 1), np.float32)
    packets = packets_of(signal, 160, jitter_ms=5.0, ppm=100, rate=8000)
    run = play(packets, 119, pull=80, rate=8000, profile=profile, target_late=0.01)
    stats = run.playout.statistics().buffer
    assert stats.lost == 0
    assert stats.late_rate < 0.012
    assert stats.target_delay_ns == pytest.approx(12.9e6, rel=0.2)  # 99 % of |N(0, 5 ms)|


# Loss.


@pytest.mark.parametrize(("profile", "make"), [("voice", speech), ("music", music)])
def test_concealed_loss_is_nearer_than_silence_and_repetition(profile, make):
    rate, frame = 16_000, 320
    signal = make(rate, 8)[:, None]
    count = len(signal) // frame
    lost = set((np.flatnonzero(np.random.default_rng(5).random(count - 20) < 0.05) + 10).tolist())
    whole = play(packets_of(signal, frame, rate=rate), 7.8, pull=160, rate=rate, profile=profile)
    holed = play(
        packets_of(signal, frame, rate=rate, lost=lost), 7.8, pull=160, rate=rate, profile=profile
    )
    stats = holed.playout.statistics().buffer
    assert stats.lost == len(lost)
    assert stats.late == 0
    assert stats.concealed_frames == pytest.approx(len(lost) * frame, rel=0.1)
    silent, repeated = signal.copy(), signal.copy()
    for i in sorted(lost):
        silent[i * frame : (i + 1) * frame] = 0.0
        repeated[i * frame : (i + 1) * frame] = repeated[(i - 1) * frame : i * frame]

    def of(variant):
        return play(
            packets_of(variant, frame, rate=rate), 7.8, pull=160, rate=rate, profile=profile
        ).out

    ours, gap, again = (
        log_spectral_distance(candidate[:, 0], whole.out[:, 0], rate)
        for candidate in (holed.out, of(silent), of(repeated))
    )
    assert ours < gap
    assert ours < again
    assert roughness(holed.out) <= 1.25 * roughness(whole.out)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pull", [64, 441, 480, 960])
def test_seams_are_smooth_whatever_the_pull(profile, pull):
    """Packets of 20 ms and pulls that do not fit them: every tenth packet is lost."""
    signal = tone(4, 440.0)
    lost = set(range(10, 200, 10))
    run = play(packets_of(signal, 960, lost=lost), 3.8, pull=pull, profile=profile)
    after_the_start = run.out[RATE // 5 :]
    assert run.playout.statistics().buffer.concealment_events == len(lost) - 1
    assert roughness(after_the_start) <= 2.0 * roughness(signal)


@pytest.mark.parametrize("profile", PROFILES)
def test_one_lost_packet_leaves_no_standing_delay(profile):
    signal = speech(RATE, 3)[:, None]
    clean = play(packets_of(signal, 960), 2.9, profile=profile)
    run = play(packets_of(signal, 960, lost={60}), 2.9, profile=profile)
    stats = run.playout.statistics()
    assert stats.buffer.lost == 1
    assert stats.buffer.concealed_frames == 960
    assert abs(stats.delay_ns - clean.playout.statistics().delay_ns) < 1e6


@pytest.mark.parametrize("profile", PROFILES)
def test_a_freeze_of_five_seconds_is_over_in_300_ms(profile):
    signal = tone(12, 440.0)
    packets = [
        (max(row[0], START + 8 * SECOND) if row[0] - START > 3 * SECOND else row[0], *row[1:])
        for row in packets_of(signal, 960)
    ]
    run = play(packets, 11, profile=profile)
    before = np.mean(run.late_by[200:300])
    after = run.late_by[int(8.3 * 100) :]
    assert np.max(np.abs(after)) < abs(before) + 25e6
    level = np.sqrt(np.mean(run.out[: 1100 * 480].reshape(1100, 480) ** 2, axis=1))
    assert np.all(level[int(8.3 * 100) : 1090] > 0.3), "heard again"
    assert np.all(level[400:795] < 1e-3), "silent, not stuttering"
    assert run.playout.statistics().buffer.lost == 0
    assert run.playout.statistics().buffer.late > 200


def test_a_consumer_that_slept_goes_on_with_what_is_new():
    playout = Playout(AudioFormat(RATE, 1))
    signal = tone(10, 440.0)
    out = np.empty((480, 1), np.float32)
    for arrival, number, stamp, samples in packets_of(signal, 960):
        playout.push_packet(number, stamp, samples, arrival)
        if not START + 2 * SECOND < arrival < START + 7 * SECOND:
            playout.pull_into(out, arrival)
            playout.pull_into(out, arrival + SECOND // 100)
    assert abs(playout.statistics().delay_ns) < 60e6


# Flush, epochs, silence, the end.


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pull", [480, 700])
def test_flush_tells_the_first_frame_that_was_not_played(profile, pull):
    """Each sample holds its own number, so that what was heard last is known."""
    signal = (np.arange(2 * RATE, dtype=np.float32) / (4 * RATE))[:, None]
    playout = Playout(AudioFormat(RATE, 1), profile=profile)
    packets = packets_of(signal, 960)
    run = play(packets, 1.0, pull=pull, playout=playout)
    behind = 1 if profile == "voice" else 3  # the filter's ripple, in samples
    last = run.out[-1, 0] * 4 * RATE
    position = playout.flush()
    assert position == pytest.approx(last + 1, abs=behind)
    assert playout.statistics().buffer.flushed_frames > 0
    out = np.empty((480, 1), np.float32)
    playout.pull_into(out, START + SECOND)
    assert np.max(np.abs(out[240:])) == 0.0, "a fade of 5 ms, then silence"
    assert roughness(np.concatenate([run.out[-480:], out])) < 0.002


def test_flush_before_the_first_pull():
    playout = Playout(AudioFormat(RATE, 1))
    assert playout.flush() == 0
    playout.push_packet(0, 7777, tone(0.02), START)
    assert playout.flush() == 7777


@pytest.mark.parametrize("profile", PROFILES)
def test_a_new_epoch_empties_it_and_goes_on(profile):
    first, second = tone(2, 440.0), tone(2, 880.0)
    playout = Playout(AudioFormat(RATE, 1), profile=profile)
    packets = packets_of(first, 960)[:50]
    for i, row in enumerate(packets_of(second, 960)[:50]):
        packets.append((row[0] + SECOND, i, 50 * 960 + row[2], row[3], 1))
    run = play(packets, 1.9, playout=playout)
    stats = playout.statistics().buffer
    assert stats.restarts == 1
    assert stats.stale == stats.lost == stats.concealed_frames == 0
    assert roughness(run.out[RATE // 5 :]) <= 1.1 * roughness(np.vstack([0 * second, second]))
    heard = run.out[int(1.3 * RATE) : int(1.7 * RATE), 0]
    assert np.argmax(np.abs(np.fft.rfft(heard))) * RATE / len(heard) == pytest.approx(880, abs=5)


def test_announced_silence_is_not_concealed():
    signal = tone(2, 440.0)
    packets = packets_of(signal, 960)
    quiet = [row for row in packets if not 30 < row[1] < 70]
    quiet[30] = (*quiet[30][:4], 0, True)
    run = play(quiet, 1.9)
    stats = run.playout.statistics().buffer
    assert stats.concealed_frames == 0
    assert stats.silent_frames >= 39 * 960
    level = np.abs(run.out).reshape(-1, 480).max(axis=1)
    assert np.all(level[80:130] == 0.0)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pull", [333, 480])
def test_the_end_is_exact(profile, pull):
    playout = Playout(AudioFormat(RATE, 1), profile=profile)
    signal = tone(0.5)
    for _, number, stamp, samples in packets_of(signal, 960):
        playout.push_packet(number, stamp, samples, START + number * SECOND // 50)
    playout.end()
    out = np.full((pull, 1), 9.0, np.float32)
    heard, turn = [], 0
    while True:
        got = playout.pull_into(out, START + turn * pull * SECOND // RATE)
        assert np.all(out[got:] == 0.0)
        heard.append(out[:got].copy())
        turn += 1
        if got < pull:
            break
    assert playout.pull_into(out, START + 5 * SECOND) == 0
    everything = np.concatenate(heard)
    first = int(np.flatnonzero(everything)[0])
    assert playout.statistics().buffer.concealed_frames == 0
    assert len(everything) - first == pytest.approx(
        len(signal), abs=30 if profile == "music" else 1
    )


# Shapes.


def test_frame_size_changes_in_mid_stream():
    signal = speech(RATE, 2)[:, None]
    packets, at, number = [], 0, 0
    for frame in [960] * 20 + [2880] * 8 + [480] * 40 + [1440] * 10:
        arrival = START + 30_000_000 + (at + frame) * SECOND // RATE
        packets.append((arrival, number, at, signal[at : at + frame]))
        at, number = at + frame, number + 1
    run = play(packets, at / RATE - 0.05, profile="voice")
    stats = run.playout.statistics().buffer
    assert stats.lost == 0
    assert roughness(run.out) <= 1.3 * roughness(signal)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_and_a_silent_first_one(profile, channels):
    signal = np.repeat(speech(RATE, 2)[:, None], channels, axis=1)
    if channels > 1:
        signal[:, 0] = 0.0
    run = play(packets_of(signal, 960, lost={40}, jitter_ms=1.0), 1.9, profile=profile)
    assert run.out.shape[1] == channels
    if channels > 1:
        assert np.max(np.abs(run.out[:, 0])) < 1e-6
    assert np.std(run.out[:, -1]) > 0.5 * np.std(signal)
    assert roughness(run.out) <= 1.3 * roughness(signal)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pull", [1, 7, 128, 1024, 4800, 9000])
def test_any_pull_size_gives_the_same_audio(profile, pull):
    seconds = 0.4 if pull < 64 else 1.5
    signal = tone(seconds + 0.2, 440.0)
    run = play(packets_of(signal, 480), seconds, pull=pull, profile=profile)
    stats = run.playout.statistics().buffer
    assert stats.lost == 0
    heard = run.out[int((seconds - 0.2) * RATE) :]
    if pull <= 4800:  # at the very start a longer one asks for what has not been sent
        assert stats.concealed_frames == 0
        assert roughness(run.out[int(0.2 * RATE) :]) <= 1.1 * roughness(signal)
    assert np.std(heard) == pytest.approx(np.std(signal), rel=0.1)


def test_int16_in_and_out():
    whole = (tone(1, 440.0, channels=2) * 32767).astype(np.int16)
    playout = Playout(AudioFormat(RATE, 2, "int16"))
    for arrival, number, stamp, samples in packets_of(whole, 960):
        frame = AudioFrame(samples, playout.format, stamp, None, number)
        playout.push(frame, arrival)
    run = play([], 0.5, dtype=np.int16, playout=playout)
    heard = run.out[run.out.any(axis=1)]
    assert abs(int(heard[:, 0].max()) - 16383) < 10


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("profile", PROFILES)
def test_steady_pulling_allocates_nothing(profile, dtype):
    """10,000 pushes and 20,000 pulls, with jitter and loss, leave no block behind."""
    playout = Playout(AudioFormat(8000, 2), profile=profile)
    payload = tone(0.02, 440.0, rate=8000, channels=2).tobytes()
    out = np.zeros((80, 2), dtype)
    jitter = np.abs(np.random.default_rng(3).normal(0, 2e6, 1024)).astype(np.int64).tolist()
    push, pull = playout.push_packet, playout.pull_into

    def run(first, last):
        for number in range(first, last):
            now = START + number * 20_000_000
            if number % 100 != 50:
                push(number, number * 160, payload, now + jitter[number & 1023])
            pull(out, now)
            pull(out, now + 10_000_000)

    run(0, 1000)
    before = after = sys.getallocatedblocks()
    before = sys.getallocatedblocks()
    run(1000, 11_000)
    after = sys.getallocatedblocks()
    assert after - before <= 2, "the two numbers themselves"
    assert playout.statistics().buffer.played_frames > 0.95 * 11_000 * 160


def test_two_threads_push_and_pull():
    playout = Playout(AudioFormat(RATE, 2), profile="voice")
    signal = tone(4, 440.0, channels=2)
    faults: list[BaseException] = []
    moment = [START]
    done = threading.Event()

    def consume() -> None:
        out = np.empty((480, 2), np.float32)
        try:
            while not done.is_set():
                playout.pull_into(out, moment[0])
                assert np.all(np.isfinite(out))
                assert np.max(np.abs(out)) < 1.0
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=consume)
    thread.start()
    for arrival, number, stamp, samples in packets_of(signal, 480, lost={50}):
        moment[0] = arrival
        playout.push_packet(number, stamp, samples, arrival)
        if number % 100 == 99:
            playout.flush()
        playout.statistics()
    done.set()
    thread.join()
    assert not faults


def test_blocks_end_with_the_stream():
    async def main() -> list[Any]:
        playout = Playout(AudioFormat(RATE, 1), max_delay=0.02)
        now = int(asyncio.get_running_loop().time() * 1e9)
        for number, start in enumerate(range(0, 4800, 480)):
            playout.push_packet(number, start, tone(0.1)[start : start + 480], now)
        playout.end()
        return [block async for block in playout.blocks(480)]

    blocks = asyncio.run(main())
    assert blocks
    assert all(block.shape == (480, 1) for block in blocks[:-1])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="profile"):
        Playout(AudioFormat(RATE, 1), profile="sync")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="target_late"):
        Playout(AudioFormat(RATE, 1), target_late=2.0)
    playout = Playout(AudioFormat(RATE, 2))
    for out in (np.zeros(480, np.float32), np.zeros((480, 1)), np.zeros((480, 2), np.float64)):
        with pytest.raises(ValueError, match="shape"):
            playout.pull_into(out, START)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_plain_python_ring_plays_the_same(profile, monkeypatch):
    signal = speech(16_000, 2)[:, None]
    packets = packets_of(signal, 320, jitter_ms=3.0, lost={30, 31, 60}, rate=16_000)
    compiled = play(packets, 1.9, pull=160, rate=16_000, profile=profile)
    monkeypatch.setattr("echostream.media.playout.PlayoutLoop", playout_py.PlayoutLoop)
    half = play(packets, 1.9, pull=160, rate=16_000, profile=profile)
    assert np.array_equal(compiled.out, half.out)
    assert compiled.playout.statistics() == half.playout.statistics()
    monkeypatch.setattr("echostream.media.jitter.JitterRing", jitter_twin.JitterRing)
    plain = play(packets, 1.9, pull=160, rate=16_000, profile=profile)
    assert type(plain.playout.buffer.ring) is jitter_twin.JitterRing
    assert np.array_equal(compiled.out, plain.out)
    ours, theirs = (run.playout.statistics().buffer for run in (compiled, plain))
    assert ours.concealed_frames == theirs.concealed_frames > 0
    assert ours.lost == theirs.lost == 3
