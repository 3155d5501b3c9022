"""The 1-RTT data path, typed, over aioquic's own state.

``SendPath`` goes before ``HardenedConnection`` in a class's bases: its fields carry aioquic's
names, and as data descriptors come before the instance's dictionary, so that plain and typed
code share one storage, packet for packet. What the typed methods do not know they leave to the
plain ones behind them, before anything had an effect. Importing this module is for
transport/quic/accelerated.py, which knows whether the aioquic at hand is one that it mirrors.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AsString,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_Size,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from echostream._ext.wire cimport (
    MAX_VARINT,
    be64,
    borrow,
    get_varint,
    give_back,
    put_be16,
    put_be64,
    put_bytes,
    put_varint,
    varint_size,
)

from aioquic.buffer import Buffer
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived, StreamReset
from aioquic.quic.packet import (
    QuicPacketType,
    QuicResetStreamFrame,
    QuicStopSendingFrame,
    QuicStreamFrame,
)
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import FinalSizeError, StreamFinishedError
from aioquic.tls import Epoch
from cryptography.exceptions import InvalidTag

__all__ = [
    "NumberWindow",
    "Pacer",
    "PacketSpace",
    "Ranges",
    "RecoveryState",
    "Westwood",
    "SendPath",
    "SentPacket",
    "Stream",
    "StreamLimit",
    "StreamReceiver",
    "StreamSender",
]

cdef extern from "Python.h":
    # Functions, where cpython.bytearray has macros outside of the limited API.
    int PyByteArray_Resize(object buffer, Py_ssize_t size) except -1
    Py_ssize_t PyByteArray_Size(object buffer) except -1
    char *PyByteArray_AsString(object buffer) except NULL

cdef object ACKED = QuicDeliveryState.ACKED
cdef object LOST = QuicDeliveryState.LOST
cdef object CONNECTED = QuicConnectionState.CONNECTED
cdef object ONE_RTT = QuicPacketType.ONE_RTT
cdef object APPLICATION = Epoch.ONE_RTT

include "quic_path/ranges.pxi"
include "quic_path/streams.pxi"
include "quic_path/recovery.pxi"
include "quic_path/detection.pxi"
include "quic_path/protection.pxi"
include "quic_path/frames.pxi"
include "quic_path/connection.pxi"
include "quic_path/receive.pxi"
include "quic_path/send.pxi"
