"""The sending end of a stream: ``StreamBuilder`` opens it, ``StreamSender`` feeds it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from echostream.codes import Reset, Status
from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    EchoStreamError,
    InvalidPayload,
    ResourceExhausted,
    RpcError,
    StreamReset,
    Unavailable,
)
from echostream.media.codec import PCM, Codec, find_codec
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.protocol import payload as payloads
from echostream.protocol.frames import encode_media
from echostream.protocol.stream_journal import Item
from echostream.rpc.aligned import playout_delay_ns
from echostream.rpc.call import Metadata, encode_metadata
from echostream.rpc.encoding import StreamEncoder
from echostream.rpc.resumed import Revival
from echostream.rpc.stream_options import format_to_wire, reset_name

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["SenderStatistics", "StreamBuilder", "StreamSender"]

Sendable: TypeAlias = bytes | bytearray | memoryview | NDArray[Any] | AudioFrame

SEND_HIGH = 256 * 1024
"""Unacknowledged bytes of one reliable stream above which ``send`` may wait: where the congestion
window holds more than half of it, as many as two windows, up to :data:`SEND_MOST`."""
SEND_MOST = 1024 * 1024
"""The most: a stream's window of flow control."""
MEDIA_HEADER = 32
MAX_EPOCH = 0xFFFF
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SenderStatistics:
    """Counters of one outgoing stream. ``buffered``: bytes that the peer has not acknowledged;
    ``refused``: packets that the transport did not take (the path shrank). With ``resume``,
    ``read``: so many items were read by the other side's program, from the first on, and
    ``resent``: were sent again."""

    packets: int
    bytes: int
    refused: int
    flushes: int
    buffered: int
    read: int = 0
    resent: int = 0


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
        codec: str | Codec = "pcm",
        resume: bool = False,
    ) -> None:
        if format is not None and not isinstance(format, AudioFormat):
            raise ConfigurationError(
                f"format={format!r} must be an AudioFormat, for example AudioFormat(48_000, 2)"
            )
        self._peer = peer
        self._name = name
        self._format = format
        self._codec = _codec_for(codec, format)
        self._realtime = delivery == "realtime"
        self._metadata = encode_metadata(metadata)
        self._intercept: Callable[[Any], Awaitable[StreamSender]] | None = None
        self._priority = priority
        self._timeout = timeout
        if max_age is not None and not self._realtime:
            raise ConfigurationError(
                "max_age works with delivery='realtime': a reliable stream loses nothing"
            )
        self._max_age = max_age
        if resume and self._realtime:
            raise ConfigurationError("resume goes with delivery='reliable'")
        if resume and (peer.successor is None or peer.events.token is None):
            raise ConfigurationError(
                "resume=True goes with a client that reconnects: RpcClient.connect(..., "
                "reconnect=True)"
            )
        self._resume = resume
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

    def intercept(self, around: Callable[[Any], Awaitable[StreamSender]]) -> None:
        """Open it through ``around``, which is given a function from metadata to the stream."""
        self._intercept = around

    async def build(self) -> StreamSender:
        """Open the stream; returns when the other side has accepted it."""
        if self._intercept is None:
            return await self._open()
        return await self._intercept(self._open_with)

    async def _open_with(self, metadata: Metadata) -> StreamSender:
        self._metadata = encode_metadata(metadata)
        return await self._open()

    async def _open(self) -> StreamSender:
        peer = self._peer
        if self._resume and peer.successor is not None and (peer.ended or peer.going_away):
            peer = await self._next(peer.successor)
        peer.check_open()
        if self._realtime and not peer.connection.engine.max_datagram_payload:
            raise ConfigurationError("the peer takes no datagrams: open with delivery='reliable'")
        options: dict[str, Any] = {
            "format": None if self._format is None else format_to_wire(self._format),
            "codec": self._codec.name,
            "time_sync": self._delay_ns is not None,
            "offset": 0,
            "epoch": 0,
        }
        if self._delay_ns is not None:
            options["playout_delay"] = self._delay_ns // 1000
            peer.clock.start()
        sender = StreamSender(
            peer,
            self._name,
            self._format,
            self._max_age,
            self._delay_ns,
            self._codec,
            opening=(self._metadata, self._realtime, self._priority),
        )
        if self._resume:
            sender._revival = Revival(sender, options)
        sender._start(peer, payloads.encode(options))
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

    async def _next(self, successor: Callable[[], Awaitable[Peer]]) -> Peer:
        try:
            async with asyncio.timeout(self._timeout):
                return await successor()
        except TimeoutError:
            raise DeadlineExceeded(
                f"no connection for stream {self._name!r} within {self._timeout} s",
                method=self._name,
            ) from None


class StreamSender:
    """The sending end of a stream. ``async with`` ends it cleanly, or aborts it on an error."""

    def __init__(
        self,
        peer: Peer,
        name: str,
        format: AudioFormat | None,
        max_age: float | None,
        delay_ns: int | None,
        codec: Codec,
        *,
        opening: tuple[bytes | None, bool, int],
    ) -> None:
        self._peer = peer
        self._priority = opening[2]
        self.codec = codec
        self._encoder: StreamEncoder | None = None
        if codec is not PCM and format is not None:
            self._encoder = StreamEncoder(codec, format)
        self._delay_ns = delay_ns
        self.name = name
        self.alias = self.stream_id = -1
        self.format = format
        self._opening = opening
        self.realtime = opening[1]
        self._revival: Revival | None = None
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

        Reliable: waits while the peer does not read (256 KiB to 1 MiB are on their way, by the
        congestion window). Realtime: does not wait for the network; arrays longer than a packet
        are split. With a codec, what does not fill a packet waits for more.

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
        if self._revival is not None:
            raise ConfigurationError("a stream with resume=True loses nothing: it has no flush")
        if self._epoch == MAX_EPOCH:
            raise ResourceExhausted(f"a stream can be flushed {MAX_EPOCH} times: open a new one")
        self._epoch += 1
        self._flushes += 1
        self._sequence = 0
        if self._encoder is not None:
            self._encoder.reset()
        self.stream_id = self._peer.protocol.flush_media(
            self.alias, self.stream_id, self._epoch, self._priority
        )
        self._peer.connection.wake()

    async def end(self) -> None:
        """End cleanly: the receiver reads what is left, then ``None``. Idempotent. With a codec,
        the last packet is filled up with silence. With ``resume`` it waits until everything was
        read there. Raises where that cannot be, because the receiver stopped the stream or the
        connection ended."""
        if self._error is not None:
            raise copy(self._error)
        if self._done:
            return
        self._send_rest()
        if self._revival is not None:
            if self._revival.live:
                self.write_end()
            await self._revival.wait_ended()
            if self._error is not None:
                raise copy(self._error)
            self._finish()
            return
        self._finish()
        self.write_end()

    def abort(self, code: int = Reset.CANCELLED) -> None:
        """Give the stream up: the receiver gets ``StreamReset`` with ``code``. Idempotent."""
        if not self._done:
            self._give_up(code)

    def statistics(self) -> SenderStatistics:
        """A snapshot of the counters."""
        buffered = 0
        if not self.realtime and self._peer.ended is None:
            buffered = self._peer.connection.engine.buffered(self.stream_id)
        revival = self._revival
        return SenderStatistics(
            self._packets,
            self._bytes,
            self._refused,
            self._flushes,
            buffered,
            0 if revival is None else revival.journal.first,
            0 if revival is None else revival.resent,
        )

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
                self._go_to(frame.timestamp)
            if self._encoder is None:
                self._send_samples(samples, capture_ts)
            else:
                self._send_encoded(self._encoder.push(samples, capture_ts))
        self._peer.connection.wake()
        if self.realtime:
            return
        if self._revival is not None:
            await self._revival.wait_room()
            self._check()
            return
        while not self._done and self._peer.connection.engine.buffered(self.stream_id) > SEND_HIGH:
            if not await self._wait_sent():
                break
            self._check()
        if not self._done and self._peer.sending.refuses:
            await self._peer.room.wait_share()
            self._check()

    async def _wait_sent(self) -> bool:
        """Wait until half of what may be on its way is acknowledged; ``False``: it is not too much.
        A long fat path has more under way than :data:`SEND_HIGH`."""
        engine = self._peer.connection.engine
        most = min(max(2 * engine.info().congestion_window, SEND_HIGH), SEND_MOST)
        if engine.buffered(self.stream_id) <= most:
            return False
        await self._peer.room.wait_stream(self.stream_id, most // 2)
        return True

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

    def _go_to(self, timestamp: int) -> None:
        """The next sample has this timestamp, if that is not in the past."""
        waiting = 0 if self._encoder is None else self._encoder.waiting
        if timestamp > self._timestamp + waiting:
            self._send_rest()
            self._timestamp = max(self._timestamp, timestamp)

    def _send_rest(self) -> None:
        if self._encoder is not None:
            self._send_encoded(self._encoder.rest())

    def _send_encoded(self, packets: Iterator[tuple[bytes, int | None]]) -> None:
        assert self._encoder is not None
        for payload, stamp in packets:
            self._packet(payload, len(payload), stamp)
            self._timestamp += self._encoder.frame

    def _send_bytes(self, data: bytes | bytearray | memoryview, capture_ts: int | None) -> None:
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        if not self.realtime:
            self._check_item(size)
        self._packet(data, size, capture_ts)
        self._timestamp += 1

    def _packet(self, payload: Any, size: int, capture_ts: int | None) -> None:
        if self._revival is not None:
            item = self._revival.record(payload, self._timestamp, capture_ts)
            if self._revival.live:
                self.write(item)
            self._packets += 1
            self._bytes += size
            return
        data = encode_media(
            self.alias, self._epoch, self._sequence, self._timestamp, payload, 0, capture_ts
        )
        connection = self._peer.connection
        if not self.realtime:
            connection.engine.send_stream(self.stream_id, data, False)
            self._peer.sending.charge(len(data))
        else:
            deadline = None if self._max_age is None else connection.clock() + self._max_age
            if not connection.engine.send_datagram(data, deadline):
                self._not_taken(size)
        self._sequence = (self._sequence + 1) & _MASK32
        self._packets += 1
        self._bytes += size

    def _not_taken(self, size: int) -> None:
        room = self._peer.connection.engine.max_datagram_payload - MEDIA_HEADER
        if size > room:
            raise ResourceExhausted(
                f"{size} bytes do not fit one datagram ({room}): send less (a codec: at a lower "
                "bitrate, or in shorter frames), or open the stream with delivery='reliable'"
            )
        self._refused += 1

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
        if self._peer.ended is not None and self._revival is None:
            self._peer.check_open()
        if self._done:
            raise StreamReset(f"stream {self.name!r} was ended here", code=Reset.CANCELLED)

    def _finish(self) -> None:
        self._done = True
        self._peer.senders.pop(self.alias, None)
        if self._revival is not None:
            self._revival.cancel()

    def _give_up(self, code: int) -> None:
        self._finish()
        if self._peer.ended is None:
            self._peer.protocol.abort_media(self.alias, self.stream_id, code)
            self._peer.connection.wake()

    def _start(self, peer: Peer, options: bytes) -> None:
        metadata, realtime, priority = self._opening
        if self._revival is not None:
            options = self._revival.options
        self._peer = peer
        self.alias, self.stream_id = peer.protocol.open_media(
            self.name, options, metadata, realtime, priority
        )
        peer.senders[self.alias] = self
        peer.connection.wake()

    # What goes on over lost connections.

    @property
    def over(self) -> bool:
        """Whether nothing more can be sent."""
        return self._done

    async def successor(self) -> Peer:
        """The next connection."""
        assert self._peer.successor is not None
        return await self._peer.successor()

    async def reopen(self, peer: Peer) -> None:
        """Go on over another connection."""
        peer.check_open()
        self._opened = peer.loop.create_future()
        self._opened.add_done_callback(_retrieve)
        self._start(peer, b"")
        await asyncio.shield(self._opened)

    def write(self, item: Item) -> None:
        """Write an item to the connection."""
        data = encode_media(
            self.alias,
            0,
            item.number & _MASK32,
            item.timestamp,
            item.payload,
            0,
            item.capture_ts,
        )
        self._peer.connection.engine.send_stream(self.stream_id, data, False)
        self._peer.connection.wake()

    def write_end(self) -> None:
        """Say that nothing follows."""
        self._peer.protocol.end_media(self.alias, self.stream_id, self._packets)
        self._peer.connection.wake()

    def acknowledged(self, upto: int, end: bool) -> None:
        """The other side's program has read so far. Raises ``ProtocolError``."""
        if self._revival is not None:
            self._revival.acknowledged(upto, end)

    def fail(self, error: EchoStreamError) -> None:
        """It does not go on."""
        if not self._done:
            self._error = error
            self._finish()

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
        if self._revival is not None and not self._done:
            try:
                self._revival.accepted(agreed)
            except RpcError as exc:
                self.refused(exc)
                return
        if not self._opened.done():
            self._opened.set_result(None)

    def refused(self, error: RpcError) -> None:
        """The other side did not take it, or gave it up with a status."""
        error.method = error.method or self.name
        if self._revival is not None and self._packets and isinstance(error, Unavailable):
            self._peer.senders.pop(self.alias, None)
            if not self._opened.done():
                self._opened.set_exception(error)  # the next server takes it
            return
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
            f"the receiver stopped stream {self.name!r} ({reset_name(code)}){text}", code=code
        )
        self._finish()
        if not self._opened.done():
            self._opened.set_exception(copy(self._error))
        if self.stream_id >= 0:
            self._peer.connection.engine.reset_stream(self.stream_id, code)

    def connection_lost(self, error: ConnectionClosed) -> None:
        """The connection ended."""
        if self._revival is not None and not self._done and (self._opened.done() or self._packets):
            if not self._opened.done():
                self._opened.set_exception(copy(error))
            self._revival.connection_lost(error)
            return
        self._error = error
        self._done = True
        if not self._opened.done():
            self._opened.set_exception(copy(error))


def _codec_for(codec: str | Codec, format: AudioFormat | None) -> Codec:
    """The option ``codec``. Raises ``ConfigurationError``."""
    found = codec if isinstance(codec, Codec) else find_codec(codec)
    if found is not PCM:
        if format is None:
            raise ConfigurationError(
                f"codec {found.name!r} carries audio: give format=AudioFormat(48_000, 2), too"
            )
        found.check(format)
    return found


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting when it fails; that is no error of its own."""
    if not future.cancelled():
        future.exception()
