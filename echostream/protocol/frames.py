"""Frames: the numbers of the wire format, and the codec that is in use.

The compiled modules are taken where they were built, their plain-Python twins elsewhere.
``ECHOSTREAM_ACCEL=0`` in the environment takes the twins in any case; a test that wants one of
them imports it from ``echostream._ext`` or ``echostream.protocol`` itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from echostream.protocol.frame_types import *  # noqa: F403
from echostream.protocol.frame_types import __all__ as _numbers

if TYPE_CHECKING:
    from echostream._ext import frame_codec, payload_scan
elif os.environ.get("ECHOSTREAM_ACCEL") == "0":
    from echostream.protocol import frame_codec, payload_scan
else:
    try:
        from echostream._ext import frame_codec, payload_scan
    except ImportError:
        from echostream.protocol import frame_codec, payload_scan

__all__ = [
    "COMPILED",
    "FrameParser",
    "decode_clock",
    "encode_clock",
    "encode_frame",
    "encode_media",
    "scan_payload",
]
__all__ += _numbers

COMPILED: Final[bool] = frame_codec.__name__ == "echostream._ext.frame_codec"
"""Whether the compiled codec is in use."""

FrameParser = frame_codec.FrameParser
decode_clock = frame_codec.decode_clock
encode_clock = frame_codec.encode_clock
encode_frame = frame_codec.encode_frame
encode_media = frame_codec.encode_media
scan_payload = payload_scan.scan_payload
