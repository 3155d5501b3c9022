# cython: auto_pickle=False, autotestdict=False
"""The published map between two clocks, read without a lock.

The plain-Python twin, with the same names, is :mod:`echostream.media.clock_map`, whose
docstrings hold the contracts.
"""

cimport cython
from libc.math cimport llrint
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint32_t

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <intrin.h>
    #if defined(_M_ARM64)
    #define echo_fence() __dmb(_ARM64_BARRIER_ISH)
    #else
    #define echo_fence() _ReadWriteBarrier()
    #endif
    #else
    #define echo_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif
    """
    void echo_fence() noexcept nogil

cdef struct Pieces:
    int64_t local0, remote0, local1, remote1
    double rate0, rate1


cdef inline int64_t _clip(double value) noexcept nogil:
    if value >= 9223372036854775807.0:
        return INT64_MAX
    if value <= -9223372036854775808.0:
        return INT64_MIN
    return llrint(value)


cdef inline int64_t _plus(int64_t a, int64_t b) noexcept nogil:
    """``a + b``, saturated."""
    if b > 0 and a > INT64_MAX - b:
        return INT64_MAX
    if b < 0 and a < INT64_MIN - b:
        return INT64_MIN
    return a + b


cdef inline int64_t _minus(int64_t a, int64_t b) noexcept nogil:
    if b < 0 and a > INT64_MAX + b:
        return INT64_MAX
    if b > 0 and a < INT64_MIN + b:
        return INT64_MIN
    return a - b


cdef inline int64_t _scaled(int64_t elapsed, double rate) noexcept nogil:
    """``elapsed * (1 + rate)``: only the small part goes through float64."""
    return _plus(elapsed, _clip(<double>elapsed * rate))


@cython.final
cdef class ClockMap:
    """See :class:`echostream.media.clock_map.ClockMap`.

    A sequence lock (Lameter 2005): the writer makes the count odd, writes, makes it even; a
    reader copies and starts again where the count was odd or has moved.
    """

    cdef volatile uint32_t _count
    cdef Pieces _pieces
    cdef public bint used

    def set(self, int64_t local0, int64_t remote0, double rate0, int64_t local1, double rate1):
        cdef Pieces pieces
        pieces.local0 = local0
        pieces.remote0 = remote0
        pieces.local1 = local1
        pieces.remote1 = _plus(remote0, _scaled(_minus(local1, local0), rate0))
        pieces.rate0 = rate0
        pieces.rate1 = rate1
        self._count += 1
        echo_fence()
        self._pieces = pieces
        echo_fence()
        self._count += 1

    def to_remote(self, int64_t local_ns):
        self.used = True
        return self._to_remote(local_ns)

    def peek(self, int64_t local_ns):
        return self._to_remote(local_ns)

    def to_local(self, int64_t remote_ns):
        self.used = True
        return self._to_local(remote_ns)

    cdef Pieces _read(self) noexcept nogil:
        cdef Pieces pieces
        cdef uint32_t count
        while True:
            count = self._count
            echo_fence()
            pieces = self._pieces
            echo_fence()
            if count == self._count and not count & 1:
                return pieces

    cdef int64_t _to_remote(self, int64_t local_ns) noexcept nogil:
        cdef Pieces at = self._read()
        if local_ns >= at.local1:
            return _plus(at.remote1, _scaled(_minus(local_ns, at.local1), at.rate1))
        return _plus(at.remote0, _scaled(
            _minus(local_ns, at.local0), at.rate0 if local_ns >= at.local0 else at.rate1
        ))

    cdef int64_t _to_local(self, int64_t remote_ns) noexcept nogil:
        cdef Pieces at = self._read()
        cdef double rate
        if remote_ns >= at.remote1:
            rate = at.rate1 / (1.0 + at.rate1)
            return _plus(at.local1, _scaled(_minus(remote_ns, at.remote1), -rate))
        rate = at.rate0 if remote_ns >= at.remote0 else at.rate1
        rate = rate / (1.0 + rate)
        return _plus(at.local0, _scaled(_minus(remote_ns, at.remote0), -rate))
