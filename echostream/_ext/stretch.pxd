"""Time-stretch for other compiled modules; contract: ``echostream.media.stretch``."""

cimport cython


@cython.final
cdef class Wsola:
    cdef Py_ssize_t _channels, _shortest, _longest, _step
    cdef double _silence
    cdef float* _mono       # (2 * _longest)
    cdef float* _low        # (2 * _longest)

    cdef Py_ssize_t _seam(
        self, const float* block, Py_ssize_t frames, float threshold, bint several, float* found
    ) noexcept nogil
    cdef void _cut(
        self, const float* block, Py_ssize_t frames, float* out, Py_ssize_t removed
    ) noexcept nogil
