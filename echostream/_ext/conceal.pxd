"""Concealment for other compiled modules; contract: ``echostream.media.conceal``."""

cimport cython
from libc.stdint cimport uint32_t


@cython.final
cdef class Extrapolator:
    cdef Py_ssize_t _rate, _channels, _shortest, _longest, _step, _merge
    cdef Py_ssize_t _split, _delay, _size, _total, _low_size, _high_size, _order
    cdef Py_ssize_t _known, _at             # frames of the extension: computed, played
    cdef bint _voice, _concealing, _silent
    cdef float* _history                    # (channels, 2 * _size): what was played ...
    cdef Py_ssize_t _start                  # ... is _size frames from here on
    cdef float* _extension                  # (channels, _total)
    cdef float* _planar                     # (channels, _merge)
    cdef float* _bent                       # (_merge, channels)
    cdef float* _mono                       # (2 * _longest)
    cdef float* _coarse                     # (2 * _longest)
    cdef double* _noise                     # (channels, NOISE_ORDER + _total)
    cdef double* _low                       # (channels, _low_size)
    cdef double* _high                      # (channels, LOW_WINDOW + _total)
    cdef double* _models                    # (channels, LOW_ORDER), coefficients last to first
    cdef double* _high_models               # (channels, HIGH_ORDER)
    cdef double* _levels                    # (channels)
    cdef double* _forward                   # (_window): what _burg fits, then its scratch
    cdef double* _backward                  # (_window)
    cdef double* _weights                   # (_window)
    cdef double* _filter                    # (2 * _delay + 1)
    cdef float* _floats
    cdef double* _doubles
    cdef Py_ssize_t _lags[3]
    cdef Py_ssize_t _overlap, _loop, _previous, _place
    cdef double _voicing
    cdef Py_ssize_t _window, _low_known, _high_known
    cdef uint32_t _random

    cdef int _carve(self) except -1
    cdef int _check(self, Py_ssize_t channels) except -1

cdef void remember(Extrapolator c, const float* samples, Py_ssize_t frames) noexcept nogil
cdef void end_gap(Extrapolator c) noexcept nogil
cdef void conceal(Extrapolator c, float* out, Py_ssize_t frames) noexcept nogil
cdef void merge_into(Extrapolator c, float* samples, Py_ssize_t frames) noexcept nogil
