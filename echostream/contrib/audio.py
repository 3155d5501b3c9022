"""Sound cards, files beyond WAV, and resampling of files: ``pip install 'echostream[audio]'``.

    async for frame in capture(AudioFormat(48_000, 1)):  # a microphone
        await stream.send(frame)

    await play(stream.playout())                         # a loudspeaker, until the stream ends

Devices are PortAudio's, by number or by a part of their name; ``python -m sounddevice`` lists them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from echostream.errors import ConfigurationError, EchoStreamError
from echostream.media.frame import AudioFormat, AudioFrame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from echostream.media.playout import Playout
    from echostream.media.sync_playout import SyncPlayout

__all__ = [
    "AudioFileError",
    "AudioWriter",
    "DeviceError",
    "capture",
    "play",
    "read_audio",
    "resample",
]

WAITING = 50
"""Captured frames that may wait for the program; then the oldest is dropped."""
SECOND = 1_000_000_000


class DeviceError(EchoStreamError):
    """No sound card can be used, or not that one, or not so; the message says what to do."""


class AudioFileError(EchoStreamError):
    """A file that cannot be read, or not be written so; the message names it and says why."""


async def capture(
    format: AudioFormat, *, device: int | str | None = None
) -> AsyncGenerator[AudioFrame, None]:
    """What a microphone hears, in frames of ``format``, until the iteration is left.

    ``capture_ts`` is when the first sample reached the sound card (ns, ``time.monotonic_ns``),
    ``timestamp`` counts samples. Where the program does not keep up for a second or so, the oldest
    frames are dropped, and the timestamps show it.

    Raises ``DeviceError``.
    """
    sounddevice = _sounddevice()
    microphone = _Microphone(format, asyncio.get_running_loop())
    try:
        stream = sounddevice.InputStream(
            samplerate=format.sample_rate,
            channels=format.channels,
            dtype=format.sample_type,
            blocksize=format.frame,
            device=device,
            callback=microphone.heard,
        )
    except (sounddevice.PortAudioError, ValueError) as exc:
        raise _device_error("capture", device, format, exc) from None
    with stream:
        while True:
            yield await microphone.frame()


class _Microphone:
    """From PortAudio's thread to the loop."""

    def __init__(self, format: AudioFormat, loop: asyncio.AbstractEventLoop) -> None:
        self._format = format
        self._loop = loop
        self._frames: deque[AudioFrame] = deque(maxlen=WAITING)
        self._news = asyncio.Event()
        self._number = 0
        self._timestamp = 0

    def heard(self, samples: NDArray[Any], frames: int, clock: Any, status: Any) -> None:
        """PortAudio's callback: one block."""
        age = clock.currentTime - clock.inputBufferAdcTime
        if not 0 < age < 1:  # some drivers do not know
            age = frames / self._format.sample_rate
        frame = AudioFrame(
            samples.copy(),
            self._format,
            self._timestamp,
            time.monotonic_ns() - int(age * SECOND),
            self._number,
        )
        self._timestamp += frames
        self._number += 1
        try:
            self._loop.call_soon_threadsafe(self._take, frame)
        except RuntimeError:
            pass  # the loop is closed: nobody listens any more

    def _take(self, frame: AudioFrame) -> None:
        self._frames.append(frame)
        self._news.set()

    async def frame(self) -> AudioFrame:
        while not self._frames:
            self._news.clear()
            await self._news.wait()
        return self._frames.popleft()


async def play(playout: Playout | SyncPlayout, *, device: int | str | None = None) -> None:
    """Let a loudspeaker pull from ``playout`` until its stream has ended; cancelling stops at once.

    The sound card's own thread pulls, at the time at which it says that the samples are heard.
    Raises ``DeviceError``.
    """
    sounddevice = _sounddevice()
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    failures: list[BaseException] = []
    now_ns = getattr(playout, "now", time.monotonic_ns)  # a group's may have a clock of its own

    def fill(out: NDArray[Any], frames: int, clock: Any, status: Any) -> None:
        ahead = clock.outputBufferDacTime - clock.currentTime
        if not 0 <= ahead < 1:  # some drivers do not know
            ahead = 0.0
        try:
            real = playout.pull_into(out, now_ns() + int(ahead * SECOND))
        except BaseException as exc:
            out[:] = 0
            failures.append(exc)
            raise sounddevice.CallbackAbort from exc
        if real < frames:
            raise sounddevice.CallbackStop

    def ended() -> None:
        try:
            loop.call_soon_threadsafe(finished.set)
        except RuntimeError:
            pass  # the loop is closed

    format = playout.format
    try:
        stream = sounddevice.OutputStream(
            samplerate=format.sample_rate,
            channels=format.channels,
            dtype="float32",
            device=device,
            latency="low",
            callback=fill,
            finished_callback=ended,
        )
    except (sounddevice.PortAudioError, ValueError) as exc:
        raise _device_error("playback", device, format, exc) from None
    with stream:
        await finished.wait()
    if failures:
        raise failures[0]


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError:
        raise DeviceError("sound cards need sounddevice: pip install 'echostream[audio]'") from None
    except OSError:
        raise DeviceError(
            "sounddevice finds no PortAudio: install it (Debian: apt install libportaudio2)"
        ) from None
    assert isinstance(sounddevice, ModuleType)
    return sounddevice


def _device_error(
    what: str, device: int | str | None, format: AudioFormat, exc: Exception
) -> DeviceError:
    which = "the default device" if device is None else f"device {device!r}"
    rate, channels = format.sample_rate, format.channels
    return DeviceError(
        f"no {what} on {which} at {rate} Hz with {channels} channels "
        f"({' '.join(str(exc).split())}): `python -m sounddevice` lists the devices"
    )


def read_audio(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """A whole file (WAV, FLAC, Ogg, Opus, MP3, ...): float32 ``(frames, channels)``, and its rate.

    Raises ``AudioFileError``.
    """
    soundfile = _soundfile()
    try:
        samples, rate = soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as exc:
        raise AudioFileError(f"cannot read {path}: {_reason(exc)}") from None
    return samples, rate


class AudioWriter:
    """Writes a file piece by piece, in the format that its name ends with (``.flac``, ``.ogg``,
    ``.wav``, ...): float32 or int16 arrays ``(frames, channels)``. Raises ``AudioFileError``."""

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, channels: int) -> None:
        self._soundfile = _soundfile()
        self._path = path
        try:
            self._file = self._soundfile.SoundFile(os.fspath(path), "w", sample_rate, channels)
        except (self._soundfile.LibsndfileError, OSError, TypeError, ValueError) as exc:
            raise AudioFileError(f"cannot write {path}: {_reason(exc)}") from None

    @staticmethod
    def check(path: str | os.PathLike[str]) -> None:
        """Raises ``AudioFileError`` for a name that ends with no format that can be written."""
        soundfile = _soundfile()
        ending = os.path.splitext(os.fspath(path))[1][1:].upper()
        if ending not in {*soundfile.available_formats(), "OPUS", "AIF"}:
            raise AudioFileError(
                f"cannot write {path}: no format is called {ending.lower()!r}; "
                "give .wav, .flac or .ogg"
            )

    def write(self, samples: NDArray[Any]) -> None:
        """Append samples."""
        try:
            self._file.write(samples)
        except self._soundfile.LibsndfileError as exc:
            raise AudioFileError(f"cannot write {self._path}: {_reason(exc)}") from None

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def resample(samples: NDArray[Any], sample_rate: int, to: int) -> NDArray[Any]:
    """Whole recordings at another rate, by soxr: ``(frames, channels)``, the type stays.

    A live stream is resampled by its playout. Raises ``ConfigurationError`` where soxr is missing.
    """
    if sample_rate == to:
        return samples
    try:
        import soxr
    except ImportError:
        raise ConfigurationError(
            f"from {sample_rate} to {to} Hz needs soxr: pip install 'echostream[audio]'"
        ) from None
    out: NDArray[Any] = soxr.resample(samples, sample_rate, to, quality="VHQ")
    return out


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except (ImportError, OSError):
        raise AudioFileError(
            "files other than 16-bit WAV need soundfile: pip install 'echostream[audio]'"
        ) from None
    assert isinstance(soundfile, ModuleType)
    return soundfile


def _reason(exc: Exception) -> str:
    text = getattr(exc, "error_string", None) or getattr(exc, "strerror", None) or str(exc)
    return " ".join(str(text).split()).rstrip(".")
