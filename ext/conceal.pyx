"""Continue audio that was lost: by its pitch periods (voice), or by its spectrum (music).

Both write an *extension* of what was heard, planar and at full level, as far as it is asked for;
what is played of it is faded. Voice repeats the last periods, mixed with noise of the same colour. Music
is split into a low band at about 11 kHz, which autoregression of high order follows through chords,
and the rest, for which a low order at the full rate does.
"""

cimport cython
from libc.math cimport M_PI, cos, exp, fabs, sin, sqrt
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from echostream._ext.signal cimport (
    MAX_CHANNELS, cross_fade, decimation, find_lag, mono_reference,
)
from echostream._ext.vector cimport es_dot, es_dot64, es_lattice

cdef enum:
    NOISE_ORDER = 16
    HIGH_ORDER = 32
    LOW_ORDER = 192
    LOW_WINDOW = 1024
    LOW_RATE = 11000                        # Hz, about
    WORK = 2 * LOW_ORDER * LOW_WINDOW       # multiply-adds per model of all channels together
    SIDE_LOBES = 4                          # half length of the band filter, in low samples
    FULL_MS = 20
    SLOW_MS = 60
    LONGEST_GAP_MS = 105                    # by then all is silent

cdef double LIMIT = 16.0                    # full scale is 1; what is louder is not audio
cdef double HISS = 0.5                      # of the prediction error's amplitude
cdef double DITHER = 1e-4                   # of the low band's level
cdef double SLOW_PER_MS = 0.008
cdef double FAST_PER_MS = 0.016

include "conceal/model.pxi"
include "conceal/voice.pxi"
include "conceal/music.pxi"
include "conceal/gap.pxi"


@cython.final
cdef class Extrapolator:
    """Contract: ``echostream.media.conceal.Concealer``."""

    def __cinit__(self, Py_ssize_t rate, Py_ssize_t channels, bint voice):
        if not 8000 <= rate <= 192000:
            raise ValueError("rate must be 8000 to 192000 Hz")
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {MAX_CHANNELS}")
        self._rate = rate
        self._channels = channels
        self._voice = voice
        self._window = rate // 50 if voice else <Py_ssize_t>LOW_WINDOW
        self._shortest = rate // 400
        self._longest = rate * 15 // 1000
        self._step = decimation(rate)
        self._merge = rate // 200
        self._split = max(1, (rate + LOW_RATE // 2) // LOW_RATE)
        self._delay = SIDE_LOBES * self._split if self._split > 1 else 0
        self._size = (
            self._longest * 5 // 2 if voice else (LOW_WINDOW - 1) * self._split + 2 * self._delay + 1
        )
        self._total = rate * LONGEST_GAP_MS // 1000 + self._longest
        self._order = min(<Py_ssize_t>LOW_ORDER, WORK // (LOW_WINDOW * channels))
        self._order = max(<Py_ssize_t>NOISE_ORDER, self._order)
        self._low_size = (
            0 if voice else LOW_WINDOW + self._total // self._split + 2 * SIDE_LOBES + 2
        )
        self._high_size = 0 if voice else LOW_WINDOW + self._total
        self._random = 0x9E3779B9
        self._carve()

    cdef int _carve(self) except -1:
        """One block of floats and one of doubles, cut up; nothing else is ever allocated."""
        cdef Py_ssize_t channels = self._channels, window = self._window, i
        cdef Py_ssize_t noise = NOISE_ORDER + self._total if self._voice else 0
        cdef float* floats
        cdef double* doubles
        self._floats = floats = <float*>calloc(
            channels * (2 * self._size + self._total + 2 * self._merge) + 4 * self._longest, sizeof(float)
        )
        self._doubles = doubles = <double*>calloc(
            channels * (noise + self._low_size + self._high_size + LOW_ORDER + HIGH_ORDER + 1)
            + 3 * window + 2 * self._delay + 1, sizeof(double),
        )
        if floats == NULL or doubles == NULL:
            raise MemoryError()
        self._history = floats
        self._extension = self._history + 2 * channels * self._size
        self._planar = self._extension + channels * self._total
        self._bent = self._planar + channels * self._merge
        self._mono = self._bent + channels * self._merge
        self._coarse = self._mono + 2 * self._longest
        self._noise = doubles
        self._low = self._noise + channels * noise
        self._high = self._low + channels * self._low_size
        self._models = self._high + channels * self._high_size
        self._high_models = self._models + channels * LOW_ORDER
        self._levels = self._high_models + channels * HIGH_ORDER
        self._forward = self._levels + channels
        self._backward = self._forward + window
        self._weights = self._backward + window
        self._filter = self._weights + window
        for i in range(window):
            self._weights[i] = 0.54 - 0.46 * cos(2.0 * M_PI * i / (window - 1))
        split_filter(self._filter, self._split, self._delay)
        return 0

    def __dealloc__(self):
        free(self._floats)
        free(self._doubles)

    @property
    def concealing(self) -> bool:
        return self._concealing

    @property
    def gain(self) -> float:
        return gain_at(self, self._at) if self._concealing else 1.0

    def heard(self, const float[:, ::1] samples not None) -> None:
        self._check(samples.shape[1])
        with nogil:
            end_gap(self)
            if samples.shape[0]:
                remember(self, &samples[0, 0], samples.shape[0])

    def conceal(self, float[:, ::1] out not None) -> None:
        self._check(out.shape[1])
        if out.shape[0]:
            with nogil:
                conceal(self, &out[0, 0], out.shape[0])

    def merge(self, float[:, ::1] samples not None) -> None:
        self._check(samples.shape[1])
        with nogil:
            if self._concealing and samples.shape[0]:
                merge_into(self, &samples[0, 0], samples.shape[0])
            end_gap(self)
            if samples.shape[0]:
                remember(self, &samples[0, 0], samples.shape[0])

    cdef int _check(self, Py_ssize_t channels) except -1:
        if channels != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        return 0
