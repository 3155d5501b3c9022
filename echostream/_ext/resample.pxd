"""The resampler for other compiled modules; contract: ``echostream.media.resample``."""

cimport cython
from libc.stdint cimport int64_t


@cython.final
cdef class Polyphase:
    cdef const float[:, :, ::1] _table      # keeps the memory of _rows alive
    cdef const float* _rows
    cdef float* _held                       # (channels, _capacity)
    cdef Py_ssize_t _channels, _n_taps, _capacity
    cdef Py_ssize_t _filled, _base          # held frames; first frame of the next output's window
    cdef int _shift
    cdef int64_t _fraction, _step

    cdef double _pending_frames(self) noexcept nogil
    cdef void _reset(self) noexcept nogil
    cdef Py_ssize_t _needed(self, Py_ssize_t frames) noexcept nogil
    cdef Py_ssize_t _process(
        self, const float* source, Py_ssize_t n_in, float* out, Py_ssize_t n_out,
        Py_ssize_t* consumed,
    ) noexcept nogil
    cdef Py_ssize_t _produce(self, float* out, Py_ssize_t frames) noexcept nogil
    cdef void _discard(self) noexcept nogil
