"""Header-only: numbers in network order, QUIC's variable-length integers, borrowed buffers."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_CheckExact
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define ECHOSTREAM_MAX_VARINT ((UINT64_C(1) << 62) - 1)
    """
    const uint64_t MAX_VARINT "ECHOSTREAM_MAX_VARINT"


cdef inline const uint8_t *borrow(object payload, Py_buffer *view, size_t *size) except? NULL:
    """The bytes of a buffer, until :func:`give_back`."""
    view.len = -1  # nothing to give back
    if PyBytes_CheckExact(payload):
        size[0] = len(<bytes>payload)
        return <const uint8_t *><bytes>payload
    try:
        PyObject_GetBuffer(payload, view, PyBUF_SIMPLE)
    except BufferError:
        raise ValueError("the payload is not C-contiguous") from None
    size[0] = <size_t>view.len
    return <const uint8_t *>view.buf


cdef inline void give_back(Py_buffer *view) noexcept:
    if view.len >= 0:
        PyBuffer_Release(view)


cdef inline int check_varint(int64_t value) except -1:
    if value < 0:
        raise OverflowError(f"{value} is negative")
    if value > <int64_t>MAX_VARINT:
        raise OverflowError(f"{value} does not fit 62 bits")
    return 0


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    if value < 1 << 6:
        return 1
    if value < 1 << 14:
        return 2
    if value < 1 << 30:
        return 4
    return 8


cdef inline uint8_t *put_varint(uint8_t *out, uint64_t value) noexcept nogil:
    """RFC 9000, section 16, in the shortest form."""
    if value < 1 << 6:
        out[0] = <uint8_t>value
        return out + 1
    if value < 1 << 14:
        put_be16(out, <uint16_t>(value | 1 << 14))
        return out + 2
    if value < 1 << 30:
        put_be32(out, <uint32_t>(value | <uint64_t>1 << 31))
        return out + 4
    put_be64(out, value | <uint64_t>3 << 62)
    return out + 8


cdef inline size_t get_varint(
    const uint8_t *p, size_t at, size_t stop, uint64_t *value
) noexcept nogil:
    """What follows the number at ``at``, 0 where it does not end before ``stop``."""
    cdef size_t size
    if at >= stop:
        return 0
    size = <size_t>1 << (p[at] >> 6)
    if size > stop - at:
        return 0
    if size == 1:
        value[0] = p[at]
    elif size == 2:
        value[0] = be16(p + at) & 0x3FFF
    elif size == 4:
        value[0] = be32(p + at) & 0x3FFFFFFF
    else:
        value[0] = be64(p + at) & MAX_VARINT
    return at + size


cdef inline uint8_t *put_bytes(uint8_t *out, const uint8_t *p, size_t size) noexcept nogil:
    memcpy(out, p, size)
    return out + size


cdef inline void put_be16(uint8_t *out, uint16_t value) noexcept nogil:
    out[0] = <uint8_t>(value >> 8)
    out[1] = <uint8_t>value


cdef inline void put_be32(uint8_t *out, uint32_t value) noexcept nogil:
    put_be16(out, <uint16_t>(value >> 16))
    put_be16(out + 2, <uint16_t>value)


cdef inline void put_be64(uint8_t *out, uint64_t value) noexcept nogil:
    put_be32(out, <uint32_t>(value >> 32))
    put_be32(out + 4, <uint32_t>value)


cdef inline uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>(<uint16_t>p[0] << 8 | p[1])


cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return <uint32_t>be16(p) << 16 | be16(p + 2)


cdef inline uint64_t be64(const uint8_t *p) noexcept nogil:
    return <uint64_t>be32(p) << 32 | be32(p + 4)
