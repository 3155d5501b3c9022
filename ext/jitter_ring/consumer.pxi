"""The consumer's half: take packets into the PCM ring, follow the clock, play."""


cdef void ring_flush(JitterRing r, int64_t number) noexcept nogil:
    cdef int64_t frames = min(max(r.newest - r.cursor, 0), r.pcm.size)
    atomic_add(&r.n.flushed, frames)
    pcm_clear(&r.pcm, r.cursor, r.pcm.size)
    atomic_store(&r.newest, r.cursor)
    r.silence_from = r.cursor
    r.flushes_seen = number


cdef void ring_place(JitterRing r, int64_t slot) noexcept nogil:
    cdef int64_t at = r.slot_at[slot], frames = r.slot_frames[slot], end = at + frames
    cdef int64_t passed, jump
    if r.slot_flush[slot] != r.flushes_seen:
        if r.slot_flush[slot] < r.flushes_seen:
            atomic_add(&r.n.flushed, frames)
            return
        ring_flush(r, r.slot_flush[slot])
    if r.slot_silence[slot]:
        r.silence_from = end
    passed = r.cursor - at
    if passed > 0:
        if frames:
            atomic_add(&r.n.late, 1)
        if passed >= frames:
            return
    else:
        passed = 0
    if end - r.cursor > r.pcm.size:  # further ahead than anything may wait
        jump = end - r.cursor - to_frames(r.max_delay_ns, r.rate)
        ring_skip(r, jump)
        passed = max(r.cursor - at, 0)
    pcm_write(
        &r.pcm, at + passed, frames - passed,
        r.arena + <size_t>slot * r.slot_bytes + <size_t>passed * r.frame_bytes,
        r.int16, passed == 0,
    )
    atomic_store(&r.newest, max(r.newest, end))


cdef void ring_skip(JitterRing r, int64_t frames) noexcept nogil:
    """Go forward at once: what lies between is dropped."""
    cdef int64_t real = min(max(r.newest - r.cursor, 0), frames)
    pcm_clear(&r.pcm, r.cursor, min(frames, r.pcm.size))
    atomic_add(&r.n.skipped, real)
    atomic_store(&r.cursor, r.cursor + frames)
    atomic_store(&r.newest, max(r.newest, r.cursor))
    r.reference -= <double>to_ns(frames, r.rate)


cdef bint ring_ingest(JitterRing r) noexcept nogil:
    cdef int64_t word
    cdef uint64_t bits
    cdef int index
    cdef bint any = False
    cdef int64_t flushes = atomic_load(&r.flushes)
    if flushes != r.flushes_seen:
        ring_flush(r, flushes)
    for word in range(r.capacity >> 6):
        bits = atomic_load_bits(&r.presence[word])
        while bits:
            index = lowest_bit(bits)
            bits &= bits - 1
            atomic_publish(&r.reading, (word << 6) + index)
            if atomic_take(&r.presence[word], <uint64_t>1 << index):
                ring_place(r, (word << 6) + index)
            any = True
    if any:
        atomic_store(&r.reading, -1)
    return any


cdef int64_t ring_schedule(JitterRing r, int64_t now) noexcept nogil:
    """Take in what arrived; how far (ns) the playout point is before its target."""
    cdef double offset
    cdef int64_t live
    if not r.started:
        if not atomic_load(&r.ready):
            return 0
        live = to_frames(now - atomic_load(&r.target), r.rate)
        atomic_store(&r.cursor, min(live, atomic_load(&r.earliest)))
        atomic_store(&r.newest, r.cursor)
        atomic_store(&r.started, 1)
        r.reference = <double>(now - to_ns(r.cursor, r.rate))
    ring_ingest(r)
    offset = <double>(now - to_ns(r.cursor, r.rate))
    r.deviation = offset - r.reference
    if fabs(r.deviation) > SECOND / 2:  # the consumer paused
        r.reference = offset
        r.deviation = 0.0
    r.reference += r.deviation / 32.0
    atomic_store(&r.deadline, <int64_t>(r.reference - r.earliness))
    return <int64_t>(atomic_load(&r.target) + r.earliness - r.reference)


cdef int64_t ring_play(JitterRing r, float* out, int64_t frames) noexcept nogil:
    """Play ``frames`` (at most the PCM ring's size) from the cursor on; how many are real."""
    cdef int64_t done = 0, run, real = 0, start, where
    cdef double early
    start = pcm_next_packet(&r.pcm, r.cursor, frames)
    while start < frames:
        atomic_add(&r.n.played, 1)
        early = <double>to_ns(start, r.rate) - r.deviation
        if early > r.earliness:
            atomic_store_real(&r.earliness, early)
        else:
            atomic_store_real(&r.earliness, r.earliness + (early - r.earliness) / 512.0)
        start += 1
        start += pcm_next_packet(&r.pcm, r.cursor + start, frames - start)
    if out != NULL:
        pcm_read(&r.pcm, r.cursor, frames, out)
    while done < frames:
        run = pcm_run(&r.pcm, r.cursor + done, frames - done)
        if run:
            real += run
            r.concealing = False
            r.heard = True
            r.held = 0
            if r.cursor + done + run > r.silence_from:
                r.silence_from = INT64_MAX
            done += run
        else:
            run = pcm_gap(&r.pcm, r.cursor + done, frames - done)
            ring_missing(r, r.cursor + done, run)
            done += run
    pcm_clear(&r.pcm, r.cursor, frames)
    atomic_add(&r.n.played_frames, real)
    atomic_store(&r.cursor, r.cursor + frames)
    return real


cdef void ring_missing(JitterRing r, int64_t at, int64_t frames) noexcept nogil:
    if not r.heard or at >= r.silence_from:
        atomic_add(&r.n.silent, frames)
        return
    atomic_add(&r.n.concealed, frames)
    if not r.concealing:
        r.concealing = True
        atomic_add(&r.n.events, 1)


cdef void ring_hold(JitterRing r, int64_t frames) noexcept nogil:
    """Let the clock go on and the cursor not: the delay grows."""
    ring_missing(r, r.cursor, frames)
    r.reference += <double>to_ns(frames, r.rate)


cdef int64_t ring_pull(JitterRing r, float* out, int64_t frames, int64_t now) noexcept nogil:
    cdef int64_t error = ring_schedule(r, now), held = 0, rest, take, tail, real
    cdef double grain = <double>SECOND / r.rate, span = <double>to_ns(frames, r.rate), move
    cdef int64_t wanted = atomic_load(&r.wanted)
    if not r.started:
        memset(out, 0, <size_t>(frames * r.channels) * sizeof(float))
        atomic_add(&r.n.silent, frames)
        return 0
    if -error > max(SECOND, 4 * wanted):
        ring_skip(r, to_frames(-error, r.rate))
        error = 0
    move = 0.0
    control_watch(&r.control, <double>error, span, <double>wanted)
    if r.pcm.marks[r.cursor & r.pcm.mask]:
        move = control_step(&r.control, <double>error, span, grain)
    elif error > BAND:
        held = min(frames, to_frames(error, r.rate))
    elif error < -BAND and r.newest > r.cursor and (
        r.control.falling or r.held or error < -FAR
    ):
        ring_pass_over(r, to_frames(-error, r.rate))
    if held:
        ring_hold(r, held)
        memset(out, 0, <size_t>(held * r.channels) * sizeof(float))
        out += held * r.channels
    rest = frames - held
    tail = rest - (r.newest - r.cursor)
    if tail > 0 and r.held < r.hold_ns and r.heard and r.silence_from == INT64_MAX:
        # Nothing newer stands behind: wait where the audio ends instead of passing it.
        tail = min(tail, rest)
        real = ring_play(r, out, rest - tail)
        ring_hold(r, tail)
        r.held += to_ns(tail, r.rate)
        memset(out + (rest - tail) * r.channels, 0, <size_t>(tail * r.channels) * 4)
        return real
    take = rest - <int64_t>(move / grain + (0.5 if move > 0.0 else -0.5))
    if take == rest:
        return ring_play(r, out, rest)
    real = ring_play(r, r.scratch, take)
    pcm_read(&r.pcm, r.cursor, 1, r.scratch + take * r.channels)
    pcm_stretch(r.scratch, take, out, rest, r.channels)
    r.reference += move
    if move > 0.0:
        atomic_add(&r.n.raised, rest - take)
    else:
        atomic_add(&r.n.lowered, take - rest)
    return min(real, rest) if real < take else rest


cdef int64_t ring_take(JitterRing r, float* out, int64_t frames, int64_t instead_of) noexcept nogil:
    """Play ``frames`` in the time of ``instead_of`` frames; ``out`` may be NULL. How many are real."""
    cdef int64_t real = ring_play(r, out, frames)
    r.reference += <double>to_ns(instead_of - frames, r.rate)
    atomic_add(&r.n.raised, max(instead_of - frames, 0))
    atomic_add(&r.n.lowered, max(frames - instead_of, 0))
    return real


cdef int64_t ring_pass_over(JitterRing r, int64_t frames) noexcept nogil:
    """Go forward over a gap at the cursor, at most ``frames``; how many it were."""
    cdef int64_t gap = pcm_gap(&r.pcm, r.cursor, min(frames, r.pcm.size))
    atomic_store(&r.cursor, r.cursor + gap)
    atomic_store(&r.newest, max(r.newest, r.cursor))
    r.reference -= <double>to_ns(gap, r.rate)
    return gap


cdef int64_t ring_drop(JitterRing r) noexcept nogil:
    """Drop what arrived and was not played; the timestamp of its first frame."""
    ring_ingest(r)
    ring_flush(r, r.flushes_seen)
    if r.started:
        return r.cursor
    return atomic_load(&r.earliest) if atomic_load(&r.ready) else 0


cdef bint ring_is_silence(JitterRing r, int64_t ahead) noexcept nogil:
    return not r.heard or r.cursor + ahead >= r.silence_from


cdef int64_t ring_buffered(JitterRing r) noexcept nogil:
    """For any thread: of two words, so that a look from outside may be a pull behind."""
    return max(atomic_load(&r.newest) - atomic_load(&r.cursor), 0) if atomic_load(&r.started) else 0


cdef int64_t ring_frames_of(JitterRing r, Py_buffer* view) except -1:
    cdef int64_t width = view.itemsize * r.channels
    if view.format == NULL or view.format[0] != b"f" or view.len % width:
        raise ValueError(f"out is a C-contiguous float32 array of frames of {r.channels}")
    if view.len // width > r.max_pull:
        raise ValueError(f"one pull is at most {r.max_pull} frames, not {view.len // width}")
    return view.len // width
