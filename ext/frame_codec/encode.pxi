"""Frames from their parts, and clock frames back."""


@cython.binding(False)
def encode_frame(
    int type,
    int64_t id,
    object payload=b"",
    int flags=0,
    object name=None,
    bytes metadata=None,
    int64_t time_us=-1,
    int64_t number=-1,
    int priority=-1,
    bytes extension=None,
):
    """One general frame (section 1.1).

    ``flags`` carries END and MARK only: the flags of fields follow from the fields that are given
    (not ``None``, not -1). ``payload`` is any C-contiguous buffer and copied once. Raises
    ``ValueError`` or ``OverflowError`` for what does not fit the wire.
    """
    cdef const char *text = NULL
    cdef Py_ssize_t text_size = 0
    cdef size_t fields = 0, size = 0
    cdef const uint8_t *body
    cdef uint8_t *out
    cdef bytes frame
    cdef Py_buffer view

    if not 0 < type <= GENERAL_MAX:
        raise ValueError(f"type {type:#x} is not that of a general frame")
    if flags & ~(END | MARK):
        raise ValueError(f"flags {flags:#x}: only END and MARK may be given")
    check_varint(id)
    if name is not None:
        text = PyUnicode_AsUTF8AndSize(name, &text_size)
        if not 0 < text_size <= MAX_NAME:
            raise ValueError(f"name of {text_size} bytes, 1 to {MAX_NAME} are possible")
        flags |= NAME
        fields += varint_size(text_size) + text_size
    if metadata is not None:
        if len(metadata) > MAX_METADATA:
            raise ValueError(f"metadata of {len(metadata)} bytes, limit {MAX_METADATA}")
        flags |= METADATA
        fields += varint_size(len(metadata)) + len(metadata)
    if time_us != -1:
        check_varint(time_us)
        flags |= TIME
        fields += varint_size(time_us)
    if number != -1:
        check_varint(number)
        flags |= NUMBER
        fields += varint_size(number)
    if priority != -1:
        if not 0 <= priority <= 7:
            raise ValueError(f"priority {priority}, 0 to 7 are possible")
        flags |= PRIORITY
        fields += 1
    if extension is not None:
        flags |= EXTENSION
        fields += varint_size(len(extension)) + len(extension)

    body = borrow(payload, &view, &size)
    try:
        frame = PyBytes_FromStringAndSize(
            NULL, 2 + varint_size(id) + varint_size(fields + size) + fields + size
        )
        out = <uint8_t *>frame
        out[0] = <uint8_t>type
        out[1] = <uint8_t>flags
        out = put_varint(out + 2, id)
        out = put_varint(out, fields + size)
        if fields:
            if text != NULL:
                out = put_bytes(put_varint(out, text_size), <const uint8_t *>text, text_size)
            if metadata is not None:
                out = put_varint(out, len(metadata))
                out = put_bytes(out, <const uint8_t *>metadata, len(metadata))
            if flags & TIME:
                out = put_varint(out, time_us)
            if flags & NUMBER:
                out = put_varint(out, number)
            if flags & PRIORITY:
                out[0] = <uint8_t>priority
                out += 1
            if extension is not None:
                out = put_varint(out, len(extension))
                out = put_bytes(out, <const uint8_t *>extension, len(extension))
        if size:
            memcpy(out, body, size)
    finally:
        give_back(&view)
    return frame


@cython.binding(False)
def encode_media(
    uint32_t alias,
    uint16_t epoch,
    uint32_t sequence_number,
    uint64_t timestamp,
    object payload,
    int flags=0,
    object capture_ts=None,
):
    """One media frame (section 1.2); CAPTURE_TS is set when ``capture_ts`` (ns) is given.

    ``payload`` is any C-contiguous buffer and copied once: its first byte stands at offset 24 or
    32. Raises ``ValueError`` or ``OverflowError`` for what does not fit the wire.
    """
    cdef size_t size = 0, head = MEDIA_SIZE
    cdef int64_t capture = 0
    cdef const uint8_t *body
    cdef uint8_t *out
    cdef bytes frame
    cdef Py_buffer view

    if flags & ~(MEDIA_FLAGS & ~CAPTURE_TS):
        raise ValueError(f"media flags {flags:#x}: not defined, or implied by an argument")
    if capture_ts is not None:
        capture = capture_ts
        flags |= CAPTURE_TS
        head = HEADER_MAX
    body = borrow(payload, &view, &size)
    try:
        if size > <size_t>0xFFFFFFFF:
            raise ValueError(f"payload of {size} bytes does not fit a media frame")
        frame = PyBytes_FromStringAndSize(NULL, head + size)
        out = <uint8_t *>frame
        out[0] = MEDIA
        out[1] = <uint8_t>flags
        put_be16(out + 2, epoch)
        put_be32(out + 4, alias)
        put_be32(out + 8, sequence_number)
        put_be32(out + 12, <uint32_t>size)
        put_be64(out + 16, timestamp)
        if head == HEADER_MAX:
            put_be64(out + 24, <uint64_t>capture)
        if size:
            memcpy(out + head, body, size)
    finally:
        give_back(&view)
    return frame


def encode_clock(int flags, uint32_t exchange, int64_t t1, int64_t t2=0, int64_t t3=0):
    """One clock frame (section 1.3), 32 bytes; times in ns."""
    cdef bytes frame
    cdef uint8_t *out
    if not 0 <= flags <= 2:
        raise ValueError(f"clock flags {flags:#x} are not defined")
    frame = PyBytes_FromStringAndSize(NULL, CLOCK_SIZE)
    out = <uint8_t *>frame
    out[0] = CLOCK
    out[1] = <uint8_t>flags
    put_be16(out + 2, 0)
    put_be32(out + 4, exchange)
    put_be64(out + 8, <uint64_t>t1)
    put_be64(out + 16, <uint64_t>t2)
    put_be64(out + 24, <uint64_t>t3)
    return frame


def decode_clock(bytes data not None):
    """``(flags, exchange, t1, t2, t3)`` of one clock frame, else ``ValueError``."""
    cdef const uint8_t *p = <const uint8_t *>data
    if len(data) != CLOCK_SIZE:
        raise ValueError(f"a clock frame has {CLOCK_SIZE} bytes, not {len(data)}")
    if p[0] != CLOCK:
        raise ValueError(f"type {p[0]:#04x} is not that of a clock frame")
    if p[1] > 2:
        raise ValueError(f"frame type 0x41: undefined flags {p[1]:#04x} at byte 1")
    return p[1], be32(p + 4), <int64_t>be64(p + 8), <int64_t>be64(p + 16), <int64_t>be64(p + 24)
