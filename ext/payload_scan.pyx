"""A look at msgpack before objects are built from it: docs/wire-format.md, section 6.

The plain-Python twin is echostream/protocol/payload_scan.py: same API, same texts of errors.
"""

from libc.stdint cimport int8_t, int64_t, uint8_t, uint64_t

from echostream._ext.wire cimport be16, be32, borrow, give_back

__all__ = ["scan_payload"]

cdef enum Kind:
    PLAIN
    STR
    EXT
    INVALID
    ARRAY
    MAP

cdef enum:
    DEPTH_MAX = 255

# For each first byte of a msgpack value: kind, bytes of the count that follows, and the count
# where none follows. The count is of bytes, of elements or of entries.
cdef uint8_t KIND[256]
cdef uint8_t WIDTH[256]
cdef uint8_t COUNT[256]


cdef void _lay_out() noexcept:
    cdef int low
    for low in range(16):
        KIND[0x80 + low] = MAP
        KIND[0x90 + low] = ARRAY
        COUNT[0x80 + low] = COUNT[0x90 + low] = <uint8_t>low
    for low in range(32):
        KIND[0xA0 + low] = STR
        COUNT[0xA0 + low] = <uint8_t>low
    KIND[0xC1] = INVALID
    for low in range(3):
        WIDTH[0xC4 + low] = WIDTH[0xC7 + low] = WIDTH[0xD9 + low] = <uint8_t>(1 << low)
        KIND[0xC7 + low] = EXT
        KIND[0xD9 + low] = STR
    for low in range(4):
        COUNT[0xCC + low] = COUNT[0xD0 + low] = <uint8_t>(1 << low)
    for low in range(5):
        KIND[0xD4 + low] = EXT
        COUNT[0xD4 + low] = <uint8_t>(1 << low)
    COUNT[0xCA] = 4
    COUNT[0xCB] = 8
    for low in range(2):
        KIND[0xDC + low] = ARRAY
        KIND[0xDE + low] = MAP
        WIDTH[0xDC + low] = WIDTH[0xDE + low] = <uint8_t>(2 << low)


_lay_out()


def scan_payload(
    object data, int max_depth=32, int64_t max_items=65536, tuple exts=(-1, 1, 2)
):
    """Walk a msgpack value without building objects, and return how many items it has.

    An element of an array is an item, and so is an entry of a map. Raises ``ValueError``, which
    names limit and byte, for: containers nested deeper than ``max_depth`` (at most 255), more than
    ``max_items`` items in all containers together, a map key that is not str, an extension type
    not in ``exts``, a length that the input does not hold, the unused byte 0xc1, bytes after the
    value. Not checked: that a str is UTF-8 and that an extension's body makes sense. Linear time,
    constant memory.
    """
    cdef Py_buffer view
    cdef size_t size = 0
    cdef const uint8_t *p
    if not 0 <= max_depth <= DEPTH_MAX or max_items < 0:
        raise ValueError("max_depth is 0 to 255, and max_items is not negative")
    p = borrow(data, &view, &size)
    try:
        return _scan(p, size, max_depth, <uint64_t>max_items, exts)
    finally:
        give_back(&view)


cdef int64_t _scan(
    const uint8_t *p, size_t size, int max_depth, uint64_t max_items, tuple exts
) except -1:
    cdef uint64_t[DEPTH_MAX] outer_left
    cdef uint8_t[DEPTH_MAX] outer_keyed
    cdef uint64_t left = 1  # values still to come in the innermost container
    cdef uint8_t keyed = 0  # whether it is a map
    cdef uint64_t items = 0, count
    cdef size_t at = 0, begin, width
    cdef int depth = 0
    cdef uint8_t kind, first
    while True:
        if left == 0:
            if depth == 0:
                break
            depth -= 1
            left = outer_left[depth]
            keyed = outer_keyed[depth]
            continue
        if at == size:
            raise ValueError(f"the input ends where a value should begin, at byte {at}")
        begin = at
        first = p[begin]
        kind = KIND[first]
        if keyed and not left & 1 and kind != STR:
            raise ValueError(f"map key that is not str at byte {begin}")
        left -= 1
        at += 1
        width = WIDTH[first]
        if width:
            if width > size - at:
                raise ValueError(f"the input ends inside the value at byte {begin}")
            count = _count(p + at, width)
            at += width
        else:
            count = COUNT[first]
        if kind >= ARRAY:
            if depth == max_depth:
                raise ValueError(f"nested deeper than {max_depth} at byte {begin}")
            items += count
            if items > max_items:
                raise ValueError(f"more than {max_items} items at byte {begin}")
            if kind == MAP:
                count *= 2
            if count > size - at:
                raise ValueError(f"the input is too short for the container at byte {begin}")
            outer_left[depth] = left
            outer_keyed[depth] = keyed
            depth += 1
            left = count
            keyed = kind == MAP
            continue
        if kind == EXT:
            if at == size:
                raise ValueError(f"the input ends inside the value at byte {begin}")
            if <int8_t>p[at] not in exts:
                raise ValueError(f"extension type {<int8_t>p[at]} at byte {begin}")
            at += 1
        elif kind == INVALID:
            raise ValueError(f"byte 0xc1 at byte {begin}")
        if count > size - at:
            raise ValueError(f"the input ends inside the value at byte {begin}")
        at += <size_t>count
    if at < size:
        raise ValueError(f"{size - at} bytes follow the value, at byte {at}")
    return <int64_t>items


cdef inline uint64_t _count(const uint8_t *p, size_t width) noexcept nogil:
    if width == 1:
        return p[0]
    if width == 2:
        return be16(p)
    return be32(p)
