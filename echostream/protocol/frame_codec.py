"""Frames to bytes and back, in plain Python: twin of ``ext/frame_codec.pyx``.

The oracle of its tests, and what runs where nothing is compiled. Both have one API and the same
texts of errors; :mod:`echostream.protocol.frames` hands out the one that is in use.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, NoReturn

from echostream.protocol.frame_types import (
    DEFAULT_PRIORITY,
    END,
    EXTENSION,
    MARK,
    MAX_METADATA,
    MAX_NAME,
    MAX_VARINT,
    MEDIA_CAPTURE_TS,
    METADATA,
    NAME,
    NUMBER,
    PRIORITY,
    TIME,
    FrameType,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "FrameParser",
    "decode_clock",
    "encode_clock",
    "encode_frame",
    "encode_media",
]

_KNOWN = frozenset(int(kind) for kind in FrameType)
_GENERAL_MAX = 0x3F
_MEDIA = int(FrameType.MEDIA)
_CLOCK = int(FrameType.CLOCK)
_FIELDS = NAME | METADATA | TIME | NUMBER | PRIORITY | EXTENSION
_MEDIA_FLAGS = 0x3F

_MEDIA_HEAD = Struct(">BBHIIIQ")  # type, flags, epoch, alias, sequence_number, length, timestamp
_CAPTURE_TS = Struct(">q")
_CLOCK_FRAME = Struct(">BBHIqqq")  # type, flags, reserved, exchange, t1, t2, t3
_HEADER_MAX = _MEDIA_HEAD.size + _CAPTURE_TS.size
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


def encode_frame(
    type: int,
    id: int,
    payload: Buffer = b"",
    flags: int = 0,
    name: str | None = None,
    metadata: bytes | None = None,
    time_us: int = -1,
    number: int = -1,
    priority: int = -1,
    extension: bytes | None = None,
) -> bytes:
    """One general frame (section 1.1).

    ``flags`` carries END and MARK only: the flags of fields follow from the fields that are given
    (not ``None``, not -1). ``payload`` is any C-contiguous buffer and copied once. Raises
    ``ValueError`` or ``OverflowError`` for what does not fit the wire.
    """
    if not 0 < type <= _GENERAL_MAX:
        raise ValueError(f"type {type:#x} is not that of a general frame")
    if flags & ~(END | MARK):
        raise ValueError(f"flags {flags:#x}: only END and MARK may be given")
    fields = b""
    if name is not None:
        text = name.encode()
        if not 0 < len(text) <= MAX_NAME:
            raise ValueError(f"name of {len(text)} bytes, 1 to {MAX_NAME} are possible")
        flags |= NAME
        fields = _varint(len(text)) + text
    if metadata is not None:
        if len(metadata) > MAX_METADATA:
            raise ValueError(f"metadata of {len(metadata)} bytes, limit {MAX_METADATA}")
        flags |= METADATA
        fields += _varint(len(metadata)) + metadata
    if time_us != -1:
        flags |= TIME
        fields += _varint(time_us)
    if number != -1:
        flags |= NUMBER
        fields += _varint(number)
    if priority != -1:
        if not 0 <= priority <= 7:
            raise ValueError(f"priority {priority}, 0 to 7 are possible")
        flags |= PRIORITY
        fields += priority.to_bytes(1, "big")
    if extension is not None:
        flags |= EXTENSION
        fields += _varint(len(extension)) + extension
    head = bytes((type, flags)) + _varint(id) + _varint(len(fields) + _size(payload))
    return _join(head + fields, payload)


def encode_media(
    alias: int,
    epoch: int,
    sequence_number: int,
    timestamp: int,
    payload: Buffer,
    flags: int = 0,
    capture_ts: int | None = None,
) -> bytes:
    """One media frame (section 1.2); CAPTURE_TS is set when ``capture_ts`` (ns) is given.

    ``payload`` is any C-contiguous buffer and copied once: its first byte stands at offset 24 or
    32. Raises ``ValueError`` or ``OverflowError`` for what does not fit the wire.
    """
    if flags & ~(_MEDIA_FLAGS & ~MEDIA_CAPTURE_TS):
        raise ValueError(f"media flags {flags:#x}: not defined, or implied by an argument")
    if not 0 <= epoch < 1 << 16:
        raise OverflowError(f"epoch {epoch} does not fit 16 bits")
    for value in (alias, sequence_number):
        if not 0 <= value < 1 << 32:
            raise OverflowError(f"{value} does not fit 32 bits")
    if not 0 <= timestamp < 1 << 64:
        raise OverflowError(f"timestamp {timestamp} does not fit 64 bits")
    size = _size(payload)
    if size >= 1 << 32:
        raise ValueError(f"payload of {size} bytes does not fit a media frame")
    if capture_ts is None:
        tail = b""
    elif _INT64_MIN <= capture_ts <= _INT64_MAX:
        flags |= MEDIA_CAPTURE_TS
        tail = _CAPTURE_TS.pack(capture_ts)
    else:
        raise OverflowError(f"capture_ts {capture_ts} does not fit 64 bits")
    head = _MEDIA_HEAD.pack(_MEDIA, flags, epoch, alias, sequence_number, size, timestamp)
    return _join(head + tail, payload)


def encode_clock(flags: int, exchange: int, t1: int, t2: int = 0, t3: int = 0) -> bytes:
    """One clock frame (section 1.3), 32 bytes; times in ns."""
    if not 0 <= flags <= 2:
        raise ValueError(f"clock flags {flags:#x} are not defined")
    if not 0 <= exchange < 1 << 32:
        raise OverflowError(f"exchange {exchange} does not fit 32 bits")
    for value in (t1, t2, t3):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise OverflowError(f"time {value} does not fit 64 bits")
    return _CLOCK_FRAME.pack(_CLOCK, flags, 0, exchange, t1, t2, t3)


def decode_clock(data: bytes) -> tuple[int, int, int, int, int]:
    """``(flags, exchange, t1, t2, t3)`` of one clock frame, else ``ValueError``."""
    if len(data) != _CLOCK_FRAME.size:
        raise ValueError(f"a clock frame has {_CLOCK_FRAME.size} bytes, not {len(data)}")
    kind, flags, _, exchange, t1, t2, t3 = _CLOCK_FRAME.unpack(data)
    if kind != _CLOCK:
        raise ValueError(f"type {kind:#04x} is not that of a clock frame")
    if flags > 2:
        raise ValueError(f"frame type 0x41: undefined flags {flags:#04x} at byte 1")
    return flags, exchange, t1, t2, t3


class FrameParser:
    """Cuts the bytes of one QUIC stream, or of DATAGRAMs, into frames.

    A cursor: :meth:`next` moves to the next frame, whose parts are then attributes of the parser
    until :meth:`next` is called again. Either :meth:`feed` or :meth:`parse_datagram` is used on
    one parser, not both.

    ``max_length`` bounds a frame's ``length`` (fields and payload; section 1.1). A longer frame is
    reported once with :attr:`oversize` set, as soon as its header is there, and its body is
    discarded as it arrives. What is held is at most one frame, and what was fed since :meth:`next`
    last returned ``False``. Time is linear in the bytes, however they are split.

    Malformed input raises ``ValueError``, which tells what was wrong and at which byte of the
    frame; a stream's parser then refuses everything.

    Attributes of a general frame: :attr:`type`, :attr:`flags`, :attr:`id`, :attr:`name`,
    :attr:`metadata` (msgpack), :attr:`time_us` and :attr:`number` (-1 where absent),
    :attr:`priority`. Of a media frame: :attr:`type`, :attr:`flags`, :attr:`id` (the alias),
    :attr:`epoch`, :attr:`sequence_number`, :attr:`timestamp`, :attr:`has_capture_ts`,
    :attr:`capture_ts` (ns, else 0). Of a clock frame: :attr:`type`, :attr:`flags`, :attr:`id` (the
    exchange), :attr:`t1`, :attr:`t2`, :attr:`t3`. Of each: :attr:`payload`, :attr:`oversize` and
    :attr:`size` (bytes on the wire). What a frame does not have shows its absence, never the value
    of an earlier frame.
    """

    __slots__ = (
        "_data",
        "_discard",
        "_end",
        "_failed",
        "_frame",
        "_header_size",
        "_length",
        "_mode",
        "_need",
        "_partial",
        "_pos",
        "_queue",
        "_queued",
        "_start",
        "_stop",
        "capture_ts",
        "epoch",
        "flags",
        "has_capture_ts",
        "id",
        "max_length",
        "max_metadata",
        "metadata",
        "name",
        "number",
        "oversize",
        "priority",
        "sequence_number",
        "size",
        "skipped_frames",
        "t1",
        "t2",
        "t3",
        "time_us",
        "timestamp",
        "type",
    )

    name: str | None
    metadata: bytes | None

    def __init__(self, max_length: int, max_metadata: int = MAX_METADATA) -> None:
        if max_length < 0 or max_metadata < 0:
            raise ValueError("a limit is negative")
        self.max_length = max_length
        self.max_metadata = max_metadata
        self.skipped_frames = 0
        self._mode = ""  # "stream" or "DATAGRAM", fixed by first use
        self._failed: str | None = None
        # The chunk that is being read, and those that were fed since.
        self._data = b""
        self._pos = 0
        self._end = 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        # A frame that began in an earlier chunk: its bytes so far, and how many it has in all
        # (0 while its header is incomplete).
        self._partial = bytearray()
        self._need = 0
        self._header_size = 0
        self._length = 0
        self._discard = 0  # bytes still to come of a frame that is not wanted
        # The bytes that hold the current payload.
        self._frame = b""
        self._start = 0
        self._stop = 0
        self.type = 0
        self.flags = 0
        self.id = 0
        self.size = 0
        self.oversize = False
        self._clear_fields()
        self._clear_media()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream. Payloads are views into ``data`` where they can be."""
        if not isinstance(data, bytes):
            raise TypeError(f"bytes are needed, not {type(data).__name__}")
        self._enter("stream")
        if self._failed is not None:
            raise ValueError(self._failed)
        if self._pos < self._end or self._queue:
            if data:
                self._queue.append(data)
                self._queued += len(data)
        else:
            self._data = data
            self._pos = 0
            self._end = len(data)

    def parse_datagram(self, data: bytes) -> bool:
        """Take one DATAGRAM and move to its first frame; :meth:`next` moves to the following ones.

        ``False`` when it carries frames of unknown types only. Raises ``ValueError`` unless the
        frame is complete; the next DATAGRAM may then still be parsed.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"bytes are needed, not {type(data).__name__}")
        self._enter("DATAGRAM")
        self._failed = None
        self._discard = 0
        self._data = data
        self._pos = 0
        self._end = len(data)
        if not data:
            self._fail(0, "empty DATAGRAM", 0)
        return self.next()

    def next(self) -> bool:
        """Move to the next frame; ``False`` when its bytes have not all arrived."""
        if self._failed is not None:
            raise ValueError(self._failed)
        while self._pos < self._end or self._take_queued():
            if self._discard:
                count = min(self._discard, self._end - self._pos)
                self._discard -= count
                self._pos += count
            elif self._assemble() if self._partial else self._direct():
                return True
        self._data = self._frame = b""
        self._pos = self._end = self._start = self._stop = 0
        return False

    @property
    def payload(self) -> memoryview:
        """The payload, a read-only view that keeps the bytes below it alive.

        It points into the chunk that was fed when the frame lay within one, else into bytes of
        its own.
        """
        return memoryview(self._frame)[self._start : self._stop]

    def payload_bytes(self) -> bytes:
        """A copy of the payload; for small ones cheaper than the view."""
        return self._frame[self._start : self._stop]

    @property
    def buffered(self) -> int:
        """Bytes held that belong to no frame yet."""
        return len(self._partial) + self._end - self._pos + self._queued

    # -- below: one frame ------------------------------------------------------------------------

    def _direct(self) -> bool:
        """The frame that begins at the cursor; what is incomplete is put aside."""
        start, end = self._pos, self._end
        header = self._parse_header(self._data, start, end)
        total = header + self._length
        if self._mode == "DATAGRAM" and (header == 0 or total > end - start):
            self._fail(self._data[start], "DATAGRAM ends inside the frame", end - start)
        if header and self._skip_or_report(start + header, total, total):
            return self.oversize
        if header == 0 or total > end - start:
            self._partial += self._data[start:end]
            self._need = total if header else 0
            self._header_size = header
            self._pos = end
            return False
        self._pos = start + total
        self._parse_body(self._data, start, start + header, start + total)
        return True

    def _assemble(self) -> bool:
        """Go on with a frame that began in an earlier chunk."""
        partial = self._partial
        if self._need == 0:
            before = len(partial)
            taken = min(_HEADER_MAX - before, self._end - self._pos)
            partial += self._data[self._pos : self._pos + taken]
            header = self._parse_header(partial, 0, len(partial))
            if header == 0:
                self._pos += taken
                return False
            total = header + self._length
            if self._skip_or_report(self._pos + header - before, total, total - before):
                partial.clear()
                return self.oversize
            del partial[header:]
            self._pos += header - before
            self._need = total
            self._header_size = header
        count = min(self._need - len(partial), self._end - self._pos)
        partial += self._data[self._pos : self._pos + count]
        self._pos += count
        if len(partial) < self._need:
            return False
        frame = bytes(partial)
        partial.clear()
        self._need = 0
        self._parse_body(frame, 0, self._header_size, len(frame))
        return True

    def _skip_or_report(self, body: int, total: int, rest: int) -> bool:
        """Whether the frame is of an unknown type or too long; ``body`` is where its body begins
        in the chunk, ``rest`` the bytes of it from the cursor on. ``oversize`` tells which."""
        self.oversize = False
        if self.type not in _KNOWN:
            self.skipped_frames += 1
            self._discard = rest
            return True
        if self._length <= self.max_length:
            return False
        self.oversize = True
        self._discard = self._length
        self._pos = body
        self.size = total
        self._frame = b""
        self._start = self._stop = 0
        if self.type <= _GENERAL_MAX and self.flags & NAME:
            self.name = self._early_name(body)
        return True

    def _early_name(self, at: int) -> str | None:
        """The name of a frame that is discarded, where it is there and well-formed."""
        stop = min(self._end, at + self._length)
        size, at = _read_varint(self._data, at, stop)
        if not 0 < size <= MAX_NAME or size > stop - at:
            return None
        try:
            return self._data[at : at + size].decode()
        except UnicodeDecodeError:
            return None

    def _parse_header(self, data: bytes | bytearray, at: int, end: int) -> int:
        """Read a header into the attributes; its size, 0 while it is incomplete."""
        kind = data[at]
        if 0 < kind <= _GENERAL_MAX:
            return self._parse_general_header(data, at, end)
        if kind == _MEDIA:
            return self._parse_media_header(data, at, end)
        if kind != _CLOCK:
            self._fail(kind, "type that is not defined", 0)
        if self._mode == "stream":
            self._fail(kind, "clock frame outside a DATAGRAM", 0)
        if end - at < _CLOCK_FRAME.size:
            return 0
        _, flags, _, self.id, t1, t2, t3 = _CLOCK_FRAME.unpack_from(data, at)
        if flags > 2:
            self._fail(kind, f"undefined flags {flags:#04x}", 1)
        self._clear_fields()
        self._clear_media()
        self.type, self.flags, self.t1, self.t2, self.t3 = kind, flags, t1, t2, t3
        self._length = 0
        return _CLOCK_FRAME.size

    def _parse_general_header(self, data: bytes | bytearray, at: int, end: int) -> int:
        if end - at < 4:
            return 0
        id_, pos = _read_varint(data, at + 2, end)
        if id_ < 0 or pos == end:
            return 0
        length, pos = _read_varint(data, pos, end)
        if length < 0:
            return 0
        if self.type >= _MEDIA:
            self._clear_media()
        self._clear_fields()
        self.type = data[at]
        self.flags = data[at + 1]
        self.id = id_
        self._length = length
        return pos - at

    def _parse_media_header(self, data: bytes | bytearray, at: int, end: int) -> int:
        if end - at < 2:
            return 0
        flags = data[at + 1]
        if flags & ~_MEDIA_FLAGS:
            self._fail(_MEDIA, f"undefined flags {flags:#04x}", 1)
        size = _HEADER_MAX if flags & MEDIA_CAPTURE_TS else _MEDIA_HEAD.size
        if end - at < size:
            return 0
        self._clear_fields()
        self._clear_media()
        (
            self.type,
            self.flags,
            self.epoch,
            self.id,
            self.sequence_number,
            self._length,
            self.timestamp,
        ) = _MEDIA_HEAD.unpack_from(data, at)
        if flags & MEDIA_CAPTURE_TS:
            self.has_capture_ts = True
            (self.capture_ts,) = _CAPTURE_TS.unpack_from(data, at + _MEDIA_HEAD.size)
        return size

    def _parse_body(self, data: bytes, begin: int, at: int, stop: int) -> None:
        """Read the fields of a complete frame and set its payload."""
        self.size = stop - begin
        flags = self.flags & _FIELDS
        if flags and self.type <= _GENERAL_MAX:
            if flags & NAME:
                start = at
                size, at = self._field(data, begin, at, stop, "name")
                if not 0 < size <= MAX_NAME:
                    self._fail(self.type, f"name of {size} bytes", start - begin)
                try:
                    self.name = data[at : at + size].decode()
                except UnicodeDecodeError:
                    self._fail(self.type, "name that is not UTF-8", at - begin)
                at += size
            if flags & METADATA:
                start = at
                size, at = self._field(data, begin, at, stop, "metadata")
                if size > self.max_metadata:
                    self._fail(self.type, f"metadata of {size} bytes", start - begin)
                self.metadata = data[at : at + size]
                at += size
            if flags & TIME:
                self.time_us, at = self._number(data, begin, at, stop, "time")
            if flags & NUMBER:
                self.number, at = self._number(data, begin, at, stop, "number")
            if flags & PRIORITY:
                if at == stop:
                    self._fail(self.type, "priority does not fit the length", at - begin)
                self.priority = data[at]
                if self.priority > 7:
                    self._fail(self.type, f"priority {self.priority}", at - begin)
                at += 1
            if flags & EXTENSION:
                size, at = self._field(data, begin, at, stop, "extension")
                at += size
        self._frame = data
        self._start = at
        self._stop = stop

    def _number(self, data: bytes, begin: int, at: int, stop: int, field: str) -> tuple[int, int]:
        value, after = _read_varint(data, at, stop)
        if value < 0:
            self._fail(self.type, f"{field} does not fit the length", at - begin)
        return value, after

    def _field(self, data: bytes, begin: int, at: int, stop: int, field: str) -> tuple[int, int]:
        """Size and begin of a field that carries its length."""
        size, after = self._number(data, begin, at, stop, field)
        if size > stop - after:
            self._fail(self.type, f"{field} does not fit the length", at - begin)
        return size, after

    def _clear_fields(self) -> None:
        self.name = None
        self.metadata = None
        self.time_us = -1
        self.number = -1
        self.priority = DEFAULT_PRIORITY

    def _clear_media(self) -> None:
        self.epoch = 0
        self.sequence_number = 0
        self.timestamp = 0
        self.capture_ts = 0
        self.has_capture_ts = False
        self.t1 = self.t2 = self.t3 = 0

    def _take_queued(self) -> bool:
        if not self._queue:
            return False
        self._data = self._queue.popleft()
        self._pos = 0
        self._end = len(self._data)
        self._queued -= self._end
        return True

    def _enter(self, mode: str) -> None:
        if self._mode != mode:
            if self._mode:
                raise ValueError(f"this parser takes the bytes of a {self._mode}")
            self._mode = mode

    def _fail(self, kind: int, what: str, at: int) -> NoReturn:
        """Refuse the input, and whatever would follow it; nothing of it is kept."""
        self._failed = f"frame type {kind:#04x}: {what} at byte {at}"
        self._data = self._frame = b""
        self._pos = self._end = self._start = self._stop = 0
        self._queue.clear()
        self._queued = 0
        self._partial.clear()
        self._need = self._discard = 0
        raise ValueError(self._failed)


# -- bytes -----------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    """RFC 9000, section 16, in the shortest form."""
    if value < 0:
        raise OverflowError(f"{value} is negative")
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 1 << 31).to_bytes(4, "big")
    if value <= MAX_VARINT:
        return (value | 3 << 62).to_bytes(8, "big")
    raise OverflowError(f"{value} does not fit 62 bits")


def _read_varint(data: bytes | bytearray, at: int, end: int) -> tuple[int, int]:
    """Value and what follows it; -1 where it does not end before ``end``."""
    if at >= end:
        return -1, at
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size = 1 << (first >> 6)
    if at + size > end:
        return -1, at
    mask = (1 << (8 * size - 2)) - 1
    return int.from_bytes(data[at : at + size], "big") & mask, at + size


def _size(payload: Buffer) -> int:
    if isinstance(payload, bytes):
        return len(payload)
    view = memoryview(payload)
    if not view.c_contiguous:
        raise ValueError("the payload is not C-contiguous")
    return view.nbytes


def _join(head: bytes, payload: Buffer) -> bytes:
    return b"".join((head, payload))
