"""What audio looks like: its format, and one frame of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echostream.errors import ConfigurationError, ProtocolError
from echostream.media.samples import float32_to_int16, int16_to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AudioFormat", "AudioFrame"]

MIN_RATE, MAX_RATE = 8_000, 192_000
MAX_CHANNELS = 64
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "int16": np.dtype(np.int16)}
_WIRE: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int16": np.dtype("<i2")}


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """Shape and pace of PCM audio. Raises :class:`ConfigurationError` for what cannot be.

    ``sample_rate`` in Hz, 8,000 to 192,000; ``channels``, 1 to 64; ``sample_type``, ``"float32"``
    in [-1, 1] or ``"int16"``; ``frame``, samples per channel in one :class:`AudioFrame`, at most
    one second, 20 ms where it is not given.
    """

    sample_rate: int
    channels: int
    sample_type: Literal["float32", "int16"] = "float32"
    frame: int = 0

    def __post_init__(self) -> None:
        rate = _integer("sample_rate", self.sample_rate)
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ConfigurationError(
                f"sample_rate is {rate}; give {MIN_RATE} to {MAX_RATE} Hz, usually 48000"
            )
        channels = _integer("channels", self.channels)
        if not 1 <= channels <= MAX_CHANNELS:
            raise ConfigurationError(
                f"channels is {channels}; give 1 (mono), 2 (stereo), up to {MAX_CHANNELS}"
            )
        if self.sample_type not in _DTYPES:
            raise ConfigurationError(
                f'sample_type is {self.sample_type!r}; give "float32" or "int16"'
            )
        frame = _integer("frame", self.frame)
        if not 0 <= frame <= rate:
            raise ConfigurationError(
                f"frame is {frame}; give 1 to {rate} samples (one second), "
                f"or leave it out for 20 ms ({rate // 50})"
            )
        for name, value in (
            ("sample_rate", rate),
            ("channels", channels),
            ("frame", frame or rate // 50),
        ):
            object.__setattr__(self, name, value)

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy type of the samples, in this machine's byte order."""
        return _DTYPES[self.sample_type]

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame's samples, all channels."""
        return self.frame * self.channels * self.dtype.itemsize

    @property
    def frame_duration(self) -> float:
        """Seconds of audio in one frame."""
        return self.frame / self.sample_rate


@dataclass(frozen=True, slots=True, eq=False)
class AudioFrame:
    """A piece of audio, and when it was.

    ``samples``: ``(frames, channels)`` in the type of ``format``; any number of frames.
    ``timestamp``: of the first sample, in sample units of its stream. ``capture_ts``: ns on the
    sender's clock when the first sample was captured, or ``None``. ``sequence_number``: one per
    frame. Raises :class:`ConfigurationError` where samples and format do not fit.
    """

    samples: NDArray[Any]
    format: AudioFormat
    timestamp: int = 0
    capture_ts: int | None = None
    sequence_number: int = 0

    def __post_init__(self) -> None:
        samples, fmt = self.samples, self.format
        kind = getattr(samples, "dtype", type(samples).__name__)
        if kind != fmt.dtype:
            raise ConfigurationError(
                f"samples are {kind}, the format says {fmt.sample_type}; "
                f"convert them or change AudioFormat(sample_type=...)"
            )
        if samples.ndim != 2 or samples.shape[1] != fmt.channels:
            raise ConfigurationError(
                f"samples have the shape {samples.shape}; give (frames, {fmt.channels}), "
                f"for example samples.reshape(-1, {fmt.channels})"
            )

    @classmethod
    def from_bytes(
        cls,
        data: bytes | bytearray | memoryview,
        format: AudioFormat,
        *,
        timestamp: int = 0,
        capture_ts: int | None = None,
        sequence_number: int = 0,
    ) -> AudioFrame:
        """A frame over little-endian interleaved samples, as they travel.

        The samples are a view of ``data`` (read-only where ``data`` is) if its alignment and this
        machine's byte order allow it, else a copy. ``data`` must then stay unchanged as long as the
        frame is used. Raises :class:`ProtocolError` unless ``data`` is a whole number of samples
        for all channels.
        """
        raw = memoryview(data).cast("B")
        wire = _WIRE[format.sample_type]
        if raw.nbytes % (wire.itemsize * format.channels):
            raise ProtocolError(
                f"{raw.nbytes} bytes are no whole number of {format.channels}-channel "
                f"{format.sample_type} samples"
            )
        samples = np.frombuffer(raw, wire).reshape(-1, format.channels)
        if not samples.flags.aligned:
            samples = samples.copy()
        return cls(
            samples.astype(format.dtype, copy=False),
            format,
            timestamp,
            capture_ts,
            sequence_number,
        )

    def to_bytes(self) -> bytes:
        """The samples as they travel: little-endian, interleaved."""
        return self.samples.astype(_WIRE[self.format.sample_type], copy=False).tobytes()

    def to_buffer(self) -> memoryview:
        """The same as :meth:`to_bytes`, without a copy where memory has that layout already."""
        wire = np.ascontiguousarray(self.samples, _WIRE[self.format.sample_type])
        view: memoryview = wire.reshape(-1).view(np.uint8).data
        return view

    def as_float32(self) -> NDArray[np.float32]:
        """The samples as float32 in [-1, 1]; the frame's own array if it is float32 already."""
        if self.format.sample_type == "float32":
            return self.samples
        out = np.empty(self.samples.shape, np.float32)
        int16_to_float32(np.ascontiguousarray(self.samples), out)
        return out

    def as_int16(self) -> NDArray[np.int16]:
        """The samples as int16, clipped; the frame's own array if it is int16 already."""
        if self.format.sample_type == "int16":
            return self.samples
        out = np.empty(self.samples.shape, np.int16)
        float32_to_int16(np.ascontiguousarray(self.samples), out)
        return out

    @property
    def duration(self) -> float:
        """Seconds of audio in the frame."""
        return len(self.samples) / self.format.sample_rate


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigurationError(f"{name} is {value!r}; give an integer")
    return int(value)
