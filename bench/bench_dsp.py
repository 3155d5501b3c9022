"""Audio kernels: how many stereo 48 kHz streams one core carries.

    python -m pytest bench/bench_dsp.py -o addopts="" --benchmark-columns=median,iqr,rounds

Every case handles 20 ms of one stream per round, so that ``streams`` in ``extra_info`` (and in the
line that is printed) is 20 ms over the median. Each case also has a lower bound well under what
a small machine reaches: a regression by a factor fails, a slow machine does not.
"""

from __future__ import annotations

import numpy as np
import pytest

from echostream._ext.resample import Polyphase
from echostream.media.conceal import Concealer
from echostream.media.frame import AudioFormat
from echostream.media.resample import PyPolyphase, Resampler, filter_table
from echostream.media.samples import float32_to_int16, int16_to_float32, mix_into
from echostream.media.stretch import Stretcher

RATE, CHANNELS, BLOCK = 48_000, 2, 960
FORMAT = AudioFormat(RATE, CHANNELS)


def voice(frames):
    t = np.arange(frames) / RATE
    mono = sum(np.sin(2 * np.pi * k * 140 * t + k) / (4 * k) for k in range(1, 12))
    noise = np.random.default_rng(1).standard_normal(frames) * 0.01
    return np.ascontiguousarray(np.stack([mono + noise, mono - noise], axis=1), np.float32)


def streams(benchmark, per_round, floor):
    """Print and bound how many times faster than real time ``per_round`` seconds are handled."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    count = per_round / benchmark.stats.stats.median
    benchmark.extra_info["streams"] = round(count)
    print(f"\n{benchmark.name}: {count:.0f} stereo 48 kHz streams per core")
    assert count > floor


@pytest.mark.parametrize("ratio", [1 + 100e-6, 44_100 / 48_000])
def test_resampler(benchmark, ratio):
    resampler = Resampler(RATE * ratio, RATE, CHANNELS)
    source, out = voice(1200), np.empty((BLOCK, CHANNELS), np.float32)
    assert benchmark(resampler.process, source, out)[1] == BLOCK
    streams(benchmark, 0.02, 500)


@pytest.mark.parametrize("fast", [False, True])
def test_accelerate(benchmark, fast):
    """A stretch every 20 ms; a jitter buffer asks for one in 50 ms at most."""
    stretcher = Stretcher(FORMAT)
    source, out = voice(stretcher.min_frames), np.empty((3000, CHANNELS), np.float32)
    assert benchmark(stretcher.accelerate, source, out, fast=fast)[0] > 0
    streams(benchmark, 0.02, 200)


def test_expand(benchmark):
    stretcher = Stretcher(FORMAT)
    source, out = voice(stretcher.min_frames), np.empty((3000, CHANNELS), np.float32)
    assert benchmark(stretcher.expand, source, out)[0] > 0
    streams(benchmark, 0.02, 200)


@pytest.mark.parametrize("profile", ["voice", "music"])
def test_conceal_one_block_in_twenty(benchmark, profile):
    """5 % loss: 400 ms of a stream per round."""
    concealer = Concealer(FORMAT, profile)
    blocks = voice(20 * BLOCK).reshape(20, BLOCK, CHANNELS)
    lost = np.empty((BLOCK, CHANNELS), np.float32)

    def turn():
        concealer.merge(blocks[0])
        for block in blocks[1:19]:
            concealer.heard(block)
        concealer.conceal(lost)

    benchmark(turn)
    assert np.any(lost)
    streams(benchmark, 0.4, 200)


def test_convert_and_mix(benchmark):
    source = voice(BLOCK)
    raw, mixed = np.empty(source.shape, np.int16), np.zeros_like(source)

    def turn():
        float32_to_int16(source, raw)
        int16_to_float32(raw, mixed)
        mix_into(mixed, source, 0, 0.5)

    benchmark(turn)
    streams(benchmark, 0.02, 2000)


@pytest.mark.parametrize("kernel", [Polyphase, PyPolyphase], ids=["compiled", "python"])
def test_resampler_against_its_twin(benchmark, kernel):
    """The same work in Cython and in numpy; compare the two medians."""
    resampler = kernel(filter_table(1.0), CHANNELS, (1 << 40) + 12345)
    source, out = voice(BLOCK + 64), np.empty((BLOCK, CHANNELS), np.float32)
    assert benchmark(resampler.process, source, out)[1] == BLOCK
