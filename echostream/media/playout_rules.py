"""The rules that a playout loop goes by: when to stretch, how long to fade, how far to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from echostream.media.stretch import FAST_THRESHOLD, NORMAL_THRESHOLD

if TYPE_CHECKING:
    from echostream.media.frame import AudioFormat

__all__ = ["PlayoutRules", "rules_of"]

LARGEST_MS = 100
"""A longer pull is made in several pieces."""
STEP_MS = 10
STRETCH_MS = 30
SEAM_MS = 15
FADE_MS = 5
"""Length of a cross-fade back from concealment, and of the fade into silence after a flush."""
LOW_NS = 500_000
"""Voice is lengthened, or a gap drawn out, when the delay is this far below its target."""
HIGH_NS = 17_000_000
"""Voice is shortened, or a gap passed over, when the delay is this far above its target: more than
the longest period that lengthening may have put in."""
FAST_NS = 60_000_000
"""Several periods at once, and a poorer likeness will do, from here on."""
REST_MS = 100
"""Between two stretches, unless it is that far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayoutRules:
    """Sample frames, unless the name says ns.

    A pull makes at most ``largest`` at once. A stretch looks at a ``block`` and is over after
    ``seam``; then it rests for ``patience``, or for ``step`` where nothing could be done.
    Voice stretches below ``low_ns`` and above ``high_ns``, several periods at once and at
    ``poor_likeness`` above ``fast_ns``; a gap is drawn out or passed over beyond ``loose_low_ns``
    and ``loose_high_ns``, by ``spare`` more than needed, because the next period is a while away.
    ``margin``: how far the resampler looks ahead; its ratio is within ``max_ppm`` and moves by
    ``max_slew_ppm`` in a second.
    """

    rate: int
    channels: int
    largest: int
    block: int
    seam: int
    patience: int
    step: int
    fade: int
    spare: int
    margin: int
    low_ns: int
    high_ns: int
    fast_ns: int
    loose_low_ns: int
    loose_high_ns: int
    normal_likeness: float
    poor_likeness: float
    max_ppm: float
    max_slew_ppm: float


def rules_of(format: AudioFormat, lookahead: int) -> PlayoutRules:
    """For music where the resampler looks ahead by ``lookahead``, for voice where that is 0."""
    per_ms = format.sample_rate / 1000
    voice = lookahead == 0
    seam = int(SEAM_MS * per_ms)
    fade = int(FADE_MS * per_ms)
    return PlayoutRules(
        rate=format.sample_rate,
        channels=format.channels,
        largest=int(LARGEST_MS * per_ms),
        block=max(int(STRETCH_MS * per_ms), 2 * seam),
        seam=seam,
        patience=int(REST_MS * per_ms),
        step=int(STEP_MS * per_ms),
        fade=fade,
        spare=fade if voice else 0,
        margin=lookahead,
        low_ns=LOW_NS,
        high_ns=HIGH_NS,
        fast_ns=FAST_NS,
        loose_low_ns=LOW_NS if voice else HIGH_NS,
        loose_high_ns=HIGH_NS if voice else FAST_NS,
        normal_likeness=NORMAL_THRESHOLD,
        poor_likeness=FAST_THRESHOLD,
        max_ppm=5000.0,
        max_slew_ppm=1000.0,
    )
