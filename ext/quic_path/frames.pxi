"""A packet's frames, found and measured before any of them has an effect."""

cdef enum:
    MOST_FRAMES = 256  # of one packet; the plain method reads longer ones

cdef enum FrameType:
    PADDING = 0x00
    PING = 0x01
    ACK = 0x02
    ACK_ECN = 0x03
    RESET_STREAM = 0x04
    STOP_SENDING = 0x05
    STREAM = 0x08
    LAST_STREAM = 0x0F
    MAX_STREAM_DATA = 0x11
    STREAM_DATA_BLOCKED = 0x15
    FIRST_LIMIT = 0x10
    LAST_LIMIT = 0x17
    DATAGRAM = 0x30
    DATAGRAM_WITH_LENGTH = 0x31

cdef struct Frame:
    uint8_t type
    size_t start  # after the type
    size_t body  # of STREAM and DATAGRAM: where the data begins; of ACK_ECN: the counts
    size_t stop
    uint64_t number  # STREAM: its id; ACK: the largest acknowledged
    uint64_t offset  # STREAM: of the data; ACK: the delay
    uint64_t ranges  # ACK: how many follow the first


cdef Py_ssize_t scan(const uint8_t *p, size_t size, Frame *frames, bint *eliciting) noexcept nogil:
    """How many frames ``frames`` was given, without PADDING; below 0 where the plain method must
    read the packet: it is malformed, or has other frames than the usual ones."""
    cdef Py_ssize_t count = 0
    cdef size_t at = 0, after, each, fields
    cdef uint64_t value = 0
    cdef Frame *frame
    eliciting[0] = False
    if size == 0:
        return -1
    while at < size:
        if p[at] == PADDING:
            at += 1
            continue
        if count == MOST_FRAMES:
            return -1
        frame = frames + count
        frame.type = p[at]
        at += 1
        frame.start = at
        if frame.type == ACK or frame.type == ACK_ECN:
            at = scan_ack(p, at, size, frame)
        elif STREAM <= frame.type <= LAST_STREAM:
            at = scan_stream(p, at, size, frame)
        elif frame.type == DATAGRAM or frame.type == DATAGRAM_WITH_LENGTH:
            value = size - at
            if frame.type == DATAGRAM_WITH_LENGTH:
                at = get_varint(p, at, size, &value)
                if at == 0:
                    return -1
            frame.body = at
            at = at + <size_t>value if value <= size - at else 0
        else:
            if frame.type == PING:
                fields = 0
            elif frame.type == RESET_STREAM:
                fields = 3
            elif frame.type in (STOP_SENDING, MAX_STREAM_DATA, STREAM_DATA_BLOCKED):
                fields = 2
            elif FIRST_LIMIT <= frame.type <= LAST_LIMIT:
                fields = 1
            else:
                return -1
            for each in range(fields):
                at = get_varint(p, at, size, &value)
                if at == 0:
                    return -1
        if at == 0:
            return -1
        if frame.type != ACK and frame.type != ACK_ECN:
            eliciting[0] = True
        frame.stop = at
        count += 1
    return count


cdef inline size_t scan_stream(
    const uint8_t *p, size_t at, size_t size, Frame *frame
) noexcept nogil:
    cdef uint64_t length
    at = get_varint(p, at, size, &frame.number)
    if at == 0:
        return 0
    frame.offset = 0
    if frame.type & 4:
        at = get_varint(p, at, size, &frame.offset)
        if at == 0:
            return 0
    length = size - at
    if frame.type & 2:
        at = get_varint(p, at, size, &length)
        if at == 0:
            return 0
    if length > size - at or frame.offset > MAX_VARINT - length:
        return 0
    frame.body = at
    return at + <size_t>length


cdef size_t scan_ack(const uint8_t *p, size_t at, size_t size, Frame *frame) noexcept nogil:
    cdef uint64_t left, gap = 0, length = 0, each
    at = get_varint(p, at, size, &frame.number)
    if at:
        at = get_varint(p, at, size, &frame.offset)
    if at:
        at = get_varint(p, at, size, &frame.ranges)
    if at:
        at = get_varint(p, at, size, &length)
    if at == 0 or length > frame.number or frame.ranges > size:
        return 0
    left = frame.number - length
    for each in range(frame.ranges):
        at = get_varint(p, at, size, &gap)
        if at:
            at = get_varint(p, at, size, &length)
        if at == 0 or gap + 2 > left or length > left - gap - 2:
            return 0
        left -= gap + 2 + length
    frame.body = at
    if frame.type == ACK_ECN:
        for each in range(3):
            if at:
                at = get_varint(p, at, size, &gap)
    return at


cdef int pull_ranges(const uint8_t *p, size_t size, const Frame *frame, Ranges into) except -1:
    """The numbers of an ACK frame that was scanned. They come in descending order and never
    touch."""
    cdef uint64_t value = 0, each
    cdef size_t at = frame.start
    cdef int64_t stop
    cdef int64_t *item
    cdef Py_ssize_t count = <Py_ssize_t>frame.ranges + 1
    for each in range(3):
        at = get_varint(p, at, size, &value)
    into.count = 0
    into.reserve(count)
    into.count = count
    stop = <int64_t>frame.number + 1
    item = into.items + 2 * (count - 1)
    while True:
        at = get_varint(p, at, size, &value)
        item[1] = stop
        item[0] = stop - 1 - <int64_t>value
        count -= 1
        if not count:
            return 0
        at = get_varint(p, at, size, &value)
        stop = item[0] - 1 - <int64_t>value
        item -= 2


cdef const int64_t *pull_counts(
    const uint8_t *p, size_t size, const Frame *frame, int64_t *into
) noexcept nogil:
    """The ECN counts of an ACK frame that was scanned; NULL where it has none."""
    cdef size_t at = frame.body, each
    cdef uint64_t value = 0
    if frame.type != ACK_ECN:
        return NULL
    for each in range(3):
        at = get_varint(p, at, size, &value)
        into[each] = <int64_t>value
    return into


cdef size_t put_ranges(
    uint8_t *body, Ranges ranges, uint64_t delay, Py_ssize_t room, Py_ssize_t *written
) noexcept:
    """Write an ACK frame's body of at most ``room`` bytes, without the oldest ranges that may not
    fit (RFC 9000, section 13.2.3); mirrors ``push_ack_frame``."""
    cdef uint8_t *out = body
    cdef Py_ssize_t count = ranges.count, at = ranges.count - 1, oldest, size
    cdef int64_t start = ranges.items[2 * at], stop = ranges.items[2 * at + 1]
    if 16 * (count + 1) > room:
        size = <Py_ssize_t>varint_size(max(<uint64_t>(stop - 1), delay))
        count = min(count, room // (2 * size) - 1)
    oldest = at - count + 1
    out = put_varint(out, <uint64_t>(stop - 1))
    out = put_varint(out, delay)
    out = put_varint(out, <uint64_t>(count - 1))
    out = put_varint(out, <uint64_t>(stop - 1 - start))
    while at > oldest:
        at -= 1
        stop = ranges.items[2 * at + 1]
        out = put_varint(out, <uint64_t>(start - stop - 1))
        start = ranges.items[2 * at]
        out = put_varint(out, <uint64_t>(stop - start - 1))
    written[0] = count
    return <size_t>out - <size_t>body
