"""The numbers of the wire format, version 1 (``docs/wire-format.md``, sections 1 and 2).

Frame types are an enumeration, for logs and tables. Flags are bare integers: they are combined
and tested once per frame.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "CANCEL",
    "CLOCK",
    "CLOCK_REPLY",
    "CLOCK_REPLY_REQUEST",
    "CLOCK_REQUEST",
    "CREDIT",
    "DEFAULT_PRIORITY",
    "END",
    "ERROR",
    "EVENT",
    "EVENT_ACK",
    "EXTENSION",
    "FIELD_ALLOWANCE",
    "GOAWAY",
    "HELLO",
    "ITEM",
    "MARK",
    "MAX_METADATA",
    "MAX_NAME",
    "MAX_VARINT",
    "MEDIA",
    "MEDIA_CAPTURE_TS",
    "MEDIA_DTX",
    "MEDIA_END",
    "MEDIA_FRAGMENT",
    "MEDIA_KEY",
    "MEDIA_MARKER",
    "METADATA",
    "NAME",
    "NUMBER",
    "PRIORITY",
    "REQUEST",
    "RESPONSE",
    "RESUME",
    "STREAM_ABORT",
    "STREAM_ACCEPT",
    "STREAM_ACK",
    "STREAM_END",
    "STREAM_FLUSH",
    "STREAM_OPEN",
    "TIME",
    "WELCOME",
    "FrameType",
]


class FrameType(IntEnum):
    """First byte of a frame."""

    HELLO = 0x01
    GOAWAY = 0x02
    CREDIT = 0x03
    RESUME = 0x04
    WELCOME = 0x05
    REQUEST = 0x10
    RESPONSE = 0x11
    ERROR = 0x12
    CANCEL = 0x13
    ITEM = 0x14
    EVENT = 0x20
    EVENT_ACK = 0x21
    STREAM_OPEN = 0x30
    STREAM_ACCEPT = 0x31
    STREAM_END = 0x32
    STREAM_ABORT = 0x33
    STREAM_FLUSH = 0x34
    STREAM_ACK = 0x35
    MEDIA = 0x40
    CLOCK = 0x41


# The same as bare integers, for the paths that every frame takes.
HELLO: Final = int(FrameType.HELLO)
GOAWAY: Final = int(FrameType.GOAWAY)
CREDIT: Final = int(FrameType.CREDIT)
RESUME: Final = int(FrameType.RESUME)
WELCOME: Final = int(FrameType.WELCOME)
REQUEST: Final = int(FrameType.REQUEST)
RESPONSE: Final = int(FrameType.RESPONSE)
ERROR: Final = int(FrameType.ERROR)
CANCEL: Final = int(FrameType.CANCEL)
ITEM: Final = int(FrameType.ITEM)
EVENT: Final = int(FrameType.EVENT)
EVENT_ACK: Final = int(FrameType.EVENT_ACK)
STREAM_OPEN: Final = int(FrameType.STREAM_OPEN)
STREAM_ACCEPT: Final = int(FrameType.STREAM_ACCEPT)
STREAM_END: Final = int(FrameType.STREAM_END)
STREAM_ABORT: Final = int(FrameType.STREAM_ABORT)
STREAM_FLUSH: Final = int(FrameType.STREAM_FLUSH)
STREAM_ACK: Final = int(FrameType.STREAM_ACK)
MEDIA: Final = int(FrameType.MEDIA)
CLOCK: Final = int(FrameType.CLOCK)

# Flags of a general frame. The first six announce a field and are set by the encoder.
NAME: Final = 0x01
METADATA: Final = 0x02
TIME: Final = 0x04
NUMBER: Final = 0x08
PRIORITY: Final = 0x10
EXTENSION: Final = 0x20
END: Final = 0x40
MARK: Final = 0x80

# Flags of a media frame.
MEDIA_CAPTURE_TS: Final = 0x01
MEDIA_MARKER: Final = 0x02
MEDIA_DTX: Final = 0x04
MEDIA_END: Final = 0x08
MEDIA_KEY: Final = 0x10
MEDIA_FRAGMENT: Final = 0x20

# Values of a clock frame's flags.
CLOCK_REQUEST: Final = 0
CLOCK_REPLY: Final = 1
CLOCK_REPLY_REQUEST: Final = 2

MAX_VARINT: Final = (1 << 62) - 1
MAX_NAME: Final = 255
MAX_METADATA: Final = 16_384
FIELD_ALLOWANCE: Final = 32_768
"""What a frame's ``length`` may exceed the limit of a message by, for its fields."""
DEFAULT_PRIORITY: Final = 3
