"""Frames from a stream or from DATAGRAMs."""


@cython.final
cdef class FrameParser:
    """Cuts the bytes of one QUIC stream, or of DATAGRAMs, into frames.

    A cursor: :meth:`next` moves to the next frame, whose parts are then attributes of the parser
    until :meth:`next` is called again. Either :meth:`feed` or :meth:`parse_datagram` is used on
    one parser, not both.

    ``max_length`` bounds a frame's ``length`` (fields and payload; section 1.1). A longer frame is
    reported once with ``oversize`` set, as soon as its header is there, and its body is discarded
    as it arrives. What is held is at most one frame, and what was fed since :meth:`next` last
    returned ``False``. Time is linear in the bytes, however they are split.

    Malformed input raises ``ValueError``, which tells what was wrong and at which byte of the
    frame; a stream's parser then refuses everything.

    Attributes of a general frame: ``type``, ``flags``, ``id``, ``name``, ``metadata`` (msgpack),
    ``time_us`` and ``number`` (-1 where absent), ``priority``. Of a media frame: ``type``,
    ``flags``, ``id`` (the alias), ``epoch``, ``sequence_number``, ``timestamp``,
    ``has_capture_ts``, ``capture_ts`` (ns, else 0). Of a clock frame: ``type``, ``flags``, ``id``
    (the exchange), ``t1``, ``t2``, ``t3``. Of each: ``payload``, ``oversize`` and ``size`` (bytes
    on the wire). What a frame does not have shows its absence, never the value of an earlier frame.
    """

    cdef readonly size_t max_length
    cdef readonly size_t max_metadata
    cdef readonly uint64_t skipped_frames
    cdef readonly int type
    cdef readonly int flags
    cdef readonly int64_t id
    cdef readonly uint64_t size
    cdef readonly bint oversize
    cdef readonly str name
    cdef readonly bytes metadata
    cdef readonly int64_t time_us
    cdef readonly int64_t number
    cdef readonly int priority
    cdef readonly int epoch
    cdef readonly uint32_t sequence_number
    cdef readonly uint64_t timestamp
    cdef readonly int64_t capture_ts
    cdef readonly bint has_capture_ts
    cdef readonly int64_t t1
    cdef readonly int64_t t2
    cdef readonly int64_t t3

    cdef Mode _mode  # fixed by first use
    cdef str _failed
    # The chunk that is being read, and those that were fed since.
    cdef bytes _data
    cdef const uint8_t *_bytes
    cdef size_t _pos
    cdef size_t _end
    cdef object _queue
    cdef size_t _queued
    # A frame that began in an earlier chunk. While its header is incomplete, _need is 0 and its
    # _have bytes are in _head; then _partial is a bytes object of _capacity that becomes the
    # frame's own. It grows with what has come, not with what a header promises.
    cdef uint8_t[HEADER_MAX] _head
    cdef bytes _partial
    cdef size_t _capacity
    cdef size_t _have
    cdef size_t _need
    cdef size_t _header_size
    cdef uint64_t _length
    cdef uint64_t _discard  # bytes still to come of a frame that is not wanted
    # The bytes that hold the current payload, and a view of all of them once one was asked for.
    cdef bytes _frame
    cdef object _view
    cdef size_t _start
    cdef size_t _stop
    # The last name: the same few come again and again, and need no new str then.
    cdef uint8_t[MAX_NAME] _name_bytes
    cdef size_t _name_size
    cdef str _name

    def __cinit__(self, size_t max_length, size_t max_metadata=MAX_METADATA):
        self.max_length = max_length
        self.max_metadata = max_metadata
        self._mode = UNUSED
        self._data = self._frame = b""
        self._bytes = <const uint8_t *>self._data
        self._queue = deque()
        self._clear_fields()

    def feed(self, bytes data not None):
        """Take the next bytes of the stream. Payloads are views into ``data`` where they can be."""
        self._enter(STREAM)
        if self._failed is not None:
            raise ValueError(self._failed)
        if self._pos == self._end and self._queued == 0:
            self._read(data)
        elif len(data):
            self._queue.append(data)
            self._queued += len(data)

    def parse_datagram(self, bytes data not None):
        """Take one DATAGRAM and move to its first frame; :meth:`next` moves to the following ones.

        ``False`` when it carries frames of unknown types only. Raises ``ValueError`` unless the
        frame is complete; the next DATAGRAM may then still be parsed.
        """
        self._enter(DATAGRAM)
        self._failed = None
        self._discard = 0
        self._read(data)
        if self._end == 0:
            self._fail(0, "empty DATAGRAM", 0)
        return self._next()

    def next(self):
        """Move to the next frame; ``False`` when its bytes have not all arrived."""
        return self._next()

    @property
    def payload(self):
        """The payload, a read-only view that keeps the bytes below it alive.

        It points into the chunk that was fed when the frame lay within one, else into bytes of
        its own.
        """
        if self._view is None:
            self._view = memoryview(self._frame)
        return self._view[self._start:self._stop]

    def payload_bytes(self):
        """A copy of the payload; for small ones cheaper than the view."""
        return PyBytes_FromStringAndSize(
            <const char *>self._frame + self._start, self._stop - self._start
        )

    @property
    def buffered(self):
        """Bytes held that belong to no frame yet."""
        return self._have + self._end - self._pos + self._queued

    # -- below: one frame ------------------------------------------------------------------------

    cdef bint _next(self) except -1:
        cdef uint64_t count
        if self._failed is not None:
            raise ValueError(self._failed)
        while self._pos < self._end or self._take_queued():
            if self._discard:
                count = min(self._discard, <uint64_t>(self._end - self._pos))
                self._discard -= count
                self._pos += <size_t>count
            elif self._have:
                if self._assemble():
                    return True
            elif self._direct():
                return True
        self._release()
        return False

    cdef bint _direct(self) except -1:
        """The frame that begins at the cursor; what is incomplete is put aside."""
        cdef const uint8_t *p = self._bytes + self._pos
        cdef size_t left = self._end - self._pos, begin = self._pos
        cdef size_t header = <size_t>self._parse_header(p, left)
        cdef uint64_t total = header + self._length
        if self._mode == DATAGRAM and (header == 0 or total > left):
            self._fail(p[0], "DATAGRAM ends inside the frame", left)
        if header == 0:
            memcpy(self._head, p, left)
            self._have = left
            self._pos = self._end
            return False
        if self._unwanted(begin + header, total, total):
            return self.oversize
        if total > left:
            self._set_aside(p, left, <size_t>total, header)
            self._pos = self._end
            return False
        self._pos += <size_t>total
        self._parse_body(self._data, p, begin, header, <size_t>total)
        return True

    cdef bint _assemble(self) except -1:
        """Go on with a frame that began in an earlier chunk."""
        cdef const uint8_t *p = self._bytes + self._pos
        cdef size_t left = self._end - self._pos
        cdef size_t before, count, header
        cdef uint64_t total
        cdef bytes frame
        if self._need == 0:
            before = self._have
            count = min(HEADER_MAX - before, left)
            memcpy(self._head + before, p, count)
            header = <size_t>self._parse_header(self._head, before + count)
            if header == 0:
                self._have += count
                self._pos += count
                return False
            total = header + self._length
            count = header - before  # of the header, in this chunk
            self._have = 0
            if self._unwanted(self._pos + count, total, total - before):
                return self.oversize
            self._set_aside(self._head, header, <size_t>total, header)
            self._pos += count
            p += count
            left -= count
        count = min(self._need - self._have, left)
        self._append(p, count)
        self._pos += count
        if self._have < self._need:
            return False
        frame = self._partial
        self._partial = None
        self._have = self._need = 0
        self._parse_body(frame, <const uint8_t *>frame, 0, self._header_size, len(frame))
        return True

    cdef int _set_aside(
        self, const uint8_t *p, size_t have, size_t need, size_t header
    ) except -1:
        """Keep the first bytes of a frame whose header is known."""
        self._capacity = min(need, max(2 * have, <size_t>FIRST_CAPACITY))
        self._partial = PyBytes_FromStringAndSize(NULL, self._capacity)
        memcpy(<uint8_t *>self._partial, p, have)
        self._have = have
        self._need = need
        self._header_size = header
        return 0

    cdef int _append(self, const uint8_t *p, size_t count) except -1:
        """Add to the frame that was set aside; doubling keeps the whole linear."""
        cdef size_t needed = self._have + count, capacity
        cdef bytes larger
        if needed > self._capacity:
            capacity = min(self._need, max(2 * self._capacity, needed))
            larger = PyBytes_FromStringAndSize(NULL, capacity)
            memcpy(<uint8_t *>larger, <const uint8_t *>self._partial, self._have)
            self._partial = larger
            self._capacity = capacity
        memcpy(<uint8_t *>self._partial + self._have, p, count)
        self._have = needed
        return 0

    cdef bint _unwanted(self, size_t body, uint64_t total, uint64_t rest) except -1:
        """Whether the frame is of an unknown type or too long; ``body`` is where its body begins
        in the chunk, ``rest`` the bytes of it from the cursor on. ``oversize`` tells which."""
        self.oversize = False
        if self.type <= GENERAL_MAX and not KNOWN[self.type]:
            self.skipped_frames += 1
            self._discard = rest
            return True
        if self._length <= self.max_length:
            return False
        self.oversize = True
        self._discard = self._length
        self._pos = body
        self.size = total
        self._show(b"", 0, 0)
        if self.type <= GENERAL_MAX and self.flags & NAME:
            self._early_name(body)
        return True

    cdef int _early_name(self, size_t at) except -1:
        """The name of a frame that is discarded, where it is there and well-formed."""
        cdef uint64_t size = 0
        cdef size_t stop = self._end
        cdef size_t after
        if self._length < stop - at:
            stop = at + <size_t>self._length
        after = get_varint(self._bytes, at, stop, &size)
        if after and 0 < size <= MAX_NAME and size <= stop - after:
            try:
                self._set_name(self._bytes + after, <size_t>size)
            except UnicodeDecodeError:
                pass
        return 0

    cdef Py_ssize_t _parse_header(self, const uint8_t *p, size_t left) except -1:
        """Read a header into the attributes; its size, 0 while it is incomplete."""
        cdef uint64_t id = 0, length = 0
        cdef size_t at
        cdef int kind = p[0]
        if 0 < kind <= GENERAL_MAX:
            at = get_varint(p, 2, left, &id)
            if at == 0:
                return 0
            at = get_varint(p, at, left, &length)
            if at == 0:
                return 0
            if self.type >= MEDIA:
                self._clear_media()
            self._clear_fields()
            self.type = kind
            self.flags = p[1]
            self.id = <int64_t>id
            self._length = length
            return <Py_ssize_t>at
        if kind == MEDIA:
            return self._parse_media_header(p, left)
        if kind != CLOCK:
            self._fail(kind, "type that is not defined", 0)
        if self._mode == STREAM:
            self._fail(kind, "clock frame outside a DATAGRAM", 0)
        if left < CLOCK_SIZE:
            return 0
        if p[1] > 2:
            self._fail(kind, f"undefined flags {p[1]:#04x}", 1)
        self._clear_fields()
        self._clear_media()
        self.type = kind
        self.flags = p[1]
        self.id = be32(p + 4)
        self.t1 = <int64_t>be64(p + 8)
        self.t2 = <int64_t>be64(p + 16)
        self.t3 = <int64_t>be64(p + 24)
        self._length = 0
        return CLOCK_SIZE

    cdef Py_ssize_t _parse_media_header(self, const uint8_t *p, size_t left) except -1:
        cdef size_t size
        if left < 2:
            return 0
        if p[1] & ~MEDIA_FLAGS:
            self._fail(MEDIA, f"undefined flags {p[1]:#04x}", 1)
        size = HEADER_MAX if p[1] & CAPTURE_TS else MEDIA_SIZE
        if left < size:
            return 0
        self._clear_fields()
        self._clear_media()
        self.type = MEDIA
        self.flags = p[1]
        self.epoch = be16(p + 2)
        self.id = be32(p + 4)
        self.sequence_number = be32(p + 8)
        self._length = be32(p + 12)
        self.timestamp = be64(p + 16)
        if size == HEADER_MAX:
            self.has_capture_ts = True
            self.capture_ts = <int64_t>be64(p + 24)
        return <Py_ssize_t>size

    cdef int _parse_body(
        self, bytes frame, const uint8_t *p, size_t begin, size_t at, size_t stop
    ) except -1:
        """Read the fields of a complete frame and set its payload. Offsets are those in the frame,
        which begins at ``p``, the byte ``begin`` of ``frame``."""
        cdef int flags = self.flags & FIELDS
        cdef uint64_t size = 0
        cdef size_t start
        self.size = stop
        if flags and self.type <= GENERAL_MAX:
            if flags & NAME:
                start = at
                at = self._field(p, at, stop, &size, "name")
                if not 0 < size <= MAX_NAME:
                    self._fail(self.type, f"name of {size} bytes", start)
                try:
                    self._set_name(p + at, <size_t>size)
                except UnicodeDecodeError:
                    self._fail(self.type, "name that is not UTF-8", at)
                at += <size_t>size
            if flags & METADATA:
                start = at
                at = self._field(p, at, stop, &size, "metadata")
                if size > self.max_metadata:
                    self._fail(self.type, f"metadata of {size} bytes", start)
                self.metadata = PyBytes_FromStringAndSize(<const char *>p + at, <Py_ssize_t>size)
                at += <size_t>size
            if flags & TIME:
                at = self._number(p, at, stop, &size, "time")
                self.time_us = <int64_t>size
            if flags & NUMBER:
                at = self._number(p, at, stop, &size, "number")
                self.number = <int64_t>size
            if flags & PRIORITY:
                if at == stop:
                    self._fail(self.type, "priority does not fit the length", at)
                self.priority = p[at]
                if self.priority > 7:
                    self._fail(self.type, f"priority {self.priority}", at)
                at += 1
            if flags & EXTENSION:
                at = self._field(p, at, stop, &size, "extension")
                at += <size_t>size
        self._show(frame, begin + at, begin + stop)
        return 0

    cdef size_t _number(
        self, const uint8_t *p, size_t at, size_t stop, uint64_t *value, str field
    ) except 0:
        cdef size_t after = get_varint(p, at, stop, value)
        if after == 0:
            self._fail(self.type, f"{field} does not fit the length", at)
        return after

    cdef size_t _field(
        self, const uint8_t *p, size_t at, size_t stop, uint64_t *size, str field
    ) except 0:
        """Begin of a field that carries its length."""
        cdef size_t after = self._number(p, at, stop, size, field)
        if size[0] > stop - after:
            self._fail(self.type, f"{field} does not fit the length", at)
        return after

    cdef int _set_name(self, const uint8_t *p, size_t size) except -1:
        if size != self._name_size or memcmp(p, self._name_bytes, size) != 0:
            self._name_size = 0
            self._name = PyUnicode_DecodeUTF8(<const char *>p, size, NULL)
            memcpy(self._name_bytes, p, size)
            self._name_size = size
        self.name = self._name
        return 0

    cdef void _show(self, bytes frame, size_t start, size_t stop) noexcept:
        if self._frame is not frame:
            self._frame = frame
            self._view = None
        self._start = start
        self._stop = stop

    cdef void _clear_fields(self) noexcept:
        self.name = None
        self.metadata = None
        self.time_us = -1
        self.number = -1
        self.priority = DEFAULT_PRIORITY

    cdef void _clear_media(self) noexcept:
        self.epoch = 0
        self.sequence_number = 0
        self.timestamp = 0
        self.capture_ts = 0
        self.has_capture_ts = False
        self.t1 = self.t2 = self.t3 = 0

    cdef void _read(self, bytes data) noexcept:
        self._data = data
        self._bytes = <const uint8_t *>data
        self._pos = 0
        self._end = len(data)

    cdef bint _take_queued(self) except -1:
        if self._queued == 0:
            return False
        self._read(self._queue.popleft())
        self._queued -= self._end
        return True

    cdef void _release(self) noexcept:
        """Let go of chunk and payload: both may be large, and nobody knows when more will come."""
        self._read(b"")
        self._show(b"", 0, 0)

    cdef int _enter(self, Mode mode) except -1:
        if self._mode != mode:
            if self._mode != UNUSED:
                name = "stream" if self._mode == STREAM else "DATAGRAM"
                raise ValueError(f"this parser takes the bytes of a {name}")
            self._mode = mode
        return 0

    cdef int _fail(self, int kind, str what, size_t at) except -1:
        """Refuse the input, and whatever would follow it; nothing of it is kept."""
        self._failed = f"frame type {kind:#04x}: {what} at byte {at}"
        self._release()
        self._queue.clear()
        self._queued = 0
        self._partial = None
        self._have = self._need = 0
        self._discard = 0
        raise ValueError(self._failed)
