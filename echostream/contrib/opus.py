"""Opus (RFC 6716) for streams: ``create_stream(..., format=AudioFormat(48_000, 2), codec="opus")``.

libopus does the work, by ctypes: the system's, or the one that PyAV's wheel carries
(``pip install 'echostream[opus]'``); FFmpeg's own interface to it has no concealment and no FEC.
Both are BSD-licensed. Calls into it release the GIL.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from echostream.errors import ConfigurationError, ProtocolError
from echostream.media.frame import AudioFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Opus",
    "OpusDecoder",
    "OpusEncoder",
    "libraries",
    "load",
    "open_library",
    "packet_frames",
]

RATES: Final = (8_000, 12_000, 16_000, 24_000, 48_000)
FRAMES_MS: Final = (2.5, 5, 10, 20, 40, 60)
MAX_PACKET = 8192
"""Bytes. 60 ms at the highest bit rate are 3,825; padding may make a packet longer."""
APPLICATIONS: Final = {"voip": 2048, "audio": 2049, "lowdelay": 2051}

_SET_BITRATE, _SET_COMPLEXITY, _SET_FEC, _SET_LOSS = 4002, 4010, 4012, 4014
_GET_LOOKAHEAD, _RESET = 4027, 4028


@dataclass(frozen=True, slots=True, kw_only=True)
class Opus:
    """Opus and its settings; those of an encoder, a receiver needs none of them.

    ``bitrate`` in bit/s, 6,000 to 510,000, for all channels; ``None`` lets libopus choose (about
    96 kbit/s for stereo music). ``application``: ``"audio"``, ``"voip"`` for speech, or
    ``"lowdelay"`` (2.5 ms of delay instead of 6.5; no FEC). ``expected_loss``: the share of packets
    that may get lost, 0 to 1; above 0, speech packets repeat their predecessor at a lower quality
    (FEC). ``complexity``: 0 to 10.

    Raises ``ConfigurationError`` for settings that cannot be, and where libopus is missing.
    """

    bitrate: int | None = None
    application: Literal["audio", "voip", "lowdelay"] = "audio"
    expected_loss: float = 0.0
    complexity: int = 9

    def __post_init__(self) -> None:
        if self.bitrate is not None and not 6_000 <= self.bitrate <= 510_000:
            raise ConfigurationError(f"bitrate is 6000 to 510000 bit/s, not {self.bitrate!r}")
        if self.application not in APPLICATIONS:
            raise ConfigurationError(
                f"application is one of {', '.join(APPLICATIONS)}, not {self.application!r}"
            )
        if not 0 <= self.expected_loss <= 1:
            raise ConfigurationError(f"expected_loss is a share, 0 to 1, not {self.expected_loss}")
        if self.complexity not in range(11):
            raise ConfigurationError(f"complexity is 0 to 10, not {self.complexity!r}")
        load()

    @property
    def name(self) -> str:
        """As it is written in STREAM_OPEN."""
        return "opus"

    def check(self, format: AudioFormat) -> None:
        """Raises ``ConfigurationError`` for a format that Opus does not have."""
        rate = format.sample_rate
        if rate not in RATES:
            raise ConfigurationError(
                f"Opus runs at {', '.join(map(str, RATES))} Hz, not at {rate}: resample to 48000"
            )
        if format.channels > 2:
            raise ConfigurationError(
                f"Opus carries 1 or 2 channels, not {format.channels}: open several streams"
            )
        if format.frame * 1000 not in [rate * ms for ms in FRAMES_MS]:
            sizes = ", ".join(str(int(rate * ms / 1000)) for ms in FRAMES_MS)
            raise ConfigurationError(
                f"an Opus frame at {rate} Hz has {sizes} samples, not {format.frame}"
            )

    def encoder(self, format: AudioFormat) -> OpusEncoder:
        """A new encoder."""
        self.check(format)
        return OpusEncoder(load(), self, format)

    def decoder(self, format: AudioFormat) -> OpusDecoder:
        """A new decoder."""
        self.check(format)
        return OpusDecoder(load(), format)


class OpusEncoder:
    """See ``media.codec.Encoder``."""

    def __init__(self, library: ctypes.CDLL, settings: Opus, format: AudioFormat) -> None:
        self._library = library
        self._state = None
        error = ctypes.c_int()
        self._state = library.opus_encoder_create(
            format.sample_rate,
            format.channels,
            APPLICATIONS[settings.application],
            ctypes.byref(error),
        )
        self._fail(error.value)
        if settings.bitrate is not None:
            self._set(_SET_BITRATE, settings.bitrate)
        self._set(_SET_COMPLEXITY, settings.complexity)
        self._set(_SET_LOSS, round(100 * settings.expected_loss))
        self._set(_SET_FEC, int(settings.expected_loss > 0))
        lookahead = ctypes.c_int32()
        self._fail(library.opus_encoder_ctl(self._state, _GET_LOOKAHEAD, ctypes.byref(lookahead)))
        self.frame = format.frame
        self.lookahead = lookahead.value
        self._shape = (format.frame, format.channels)
        self._dtype = format.dtype
        is_float = format.sample_type == "float32"
        self._encode = library.opus_encode_float if is_float else library.opus_encode
        self._out = ctypes.create_string_buffer(MAX_PACKET)

    def encode(self, samples: NDArray[Any]) -> bytes:
        """One packet of ``samples``."""
        if samples.shape != self._shape or samples.dtype != self._dtype:
            raise ConfigurationError(
                f"this encoder takes {self._dtype} of shape {self._shape}, "
                f"not {samples.dtype} of shape {samples.shape}"
            )
        samples = np.ascontiguousarray(samples)
        size = self._encode(self._state, samples.ctypes.data, self.frame, self._out, MAX_PACKET)
        self._fail(size)
        return self._out.raw[:size]

    def _set(self, request: int, value: int) -> None:
        self._fail(self._library.opus_encoder_ctl(self._state, request, ctypes.c_int32(value)))

    def _fail(self, code: int) -> None:
        if code < 0:
            raise ConfigurationError(f"the Opus encoder: {_error(self._library, code)}")

    def __del__(self) -> None:
        if self._state is not None:
            self._library.opus_encoder_destroy(self._state)


class OpusDecoder:
    """See ``media.codec.Decoder``. A packet that is damaged, or of another length than the format's
    frame, is refused before libopus sees it, or by libopus."""

    conceals = True
    max_packet = MAX_PACKET

    def __init__(self, library: ctypes.CDLL, format: AudioFormat) -> None:
        self._library = library
        self._state = None
        error = ctypes.c_int()
        self._state = library.opus_decoder_create(
            format.sample_rate, format.channels, ctypes.byref(error)
        )
        if error.value < 0:
            raise ConfigurationError(f"the Opus decoder: {_error(library, error.value)}")
        is_float = format.sample_type == "float32"
        self._decode = library.opus_decode_float if is_float else library.opus_decode
        self._rate = format.sample_rate
        self._frame = format.frame
        self._grain = format.sample_rate // 400  # 2.5 ms: what can be concealed is a multiple
        self._out = np.empty((format.frame, format.channels), format.dtype)

    def decode(self, payload: bytes | memoryview) -> NDArray[Any]:
        """The samples of one packet. Raises ``ProtocolError``."""
        data = self._checked(payload)
        return self._into(self._frame, self._decode_as(data, self._frame, 0))

    def conceal(self, frames: int, following: bytes | memoryview | None = None) -> NDArray[Any]:
        """libopus's own concealment, or, where ``following`` has it, its FEC."""
        if not 0 < frames <= self._frame:
            raise ConfigurationError(f"frames is 1 to {self._frame}, not {frames}")
        whole = -(-frames // self._grain) * self._grain
        made = -1
        if following is not None:
            try:
                made = self._decode_as(self._checked(following), whole, 1)
            except ProtocolError:
                made = -1
        if made < 0:
            made = self._decode_as(None, whole, 0)
        return self._into(frames, made)

    def reset(self) -> None:
        """Forget what was decoded."""
        self._library.opus_decoder_ctl(self._state, _RESET)

    def _checked(self, payload: bytes | memoryview) -> bytes:
        if len(payload) > MAX_PACKET:
            raise ProtocolError(f"an Opus packet of {len(payload)} bytes; at most {MAX_PACKET}")
        data = bytes(payload)
        frames = packet_frames(data, self._rate)
        if frames != self._frame:
            raise ProtocolError(
                f"an Opus packet of {frames} samples in a stream with frames of {self._frame}"
            )
        return data

    def _decode_as(self, data: bytes | None, frames: int, fec: int) -> int:
        made: int = self._decode(
            self._state,
            data,
            0 if data is None else len(data),
            self._out.ctypes.data,
            frames,
            fec,
        )
        if made < 0 and not fec:
            raise ProtocolError(f"an Opus packet: {_error(self._library, made)}")
        return made

    def _into(self, wanted: int, made: int) -> NDArray[Any]:
        return self._out[: min(wanted, made)].copy()

    def __del__(self) -> None:
        if self._state is not None:
            self._library.opus_decoder_destroy(self._state)


def packet_frames(packet: bytes, rate: int) -> int:
    """Sample frames (at ``rate``) in an Opus packet (RFC 6716, sections 3.1 and 3.2). Raises
    ``ProtocolError`` for none, and for more than the 120 ms that a packet may have."""
    if not packet:
        raise ProtocolError("an empty Opus packet")
    config, code = packet[0] >> 3, packet[0] & 3
    if code == 3 and len(packet) < 2:
        raise ProtocolError("an Opus packet without its frame count")
    count = (1, 2, 2, packet[1] & 0x3F if code == 3 else 0)[code]
    if config >= 16:  # CELT: 2.5, 5, 10, 20 ms
        length = rate * (1 << (config & 3)) // 400
    elif config >= 12:  # hybrid: 10, 20 ms
        length = rate * (1 + (config & 1)) // 100
    else:  # SILK: 10, 20, 40, 60 ms
        length = rate * (1, 2, 4, 6)[config & 3] // 100
    if not 0 < count * length * 25 <= rate * 3:
        raise ProtocolError(f"an Opus packet with {count} frames of {length} samples")
    return count * length


def libraries() -> Iterator[str]:
    """Where libopus may be, the best first: the system's, then the one in PyAV's wheel."""
    yield {"win32": "opus.dll", "darwin": "libopus.0.dylib"}.get(sys.platform, "libopus.so.0")
    spec = importlib.util.find_spec("av")
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parent
    for folder in (package.with_name("av.libs"), package / ".dylibs"):
        yield from map(str, sorted([*folder.glob("libopus*"), *folder.glob("opus*.dll")]))


def load() -> ctypes.CDLL:
    """The first libopus that works. Raises ``ConfigurationError`` where there is none."""
    library = _load()
    if library is None:
        raise ConfigurationError(
            "codec 'opus' needs libopus: pip install 'echostream[opus]', or your system's package "
            "(Debian: libopus0; macOS: brew install opus)"
        )
    return library


@cache
def _load() -> ctypes.CDLL | None:
    """Searched for once: peers may ask for it again and again."""
    return next(filter(None, map(open_library, libraries())), None)


def open_library(path: str) -> ctypes.CDLL | None:
    """libopus from that file; ``None`` where it is not."""
    try:
        library = ctypes.CDLL(path)
        _declare(library)
    except (OSError, AttributeError):
        return None
    return library


def _declare(library: ctypes.CDLL) -> None:
    state, data, number = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32
    out, failed = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    for name, result, arguments in (
        ("opus_encoder_create", state, [number, ctypes.c_int, ctypes.c_int, failed]),
        ("opus_encoder_destroy", None, [state]),
        # Variadic: the fixed arguments are declared, so that ctypes passes the others rightly.
        ("opus_encoder_ctl", ctypes.c_int, [state, ctypes.c_int]),
        ("opus_encode", number, [state, data, ctypes.c_int, out, number]),
        ("opus_encode_float", number, [state, data, ctypes.c_int, out, number]),
        ("opus_decoder_create", state, [number, ctypes.c_int, failed]),
        ("opus_decoder_destroy", None, [state]),
        ("opus_decoder_ctl", ctypes.c_int, [state, ctypes.c_int]),
        (
            "opus_decode",
            ctypes.c_int,
            [state, ctypes.c_char_p, number, out, ctypes.c_int, ctypes.c_int],
        ),
        (
            "opus_decode_float",
            ctypes.c_int,
            [state, ctypes.c_char_p, number, out, ctypes.c_int, ctypes.c_int],
        ),
        ("opus_strerror", ctypes.c_char_p, [ctypes.c_int]),
        ("opus_get_version_string", ctypes.c_char_p, []),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def _error(library: ctypes.CDLL, code: int) -> str:
    text: bytes = library.opus_strerror(code)
    return text.decode("ascii", "replace")
