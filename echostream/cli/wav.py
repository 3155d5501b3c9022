"""WAV files with 16-bit PCM, by the standard library's ``wave``."""

from __future__ import annotations

import os
import wave
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.cli.errors import BadInput

__all__ = ["Clip", "WavError", "WavWriter", "read_wav", "write_wav"]

_CONVERT = "convert it, for example: ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav"


class WavError(BadInput):
    """A file that is not a WAV that can be read here; the message names it and says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """``samples``: int16, ``(frames, channels)``; ``sample_rate`` in Hz."""

    samples: NDArray[np.int16]
    sample_rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sample_rate


def read_wav(path: str | os.PathLike[str]) -> Clip:
    """The whole file. Raises :class:`WavError` for what is missing, not a WAV, empty or not 16-bit
    PCM. A file that was cut off gives the frames that are there."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes()) if width == 2 else b""
    except OSError as error:
        raise WavError(f"cannot read {path}: {error.strerror}") from None
    except wave.Error as error:
        if str(error).startswith("unknown format"):
            raise WavError(f"{path} is not 16-bit PCM ({error}): {_CONVERT}") from None
        raise WavError(f"{path} is not a WAV file: {error}") from None
    except EOFError:
        raise WavError(f"{path} is not a WAV file: it ends within its header") from None
    if width != 2:
        raise WavError(f"{path} has {8 * width}-bit samples, 16-bit PCM is needed: {_CONVERT}")
    frames = len(data) // (2 * channels)
    if not frames:
        raise WavError(f"{path} holds no audio (0 frames)")
    samples = np.frombuffer(data, "<i2", frames * channels).reshape(frames, channels)
    return Clip(samples.astype(np.int16, copy=False), rate)


class WavWriter:
    """A WAV file that is written piece by piece; what is there is complete after :meth:`close`.
    Raises ``OSError``."""

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, channels: int) -> None:
        self._file = wave.open(os.fspath(path), "wb")  # noqa: SIM115 - closed by close
        self._file.setnchannels(channels)
        self._file.setsampwidth(2)
        self._file.setframerate(sample_rate)

    def write(self, samples: NDArray[np.int16]) -> None:
        """Append int16 samples ``(frames, channels)``."""
        self._file.writeframes(np.ascontiguousarray(samples, "<i2").tobytes())

    def close(self) -> None:
        """Write the header's lengths."""
        self._file.close()


def write_wav(path: str | os.PathLike[str], samples: NDArray[Any], sample_rate: int) -> None:
    """Write int16 samples ``(frames, channels)``. Raises ``OSError``."""
    writer = WavWriter(path, sample_rate, samples.shape[1])
    try:
        writer.write(samples)
    finally:
        writer.close()
