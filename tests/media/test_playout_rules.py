"""The rules of a playout hold together, whatever the format."""

from __future__ import annotations

from itertools import product

import pytest

from echostream.media.frame import AudioFormat
from echostream.media.playout_rules import PlayoutRules, rules_of
from echostream.media.resample import Resampler
from echostream.media.stretch import Stretcher

FORMATS = list(product([8000, 11_025, 44_100, 48_000, 192_000], [1, 2, 8]))


@pytest.fixture(params=FORMATS, ids=str)
def format(request: pytest.FixtureRequest) -> AudioFormat:
    return AudioFormat(*request.param)


def both(format: AudioFormat) -> tuple[PlayoutRules, PlayoutRules]:
    ahead = Resampler(format.sample_rate, format.sample_rate, format.channels).lookahead
    return rules_of(format, 0), rules_of(format, ahead)


def test_pieces_fit_into_each_other(format: AudioFormat) -> None:
    for rules in both(format):
        assert 0 < rules.fade <= rules.step <= rules.seam
        assert 2 * rules.seam <= rules.block <= rules.largest
        assert rules.patience >= rules.step
        assert rules.low_ns < rules.high_ns < rules.fast_ns
        assert rules.loose_low_ns < rules.loose_high_ns
        assert rules.poor_likeness < rules.normal_likeness <= 1.0


def test_a_block_holds_what_a_stretch_looks_at(format: AudioFormat) -> None:
    """The seam and the longest period behind it (15 ms, which a stretch may take out)."""
    voice, _ = both(format)
    assert voice.block >= voice.seam + int(0.015 * format.sample_rate)
    assert voice.block >= Stretcher(format).min_frames


def test_lengthening_never_calls_for_shortening(format: AudioFormat) -> None:
    """A period put in, 15 ms at most, must not make the delay so long that one is taken out."""
    voice, _ = both(format)
    period_ns = 15_000_000
    assert voice.high_ns > voice.low_ns + period_ns


def test_voice_draws_gaps_out_and_music_waits_for_the_resampler(format: AudioFormat) -> None:
    voice, music = both(format)
    assert (voice.loose_low_ns, voice.loose_high_ns) == (voice.low_ns, voice.high_ns)
    assert (music.loose_low_ns, music.loose_high_ns) == (music.high_ns, music.fast_ns)
    assert (voice.spare, voice.margin) == (voice.fade, 0)
    assert music.spare == 0
    assert music.margin > 0
