"""What STREAM_OPEN and STREAM_ACCEPT say of a stream (wire format, section 5)."""

from __future__ import annotations

from typing import Any

from echostream.codes import Reset, Status
from echostream.errors import ConfigurationError, InvalidPayload, RpcError
from echostream.media.codec import PCM, Codec, find_codec
from echostream.media.frame import AudioFormat
from echostream.protocol import payload as payloads

__all__ = ["agreed_codec", "agreed_format", "format_from_wire", "format_to_wire", "reset_name"]


def format_to_wire(format: AudioFormat) -> dict[str, Any]:
    """The map of STREAM_OPEN and STREAM_ACCEPT (wire format, section 5)."""
    return {
        "sample_rate": format.sample_rate,
        "channels": format.channels,
        "sample_type": format.sample_type,
        "frame": format.frame,
    }


def format_from_wire(value: Any) -> AudioFormat | None:
    """Read a peer's format. Raises ``InvalidPayload``."""
    if value is None:
        return None
    try:
        return AudioFormat(
            value["sample_rate"],
            value["channels"],
            sample_type=value["sample_type"],
            frame=value["frame"],
        )
    except (KeyError, TypeError, ConfigurationError) as exc:
        raise InvalidPayload(f"$.format is not an audio format: {exc}") from None


def agreed_format(options: bytes, formats: tuple[AudioFormat, ...]) -> AudioFormat | None:
    """The format that a peer offers in STREAM_OPEN, if one of ``formats`` (none: any) fits.

    Raises ``InvalidPayload`` or ``RpcError`` (FAILED_PRECONDITION)."""
    body = payloads.decode(options)
    if not isinstance(body, dict):
        raise InvalidPayload("STREAM_OPEN must carry a map")
    format = format_from_wire(body.get("format"))
    if formats and format not in formats:
        wanted = ", ".join(str(f) for f in formats)
        raise RpcError(
            f"this stream handler takes {wanted}; the stream offers {format}",
            status=Status.FAILED_PRECONDITION,
        )
    return format


def agreed_codec(options: bytes, format: AudioFormat | None) -> Codec:
    """The codec that STREAM_OPEN names, for an agreed format.

    Raises ``InvalidPayload``, or ``RpcError`` (FAILED_PRECONDITION) for one that is not here."""
    name = payloads.decode(options).get("codec", PCM.name)
    if name == PCM.name:
        return PCM
    if format is None:
        raise InvalidPayload("$.codec of a stream of bytes must be 'pcm'")
    try:
        codec = find_codec(name)
        codec.check(format)
    except ConfigurationError as exc:
        raise RpcError(str(exc), status=Status.FAILED_PRECONDITION) from None
    return codec


def reset_name(code: int) -> str:
    """A reset code by its name, or in hexadecimal."""
    try:
        return Reset(code).name
    except ValueError:
        return f"code {code:#x}"
