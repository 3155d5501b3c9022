"""Time-stretch: the same on both kernels, and what it leaves of a signal."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from audio_signals import music, speech
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream._ext.stretch import Wsola
from echostream.errors import ConfigurationError
from echostream.media import stretch
from echostream.media.frame import AudioFormat
from echostream.media.stretch import PyWsola, Stretcher

both = pytest.mark.parametrize("kernel", [Wsola, PyWsola])
RATES = [8_000, 11_025, 16_000, 44_100, 48_000, 96_000]


def stacked(mono, channels):
    """One signal on all channels, each with another gain and sign."""
    gains = np.array([1.0, -0.5, 0.25, 0.8, -0.9, 0.1])[:channels]
    return np.ascontiguousarray(mono[:, None] * gains, np.float32)


def use(monkeypatch, kernel):
    monkeypatch.setattr(stretch, "Wsola", kernel)


def harmonic(rate, frequency, frames):
    t = np.arange(frames) / rate
    return sum(np.sin(2 * np.pi * k * frequency * t + k) / (3 * k) for k in range(1, 6))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("insert", [False, True])
def test_kernel_agrees_with_its_twin(rate, channels, insert):
    signal = stacked(speech(rate, 1.0), channels)
    changed = 0
    size = rate // 25
    for start in range(0, len(signal) - size, rate // 9):
        block = signal[start : start + size]
        results, outs = [], []
        for kernel in (Wsola, PyWsola):
            out = np.zeros((size + rate * 15 // 1000, channels), np.float32)
            results.append(kernel(rate, channels, 1e-5).process(block, out, insert, 0.7, True))
            outs.append(out)
        assert results[0][0] == results[1][0]
        assert results[0][1] == pytest.approx(results[1][1], abs=1e-4)
        np.testing.assert_allclose(outs[0], outs[1], atol=1e-6)
        changed += results[0][0] > 0
    assert changed >= 3


@both
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("frequency", [72, 155, 390])
def test_a_voice_loses_and_gains_whole_periods(monkeypatch, kernel, rate, frequency):
    use(monkeypatch, kernel)
    stretcher = Stretcher(AudioFormat(rate, 1))
    block = stacked(harmonic(rate, frequency, rate // 25), 1)
    out = np.empty((len(block) + stretcher.max_change, 1), np.float32)
    period = rate / frequency
    for change in (
        stretcher.accelerate(block, out),
        stretcher.accelerate(block, out, fast=True),
        stretcher.expand(block, out),
    ):
        frames, found = change
        assert found > 0.95
        assert abs(frames / period - round(frames / period)) * period <= 1.0
        assert 0 < frames <= stretcher.max_change
    removed, _ = stretcher.accelerate(block, out, fast=True)
    assert removed >= stretcher.max_change - 2 * period - 1, "several periods go at once"


@both
def test_pitch_stays_and_no_seam_is_heard(monkeypatch, kernel):
    """A tone stretched block by block for two seconds is still that tone."""
    use(monkeypatch, kernel)
    rate, frequency = 16_000, 203.0
    stretcher = Stretcher(AudioFormat(rate, 2))
    mono = harmonic(rate, frequency, 2 * rate)
    signal = stacked(mono, 2)
    for expand in (False, True):
        parts, size = [], rate // 25
        out = np.empty((size + stretcher.max_change, 2), np.float32)
        for start in range(0, len(signal), size):
            block = signal[start : start + size]
            if expand:
                frames = len(block) + stretcher.expand(block, out)[0]
            else:
                frames = len(block) - stretcher.accelerate(block, out)[0]
            parts.append(out[:frames].copy())
        result = np.concatenate(parts)
        assert (len(result) > 1.1 * len(signal)) if expand else (len(result) < 0.9 * len(signal))
        for channel in range(2):
            got = result[:, channel]
            spectrum = np.abs(np.fft.rfft(got * np.hanning(len(got))))
            peak = np.argmax(spectrum) * rate / len(got)
            assert peak == pytest.approx(frequency, abs=1.0)
            bend = np.max(np.abs(np.diff(got, 2)))
            assert bend < 1.5 * np.max(np.abs(np.diff(signal[:, channel], 2)))


@both
@pytest.mark.parametrize("live", range(6))
def test_only_one_channel_sounds(monkeypatch, kernel, live):
    use(monkeypatch, kernel)
    rate = 48_000
    block = np.zeros((rate // 25, 6), np.float32)
    block[:, live] = harmonic(rate, 140, len(block))
    stretcher = Stretcher(AudioFormat(rate, 6))
    out = np.empty((len(block) + stretcher.max_change, 6), np.float32)
    removed, found = stretcher.accelerate(block, out)
    assert removed == pytest.approx(rate / 140, abs=1)
    assert found > 0.99


@both
def test_channels_in_opposite_phase_do_not_cancel(monkeypatch, kernel):
    use(monkeypatch, kernel)
    mono = harmonic(48_000, 140, 1920)
    block = np.ascontiguousarray(np.stack([mono, -mono], axis=1), np.float32)
    out = np.empty_like(block)
    assert Stretcher(AudioFormat(48_000, 2)).accelerate(block, out)[0] > 0


@both
def test_silence_is_free_and_noise_is_left_alone(monkeypatch, kernel):
    use(monkeypatch, kernel)
    stretcher = Stretcher(AudioFormat(16_000, 2))
    noise = np.random.default_rng(4).standard_normal((640, 2)).astype(np.float32)
    out = np.empty((640 + 240, 2), np.float32)
    for quiet in (np.zeros_like(noise), noise * np.float32(1e-3)):
        assert stretcher.accelerate(quiet, out)[0] == 240
        assert stretcher.expand(quiet, out)[0] == 240
    assert stretcher.accelerate(noise * np.float32(0.1), out)[0] == 0
    np.testing.assert_array_equal(out[:640], noise * np.float32(0.1))


@both
def test_what_is_short_or_not_finite_comes_out_as_it_is(monkeypatch, kernel):
    use(monkeypatch, kernel)
    stretcher = Stretcher(AudioFormat(16_000, 1))
    voice = stacked(harmonic(16_000, 150, 640), 1)
    out = np.empty((640 + 240, 1), np.float32)
    assert stretcher.accelerate(voice[:479], out) == (0, 0.0)
    np.testing.assert_array_equal(out[:479], voice[:479])
    assert stretcher.accelerate(voice[:0], out) == (0, 0.0)
    for poison in (np.nan, np.inf, 1e30):
        bad = voice.copy()
        bad[100] = poison
        assert stretcher.accelerate(bad, out)[0] == 0
        np.testing.assert_array_equal(out[:640], bad)


@both
@given(
    seed=st.integers(0, 1000),
    frames=st.integers(0, 900),
    channels=st.integers(1, 3),
    insert=st.booleans(),
    threshold=st.floats(0, 1),
)
@settings(max_examples=30, deadline=None)
def test_both_ends_of_the_block_stay(kernel, seed, frames, channels, insert, threshold):
    block = np.random.default_rng(seed).standard_normal((frames, channels)).astype(np.float32)
    out = np.full((frames + 240, channels), np.nan, np.float32)
    changed, _ = kernel(16_000, channels, 1e-5).process(block, out, insert, threshold, True)
    length = frames + (changed if insert else -changed)
    assert np.isfinite(out[:length]).all()
    assert np.isnan(out[length:]).all()
    if changed:
        edge = 240 - (0 if insert else changed)
        np.testing.assert_array_equal(out[:edge], block[:edge])
    tail = frames - 480
    if tail > 0:
        np.testing.assert_array_equal(out[length - tail : length], block[frames - tail :])


def test_music_is_stretched_rarely_at_the_normal_threshold():
    signal = music(48_000, 2.0)[:, None]
    stretcher = Stretcher(AudioFormat(48_000, 1))
    out = np.empty((1440 + 720, 1), np.float32)
    found = [
        stretcher.accelerate(signal[start : start + 1440], out)
        for start in range(0, len(signal) - 1440, 1440)
    ]
    assert all(correlation >= 0.9 for removed, correlation in found if removed)


@both
def test_wrong_arguments_are_refused(kernel):
    with pytest.raises(ValueError, match="channels"):
        kernel(48_000, 65, 1e-5)
    with pytest.raises(ValueError, match="rate"):
        kernel(7_000, 1, 1e-5)
    mono, stereo = np.zeros((1440, 1), np.float32), np.zeros((1440, 2), np.float32)
    with pytest.raises(ValueError, match="shape"):
        kernel(48_000, 2, 1e-5).process(mono, stereo, False, 0.9, False)
    with pytest.raises(ValueError, match="short"):
        kernel(48_000, 2, 1e-5).process(stereo, stereo.copy(), True, 0.9, False)
    with pytest.raises(ConfigurationError, match="usually -50"):
        Stretcher(AudioFormat(48_000, 1), silence_dbfs=1.0)


def test_no_allocation_in_the_steady_state():
    stretcher = Stretcher(AudioFormat(48_000, 2))
    block = stacked(harmonic(48_000, 140, 1920), 2)
    out = np.empty((1920 + 720, 2), np.float32)
    stretcher.accelerate(block, out)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(500):
        stretcher.accelerate(block, out)
        stretcher.expand(block, out)
    assert sys.getallocatedblocks() - before < 10
