"""Resampler: exact bookkeeping on both kernels, and what it does to a signal."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream._ext.resample import Polyphase
from echostream.errors import ConfigurationError
from echostream.media.resample import ONE, PyPolyphase, Resampler, filter_table

KERNELS = [Polyphase, PyPolyphase]


def run(kernel, signal, blocks, frames_out):
    """All of ``signal`` through ``kernel``, offered in the given block sizes."""
    out = np.empty((frames_out, signal.shape[1]), np.float32)
    read = written = turn = 0
    while True:
        block = signal[read : read + blocks[turn % len(blocks)]]
        consumed, produced = kernel.process(block, out[written : written + 500])
        read += consumed
        written += produced
        turn += 1
        if read == len(signal) and not produced:
            return out[:written]


def tone(position, frequency, rate):
    return np.sin(2 * np.pi * frequency / rate * position)


def residual_db(got, want):
    """Power of what is not the wanted sine, which may differ in gain and phase only."""
    error = got - want * (np.dot(got, want) / np.dot(want, want))
    return 10 * np.log10(np.mean(error**2) / np.mean(want**2))


@pytest.mark.parametrize(
    "step", [ONE, ONE + 12345, int(44100 / 48000 * ONE), int(5.9 * ONE), ONE // 7]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_kernel_agrees_with_its_twin(step, channels):
    signal = np.random.default_rng(1).standard_normal((3000, channels)).astype(np.float32)
    table = filter_table(max(1.0, step / ONE))
    got, want = (run(kernel(table, channels, step), signal, [480], 30000) for kernel in KERNELS)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    step=st.integers(ONE // 8, 12 * ONE),
    blocks=st.lists(st.integers(0, 700), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_cutting_into_blocks_changes_nothing(kernel, step, blocks, seed):
    signal = np.random.default_rng(seed).standard_normal((900, 2)).astype(np.float32)
    table = filter_table(1.0)
    whole = run(kernel(table, 2, step), signal, [900], 9000)
    # The window of output k ends at k * step + taps / 2: this many fit, none is lost or doubled.
    assert len(whole) == (len(signal) - table.shape[2] // 2) * ONE // step + 1 - (
        (len(signal) - table.shape[2] // 2) * ONE % step == 0
    )
    np.testing.assert_array_equal(whole, run(kernel(table, 2, step), signal, blocks, 9000))


@pytest.mark.parametrize("kernel", KERNELS)
@given(step=st.integers(ONE // 8, 12 * ONE), frames=st.lists(st.integers(1, 900), max_size=12))
@settings(max_examples=40, deadline=None)
def test_needed_is_exact(kernel, step, frames):
    resampler = kernel(filter_table(1.0), 1, step)
    total = produced_total = 0
    for n in frames:
        needed = resampler.needed(n)
        out = np.empty((n, 1), np.float32)
        if needed:
            short = kernel(filter_table(1.0), 1, step)
            consumed, produced = short.process(np.zeros((short.needed(n) - 1, 1), np.float32), out)
            assert produced < n
        consumed, produced = resampler.process(np.zeros((needed + 5, 1), np.float32), out)
        assert (consumed, produced) == (needed, n)
        total += consumed
        produced_total += produced
        assert resampler.pending == pytest.approx(total - produced_total * step / ONE, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rejects_what_cannot_work(kernel):
    table = filter_table(1.0)
    for bad in (
        lambda: kernel(table, 0, ONE),
        lambda: kernel(table, 1, 0),
        lambda: kernel(table[:3].copy(), 1, ONE),
        lambda: kernel(table[:, :, :9].copy(), 1, ONE),
        lambda: kernel(table, 1, 65 * ONE),
    ):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(ValueError, match="shape"):
        kernel(table, 2, ONE).process(np.zeros((9, 1), np.float32), np.zeros((9, 1), np.float32))


def test_configuration_errors_say_why():
    with pytest.raises(ConfigurationError, match="factor of 16"):
        Resampler(192_000, 8_000, 2)
    with pytest.raises(ConfigurationError, match="channel"):
        Resampler(48_000, 44_100, 0)
    with pytest.raises(ConfigurationError, match="above 0"):
        Resampler(0, 44_100, 1)
    with pytest.raises(ValueError, match="within"):
        Resampler(48_000, 48_000, 1).ratio = float("nan")


@pytest.mark.parametrize(
    ("from_rate", "to_rate"),
    [(48_000, 44_100), (44_100, 48_000), (8_000, 96_000), (96_000, 8_000), (16_000, 48_000)],
)
def test_output_keeps_its_time(from_rate, to_rate):
    resampler = Resampler(from_rate, to_rate, 1)
    signal = tone(np.arange(from_rate // 2), 440, from_rate).astype(np.float32)[:, None]
    out = run(resampler, signal, [from_rate // 50], to_rate)[:, 0]
    skip = resampler.lookahead * max(1, to_rate // from_rate) + 10
    want = tone(np.arange(len(out)), 440, to_rate)
    assert np.max(np.abs(out - want)[skip:]) < 2e-4
    assert len(out) >= (from_rate // 2 - resampler.lookahead) * to_rate // from_rate


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_tone_stays_clean_while_the_ratio_moves(rate):
    """THD+N of 1 kHz below -95 dB while the ratio swings by +-1000 ppm and by +-1 %."""
    for swing in (1e-3, 1e-2):
        resampler = Resampler(rate, rate, 1)
        block = rate // 100
        signal = tone(np.arange(3 * rate), 1000, rate).astype(np.float32)[:, None]
        out = np.empty((block, 1), np.float32)
        read, at, got, place = 0, 0.0, [], []
        for turn in range(200):
            resampler.ratio = 1 + swing * np.sin(turn / 20)
            needed = resampler.needed(block)
            assert resampler.process(signal[read : read + needed], out) == (needed, block)
            read += needed
            place.append(at + np.arange(block) * resampler.ratio)
            at += block * resampler.ratio
            got.append(out[:, 0].copy())
        skip = 100
        want = tone(np.concatenate(place)[skip:], 1000, rate)
        assert residual_db(np.concatenate(got)[skip:].astype(float), want) < -95


def test_passband_and_stopband_of_the_filter():
    table = filter_table(1.0).astype(float)
    prototype = table[::-1, 0].T.ravel()  # the taps of all phases, finely sampled
    response = 20 * np.log10(np.abs(np.fft.rfft(prototype, 1 << 19)) / len(table) + 1e-12)
    frequency = np.fft.rfftfreq(1 << 19, 1 / len(table))
    passband = response[frequency <= 0.425]
    assert np.max(np.abs(passband)) < 0.1
    assert np.max(response[frequency >= 0.53]) < -80


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48_000, 32_000), (96_000, 48_000)])
def test_what_the_lower_rate_cannot_carry_is_gone(from_rate, to_rate):
    resampler = Resampler(from_rate, to_rate, 1)
    signal = tone(np.arange(from_rate), 0.55 * to_rate, from_rate).astype(np.float32)[:, None]
    out = run(resampler, signal, [1000], to_rate)[200:, 0]
    assert 20 * np.log10(np.max(np.abs(out))) < -80


def test_no_allocation_in_the_steady_state():
    resampler = Resampler(48_000, 48_000, 2)
    signal = np.zeros((1000, 2), np.float32)
    out = np.empty((960, 2), np.float32)
    for _ in range(50):
        resampler.process(signal, out)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(2000):
        resampler.process(signal, out)
    assert sys.getallocatedblocks() - before < 10
