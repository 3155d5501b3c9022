"""From what was made to the caller's array, whatever its type and strides."""


cdef bint loop_is_int16(PlayoutLoop p, const Py_buffer* view) except -1:
    cdef bint floats = view.format != NULL and view.format[0] == b"f" and view.format[1] == 0
    cdef bint words = view.format != NULL and view.format[0] == b"h" and view.format[1] == 0
    if view.ndim != 2 or view.shape[1] != p.channels or not (floats or words):
        raise ValueError(
            f"out has {view.ndim} dimensions; give float32 or int16 of shape "
            f"(frames, {p.channels})"
        )
    return words


cdef int64_t loop_fill(
    PlayoutLoop p, const Py_buffer* view, bint int16, int64_t now
) noexcept nogil:
    cdef int64_t frames = view.shape[0], done = 0, part
    p.span = frames
    if p.cut or p.flushes != atomic_load(&p.ring.flushes):
        loop_fall_silent(p)
    while done < frames:
        if p.ready == 0:
            p.ready = loop_make(p, min(frames - done, p.largest), now + loop_ns(p, done))
            p.at = 0
            if p.ready == 0:
                break
        part = min(p.ready, frames - done)
        deliver(p.made + p.at * p.channels, view, done, part, int16)
        p.at += part
        p.ready -= part
        done += part
    atomic_add(&p.pulled, done)
    if done < frames:
        deliver(NULL, view, done, frames - done, int16)
    return done


cdef void deliver(
    const float* source, const Py_buffer* view, int64_t at, int64_t frames, bint int16
) noexcept nogil:
    """``frames`` from ``source`` (NULL: silence) to row ``at`` of the array."""
    cdef Py_ssize_t channels = view.shape[1], row, channel, stride = view.strides[1]
    cdef char* to = <char*>view.buf + at * view.strides[0]
    cdef Py_ssize_t width = view.itemsize
    cdef float silence = 0.0
    cdef const float* value
    if stride == width and view.strides[0] == channels * width:
        if source == NULL:
            memset(to, 0, <size_t>(frames * channels * width))
        elif int16:
            es_to_int16(source, <int16_t*>to, frames * channels)
        else:
            memcpy(to, source, <size_t>(frames * channels) * sizeof(float))
        return
    for row in range(frames):
        for channel in range(channels):
            value = source + row * channels + channel if source != NULL else &silence
            if int16:
                es_to_int16(value, <int16_t*>(to + channel * stride), 1)
            else:
                (<float*>(to + channel * stride))[0] = value[0]
        to += view.strides[0]
