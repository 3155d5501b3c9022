# cython: language_level=3
"""A ring of PCM frames addressed by their timestamp, header-only. One thread owns it.

Sample frame ``t`` lives in row ``t & mask``: reordering and overlap need no work, and what never
came is silence, because every frame that is read is set to zero. ``marks`` tells what is real:
0 nothing, 1 a frame, 2 the first frame of a packet.
"""

from libc.stdint cimport int16_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memset

from echostream._ext.vector cimport es_to_float

cdef struct Pcm:
    int64_t size, mask
    size_t channels
    float* samples
    uint8_t* marks


cdef inline int pcm_open(Pcm* r, int64_t size, size_t channels) noexcept nogil:
    """0, or -1 without memory. ``size`` is a power of two."""
    r.size = size
    r.mask = size - 1
    r.channels = channels
    r.samples = <float*>calloc(<size_t>size * channels, sizeof(float))
    r.marks = <uint8_t*>calloc(<size_t>size, 1)
    return 0 if r.samples != NULL and r.marks != NULL else -1


cdef inline void pcm_close(Pcm* r) noexcept nogil:
    free(r.samples)
    free(r.marks)
    r.samples = NULL
    r.marks = NULL


cdef inline void pcm_convert(float* to, const uint8_t* data, size_t count, bint int16) noexcept nogil:
    if int16:
        es_to_float(<const int16_t*>data, to, <Py_ssize_t>count)
    else:
        memcpy(to, data, count * sizeof(float))


cdef inline void pcm_write(
    Pcm* r, int64_t at, int64_t frames, const uint8_t* data, bint int16, bint first
) noexcept nogil:
    """Place ``frames`` (at most ``size``) at timestamp ``at``; ``first``: a packet begins there."""
    cdef int64_t row = at & r.mask
    cdef int64_t part = min(frames, r.size - row)
    cdef size_t width = 2 if int16 else 4
    if frames <= 0:
        return
    pcm_convert(r.samples + <size_t>row * r.channels, data, <size_t>part * r.channels, int16)
    memset(r.marks + row, 1, <size_t>part)
    if part < frames:
        data += <size_t>part * r.channels * width
        pcm_convert(r.samples, data, <size_t>(frames - part) * r.channels, int16)
        memset(r.marks, 1, <size_t>(frames - part))
    if first:
        r.marks[row] = 2


cdef inline void pcm_read(const Pcm* r, int64_t at, int64_t frames, float* out) noexcept nogil:
    """Copy ``frames`` (at most ``size``) from timestamp ``at``."""
    cdef int64_t row = at & r.mask
    cdef int64_t part = min(frames, r.size - row)
    cdef size_t frame = r.channels * sizeof(float)
    memcpy(out, r.samples + <size_t>row * r.channels, <size_t>part * frame)
    if part < frames:
        memcpy(out + <size_t>part * r.channels, r.samples, <size_t>(frames - part) * frame)


cdef inline void pcm_clear(Pcm* r, int64_t at, int64_t frames) noexcept nogil:
    """Set ``frames`` (at most ``size``) from timestamp ``at`` to silence that is not real."""
    cdef int64_t row = at & r.mask
    cdef int64_t part = min(frames, r.size - row)
    cdef size_t frame = r.channels * sizeof(float)
    memset(r.samples + <size_t>row * r.channels, 0, <size_t>part * frame)
    memset(r.marks + row, 0, <size_t>part)
    if part < frames:
        memset(r.samples, 0, <size_t>(frames - part) * frame)
        memset(r.marks, 0, <size_t>(frames - part))


cdef inline int64_t pcm_gap(const Pcm* r, int64_t at, int64_t frames) noexcept nogil:
    """How many frames from ``at`` on are not real, at most ``frames``."""
    cdef int64_t i
    for i in range(frames):
        if r.marks[(at + i) & r.mask]:
            return i
    return frames


cdef inline int64_t pcm_run(const Pcm* r, int64_t at, int64_t frames) noexcept nogil:
    """How many frames from ``at`` on are real, at most ``frames``."""
    cdef int64_t row = at & r.mask
    cdef int64_t part = min(frames, r.size - row)
    cdef const uint8_t* found = <const uint8_t*>memchr(r.marks + row, 0, <size_t>part)
    if found != NULL:
        return found - (r.marks + row)
    if part == frames:
        return frames
    found = <const uint8_t*>memchr(r.marks, 0, <size_t>(frames - part))
    return frames if found == NULL else part + (found - r.marks)


cdef inline int64_t pcm_next_packet(const Pcm* r, int64_t at, int64_t frames) noexcept nogil:
    """How far it is to the first frame of a packet; ``frames`` when there is none before."""
    cdef int64_t row = at & r.mask
    cdef int64_t part = min(frames, r.size - row)
    cdef const uint8_t* found = <const uint8_t*>memchr(r.marks + row, 2, <size_t>part)
    if found != NULL:
        return found - (r.marks + row)
    if part == frames:
        return frames
    found = <const uint8_t*>memchr(r.marks, 2, <size_t>(frames - part))
    return frames if found == NULL else part + (found - r.marks)


cdef inline void pcm_stretch(
    const float* source, int64_t taken, float* out, int64_t frames, int64_t channels
) noexcept nogil:
    """Stretch ``taken`` frames (and one more, which is only looked at) to ``frames``, linearly."""
    cdef double position, share
    cdef int64_t k, row, channel
    cdef const float* two
    for k in range(frames):
        position = k * <double>taken / frames
        row = <int64_t>position
        share = position - row
        two = source + row * channels
        for channel in range(channels):
            out[k * channels + channel] = <float>(
                two[channel] + share * (two[channels + channel] - two[channel])
            )
