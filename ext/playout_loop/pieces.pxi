"""One piece at a time, made in ``made``: what is asked for, or more where a cross-fade or a pitch
period does not fit into that."""


cdef int64_t loop_make(PlayoutLoop p, int64_t asked, int64_t now) noexcept nogil:
    """How many frames were made; 0 at the end of the stream."""
    cdef int64_t error = ring_schedule(p.ring, now), waiting, low, high, made
    cdef bint silence
    # All of a pull is needed at its beginning, wherever packets happen to begin in it.
    error += max(loop_ns(p, p.span) - <int64_t>p.ring.earliness, 0)
    atomic_store(&p.error, error)
    waiting = ring_buffered(p.ring)
    if atomic_load(&p.over):
        if waiting == 0:
            return loop_drain(p, asked)
        asked = min(asked, waiting)
    if not p.ring.started:
        memset(p.made, 0, loop_bytes(p, asked))
        return asked
    if -error > max(<int64_t>SECOND, 4 * atomic_load(&p.ring.wanted)):
        ring_skip(p.ring, loop_frames(p, -error))
        p.moved -= loop_frames(p, -error)
        return loop_draw_out(p, min(asked, p.fade))
    if not p.sounding or pcm_gap(&p.ring.pcm, p.ring.cursor, 1):
        silence = not p.sounding or ring_is_silence(p.ring, 0)
        if silence and p.concealer._concealing:
            return loop_fade_out(p, pcm_gap(&p.ring.pcm, p.ring.cursor, p.fade))
        low = p.low_ns if silence else p.loose_low_ns
        high = p.low_ns if silence else p.loose_high_ns
        if error > low:
            return loop_draw_out(p, min(asked, loop_frames(p, error) + p.spare))
        if -error > high and waiting:
            p.moved -= ring_pass_over(p.ring, min(loop_frames(p, -error), p.largest))
    elif error > p.loose_low_ns and 0 < waiting < asked:
        asked = waiting  # the gap behind it shall begin a piece
    if p.music:
        return loop_resampled(p, asked, error)
    p.rest -= asked
    if (error > p.low_ns or -error > p.high_ns) and (p.rest <= 0 or -error > p.fast_ns):
        made = loop_stretch(p, error, asked)
        if made:
            return made
    made = loop_reach(p, asked)
    loop_collect(p, p.made, made)
    loop_account(p, made, made, asked)
    return made


cdef int64_t loop_stretch(PlayoutLoop p, int64_t error, int64_t asked) noexcept nogil:
    """Leave a pitch period out, or put one in, 15 ms from here; 0 where that cannot be."""
    cdef bint fast = -error > p.fast_ns, insert = error > 0
    cdef int64_t change, used, made
    cdef float found = 0.0
    if p.concealer._concealing or pcm_run(&p.ring.pcm, p.ring.cursor, p.block) < p.block:
        return 0
    pcm_read(&p.ring.pcm, p.ring.cursor, p.block, p.source)
    change = p.stretcher._seam(p.source, p.block, p.poor if fast else p.normal, fast, &found)
    p.rest = p.patience if change else p.step
    if change == 0:
        return 0
    p.stretcher._cut(p.source, p.block, p.made, -change if insert else change)
    used = p.seam if insert else p.seam + change
    made = p.seam + change if insert else p.seam
    atomic_add(&p.stretches, 1)
    end_gap(p.concealer)
    remember(p.concealer, p.made, made)
    p.sounding = True
    loop_account(p, used, made, asked)
    return made


cdef int64_t loop_resampled(PlayoutLoop p, int64_t asked, int64_t error) noexcept nogil:
    cdef int64_t frames = asked, count
    cdef double target, excess, moved
    target = loop_exactly(
        p, atomic_load(&p.ring.wanted) + max(loop_ns(p, p.span), <int64_t>p.ring.earliness)
    )
    excess = p.resampler._pending_frames() - p.margin - loop_exactly(p, error)
    moved = p.moved + p.target - target
    p.target = target
    p.moved = 0.0
    loop_steer(p, excess, asked, moved)
    count = p.resampler._needed(frames)
    if loop_reach(p, count) > count:
        frames += p.fade + 1
        count = p.resampler._needed(frames)
    loop_collect(p, p.source, count)
    loop_account(p, count, frames, asked)
    loop_convert(p, count, frames)
    return frames


cdef void loop_steer(PlayoutLoop p, double excess, int64_t asked, double moved) noexcept nogil:
    cdef double forward = atomic_load_real(&p.forward)
    if not isnan(forward) and forward != p.drift.forward:
        drift_forward(&p.drift, forward)
    drift_update(&p.drift, excess, <double>asked, moved)
    p.resampler._step = llrint(p.drift.ratio * ONE)
    atomic_store_real(&p.shown_ratio, p.drift.ratio)
    atomic_store_real(&p.shown_drift, p.drift.forward + p.drift.learned)


cdef void loop_convert(PlayoutLoop p, int64_t count, int64_t frames) noexcept nogil:
    """``count`` frames of ``source`` become ``frames`` in ``made``."""
    cdef Py_ssize_t consumed = 0
    p.resampler._process(p.source, count, p.made, frames, &consumed)


cdef void loop_collect(PlayoutLoop p, float* block, int64_t count) noexcept nogil:
    """Fill ``block`` from the cursor on: what is there, silence where it was announced, and
    concealment."""
    cdef int64_t done = 0, part
    cdef bint ended
    while done < count:
        part = pcm_run(&p.ring.pcm, p.ring.cursor + done, count - done)
        if part:
            pcm_read(&p.ring.pcm, p.ring.cursor + done, part, block)
            p.sounding = True
            if p.concealer._concealing:
                merge_into(p.concealer, block, part)
                end_gap(p.concealer)
            remember(p.concealer, block, part)
        else:
            part = pcm_gap(&p.ring.pcm, p.ring.cursor + done, count - done)
            ended = atomic_load(&p.over) and done >= ring_buffered(p.ring)
            if (ended or ring_is_silence(p.ring, done)) and not p.concealer._concealing:
                memset(block, 0, loop_bytes(p, part))
                remember(p.concealer, block, part)
                p.sounding = False
            else:
                conceal(p.concealer, block, part)
        block += part * p.channels
        done += part


cdef int64_t loop_reach(PlayoutLoop p, int64_t count) noexcept nogil:
    """``count``, or so many more that the cross-fade out of a gap is not cut short."""
    cdef int64_t at = 0, real
    cdef bint concealing = p.concealer._concealing
    while at < count:
        real = pcm_run(&p.ring.pcm, p.ring.cursor + at, count - at)
        if real and concealing:
            count = max(count, at + p.fade)
        at += real if real else pcm_gap(&p.ring.pcm, p.ring.cursor + at, count - at)
        concealing = real == 0
    return count


cdef void loop_account(PlayoutLoop p, int64_t used, int64_t made, int64_t asked) noexcept nogil:
    """``used`` frames of the buffer were played as ``made``: in steps of what is asked for, so
    that looking ahead is not taken for an impatient consumer."""
    cdef int64_t extra, step = max(asked, p.fade)
    if atomic_load(&p.over):  # the filter looks beyond the end
        used = min(used, ring_buffered(p.ring))
    extra = made - used
    while used > step + 2 * p.margin:
        ring_take(p.ring, NULL, step, step)
        used -= step
    ring_take(p.ring, NULL, used, used + extra)


cdef int64_t loop_draw_out(PlayoutLoop p, int64_t frames) noexcept nogil:
    """Fill time while the buffer stands still: the delay grows by ``frames``."""
    ring_hold(p.ring, frames)
    p.moved += frames
    if p.sounding:
        loop_invent(p, frames)
    else:
        memset(p.made, 0, loop_bytes(p, frames))
    return frames


cdef void loop_invent(PlayoutLoop p, int64_t frames) noexcept nogil:
    """Concealment that takes nothing from the buffer."""
    cdef int64_t count
    if not p.music:
        conceal(p.concealer, p.made, frames)
        return
    count = p.resampler._needed(frames)
    conceal(p.concealer, p.source, count)
    loop_convert(p, count, frames)


cdef int64_t loop_fade_out(PlayoutLoop p, int64_t frames) noexcept nogil:
    """Concealment that goes silent."""
    loop_draw_out(p, frames)
    ramp_down(p.made, frames, p.channels)
    loop_forget(p)
    return frames


cdef void loop_forget(PlayoutLoop p) noexcept nogil:
    memset(p.scrap, 0, loop_bytes(p, p.fade))
    end_gap(p.concealer)
    remember(p.concealer, p.scrap, p.fade)
    p.sounding = False
    if p.music:
        p.resampler._reset()


cdef void loop_fall_silent(PlayoutLoop p) noexcept nogil:
    """After a flush: what was made already, and concealment after it, fades away."""
    cdef int64_t kept = min(p.ready, p.fade), dropped = p.ready - kept, more = p.fade - kept
    p.cut = False
    p.flushes = atomic_load(&p.ring.flushes)
    if dropped:
        ring_take(p.ring, NULL, 0, -dropped)
    if not p.sounding:
        p.ready = 0
        return
    memcpy(p.scrap, p.made + p.at * p.channels, loop_bytes(p, kept))
    if more:
        ring_take(p.ring, NULL, 0, more)
        loop_invent(p, more)
        memcpy(p.scrap + kept * p.channels, p.made, loop_bytes(p, more))
    memcpy(p.made, p.scrap, loop_bytes(p, p.fade))
    ramp_down(p.made, p.fade, p.channels)
    p.at = 0
    p.ready = p.fade
    loop_forget(p)


cdef int64_t loop_drain(PlayoutLoop p, int64_t asked) noexcept nogil:
    """The end: what the filter still holds."""
    cdef int64_t frames, count
    if not p.music or not p.sounding:
        return 0
    if p.tail < 0:
        p.tail = <int64_t>ceil(p.resampler._pending_frames())
    frames = min(asked, p.tail)
    if frames > 0:
        p.tail -= frames
        count = p.resampler._needed(frames)
        memset(p.source, 0, loop_bytes(p, count))
        loop_convert(p, count, frames)
    return frames


cdef void ramp_down(float* samples, int64_t frames, int64_t channels) noexcept nogil:
    """From full level to nothing."""
    cdef int64_t row, channel
    cdef float gain
    for row in range(frames):
        gain = <float>(1.0 - <double>row / frames)
        for channel in range(channels):
            samples[row * channels + channel] *= gain


cdef inline size_t loop_bytes(PlayoutLoop p, int64_t frames) noexcept nogil:
    return <size_t>(frames * p.channels) * sizeof(float)


cdef inline int64_t loop_frames(PlayoutLoop p, int64_t ns) noexcept nogil:
    return ns * p.rate / SECOND


cdef inline int64_t loop_ns(PlayoutLoop p, int64_t frames) noexcept nogil:
    return frames * SECOND / p.rate


cdef inline double loop_exactly(PlayoutLoop p, int64_t ns) noexcept nogil:
    return ns * 1e-9 * p.rate
