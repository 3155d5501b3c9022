"""Where ``record`` puts audio: a WAV file by the standard library, others by soundfile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from echostream.cli.errors import BadInput
from echostream.cli.wav import WavWriter
from echostream.contrib.audio import AudioFileError, AudioWriter
from echostream.media.frame import AudioFormat, AudioFrame

__all__ = ["Recording", "check_output"]

LONGEST_GAP_S = 10
"""Of silence that is written for audio that is missing: a sender may count as it likes."""


class _Writer(Protocol):
    def write(self, samples: NDArray[np.int16]) -> None: ...

    def close(self) -> None: ...


def check_output(path: Path) -> None:
    """Raises ``BadInput`` where the file cannot be written. It is not changed."""
    if not path.name or path.is_dir():
        raise BadInput(f"{str(path)!r} is not the name of a file")
    if not path.suffix:
        raise BadInput(f"{path}: give it an ending, for example {path}.wav (or say: speaker)")
    if path.suffix.lower() != ".wav":
        try:
            AudioWriter.check(path)
        except AudioFileError as exc:
            raise BadInput(str(exc)) from None
    made = not path.exists()
    try:
        with path.open("ab"):
            pass
        if made:
            path.unlink()
    except OSError as exc:
        raise BadInput(f"cannot write {path}: {exc.strerror}") from None


class Recording:
    """A file that grows, in int16. Audio that is missing is silence, so that the time is right."""

    def __init__(self, path: Path, format: AudioFormat, most_frames: int | None) -> None:
        rate, channels = format.sample_rate, format.channels
        self._writer: _Writer
        if path.suffix.lower() == ".wav":
            self._writer = WavWriter(path, rate, channels)
        else:
            self._writer = AudioWriter(path, rate, channels)
        self._format = format
        self._most = most_frames
        self._next = -1
        self.frames = 0
        self.missing = 0

    @property
    def full(self) -> bool:
        """Whether there is as much as was asked for."""
        return self._most is not None and self.frames >= self._most

    def add(self, frame: AudioFrame) -> None:
        """Write a frame at its time."""
        gap = frame.timestamp - self._next if self._next >= 0 else 0
        if 0 < gap <= LONGEST_GAP_S * self._format.sample_rate:
            self.missing += gap
            self.write(np.zeros((gap, self._format.channels), np.int16))
        self.write(frame.as_int16())
        self._next = frame.timestamp + len(frame.samples)

    def write(self, samples: NDArray[Any]) -> None:
        """Write int16 or float32 samples behind what is there."""
        if self._most is not None:
            samples = samples[: max(self._most - self.frames, 0)]
        if samples.dtype == np.float32:
            kind = AudioFormat(self._format.sample_rate, self._format.channels)
            samples = AudioFrame(samples, kind).as_int16()
        self._writer.write(samples)
        self.frames += len(samples)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
