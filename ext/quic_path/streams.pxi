"""Streams, with the attributes and methods of aioquic's: one storage for plain and typed code."""


@cython.final
cdef class StreamReceiver:
    """The receiving part; mirrors ``QuicStreamReceiver``."""

    cdef public int64_t highest_offset
    cdef public bint is_finished
    cdef public bint stop_pending
    cdef public bytearray _buffer
    cdef public int64_t _buffer_start
    cdef public object _final_size
    cdef readonly Ranges _ranges
    cdef readonly object _stream_id
    cdef public object _stop_error_code

    def __cinit__(self, stream_id, bint readable):
        self.is_finished = not readable
        self._buffer = bytearray()
        self._ranges = Ranges()
        self._stream_id = stream_id

    cdef object take(self, int64_t offset, bytes data, bint fin):
        """A frame's data; the event that it makes, or ``None``."""
        cdef Py_ssize_t count = len(data)
        cdef int64_t pos = offset - self._buffer_start
        cdef int64_t end = offset + count
        cdef int64_t final_size
        if self._final_size is not None:
            final_size = self._final_size
            if end > final_size:
                raise FinalSizeError("Data received beyond final size")
            if fin and end != final_size:
                raise FinalSizeError("Cannot change final size")
        if fin:
            # RFC 9000, section 4.5
            if end < self.highest_offset:
                raise FinalSizeError("Data received beyond final size")
            self._final_size = end
        if end > self.highest_offset:
            self.highest_offset = end
        if self.is_finished:
            return None
        if pos == 0 and count and not PyByteArray_Size(self._buffer):
            self._buffer_start = end
            if fin:
                self.is_finished = True
            return StreamDataReceived(data, fin, self._stream_id)
        return self._take_out_of_order(offset, pos, data)

    cdef object _take_out_of_order(self, int64_t offset, int64_t pos, bytes data):
        cdef Py_ssize_t count = len(data), skip, held
        cdef int64_t end = offset + count, stop
        cdef bint end_stream
        cdef bytes ready = b""
        if pos < 0:
            skip = min(<Py_ssize_t>-pos, count)
            data = data[skip:]
            count -= skip
            offset -= pos
            pos = 0
        if end > offset:
            self._ranges.insert(offset, end)
        held = PyByteArray_Size(self._buffer)
        if pos + count > held:
            PyByteArray_Resize(self._buffer, <Py_ssize_t>(pos + count))
            if pos > held:
                memset(PyByteArray_AsString(self._buffer) + held, 0, <size_t>(pos - held))
        memcpy(PyByteArray_AsString(self._buffer) + pos, PyBytes_AsString(data), <size_t>count)
        if self._ranges.count and self._ranges.items[0] == self._buffer_start:
            stop = self._ranges.items[1]
            self._ranges._close(0, 1)
            ready = bytes(self._buffer[: stop - self._buffer_start])
            del self._buffer[: stop - self._buffer_start]
            self._buffer_start = stop
        end_stream = self._final_size is not None and self._buffer_start == self._final_size
        if end_stream:
            self.is_finished = True
        if ready or end_stream:
            return StreamDataReceived(ready, end_stream, self._stream_id)
        return None

    def handle_frame(self, frame):
        """Take a ``QuicStreamFrame``."""
        return self.take(frame.offset, frame.data, frame.fin)

    def handle_reset(self, *, final_size, error_code=0):
        """The peer ended the stream abruptly; the event to report, or ``None``."""
        if self._final_size is not None and final_size != self._final_size:
            raise FinalSizeError("Cannot change final size")
        if final_size < self.highest_offset:
            raise FinalSizeError("Data received beyond final size")
        self.highest_offset = final_size
        if self.is_finished:
            return None
        self._final_size = final_size
        self.is_finished = True
        return StreamReset(error_code=error_code, stream_id=self._stream_id)

    def starting_offset(self):
        """What was delivered."""
        return self._buffer_start

    def stop(self, error_code=0):
        """Ask the peer to end the stream."""
        self._stop_error_code = error_code
        self.stop_pending = True

    def get_stop_frame(self):
        """What STOP_SENDING says."""
        self.stop_pending = False
        return QuicStopSendingFrame(error_code=self._stop_error_code, stream_id=self._stream_id)

    def on_stop_sending_delivery(self, delivery):
        """STOP_SENDING was acknowledged or lost."""
        if delivery is not ACKED:
            self.stop_pending = True


@cython.final
cdef class StreamSender:
    """The sending part; mirrors ``QuicStreamSender``."""

    cdef public bint buffer_is_empty
    cdef public int64_t highest_offset
    cdef public bint is_finished
    cdef public bint reset_pending
    cdef readonly Ranges _acked
    cdef public bint _acked_fin
    cdef public bytearray _buffer
    cdef public object _buffer_fin
    cdef public int64_t _buffer_start
    cdef public int64_t _buffer_stop
    cdef readonly Ranges _pending
    cdef public bint _pending_eof
    cdef public object _reset_error_code
    cdef readonly object _stream_id

    def __cinit__(self, stream_id, bint writable):
        self.buffer_is_empty = True
        self.is_finished = not writable
        self._acked = Ranges()
        self._pending = Ranges()
        self._buffer = bytearray()
        self._stream_id = stream_id

    cdef int64_t offset_to_send(self) noexcept:
        return self._pending.items[0] if self._pending.count else self._buffer_stop

    cdef bint choose(
        self, int64_t max_size, int64_t max_offset, int64_t *start, int64_t *stop, bint *fin
    ) except -1:
        """What the next frame carries, which then counts as sent; false where there is none."""
        if self._reset_error_code is not None:
            raise ValueError("the stream was reset")
        if max_size < 0:
            return False
        if not self._pending.count:
            if self._pending_eof:
                self._pending_eof = False
                start[0] = stop[0] = self._buffer_fin
                fin[0] = True
                return True
            self.buffer_is_empty = True
            return False
        start[0] = self._pending.items[0]
        stop[0] = min(self._pending.items[1], start[0] + max_size, max_offset)
        if stop[0] <= start[0]:
            return False
        self._pending.remove(start[0], stop[0])
        if stop[0] > self.highest_offset:
            self.highest_offset = stop[0]
        fin[0] = self._buffer_fin is not None and stop[0] == self._buffer_fin
        if fin[0]:
            self._pending_eof = False
        return True

    cdef int delivered(self, bint acked, int64_t start, int64_t stop, bint fin) except -1:
        """A frame was acknowledged or lost."""
        cdef int64_t size
        if self._reset_error_code is not None:
            return 0  # only the reset's own delivery ends the stream now
        if acked:
            if stop > start:
                self._acked.insert(start, stop)
                if self._acked.items[0] == self._buffer_start:
                    size = self._acked.items[1] - self._acked.items[0]
                    self._acked._close(0, 1)
                    self._buffer_start += size
                    drop_front(self._buffer, <Py_ssize_t>size)
            if fin:
                self._acked_fin = True
            if self._acked_fin and self._buffer_start == self._buffer_fin:
                self.is_finished = True
        else:
            if stop > start:
                self.buffer_is_empty = False
                self._pending.insert(start, stop)
            if fin:
                self.buffer_is_empty = False
                self._pending_eof = True
        return 0

    def write(self, data, bint end_stream=False):
        """Append; with ``end_stream`` nothing may follow."""
        cdef Py_buffer view
        cdef const uint8_t *start
        cdef size_t size = 0
        cdef Py_ssize_t held = PyByteArray_Size(self._buffer)
        if self._buffer_fin is not None:
            raise RuntimeError("Cannot send data after FIN")
        if self._reset_error_code is not None:
            raise RuntimeError("Cannot send data after the stream was reset")
        start = borrow(data, &view, &size)
        try:
            if size:
                PyByteArray_Resize(self._buffer, held + <Py_ssize_t>size)
                memcpy(PyByteArray_AsString(self._buffer) + held, start, size)
                self.buffer_is_empty = False
                self._pending.insert(self._buffer_stop, self._buffer_stop + <int64_t>size)
                self._buffer_stop += <int64_t>size
        finally:
            give_back(&view)
        if end_stream:
            self.buffer_is_empty = False
            self._buffer_fin = self._buffer_stop
            self._pending_eof = True

    @property
    def next_offset(self):
        """Where the next frame begins."""
        return self.offset_to_send()

    def get_frame(self, int64_t max_size, max_offset=None):
        """The next ``QuicStreamFrame`` of at most ``max_size`` bytes, or ``None``."""
        cdef int64_t start, stop
        cdef int64_t limit = <int64_t>MAX_VARINT if max_offset is None else max_offset
        cdef bint fin
        if not self.choose(max_size, limit, &start, &stop, &fin):
            return None
        data = bytes(self._buffer[start - self._buffer_start : stop - self._buffer_start])
        return QuicStreamFrame(data=data, fin=fin, offset=start)

    def on_data_delivery(self, delivery, int64_t start, int64_t stop, bint fin):
        """A frame's data was acknowledged or lost."""
        self.delivered(delivery is ACKED, start, stop, fin)

    def reset(self, error_code):
        """End abruptly. Nothing when it already ended."""
        if self._reset_error_code is None and not self.is_finished:
            self._reset_error_code = error_code
            self.reset_pending = True
            self.buffer_is_empty = True

    def get_reset_frame(self):
        """What RESET_STREAM says."""
        self.reset_pending = False
        return QuicResetStreamFrame(
            error_code=self._reset_error_code,
            final_size=self.highest_offset,
            stream_id=self._stream_id,
        )

    def on_reset_delivery(self, delivery):
        """RESET_STREAM was acknowledged or lost."""
        if delivery is ACKED:
            self.is_finished = True
        else:
            self.reset_pending = True


cdef inline int drop_front(bytearray buffer, Py_ssize_t size) except -1:
    if size == PyByteArray_Size(buffer):
        PyByteArray_Resize(buffer, 0)
    else:
        del buffer[:size]
    return 0


@cython.final
cdef class Stream:
    """Both parts of a stream; mirrors ``QuicStream``."""

    cdef public bint is_blocked
    cdef public int64_t max_stream_data_local
    cdef public int64_t max_stream_data_local_sent
    cdef public int64_t max_stream_data_remote
    cdef readonly StreamReceiver receiver
    cdef readonly StreamSender sender
    cdef readonly object stream_id

    def __cinit__(
        self,
        stream_id,
        int64_t max_stream_data_local,
        int64_t max_stream_data_remote,
        bint readable=True,
        bint writable=True,
    ):
        self.stream_id = stream_id
        self.max_stream_data_local = max_stream_data_local
        self.max_stream_data_local_sent = max_stream_data_local
        self.max_stream_data_remote = max_stream_data_remote
        self.receiver = StreamReceiver(stream_id, readable)
        self.sender = StreamSender(stream_id, writable)

    @property
    def is_finished(self):
        """Whether both parts ended."""
        return self.receiver.is_finished and self.sender.is_finished


@cython.final
cdef class StreamLimit:
    """What one side may send or open; mirrors ``Limit``."""

    cdef public object frame_type
    cdef public object name
    cdef public int64_t sent
    cdef public int64_t used
    cdef public int64_t value

    def __cinit__(self, frame_type, name, int64_t value):
        self.frame_type = frame_type
        self.name = name
        self.sent = self.value = value
