"""Media streams: ``StreamSender`` and ``StreamReceiver``, reliable or realtime."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from echostream.codes import Reset, Status
from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    EchoStreamError,
    InvalidPayload,
    ProtocolError,
    ResourceExhausted,
    RpcError,
    StreamReset,
)
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.playout import Playout, PlayoutStatistics
from echostream.protocol import events as ev
from echostream.protocol import payload as payloads
from echostream.protocol.frames import encode_media
from echostream.rpc.aligned import Timeline, playout_delay_ns
from echostream.rpc.call import Metadata, decode_metadata, encode_metadata
from echostream.rpc.playing import PlayoutFeed

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = [
    "ReceiverStatistics",
    "SenderStatistics",
    "StreamBuilder",
    "StreamReceiver",
    "StreamSender",
]

Frame: TypeAlias = bytes | AudioFrame
Sendable: TypeAlias = bytes | bytearray | memoryview | NDArray[Any] | AudioFrame

SEND_HIGH = 256 * 1024
"""Unacknowledged bytes of one reliable stream above which ``send`` waits."""
SEND_LOW = 128 * 1024
RECEIVE_PACKETS = 256
"""Packets that wait for a reader; a reliable stream is paused there, a realtime one drops its
oldest."""
RECEIVE_BYTES = 256 * 1024
MEDIA_HEADER = 32
MAX_EPOCH = 0xFFFF
END_GRACE_S = 0.1
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SenderStatistics:
    """Counters of one outgoing stream. ``buffered``: bytes that the peer has not acknowledged;
    ``refused``: packets that the transport did not take (the path shrank)."""

    packets: int
    bytes: int
    refused: int
    flushes: int
    buffered: int


@dataclass(frozen=True, slots=True)
class ReceiverStatistics:
    """Counters of one incoming stream.

    ``packets``: came, each counted once. Of these ``late`` came after a newer one was read,
    ``dropped`` were pushed out because the reader was slow, ``stale`` belonged to an epoch that was
    flushed, ``queued`` wait for the reader now; all others were read. ``lost``: did not come
    (realtime; known from sequence numbers, and exactly when the sender has ended): what was sent is
    ``packets`` and ``lost``. ``duplicates``: came again. ``overdue``: ``recv_aligned`` handed them
    out after the time at which they were to be heard.
    """

    packets: int
    bytes: int
    lost: int
    late: int
    duplicates: int
    dropped: int
    stale: int
    queued: int
    playout: PlayoutStatistics | None = None
    overdue: int = 0


class StreamBuilder:
    """A stream that is not open yet: await it, or call the ``with_`` methods and :meth:`build`."""

    def __init__(
        self,
        peer: Peer,
        name: str,
        *,
        format: AudioFormat | None,
        delivery: str,
        metadata: Metadata | None,
        priority: int,
        max_age: float | None,
        timeout: float | None,
        time_sync: bool = False,
        playout_delay: float | None = None,
    ) -> None:
        if format is not None and not isinstance(format, AudioFormat):
            raise ConfigurationError(
                f"format={format!r} must be an AudioFormat, for example AudioFormat(48_000, 2)"
            )
        self._peer = peer
        self._name = name
        self._format = format
        self._realtime = delivery == "realtime"
        self._metadata = encode_metadata(metadata)
        self._priority = priority
        self._timeout = timeout
        if max_age is not None and not self._realtime:
            raise ConfigurationError(
                "max_age works with delivery='realtime': a reliable stream loses nothing"
            )
        self._max_age = max_age
        self._delay_ns: int | None = None
        if time_sync:
            self.with_time_sync(playout_delay)
        elif playout_delay is not None:
            raise ConfigurationError("playout_delay works with time_sync=True")

    def __await__(self) -> Generator[Any, None, StreamSender]:
        return self.build().__await__()

    def with_time_sync(self, playout_delay: float | None = None) -> StreamBuilder:
        """Every packet carries its capture time, and the receiver can ask when it is to be heard:
        ``playout_delay`` s (0.1 by default) after it was captured."""
        self._delay_ns = playout_delay_ns(playout_delay)
        return self

    async def build(self) -> StreamSender:
        """Open the stream; returns when the other side has accepted it."""
        peer = self._peer
        peer.check_open()
        if self._realtime and not peer.connection.engine.max_datagram_payload:
            raise ConfigurationError("the peer takes no datagrams: open with delivery='reliable'")
        options: dict[str, Any] = {
            "format": None if self._format is None else format_to_wire(self._format),
            "codec": "pcm",
            "time_sync": self._delay_ns is not None,
            "offset": 0,
            "epoch": 0,
        }
        if self._delay_ns is not None:
            options["playout_delay"] = self._delay_ns // 1000
            peer.clock.start()
        alias, stream_id = peer.protocol.open_media(
            self._name, payloads.encode(options), self._metadata, self._realtime, self._priority
        )
        sender = StreamSender(
            peer, self._name, alias, stream_id, self._format, self._max_age, self._delay_ns
        )
        peer.senders[alias] = sender
        peer.connection.wake()
        try:
            async with asyncio.timeout(self._timeout):
                await sender._opened
        except TimeoutError:
            sender.abort()
            raise DeadlineExceeded(
                f"stream {self._name!r} was not accepted within {self._timeout} s",
                method=self._name,
            ) from None
        except asyncio.CancelledError:
            sender.abort()
            raise
        return sender


class StreamSender:
    """The sending end of a stream. ``async with`` ends it cleanly, or aborts it on an error."""

    def __init__(
        self,
        peer: Peer,
        name: str,
        alias: int,
        stream_id: int,
        format: AudioFormat | None,
        max_age: float | None,
        delay_ns: int | None = None,
    ) -> None:
        self._peer = peer
        self._delay_ns = delay_ns
        self.name = name
        self.alias = alias
        self.stream_id = stream_id
        self.format = format
        self.realtime = stream_id < 0
        self._max_age = max_age
        self._opened: asyncio.Future[None] = peer.loop.create_future()
        self._opened.add_done_callback(_retrieve)
        self._sequence = 0
        self._timestamp = 0
        self._epoch = 0
        self._packets = 0
        self._bytes = 0
        self._refused = 0
        self._flushes = 0
        self._done = False
        self._error: EchoStreamError | None = None

    def __repr__(self) -> str:
        kind = "realtime" if self.realtime else "reliable"
        return f"<StreamSender {self.name!r} {kind} packets={self._packets}>"

    async def __aenter__(self) -> StreamSender:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.end()
        else:
            self.abort(Reset.CANCELLED)

    async def send(self, frame: Sendable) -> None:
        """Send one item: bytes on a stream without a format, else an array ``(frames, channels)``
        of the stream's sample type, or an ``AudioFrame``.

        Reliable: waits while the peer does not read (at most 256 KiB are on their way). Realtime:
        does not wait for the network; arrays longer than a packet are split.

        Raises ``StreamReset`` when the other side stopped the stream, ``ConnectionClosed``,
        ``InvalidPayload`` for an item of the wrong kind, ``ResourceExhausted`` for one that is too
        large.
        """
        await self._send(frame, None)

    async def send_with_timestamp(self, frame: Sendable, timestamp: int) -> None:
        """The same, with the capture time of the first sample in ns on this side's monotonic
        clock; the receiver finds it as ``AudioFrame.capture_ts``."""
        if not isinstance(timestamp, int) or not -(2**63) <= timestamp < 2**63:
            raise ConfigurationError(
                f"timestamp={timestamp!r} must be ns as a whole number of 64 bits"
            )
        await self._send(frame, timestamp)

    async def flush(self) -> None:
        """Barge-in: what is queued here, on the way or at the receiver is dropped.

        What is sent afterwards is heard next. Packets that the receiver's program has taken out
        are its own affair."""
        self._check()
        if self._epoch == MAX_EPOCH:
            raise ResourceExhausted(f"a stream can be flushed {MAX_EPOCH} times: open a new one")
        self._epoch += 1
        self._flushes += 1
        self._sequence = 0
        self.stream_id = self._peer.protocol.flush_media(self.alias, self.stream_id, self._epoch)
        self._peer.connection.wake()

    async def end(self) -> None:
        """End cleanly: the receiver reads what is left, then ``None``. Idempotent. Raises where
        that cannot be, because the receiver stopped the stream or the connection ended."""
        if self._error is not None:
            raise copy(self._error)
        if self._done:
            return
        self._finish()
        self._peer.protocol.end_media(self.alias, self.stream_id, self._packets)
        self._peer.connection.wake()

    def abort(self, code: int = Reset.CANCELLED) -> None:
        """Give the stream up: the receiver gets ``StreamReset`` with ``code``. Idempotent."""
        if not self._done:
            self._give_up(code)

    def statistics(self) -> SenderStatistics:
        """A snapshot of the counters."""
        buffered = 0
        if not self.realtime and self._peer.ended is None:
            buffered = self._peer.connection.engine.buffered(self.stream_id)
        return SenderStatistics(self._packets, self._bytes, self._refused, self._flushes, buffered)

    async def _send(self, frame: Sendable, capture_ts: int | None) -> None:
        self._check()
        if capture_ts is None and self._delay_ns is not None:
            capture_ts = frame.capture_ts if isinstance(frame, AudioFrame) else None
            if capture_ts is None:
                capture_ts = self._peer.clock.now_ns()
        if self.format is None:
            if not isinstance(frame, bytes | bytearray | memoryview):
                raise InvalidPayload(
                    f"stream {self.name!r} carries bytes, got {type(frame).__name__}: open it with "
                    "format=AudioFormat(sample_rate, channels) to send audio"
                )
            self._send_bytes(frame, capture_ts)
        else:
            samples, capture_ts = self._samples(frame, self.format, capture_ts)
            if isinstance(frame, AudioFrame):
                self._timestamp = max(self._timestamp, frame.timestamp)
            self._send_samples(samples, capture_ts)
        self._peer.connection.wake()
        if self.realtime:
            return
        while not self._done and self._peer.connection.engine.buffered(self.stream_id) > SEND_HIGH:
            await self._peer.wait_stream(self.stream_id, SEND_LOW)
            self._check()

    def _samples(
        self, frame: Sendable, format: AudioFormat, capture_ts: int | None
    ) -> tuple[NDArray[Any], int | None]:
        if isinstance(frame, AudioFrame):
            if frame.format.sample_rate != format.sample_rate:
                raise InvalidPayload(
                    f"stream {self.name!r} runs at {format.sample_rate} Hz, the frame at "
                    f"{frame.format.sample_rate} Hz: resample it first"
                )
            samples = frame.samples
            capture_ts = frame.capture_ts if capture_ts is None else capture_ts
        elif isinstance(frame, np.ndarray):
            samples = frame
        else:
            raise InvalidPayload(
                f"stream {self.name!r} carries audio: send an array (frames, "
                f"{format.channels}) of {format.sample_type} or an AudioFrame, "
                f"not {type(frame).__name__}"
            )
        wanted = np.dtype("<f4" if format.sample_type == "float32" else "<i2")
        if samples.ndim == 1 and format.channels == 1:
            samples = samples.reshape(-1, 1)
        if samples.ndim != 2 or samples.shape[1] != format.channels or samples.dtype != wanted:
            raise InvalidPayload(
                f"stream {self.name!r} carries {format.sample_type} of shape (frames, "
                f"{format.channels}), got {samples.dtype} of shape {samples.shape}"
            )
        return np.ascontiguousarray(samples), capture_ts

    def _send_samples(self, samples: NDArray[Any], capture_ts: int | None) -> None:
        total = samples.shape[0]
        if total == 0:
            return
        step = total
        if self.realtime:
            room = self._peer.connection.engine.max_datagram_payload - MEDIA_HEADER
            step = room // (samples.shape[1] * samples.itemsize)
            if step < 1:
                raise ResourceExhausted(
                    f"one sample of {samples.shape[1]} channels does not fit a datagram of "
                    f"{room} bytes: open the stream with delivery='reliable'"
                )
            if step < total:  # equal parts, so that no packet is a crumb
                step = -(-total // -(-total // step))
        else:
            self._check_item(samples.nbytes)
        rate = self.format.sample_rate if self.format else 1
        for start in range(0, total, step):
            part = samples[start : start + step]
            stamp = None if capture_ts is None else capture_ts + start * 1_000_000_000 // rate
            self._packet(part, part.nbytes, stamp)
            self._timestamp += part.shape[0]

    def _send_bytes(self, data: bytes | bytearray | memoryview, capture_ts: int | None) -> None:
        size = memoryview(data).nbytes
        if self.realtime:
            room = self._peer.connection.engine.max_datagram_payload - MEDIA_HEADER
            if size > room:
                raise ResourceExhausted(
                    f"{size} bytes do not fit one datagram ({room}): send less, or open the stream "
                    "with delivery='reliable'"
                )
        else:
            self._check_item(size)
        self._packet(data, size, capture_ts)
        self._timestamp += 1

    def _packet(self, payload: Any, size: int, capture_ts: int | None) -> None:
        data = encode_media(
            self.alias, self._epoch, self._sequence, self._timestamp, payload, 0, capture_ts
        )
        connection = self._peer.connection
        if not self.realtime:
            connection.engine.send_stream(self.stream_id, data, False)
        else:
            deadline = None if self._max_age is None else connection.clock() + self._max_age
            if not connection.engine.send_datagram(data, deadline):
                self._refused += 1
        self._sequence = (self._sequence + 1) & _MASK32
        self._packets += 1
        self._bytes += size

    def _check_item(self, size: int) -> None:
        limit = self._peer.protocol.peer.limits.message_size
        if size > limit:
            raise ResourceExhausted(
                f"{size} bytes in one item, the peer's limit message_size is {limit}: "
                "send smaller pieces"
            )

    def _check(self) -> None:
        if self._error is not None:
            raise copy(self._error)
        if self._peer.ended is not None:
            self._peer.check_open()
        if self._done:
            raise StreamReset(f"stream {self.name!r} was ended here", code=Reset.CANCELLED)

    def _finish(self) -> None:
        self._done = True
        self._peer.senders.pop(self.alias, None)

    def _give_up(self, code: int) -> None:
        self._finish()
        if self._peer.ended is None:
            self._peer.protocol.abort_media(self.alias, self.stream_id, code)
            self._peer.connection.wake()

    # The peer's session reports.

    def accepted(self, options: bytes) -> None:
        """The other side took the stream."""
        agreed = payloads.decode(options) if options else None
        synced = isinstance(agreed, dict) and agreed.get("time_sync") is True
        if self._delay_ns is not None and not synced:
            self.refused(
                RpcError(
                    "the other side knows no time-synchronised streams: open it without time_sync",
                    status=Status.FAILED_PRECONDITION,
                )
            )
            return
        if not self._opened.done():
            self._opened.set_result(None)

    def refused(self, error: RpcError) -> None:
        """The other side did not take it, or gave it up with a status."""
        error.method = error.method or self.name
        if self._opened.done():
            self._error = StreamReset(str(error), code=Reset.REFUSED)
        else:
            self._error = error
            self._opened.set_exception(error)
        self._finish()
        if self.stream_id >= 0:
            self._peer.connection.engine.reset_stream(self.stream_id, Reset.REFUSED)

    def stopped(self, code: int, message: str) -> None:
        """The receiver does not want more."""
        if self._done:
            return
        if not self._opened.done() and code == Reset.REFUSED:
            return  # ERROR follows and says why
        text = f": {message}" if message else ""
        self._error = StreamReset(
            f"the receiver stopped stream {self.name!r} ({_code(code)}){text}", code=code
        )
        self._finish()
        if not self._opened.done():
            self._opened.set_exception(copy(self._error))
        if self.stream_id >= 0:
            self._peer.connection.engine.reset_stream(self.stream_id, code)

    def connection_lost(self, error: ConnectionClosed) -> None:
        """The connection ended."""
        self._error = error
        self._done = True
        if not self._opened.done():
            self._opened.set_exception(copy(error))


class StreamReceiver:
    """The receiving end: iterate, or :meth:`recv`. Items are bytes, or ``AudioFrame`` where a
    format was agreed (``format``). One reader at a time, or one :meth:`playout`."""

    def __init__(
        self, peer: Peer, opened: ev.StreamOpened, formats: tuple[AudioFormat, ...]
    ) -> None:
        self._peer = peer
        self.name = opened.name
        self.alias = opened.alias
        self.realtime = opened.realtime
        self.metadata: Metadata = decode_metadata(opened.metadata)
        self.format = _agreed(opened.options, formats)
        self._timeline = Timeline.from_wire(payloads.decode(opened.options), peer.clock)
        self._captured: dict[int, int] = {}  # capture times of what is queued, by number
        self._queue: deque[tuple[int, Frame]] = deque()  # (extended number, item)
        self._queued_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._paused_stream = -1
        self._epoch = 0
        self._highest = -1
        self._seen = 0
        self._last_captured = 0
        self._last_read = -1
        self._expected_before = 0
        self._highest_before = -1
        self._packets = 0
        self._bytes = 0
        self._late = 0
        self._duplicates = 0
        self._dropped = 0
        self._stale = 0
        self._total = -1
        self._over = False
        self._closed = False
        self._draining = False
        self._feed: PlayoutFeed | None = None
        self._error: EchoStreamError | None = None

    def __repr__(self) -> str:
        kind = "realtime" if self.realtime else "reliable"
        return f"<StreamReceiver {self.name!r} {kind} packets={self._packets}>"

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self

    async def __anext__(self) -> Frame:
        frame = await self.recv()
        if frame is None:
            raise StopAsyncIteration
        return frame

    async def recv(self) -> Frame | None:
        """The next item; ``None`` at the clean end. Raises ``StreamReset`` when the sender gave up,
        ``ConnectionClosed`` when the connection ended first."""
        while not self._queue:
            if self._feed is not None:
                raise ConfigurationError(
                    f"stream {self.name!r} goes to its playout: pull the audio from there"
                )
            if self._error is not None:
                raise copy(self._error)
            if self._over or self._closed:
                return None
            if self._waiter is not None:
                raise ConfigurationError("two tasks read one stream: give each its own")
            self._waiter = self._peer.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        number, frame = self._queue.popleft()
        self._last_captured = self._captured.pop(number, 0)
        self._last_read = max(self._last_read, number)
        self._queued_bytes -= _size(frame)
        if (
            self._paused_stream >= 0
            and len(self._queue) <= RECEIVE_PACKETS // 2
            and self._queued_bytes <= RECEIVE_BYTES // 2
        ):
            self._unpause()
        return frame

    def playout(
        self,
        *,
        target_late: float = 0.01,
        profile: Literal["voice", "music"] = "voice",
        min_delay: float = 0.0,
        max_delay: float = 2.0,
    ) -> Playout:
        """Play this stream: from now on its packets go to the ``Playout`` that is returned, stamped
        with the time at which their datagram was read, and :meth:`recv` has nothing any more.

        The sender's ``flush`` empties it, its ``end`` ends it; after an abort or the loss of the
        connection it plays what it has, and ends. What a reliable stream brings faster than it is
        heard waits, and its sender with it. Options as for ``Playout``.

        Raises ``ConfigurationError`` on a stream without a format, for a second playout, and
        for options that cannot work.
        """
        if self.format is None:
            raise ConfigurationError(
                f"stream {self.name!r} carries bytes: a playout needs an AudioFormat"
            )
        if self._feed is not None:
            raise ConfigurationError(f"stream {self.name!r} has a playout already")
        playout = Playout(
            self.format,
            target_late=target_late,
            profile=profile,
            min_delay=min_delay,
            max_delay=max_delay,
        )
        self._feed = feed = PlayoutFeed(
            playout,
            self._peer.loop,
            self._peer.connection.clock,
            self._give_room,
            self._fail_sender,
        )
        waiting = [frame for _, frame in self._queue if isinstance(frame, AudioFrame)]
        self._queue.clear()
        self._queued_bytes = 0
        stream_id = -1 if self.realtime else 0
        for frame in waiting:
            packet = ev.MediaReceived(
                self.alias,
                self._epoch,
                frame.sequence_number,
                frame.timestamp,
                frame.capture_ts,
                0,
                frame.to_buffer(),
                stream_id,
            )
            feed.push(packet, self._peer.connection.received_at)
        self._give_room()
        if self._finished or self._closed:
            feed.end()
        self._wake()
        return playout

    def _give_room(self) -> None:
        feed = self._feed
        if (
            feed is not None
            and self._paused_stream >= 0
            and feed.queued <= RECEIVE_PACKETS // 2
            and feed.queued_bytes <= RECEIVE_BYTES // 2
        ):
            self._unpause()

    async def recv_aligned(self) -> tuple[Frame, int] | None:
        """The next item and the local time (ns) at which its first sample is to be heard: when it
        was captured, on this side's clock, and the agreed playout delay. ``None`` at the end.

        An item that comes too late has a time that has passed; it is handed out all the same, and
        counted as ``overdue``. The first one waits until the clock is synchronised, 5 s at most,
        and raises ``DeadlineExceeded`` then. ``ConfigurationError`` on a stream without
        ``time_sync``; else as :meth:`recv`.
        """
        if self._timeline is None:
            raise ConfigurationError(
                f"stream {self.name!r} has no time_sync: open it with "
                f"create_stream({self.name!r}, time_sync=True)"
            )
        if not self._finished or self._queue:
            await self._timeline.wait_ready()
        frame = await self.recv()
        return None if frame is None else (frame, self._timeline.aligned(self._last_captured))

    async def aligned(self) -> AsyncIterator[tuple[Frame, int]]:
        """Iterate over what :meth:`recv_aligned` returns."""
        while (pair := await self.recv_aligned()) is not None:
            yield pair

    @property
    def playout_delay(self) -> float | None:
        """Seconds from capture to playout, as agreed; ``None`` without ``time_sync``."""
        return None if self._timeline is None else self._timeline.delay_ns / 1e9

    def statistics(self) -> ReceiverStatistics:
        """A snapshot of the counters."""
        lost = 0
        feed = self._feed
        if self.realtime:
            expected = self._expected_before + self._highest + 1
            lost = max((self._total if self._over else expected) - self._packets, 0)
        return ReceiverStatistics(
            self._packets,
            self._bytes,
            lost,
            self._late,
            self._duplicates,
            self._dropped,
            self._stale + (feed.dropped if feed else 0),
            feed.queued if feed else len(self._queue),
            feed.playout.statistics() if feed else None,
            0 if self._timeline is None else self._timeline.overdue,
        )

    def close(self, code: int = Reset.CANCELLED) -> None:
        """Stop receiving; the sender's next ``send`` raises ``StreamReset``. Idempotent."""
        if self._closed:
            return
        self._closed = True
        peer = self._peer
        peer.receivers.pop(self.alias, None)
        if peer.ended is None and not self._finished:
            peer.protocol.inbox.stop(self.alias, code)
            peer.protocol.abort_media(self.alias, -1, code)
            peer.connection.wake()
        self._dropped += len(self._queue)
        self._queue.clear()
        self._captured.clear()
        self._wake()
        self._end_playout()

    @property
    def ended_cleanly(self) -> bool:
        """Whether the sender has ended the stream; the rest of it can be read."""
        return self._over

    @property
    def _finished(self) -> bool:
        return self._over or self._error is not None

    # The peer's session reports.

    def accept(self) -> None:
        """Tell the opener what was agreed."""
        agreed: dict[str, Any] = {
            "format": None if self.format is None else format_to_wire(self.format)
        }
        if self._timeline is not None:
            agreed |= self._timeline.to_wire()
        self._peer.protocol.accept_media(self.alias, payloads.encode(agreed))
        self._peer.connection.wake()

    def deliver(self, event: ev.MediaReceived) -> None:
        """One packet."""
        if event.epoch != self._epoch:
            if (event.epoch - self._epoch) & 0xFFFF < 0x8000:
                self.flushed(event.epoch)  # a datagram of the new epoch came before STREAM_FLUSH
            else:
                self._take_stale(event)
                return
        number = self._extend(event.sequence_number)
        if not self.realtime:
            self._highest = number  # one QUIC stream: in order, once
        elif not self._first_sight(number):
            self._duplicates += 1
            return
        size = len(event.payload)
        self._packets += 1
        self._bytes += size
        if self._feed is not None:
            self._play(self._feed, event)
        elif number < self._last_read:
            self._late += 1
        else:
            try:
                frame = self._item(event)
            except (InvalidPayload, ProtocolError) as exc:
                self._fail_sender(str(exc))
                return
            if event.capture_ts is not None and self._timeline is not None:
                self._captured[number] = event.capture_ts
            self._keep(number, frame, size, event.stream_id)
        if self._packets == self._total:
            self._end()

    def _play(self, feed: PlayoutFeed, event: ev.MediaReceived) -> None:
        feed.push(event, self._peer.connection.received_at)
        if self.realtime or self._paused_stream >= 0 or self._draining:
            return
        if feed.queued > RECEIVE_PACKETS or feed.queued_bytes > RECEIVE_BYTES:
            self._paused_stream = event.stream_id
            self._peer.protocol.inbox.pause(event.stream_id)

    def _keep(self, number: int, frame: Frame, size: int, stream_id: int) -> None:
        """Queue an item for the reader."""
        self._insert(number, frame)
        self._queued_bytes += size
        if len(self._queue) > RECEIVE_PACKETS or self._queued_bytes > RECEIVE_BYTES:
            if stream_id < 0:
                gone, dropped = self._queue.popleft()
                self._captured.pop(gone, None)
                self._queued_bytes -= _size(dropped)
                self._dropped += 1
            elif self._paused_stream < 0 and not self._draining:
                self._paused_stream = stream_id
                self._peer.protocol.inbox.pause(stream_id)
        self._wake()

    def _take_stale(self, event: ev.MediaReceived) -> None:
        """A packet of an epoch that was flushed."""
        self._packets += 1
        self._bytes += len(event.payload)
        self._stale += 1
        if (event.epoch + 1) & 0xFFFF == self._epoch:
            beyond = event.sequence_number - self._highest_before
            if 0 < beyond < 0x8000_0000:
                self._highest_before += beyond
                self._expected_before += beyond
        if self._packets == self._total:
            self._end()

    def drain_inbox(self) -> None:
        """The connection has ended: take all that came over it."""
        self._draining = True
        self._unpause()

    def _unpause(self) -> None:
        if self._paused_stream >= 0:
            stream_id, self._paused_stream = self._paused_stream, -1
            self._peer.resume(stream_id)

    def ended(self, packets: int) -> None:
        """The sender is done. Datagrams may still be on their way: they get a moment."""
        self._total = packets
        if self.realtime and self._packets < packets:
            self._peer.loop.call_later(END_GRACE_S, self._end)
        else:
            self._end()

    def aborted(self, code: int, message: str) -> None:
        """The sender gave the stream up."""
        if not self._finished:
            text = f": {message}" if message else ""
            self._error = StreamReset(
                f"the sender aborted stream {self.name!r} ({_code(code)}){text}", code=code
            )
            self._leave()

    def flushed(self, epoch: int) -> None:
        """What is queued of earlier epochs is dropped."""
        if not 0 < (epoch - self._epoch) & 0xFFFF < 0x8000:
            return
        self._stale += len(self._queue)
        self._queue.clear()
        self._captured.clear()
        self._queued_bytes = 0
        self._expected_before += self._highest + 1
        self._highest_before = self._highest
        self._epoch = epoch
        self._highest = self._last_read = -1
        self._seen = 0
        if self._feed is not None:
            self._feed.flush()
        self._unpause()

    def connection_lost(self, error: ConnectionClosed) -> None:
        """The connection ended. A realtime stream that only waited for stragglers is over."""
        if self._total >= 0:
            self._over = True
        elif not self._finished:
            self._error = error
        self._wake()
        self._end_playout()

    def _end(self) -> None:
        if not self._finished:
            self._over = True
            self._leave()

    def _leave(self) -> None:
        self._peer.receivers.pop(self.alias, None)
        self._wake()
        self._end_playout()

    def _end_playout(self) -> None:
        if self._feed is not None:
            self._feed.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail_sender(self, message: str) -> None:
        self._error = StreamReset(f"stream {self.name!r}: {message}", code=Reset.PROTOCOL_ERROR)
        self._peer.protocol.inbox.stop(self.alias, Reset.PROTOCOL_ERROR)
        self._peer.protocol.abort_media(self.alias, -1, Reset.PROTOCOL_ERROR, message)
        self._leave()

    def _extend(self, sequence_number: int) -> int:
        """The sequence number without its wrap at 2**32: the one nearest to the highest so far."""
        if self._highest < 0:
            return sequence_number
        delta = (sequence_number - self._highest) & _MASK32
        return self._highest + (delta if delta < 0x80000000 else delta - 0x1_0000_0000)

    def _first_sight(self, number: int) -> bool:
        """Whether this packet is new; the last 1024 are remembered as bits."""
        ahead = number - self._highest
        if ahead > 0:
            self._seen = ((self._seen << min(ahead, 1024)) | 1) & ((1 << 1024) - 1)
            self._highest = number
            return True
        if -ahead >= 1024 or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True

    def _insert(self, number: int, frame: Frame) -> None:
        """Keep the queue in order of sequence numbers; the usual place is the end."""
        queue = self._queue
        if not queue or queue[-1][0] < number:
            queue.append((number, frame))
            return
        index = len(queue)
        while index and queue[index - 1][0] > number:
            index -= 1
        queue.insert(index, (number, frame))

    def _item(self, event: ev.MediaReceived) -> Frame:
        if self._timeline is not None and event.capture_ts is None:
            raise InvalidPayload("a packet of a time-synchronised stream without capture time")
        if self.format is None:
            return bytes(event.payload)
        try:
            return AudioFrame.from_bytes(
                event.payload,
                self.format,
                timestamp=event.timestamp,
                capture_ts=event.capture_ts,
                sequence_number=event.sequence_number,
            )
        except ValueError as exc:
            raise InvalidPayload(str(exc)) from None


def format_to_wire(format: AudioFormat) -> dict[str, Any]:
    """The map of STREAM_OPEN and STREAM_ACCEPT (wire format, section 5)."""
    return {
        "sample_rate": format.sample_rate,
        "channels": format.channels,
        "sample_type": format.sample_type,
        "frame": format.frame,
    }


def format_from_wire(value: Any) -> AudioFormat | None:
    """Read a peer's format. Raises ``InvalidPayload``."""
    if value is None:
        return None
    try:
        return AudioFormat(
            value["sample_rate"],
            value["channels"],
            sample_type=value["sample_type"],
            frame=value["frame"],
        )
    except (KeyError, TypeError, ConfigurationError) as exc:
        raise InvalidPayload(f"$.format is not an audio format: {exc}") from None


def _agreed(options: bytes, formats: tuple[AudioFormat, ...]) -> AudioFormat | None:
    body = payloads.decode(options)
    if not isinstance(body, dict):
        raise InvalidPayload("STREAM_OPEN must carry a map")
    if body.get("codec", "pcm") != "pcm":
        raise RpcError(
            f"codec {str(body['codec'])[:64]!r} is not known here; known: 'pcm'",
            status=Status.FAILED_PRECONDITION,
        )
    format = format_from_wire(body.get("format"))
    if formats and format not in formats:
        wanted = ", ".join(str(f) for f in formats)
        raise RpcError(
            f"this stream handler takes {wanted}; the stream offers {format}",
            status=Status.FAILED_PRECONDITION,
        )
    return format


def _size(frame: Frame) -> int:
    return len(frame) if isinstance(frame, bytes) else frame.samples.nbytes


def _code(code: int) -> str:
    try:
        return Reset(code).name
    except ValueError:
        return f"code {code:#x}"


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting when it fails; that is no error of its own."""
    if not future.cancelled():
        future.exception()
