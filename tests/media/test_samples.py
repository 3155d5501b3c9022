"""Sample time and values, the same on the compiled kernels and on their twins."""

from __future__ import annotations

import gc
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream._ext import time_align
from echostream.media import samples, samples_py

both = pytest.mark.parametrize("kernel", [time_align, samples_py], ids=["compiled", "python"])
rates = st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])


def block(seed, frames, channels, scale=1.0):
    noise = np.random.default_rng(seed).standard_normal((frames, channels)) * scale
    return noise.astype(np.float32)


@both
@given(start=st.integers(0, 2**32 - 1), steps=st.lists(st.integers(-(2**15) + 1, 2**15 - 1)))
@pytest.mark.parametrize("bits", [16, 32])
def test_unwrap_follows_any_step_below_half_the_range(kernel, bits, start, steps):
    unwrapper = kernel.Unwrapper(bits)
    at = unwrapper.unwrap(start)
    assert at == start % 2**bits
    for step in steps:
        at += step
        assert unwrapper.unwrap(at % 2**bits) == at


@both
def test_unwrap_half_way_is_backward_and_reset_starts_anew(kernel):
    unwrapper = kernel.Unwrapper(16)
    assert unwrapper.unwrap(40_000) == 40_000
    assert unwrapper.unwrap(40_000 - 32_768) == 40_000 - 32_768
    assert unwrapper.unwrap(0xFFFF) == -1
    unwrapper.reset()
    assert unwrapper.unwrap(7) == 7
    with pytest.raises(ValueError, match="bits"):
        kernel.Unwrapper(64)


@both
@given(n=st.integers(-7 * 10**13, 7 * 10**13), rate=rates)
def test_time_mapping_is_exact_both_ways(kernel, n, rate):
    ns = kernel.samples_to_ns(n, rate)
    assert abs(ns * rate - n * 10**9) * 2 <= rate
    assert kernel.ns_to_samples(ns, rate) == n


@both
@given(ns=st.integers(-(2**63), 2**63 - 1), rate=rates)
def test_nanoseconds_to_nearest_sample(kernel, ns, rate):
    assert abs(kernel.ns_to_samples(ns, rate) * 10**9 - ns * rate) * 2 <= 10**9


@both
def test_time_mapping_refuses_what_does_not_fit(kernel):
    with pytest.raises(OverflowError):
        kernel.samples_to_ns(2**62, 48_000)
    with pytest.raises(OverflowError):
        kernel.samples_to_ns(-(2**62), 48_000)
    for rate in (0, -1, 10**9):
        with pytest.raises(ValueError, match="rate"):
            kernel.samples_to_ns(1, rate)
        with pytest.raises(ValueError, match="rate"):
            kernel.ns_to_samples(1, rate)


@both
def test_every_int16_survives_the_way_through_float32(kernel):
    every = np.arange(-32768, 32768).astype(np.int16).reshape(-1, 2)
    exact = np.empty(every.shape, np.float32)
    kernel.int16_to_float32(every, exact)
    assert exact.min() == -1.0
    assert exact.max() == 32767 / 32768
    back = np.empty_like(every)
    kernel.float32_to_int16(exact, back)
    np.testing.assert_array_equal(back, every)


@both
def test_float32_to_int16_saturates_and_rounds(kernel):
    given_ = np.array([[1.0, -1.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 0.5 / 32768, 1.5 / 32768]])
    out = np.empty(given_.shape, np.int16)
    kernel.float32_to_int16(given_.astype(np.float32), out)
    assert out.tolist() == [[32767, -32768, 32767, -32768, 32767, -32768, 0, 0, 2]]


@both
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_interleave_and_back(kernel, channels):
    source = block(3, 101, channels)
    planar = np.empty((channels, 101), np.float32)
    kernel.deinterleave(source, planar)
    np.testing.assert_array_equal(planar, source.T)
    out = np.empty_like(source)
    kernel.interleave(planar, out)
    np.testing.assert_array_equal(out, source)


@given(
    offset=st.integers(-300, 300),
    frames=st.integers(0, 200),
    gain=st.floats(-2, 2, width=32),
    seed=st.integers(0, 99),
)
def test_mix_into_agrees_with_its_twin_at_every_offset(offset, frames, gain, seed):
    source = block(seed, frames, 2)
    outs = [block(seed + 1, 120, 2) for _ in range(2)]
    before = outs[0].copy()
    counts = [
        kernel.mix_into(out, source, offset, gain)
        for kernel, out in zip((time_align, samples_py), outs, strict=True)
    ]
    assert counts[0] == counts[1] == len(range(max(0, offset), min(120, offset + frames)))
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-6)
    changed = np.flatnonzero((outs[0] != before).any(axis=1))
    assert all(offset <= i < offset + frames for i in changed)


@both
def test_mix_into_takes_the_whole_range_of_offsets(kernel):
    out, source = block(1, 8, 1), block(2, 8, 1)
    for offset in (sys.maxsize, sys.maxsize - 8, -sys.maxsize):
        assert kernel.mix_into(out, source, offset, 1.0) == 0


def test_mix_clips_once_after_the_last_stream():
    loud = np.full((10, 2), 0.8, np.float32)
    out = np.empty((10, 2), np.float32)
    samples.mix(out, [(loud, 0, 1.0), (loud, 5, 1.0), (loud, 0, -0.5)])
    np.testing.assert_allclose(out[:5], 0.4, atol=1e-6)
    np.testing.assert_allclose(out[5:], 1.0)


@both
def test_clip_bounds_everything(kernel):
    values = np.array([[2.0, -3.0], [np.nan, np.inf], [0.25, -0.25]], np.float32)
    kernel.clip(values)
    assert values.tolist() == [[1.0, -1.0], [0.0, 1.0], [0.25, -0.25]]


@both
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_gain_ramp_has_no_step_between_blocks(kernel, channels):
    ones = np.ones((300, channels), np.float32)
    kernel.gain_ramp(ones[:100], 0.0, 0.5)
    kernel.gain_ramp(ones[100:], 0.5, 0.25)
    assert np.max(np.abs(np.diff(ones, axis=0))) <= 0.0051
    assert ones[0, 0] == 0.0
    assert ones[100, 0] == 0.5


@both
@pytest.mark.parametrize("frames", [0, 1, 3, 480, 481])
def test_level(kernel, frames):
    values = block(5, frames, 3, 0.1)
    peak, rms = kernel.level(values)
    if frames:
        assert peak == pytest.approx(np.max(np.abs(values)))
        assert rms == pytest.approx(np.sqrt(np.mean(values.astype(float) ** 2)), rel=1e-6)
    else:
        assert (peak, rms) == (0.0, 0.0)


def test_dbfs_of_a_full_scale_sine():
    sine = np.sin(2 * np.pi * np.arange(480) / 48).astype(np.float32)[:, None]
    peak, rms = samples.level(sine)
    assert samples.dbfs(peak) == pytest.approx(0.0, abs=1e-6)
    assert samples.dbfs(rms) == pytest.approx(-3.0103, abs=1e-3)
    assert samples.dbfs(0.0) == -math.inf


@both
def test_wrong_shapes_are_refused(kernel):
    f, i = np.zeros((4, 2), np.float32), np.zeros((4, 1), np.int16)
    for call in (
        lambda: kernel.float32_to_int16(f, i),
        lambda: kernel.int16_to_float32(i, f),
        lambda: kernel.interleave(f, f),
        lambda: kernel.deinterleave(f, f),
        lambda: kernel.mix_into(f, np.zeros((4, 1), np.float32), 0, 1.0),
    ):
        with pytest.raises(ValueError):
            call()


def test_no_allocation_in_the_steady_state():
    f, i = block(1, 960, 2, 0.1), np.zeros((960, 2), np.int16)
    out, unwrapper = np.zeros((960, 2), np.float32), time_align.Unwrapper(32)

    def turn():
        time_align.float32_to_int16(f, i)
        time_align.int16_to_float32(i, out)
        time_align.mix_into(out, f, -3, 0.5)
        time_align.clip(out)
        time_align.gain_ramp(out, 1.0, 0.5)
        time_align.level(out)
        unwrapper.unwrap(77)

    turn()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(2000):
        turn()
    assert sys.getallocatedblocks() - before < 10
