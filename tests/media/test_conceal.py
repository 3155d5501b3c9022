"""Concealment: the same on both kernels, better than the cheap ways, and never an explosion."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from audio_signals import log_spectral_distance, music, speech
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream._ext.conceal import Extrapolator
from echostream.errors import ConfigurationError
from echostream.media import conceal_py
from echostream.media.conceal import Concealer
from echostream.media.frame import AudioFormat

KERNELS = [Extrapolator, conceal_py.Extrapolator]
both = pytest.mark.parametrize("kernel", KERNELS, ids=["compiled", "python"])


class Silence:
    """Insert silence: the floor that concealment is compared with."""

    def heard(self, samples):
        self.last = samples.copy()

    merge = heard

    def conceal(self, out):
        out.fill(0.0)


class Repetition(Silence):
    """Repeat the last block."""

    def conceal(self, out):
        out[:] = self.last


def play(concealer, signal, lost, size):
    """``signal`` in blocks of ``size``, of which the ``lost`` ones are concealed."""
    out, gap = signal[: len(lost) * size].copy(), False
    for i, missing in enumerate(lost):
        block = out[i * size : (i + 1) * size]
        if missing:
            block.fill(np.nan)
            concealer.conceal(block)
        elif gap:
            concealer.merge(block)
        else:
            concealer.heard(block)
        gap = missing
    return out


def losses(seed, blocks, rate=0.05):
    lost = np.random.default_rng(seed).random(blocks) < rate
    lost[:8] = False
    lost[-1] = False
    return lost


def stacked(mono, channels):
    gains = np.array([1.0, -0.5, 0.25, 0.8, -0.9, 0.1])[:channels]
    return np.ascontiguousarray(mono[:, None] * gains, np.float32)


@pytest.mark.parametrize("voice", [True, False], ids=["voice", "music"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_kernel_agrees_with_its_twin(rate, channels, voice):
    signal = stacked((speech if voice else music)(rate, 0.6), channels)
    lost = np.zeros(30, bool)
    lost[[9, 14, 15, 25]] = True
    got, want = (
        play(kernel(rate, channels, voice), signal, lost, rate // 50) for kernel in KERNELS
    )
    assert np.max(np.abs(want - signal[: len(want)])) > 1e-3, "something was concealed"
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize(("source", "profile"), [(speech, "voice"), (music, "music")])
def test_better_than_silence_and_repetition(rate, source, profile):
    """5 % random loss of 20 ms blocks; log-spectral distance around the losses."""
    size, distance = rate // 50, {}
    fmt = AudioFormat(rate, 1)
    for seed in (1, 2, 3):
        signal = source(rate, 3.0, seed)[:, None]
        lost = losses(seed + 10, len(signal) // size)
        near = np.repeat(lost | np.roll(lost, 1) | np.roll(lost, -1), size)
        for name, concealer in (
            ("concealed", Concealer(fmt, profile)),
            ("silence", Silence()),
            ("repetition", Repetition()),
        ):
            out = play(concealer, signal, lost, size)
            score = log_spectral_distance(out[near, 0], signal[: len(out)][near, 0], rate)
            distance[name] = distance.get(name, 0.0) + score / 3
    assert distance["concealed"] < 0.65 * distance["repetition"], distance
    assert distance["concealed"] < 0.5 * distance["silence"], distance


@both
@pytest.mark.parametrize("profile", ["voice", "music"])
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_no_click_at_any_seam(kernel, profile, rate):
    """The second difference around a seam stays below the signal's own largest one."""
    voice = profile == "voice"
    signal = (speech if voice else music)(rate, 2.0, 4)[:, None]
    size = rate // 50
    lost = losses(5, len(signal) // size, 0.08)
    assert lost.sum() >= 4
    out = play(kernel(rate, 1, voice), signal, lost, size)
    bend = np.abs(np.diff(out[:, 0].astype(float), 2))
    own = np.abs(np.diff(signal[:, 0].astype(float), 2))
    for block in np.flatnonzero(np.diff(lost.astype(int))) + 1:
        seam = block * size
        region = slice(max(0, seam - rate // 10), seam + rate // 10)
        assert np.max(bend[seam - 4 : seam + 4]) <= 1.1 * np.max(own[region])


def test_a_steady_chord_is_continued_in_phase():
    rate = 48_000
    t = np.arange(rate) / rate
    chord = sum(np.sin(2 * np.pi * f * t) for f in (220.0, 277.2, 329.6, 440.0))
    signal = (0.1 * chord).astype(np.float32)[:, None]
    concealer = Concealer(AudioFormat(rate, 1), "music")
    concealer.heard(signal[:9600])
    out = np.empty((960, 1), np.float32)
    concealer.conceal(out)
    error = out - signal[9600:10560]
    assert 10 * np.log10(np.mean(error**2) / np.mean(signal**2)) < -25


def test_a_steady_voice_is_continued_in_phase():
    rate, period = 16_000, 100
    pulse = np.random.default_rng(7).standard_normal(period).astype(np.float32) * 0.1
    signal = np.tile(np.convolve(pulse, np.hanning(9), "same"), 60).astype(np.float32)[:, None]
    concealer = Concealer(AudioFormat(rate, 1), "voice")
    concealer.heard(signal[:3200])
    out = np.empty((320, 1), np.float32)
    concealer.conceal(out)
    assert np.corrcoef(out[50:, 0], signal[3250:3520, 0])[0, 1] > 0.95


@both
def test_a_voice_that_comes_back_out_of_phase_is_met(kernel):
    """A pitch that drifted in the gap: the merge keeps the level instead of cancelling."""
    rate, period = 48_000, 400
    wave = 0.3 * np.sin(2 * np.pi * np.arange(rate) / period).astype(np.float32)[:, None]
    concealer = kernel(rate, 1, True)
    concealer.heard(wave[:9600])
    out = np.empty((960, 1), np.float32)
    concealer.conceal(out)
    late = wave[9600 + 960 + 130 : 9600 + 960 + 130 + 960].copy()  # a third of a period off
    concealer.merge(late)
    before = out[-1, 0], out[-2, 0]
    joined = np.concatenate([out[-2:, 0], late[:, 0]]).astype(float)
    assert abs(joined[2] - 2 * before[0] + before[1]) < 0.005
    window = late[:240, 0].astype(float)
    assert np.sqrt(np.mean(window**2)) > 0.75 * 0.3 / np.sqrt(2)


@both
@pytest.mark.parametrize("voice", [True, False], ids=["voice", "music"])
def test_a_long_gap_fades_to_silence_and_back(kernel, voice):
    rate, size = 16_000, 320
    signal = stacked((speech if voice else music)(rate, 2.0), 2)
    concealer = kernel(rate, 2, voice)
    concealer.heard(signal[:16_000])
    energy, gains = [], []
    out = np.empty((size, 2), np.float32)
    for _ in range(40):
        concealer.conceal(out)
        energy.append(float(np.sum(out.astype(float) ** 2)))
        gains.append(concealer.gain)
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == 1.0
    assert 0.6 < gains[2] < 0.75
    assert energy[0] > 0
    assert energy[6:] == [0.0] * 34
    assert concealer.concealing
    back = signal[20_000 : 20_000 + size].copy()
    concealer.merge(back)
    assert not concealer.concealing
    assert concealer.gain == 1.0
    assert np.max(np.abs(back[:2])) < 0.01 * max(0.1, np.max(np.abs(signal)))
    np.testing.assert_array_equal(back[80:], signal[20_080 : 20_000 + size])


@both
@pytest.mark.parametrize("voice", [True, False], ids=["voice", "music"])
@pytest.mark.parametrize("live", [0, 1, 5])
def test_only_one_channel_sounds(kernel, voice, live):
    rate = 16_000
    signal = np.zeros((rate, 6), np.float32)
    signal[:, live] = 0.3 * np.sin(2 * np.pi * 200 / rate * np.arange(rate))
    concealer = kernel(rate, 6, voice)
    concealer.heard(signal[:8000])
    out = np.empty((320, 6), np.float32)
    concealer.conceal(out)
    quiet = [c for c in range(6) if c != live]
    assert np.max(np.abs(out[:, quiet])) < 1e-6
    np.testing.assert_allclose(out[:, live], signal[8000:8320, live], atol=0.06)


def cruel(rng, kind, frames, channels):
    t = np.arange(frames)[:, None] + np.zeros(channels)
    return {
        "nan": lambda: np.where(rng.random(t.shape) < 0.1, np.nan, rng.standard_normal(t.shape)),
        "inf": lambda: np.where(rng.random(t.shape) < 0.1, -np.inf, rng.standard_normal(t.shape)),
        "huge": lambda: 1e38 * rng.standard_normal(t.shape),
        "tiny": lambda: 1e-42 * rng.standard_normal(t.shape),
        "growing": lambda: np.exp(t / 150) * np.sin(t / 3) * 1e-3,
        "square": lambda: np.sign(np.sin(t / 7)),
        "pulse": lambda: (t % 97 == 0) * 1.0,
        "constant": lambda: 0.0 * t + 0.9,
        "ramp": lambda: t / frames,
        "tone": lambda: np.sin(t),
        "noise": lambda: rng.standard_normal(t.shape),
    }[kind]().astype(np.float32)


@pytest.mark.parametrize("voice", [True, False], ids=["voice", "music"])
@pytest.mark.parametrize(
    "kind",
    [
        "nan",
        "inf",
        "huge",
        "tiny",
        "growing",
        "square",
        "pulse",
        "constant",
        "ramp",
        "tone",
        "noise",
    ],
)
@given(
    seed=st.integers(0, 2**31),
    steps=st.lists(st.tuples(st.sampled_from("hcm"), st.integers(0, 700)), max_size=14),
)
@settings(max_examples=15, deadline=None)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_nothing_explodes_in_any_order_of_calls(voice, kind, seed, steps):
    rng = np.random.default_rng(seed)
    concealer = Extrapolator(16_000, 2, voice)
    concealer.heard(cruel(rng, kind, 4000, 2))
    concealer.conceal(np.empty((320, 2), np.float32))
    for call, frames in steps:
        block = cruel(rng, kind, frames, 2)
        if call == "h":
            concealer.heard(block)
        elif call == "c":
            concealer.conceal(block)
        else:
            gap = concealer.concealing
            concealer.merge(block)
            if not gap:
                continue
        if call != "h":
            assert np.isfinite(block).all()
            assert np.max(np.abs(block), initial=0.0) <= 16.0


@both
@pytest.mark.parametrize("voice", [True, False], ids=["voice", "music"])
def test_nothing_heard_conceals_to_silence(kernel, voice):
    out = np.full((500, 1), np.nan, np.float32)
    kernel(8_000, 1, voice).conceal(out)
    assert not out.any()


@pytest.mark.parametrize("voice", [True, False], ids=["voice", "music"])
def test_cutting_the_gap_into_blocks_changes_nothing(voice):
    signal = stacked((speech if voice else music)(16_000, 1.0), 2)
    results = []
    for sizes in ([1600], [320] * 5, [7, 313, 1, 900, 379]):
        concealer = Extrapolator(16_000, 2, voice)
        concealer.heard(signal[:12_000])
        out = np.empty((1600, 2), np.float32)
        at = 0
        for size in sizes:
            concealer.conceal(out[at : at + size])
            at += size
        results.append(out)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@given(seed=st.integers(0, 10**6), order=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_burg_models_are_stable(seed, order):
    rng = np.random.default_rng(seed)
    t = np.arange(400)
    x = sum(np.sin(rng.uniform(0.01, 3.1) * t + rng.uniform(0, 6)) for _ in range(3))
    a, power = conceal_py.burg(x + rng.uniform(0, 0.1) * rng.standard_normal(400), order)
    poles = np.abs(np.roots(np.concatenate([[1.0], a])))
    assert np.max(poles, initial=0.0) < 1.0 + 1e-6
    assert power >= 0.0


def test_burg_finds_a_known_model():
    rng = np.random.default_rng(2)
    x = np.zeros(5000)
    for t in range(2, 5000):
        x[t] = 1.6 * x[t - 1] - 0.9 * x[t - 2] + rng.standard_normal()
    a, power = conceal_py.burg(x, 2)
    np.testing.assert_allclose(a, [-1.6, 0.9], atol=0.02)
    assert power == pytest.approx(1.0, rel=0.1)


@both
def test_wrong_arguments_are_refused(kernel):
    with pytest.raises(ValueError, match="channels"):
        kernel(48_000, 65, True)
    with pytest.raises(ValueError, match="rate"):
        kernel(4_000, 1, True)
    concealer = kernel(48_000, 2, True)
    for call in (concealer.heard, concealer.conceal, concealer.merge):
        with pytest.raises(ValueError, match="shape"):
            call(np.zeros((10, 1), np.float32))
    with pytest.raises(ConfigurationError, match="voice"):
        Concealer(AudioFormat(48_000, 1), "speech")


@pytest.mark.parametrize("profile", ["voice", "music"])
def test_no_allocation_in_the_steady_state(profile):
    concealer = Concealer(AudioFormat(16_000, 2), profile)
    block = stacked(speech(16_000, 1.0), 2)[:320].copy()
    out = np.empty_like(block)

    def turn():
        concealer.heard(block)
        concealer.conceal(out)
        concealer.conceal(out)
        concealer.merge(block)

    turn()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(300):
        turn()
    assert sys.getallocatedblocks() - before < 10
