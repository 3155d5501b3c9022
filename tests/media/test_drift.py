"""DriftController in closed loop with a buffer, and with the real resampler."""

from __future__ import annotations

import math

import numpy as np
import pytest

from echostream.errors import ConfigurationError
from echostream.media.drift import DriftController
from echostream.media.resample import Resampler

RATE = 48_000
QUANTUM = 480


def simulate(drift_ppm, seconds, *, jitter_ms=0.0, seed=1, forward=0.0, max_ppm=5000.0):
    """Level error (frames) and ratio per 10 ms: a sender that is ``drift_ppm`` fast, packets of
    20 ms, a level that is read with noise."""
    noise = np.random.default_rng(seed)
    loop = DriftController(RATE, max_ppm=max_ppm, feed_forward_ppm=forward)
    level, errors, ratios = 0.0, [], []
    for _ in range(int(seconds * RATE / QUANTUM)):
        level += QUANTUM * (1 + drift_ppm * 1e-6) - QUANTUM * loop.ratio
        loop.update(level + noise.normal(0, jitter_ms * 1e-3 * RATE + 1e-9), QUANTUM)
        errors.append(level)
        ratios.append(loop.ratio)
    return np.array(errors), np.array(ratios), loop


@pytest.mark.parametrize("ppm", [-1000, -20, 300, 1000])
def test_ten_minutes_of_drift(ppm):
    errors, ratios, loop = simulate(ppm, 600)
    per_second = RATE // QUANTUM
    assert np.sqrt(np.mean(errors**2)) < 0.001 * RATE  # 1 ms over all ten minutes
    assert np.max(np.abs(errors)) < 0.003 * RATE  # no underrun with 3 ms in hand
    assert np.max(np.abs(ratios[60 * per_second :] - 1 - ppm * 1e-6)) < 2e-6
    assert loop.statistics().drift_ppm == pytest.approx(ppm, abs=0.1)
    assert loop.statistics().bandwidth == 0.016


def test_a_noisy_level_moves_the_ratio_little():
    errors, ratios, _ = simulate(100, 300, jitter_ms=2.0)
    settled = ratios[6000:]
    assert np.std(settled) < 30e-6
    assert np.mean(settled) - 1 == pytest.approx(100e-6, abs=3e-6)
    assert np.sqrt(np.mean(errors[6000:] ** 2)) < 0.001 * RATE


def test_feed_forward_leaves_nothing_to_do():
    errors, ratios, _ = simulate(800, 20, forward=800)
    assert np.max(np.abs(errors)) < 1
    assert np.allclose(ratios, 1 + 800e-6, atol=1e-6)


def test_feed_forward_that_comes_late_makes_no_step():
    _, _, loop = simulate(500, 120)
    before = loop.ratio
    loop.feed_forward_ppm = 495.0
    assert loop.update(0.0, QUANTUM) == pytest.approx(before, abs=1e-6)
    assert loop.statistics().drift_ppm == pytest.approx(500, abs=1)


def test_the_ratio_stays_within_its_bound_and_recovers():
    loop = DriftController(RATE, max_ppm=500)
    for excess in (1e6, -1e6, 1e9):
        for _ in range(3000):
            assert abs(loop.update(excess, QUANTUM) - 1) <= 500.0001e-6
    loop.reset()
    level, smallest = 2400.0, math.inf  # takes 100 s at 500 ppm
    for _ in range(150 * 100):
        level -= QUANTUM * (loop.update(level, QUANTUM) - 1)
        smallest = min(smallest, level)
    assert abs(level) < 5
    assert smallest > -0.1 * 2400


def test_nonsense_leaves_the_ratio_alone():
    _, _, loop = simulate(100, 30)
    before = loop.ratio
    for excess, played in ((math.nan, 480), (math.inf, 480), (100.0, 0), (100.0, -5)):
        assert loop.update(excess, played) == before
    with pytest.raises(ValueError, match="finite"):
        loop.feed_forward_ppm = math.nan


def test_reset_keeps_the_drift():
    _, _, loop = simulate(400, 60)
    loop.reset()
    assert loop.statistics().bandwidth == 0.128
    assert loop.update(0.0, QUANTUM) == pytest.approx(1 + 400e-6, abs=2e-6)


@pytest.mark.parametrize("arguments", [{"sample_rate": 0}, {"sample_rate": 1, "max_ppm": 0}])
def test_configuration_is_checked(arguments):
    with pytest.raises(ConfigurationError):
        DriftController(**arguments)


def test_a_tone_through_the_whole_loop_stays_clean():
    """The sender's drift ramps from -1000 to +1000 ppm; what is played is one clean tone."""
    loop, resampler = DriftController(RATE), Resampler(RATE, RATE, 1)
    seconds = 40
    fifo = np.zeros((0, 1), np.float32)
    sent, out, played, place, at = 0.0, np.empty((QUANTUM, 1), np.float32), [], [], 0.0
    count = 0
    for turn in range(seconds * RATE // QUANTUM):
        drift = (-1 + 2 * turn * QUANTUM / (seconds * RATE)) * 1e-3
        sent += QUANTUM * (1 + drift) + (2000 if turn == 0 else 0)
        new = np.arange(count, int(sent))
        count = int(sent)
        fifo = np.concatenate(
            [fifo, np.sin(2 * np.pi * 1000 / RATE * new).astype(np.float32)[:, None]]
        )
        resampler.ratio = loop.ratio
        needed = resampler.needed(QUANTUM)
        assert resampler.process(fifo[:needed], out) == (needed, QUANTUM), "underrun"
        fifo = fifo[needed:]
        place.append(at + np.arange(QUANTUM) * loop.ratio)
        at += QUANTUM * loop.ratio
        played.append(out[:, 0].copy())
        loop.update(len(fifo) + resampler.pending + (sent - count) - 2000, QUANTUM)
    got = np.concatenate(played)[100:].astype(float)
    want = np.sin(2 * np.pi * 1000 / RATE * np.concatenate(place)[100:])
    assert 10 * np.log10(np.mean((got - want) ** 2) / np.mean(want**2)) < -90
