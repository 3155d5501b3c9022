"""Make ``echostream/cli/data/clip.wav``, the clip that ``echostream demo`` streams.

Plucked strings (Karplus and Strong, 1983) over a soft bass, 6 s, 48 kHz, stereo, 16 bit::

    python tools/make_clip.py [OUT.wav]

The noise that plucks the strings is drawn from a fixed seed: every run makes the same file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from echostream.cli.wav import write_wav  # noqa: E402

CLIP = PROJECT / "echostream" / "cli" / "data" / "clip.wav"
RATE = 48_000
SECONDS = 6
SEED = 20_261
NOTE_S = 0.25

# Four chords of six notes, as semitones from A4 (440 Hz); the first note of each is the bass.
CHORDS = [
    (-24, -12, -5, 0, 3, 7),
    (-28, -16, -9, -4, 0, 3),
    (-21, -9, -2, 3, 7, 10),
    (-26, -14, -7, -2, 2, 5),
]
ORDER = (1, 2, 3, 4, 5, 4)


def frequency(semitones: int) -> float:
    return float(440.0 * 2.0 ** (semitones / 12))


def pluck(random: np.random.Generator, hz: float, seconds: float) -> NDArray[np.float64]:
    """A string: noise that goes round a delay line, and loses its treble on each round."""
    count, period = int(seconds * RATE), round(RATE / hz)
    line = random.uniform(-1.0, 1.0, period)
    for _ in range(3):  # a finger instead of a plectrum
        line = 0.5 * (line + np.roll(line, 1))
    out = np.empty(count + period)
    for start in range(0, count, period):
        out[start : start + period] = line
        line = 0.996 * (0.5 * line + 0.5 * np.roll(line, 1))
    out = out[:count]
    release = min(count, RATE // 10)
    out[-release:] *= np.linspace(1.0, 0.0, release)
    return out / np.abs(out).max()


def make() -> NDArray[np.int16]:
    """The clip, ``(frames, 2)``."""
    random = np.random.default_rng(SEED)
    mix = np.zeros((SECONDS * RATE, 2))

    def add(sound: NDArray[np.float64], start_s: float, level: float, pan: float) -> None:
        start = round(start_s * RATE)
        sound = sound[: len(mix) - start]
        angle = (pan + 1) * np.pi / 4
        mix[start : start + len(sound), 0] += level * np.cos(angle) * sound
        mix[start : start + len(sound), 1] += level * np.sin(angle) * sound

    for index, chord in enumerate(CHORDS):
        begin = index * len(ORDER) * NOTE_S
        time = np.arange(round(len(ORDER) * NOTE_S * RATE)) / RATE
        swell = np.sin(np.pi * time / time[-1]) ** 0.7
        for note, pan in ((0, 0.0), (2, -0.6), (3, 0.6)):
            tone = np.sin(2 * np.pi * frequency(chord[note]) * time)
            add(tone * swell, begin, 0.30 if note == 0 else 0.07, pan)
        for step, note in enumerate(ORDER):
            string = pluck(random, frequency(chord[note]), 1.4)
            add(string, begin + step * NOTE_S, 0.5, (note - 3) / 4)

    for delay_s, level in ((0.031, 0.25), (0.047, 0.2), (0.089, 0.12)):  # a small room
        delay = round(delay_s * RATE)
        mix[delay:] += level * mix[:-delay, ::-1]
    fade = RATE // 2
    mix[-fade:] *= np.linspace(1.0, 0.0, fade)[:, None] ** 2
    return np.rint(mix * (0.7 * 32767 / np.abs(mix).max())).astype(np.int16)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else CLIP
    write_wav(target, make(), RATE)
    print(f"{target}: {target.stat().st_size} bytes")
