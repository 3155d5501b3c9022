"""Frames: the numbers of the wire format, and the codec that is in use.

The compiled codec is taken where it was built, its plain-Python twin elsewhere.
``ECHOSTREAM_ACCEL=0`` in the environment takes the twin in any case; a test that wants one of
them imports ``echostream._ext.frame_codec`` or ``echostream.protocol.frame_codec`` itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from echostream.protocol.frame_types import *  # noqa: F403
from echostream.protocol.frame_types import __all__ as _numbers

if TYPE_CHECKING:
    from echostream._ext import frame_codec as codec
elif os.environ.get("ECHOSTREAM_ACCEL") == "0":
    from echostream.protocol import frame_codec as codec
else:
    try:
        from echostream._ext import frame_codec as codec
    except ImportError:
        from echostream.protocol import frame_codec as codec

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

COMPILED: Final[bool] = codec.__name__ == "echostream._ext.frame_codec"
"""Whether the compiled codec is in use."""

FrameParser = codec.FrameParser
decode_clock = codec.decode_clock
encode_clock = codec.encode_clock
encode_frame = codec.encode_frame
encode_media = codec.encode_media
scan_payload = codec.scan_payload
