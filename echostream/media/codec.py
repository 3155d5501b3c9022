"""What a codec is to a stream, PCM as the trivial one, and where others are found by name.

A codec turns frames of one fixed length into packets and back. Its name travels in STREAM_OPEN
(wire format, section 5); all else is inside its packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.frame import AudioFormat, AudioFrame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PCM", "Codec", "CodecStatistics", "Decoder", "Encoder", "find_codec", "known_codecs"]


class Encoder(Protocol):
    """One stream's encoder. ``frame``: sample frames in each packet; ``lookahead``: sample frames
    by which what a decoder gives out lags behind what was put in."""

    frame: int
    lookahead: int

    def encode(self, samples: NDArray[Any]) -> bytes:
        """One packet of ``samples``, ``(frame, channels)`` in the format's type, contiguous."""


class Decoder(Protocol):
    """One stream's decoder; packets go through it in the order of their sequence numbers.

    ``conceals``: whether :meth:`conceal` is more than silence; ``max_packet``: bytes that a packet
    may have. One thread at a time.
    """

    conceals: bool
    max_packet: int

    def decode(self, payload: bytes | memoryview) -> NDArray[Any]:
        """The ``(frame, channels)`` samples of one packet, in the format's type. Raises
        ``ProtocolError`` for what is no packet of this codec and this format; the next packet
        can be decoded all the same."""

    def conceal(self, frames: int, following: bytes | memoryview | None = None) -> NDArray[Any]:
        """What may have been in the next ``frames`` sample frames, at most one packet's, that were
        lost. ``following``: the packet right behind them, where it is here: it may repeat them."""

    def reset(self) -> None:
        """Forget what was decoded: another epoch begins."""


@runtime_checkable
class Codec(Protocol):
    """A codec and its settings, good for any number of streams."""

    @property
    def name(self) -> str:
        """As it is written in STREAM_OPEN."""

    def check(self, format: AudioFormat) -> None:
        """Raises ``ConfigurationError`` for a format that this codec cannot carry."""

    def encoder(self, format: AudioFormat) -> Encoder:
        """A new encoder."""

    def decoder(self, format: AudioFormat) -> Decoder:
        """A new decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecStatistics:
    """Counts of a playout's decoder: packets ``decoded``; ``undecodable`` ones, which are concealed
    like lost ones; ``dropped`` without being decoded (flushed, of a past epoch, or nobody
    pulled); ``duplicates`` of one that was still waiting. ``concealed_frames``: sample frames that
    the codec made up."""

    decoded: int
    undecodable: int
    concealed_frames: int
    dropped: int
    duplicates: int


class PcmEncoder:
    """Samples as they are: little-endian, interleaved."""

    lookahead = 0

    def __init__(self, format: AudioFormat) -> None:
        self._format = format
        self.frame = format.frame

    def encode(self, samples: NDArray[Any]) -> bytes:
        """See :class:`Encoder`; any number of frames."""
        return AudioFrame(samples, self._format).to_bytes()


class PcmDecoder:
    """The way back; what is lost is concealed by who plays it (``media.conceal``)."""

    conceals = False

    def __init__(self, format: AudioFormat) -> None:
        self._format = format
        self.max_packet = format.frame_bytes * format.sample_rate // format.frame

    def decode(self, payload: bytes | memoryview) -> NDArray[Any]:
        """See :class:`Decoder`; any whole number of frames."""
        return AudioFrame.from_bytes(payload, self._format).samples

    def conceal(self, frames: int, following: bytes | memoryview | None = None) -> NDArray[Any]:
        """Silence."""
        return np.zeros((frames, self._format.channels), self._format.dtype)

    def reset(self) -> None:
        """Nothing is remembered."""


class _Pcm:
    name = "pcm"

    def check(self, format: AudioFormat) -> None:
        """Every format will do."""

    def encoder(self, format: AudioFormat) -> PcmEncoder:
        return PcmEncoder(format)

    def decoder(self, format: AudioFormat) -> PcmDecoder:
        return PcmDecoder(format)


PCM: Final[Codec] = _Pcm()

_EXTRAS: Final = {"opus": ("echostream.contrib.opus", "Opus")}
"""Codecs that need something installed: by name, because a peer asks for them by name, and nothing
down here imports what stands above. The extra of ``pyproject.toml`` has the codec's name."""


def find_codec(name: object) -> Codec:
    """The codec of that name, with its default settings.

    Raises ``ConfigurationError``, which names what is known here and what to install.
    """
    try:
        return _find(name)
    except ConfigurationError as exc:
        known = ", ".join(known_codecs())
        raise ConfigurationError(f"{exc}; codecs known here: {known}") from None


def known_codecs() -> list[str]:
    """Names that :func:`find_codec` takes on this machine."""
    known = [PCM.name]
    for name in _EXTRAS:
        try:
            _find(name)
        except ConfigurationError:
            continue
        known.append(name)
    return known


def _find(name: object) -> Codec:
    if name == PCM.name:
        return PCM
    if not isinstance(name, str) or name not in _EXTRAS:
        shown = repr(name[:64] if isinstance(name, str) else type(name).__name__)
        raise ConfigurationError(f"codec {shown} is not known")
    module, attribute = _EXTRAS[name]
    codec = getattr(import_module(module), attribute)()
    assert isinstance(codec, Codec)
    return codec
