"""Frames to bytes and back: docs/wire-format.md, section 1.

The plain-Python twin is echostream/protocol/frame_codec.py: same API, same texts of errors.
Nothing here keeps a pointer into a buffer that it does not own: what is fed are bytes objects,
and the parser holds a reference to each that it points into.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from echostream._ext.wire cimport (
    be16,
    be32,
    be64,
    borrow,
    check_varint,
    get_varint,
    give_back,
    put_be16,
    put_be32,
    put_be64,
    put_bytes,
    put_varint,
    varint_size,
)

from collections import deque

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

__all__ = [
    "FrameParser",
    "decode_clock",
    "encode_clock",
    "encode_frame",
    "encode_media",
]

cdef enum:
    NAME = 0x01
    METADATA = 0x02
    TIME = 0x04
    NUMBER = 0x08
    PRIORITY = 0x10
    EXTENSION = 0x20
    END = 0x40
    MARK = 0x80
    FIELDS = 0x3F

    GENERAL_MAX = 0x3F
    MEDIA = 0x40
    CLOCK = 0x41

    CAPTURE_TS = 0x01
    MEDIA_FLAGS = 0x3F

    MEDIA_SIZE = 24
    CLOCK_SIZE = 32
    HEADER_MAX = 32

    MAX_NAME = 255
    MAX_METADATA = 16384
    DEFAULT_PRIORITY = 3
    FIRST_CAPACITY = 4096

cdef enum Mode:
    UNUSED
    STREAM
    DATAGRAM

cdef uint8_t KNOWN[GENERAL_MAX + 1]  # whether a general type is defined, section 2
for _type in (
    0x01, 0x02, 0x03, 0x04, 0x05, 0x10, 0x11, 0x12, 0x13, 0x14, 0x20, 0x21,
    0x30, 0x31, 0x32, 0x33, 0x34, 0x35,
):
    KNOWN[<size_t>_type] = 1

include "frame_codec/encode.pxi"
include "frame_codec/parser.pxi"
