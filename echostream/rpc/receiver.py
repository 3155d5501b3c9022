"""The receiving end of a stream: ``StreamReceiver``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from echostream.codes import Reset
from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    EchoStreamError,
    InvalidPayload,
    ProtocolError,
    ResourceExhausted,
    StreamReset,
)
from echostream.media.codec import PCM
from echostream.media.decoded import CodecPlayout
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.ordered_decoder import OrderedDecoder
from echostream.media.playout import Playout, PlayoutStatistics
from echostream.media.sync_playout import SyncPlayout, SyncStatistics
from echostream.protocol import events as ev
from echostream.protocol import payload as payloads
from echostream.rpc.aligned import Timeline
from echostream.rpc.call import Metadata, decode_metadata
from echostream.rpc.playing import AdaptiveFeed, PlayoutFeed, SyncFeed
from echostream.rpc.resumed import Offer, Reading
from echostream.rpc.stream_options import agreed_codec, agreed_format, format_to_wire, reset_name

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["ReceiverStatistics", "StreamReceiver"]

Frame: TypeAlias = bytes | AudioFrame
Item: TypeAlias = Frame | ev.MediaReceived
"""What is queued: with a codec the packet, which is decoded when it is read."""

RECEIVE_PACKETS = 1024
"""Packets that wait for a reader; a reliable stream is paused there, a realtime one drops its
oldest."""
RECEIVE_BYTES = 256 * 1024
END_GRACE_S = 0.1
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ReceiverStatistics:
    """Counters of one incoming stream.

    ``packets``: came, each counted once. Of these ``late`` came after a newer one was read,
    ``dropped`` were pushed out because the reader was slow, ``stale`` belonged to an epoch that was
    flushed, ``queued`` wait for the reader now; all others were read. ``lost``: did not come
    (realtime; known from sequence numbers, and exactly when the sender has ended): what was sent is
    ``packets`` and ``lost``. ``duplicates``: came again. ``overdue``: ``recv_aligned`` handed them
    out after the time at which they were to be heard. ``undecodable``: are no packets of the
    stream's codec, and were passed over like lost ones. On a reliable stream that goes on, ``lost``
    came to no handler of this side, and cannot be had any more. ``playout`` or, with its profile
    "sync", ``sync``: what the playout counts.
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
    undecodable: int = 0
    sync: SyncStatistics | None = None


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
        self.format = agreed_format(opened.options, formats)
        self.codec = agreed_codec(opened.options, self.format)
        self._decoder = None
        if self.codec is not PCM and self.format is not None:
            self._decoder = self.codec.decoder(self.format)
        self._undecodable = 0
        offer = None if self.realtime else Offer.from_wire(opened.options)
        self._reading: Reading | None = None
        if offer is not None:
            self._reading = Reading(peer, self.alias, offer, peer.events.place(offer.name))
        self.offset = 0 if self._reading is None else self._reading.offset
        """The number of the first item that comes here: above 0 where a stream goes on."""
        self.resume_id = None if offer is None else offer.name.hex()
        """Names a stream that can go on, over all its connections; ``None`` for others."""
        self.ended_before = self._reading is not None and self._reading.ended
        """Whether it was read to its end before: there is nothing to do."""
        self._timeline = Timeline.from_wire(payloads.decode(opened.options), peer.clock)
        self._captured: dict[int, int] = {}  # capture times of what is queued, by number
        self._queue: deque[tuple[int, Item]] = deque()  # (extended number, item)
        self._queued_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._paused_stream = -1
        self._epoch = 0
        self._highest = self.offset - 1
        self._seen = 0
        self._last_captured = 0
        self._last_read = self.offset - 1
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
        while True:
            item = await self._take()
            if not isinstance(item, ev.MediaReceived):
                return item
            frame = self._decoded(item)
            if frame is not None:
                return frame

    async def _take(self) -> Item | None:
        if self._reading is not None and not self._reading.current and self._queue:
            self._queue.clear()  # another handler goes on with it: this is no clean end
            self._error = self._error or ConnectionClosed(
                f"stream {self.name!r} goes on with another connection"
            )
        while not self._queue:
            if self._feed is not None:
                raise ConfigurationError(
                    f"stream {self.name!r} goes to its playout: pull the audio from there"
                )
            if self._error is not None:
                raise copy(self._error)
            if self._over or self._closed:
                if self._reading is not None and not self._closed:
                    self._reading.end()
                return None
            if self._waiter is not None:
                raise ConfigurationError("two tasks read one stream: give each its own")
            self._waiter = self._peer.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        number, item = self._queue.popleft()
        self._last_captured = self._captured.pop(number, 0)
        self._last_read = max(self._last_read, number)
        self._queued_bytes -= _size(item)
        if self._reading is not None:
            self._reading.read(number, _size(item))
        if (
            self._paused_stream >= 0
            and len(self._queue) <= RECEIVE_PACKETS // 2
            and self._queued_bytes <= RECEIVE_BYTES // 2
        ):
            self._unpause()
        return item

    def _decoded(self, event: ev.MediaReceived) -> AudioFrame | None:
        assert self._decoder is not None
        assert self.format is not None
        try:
            samples = self._decoder.decode(event.payload)
        except ProtocolError:
            self._undecodable += 1
            return None
        return AudioFrame(
            samples, self.format, event.timestamp, event.capture_ts, event.sequence_number
        )

    async def read_all(self, limit: int = 64 * 1024 * 1024) -> bytes:
        """All that is left of a stream of bytes, to its clean end. Raises ``ResourceExhausted``,
        and stops the stream, above ``limit`` bytes; else as :meth:`recv`."""
        if self.format is not None:
            raise ConfigurationError(f"stream {self.name!r} carries audio, not bytes")
        parts: list[bytes] = []
        size = 0
        while (item := await self.recv()) is not None:
            assert isinstance(item, bytes)
            size += len(item)
            if size > limit:
                self.close(Reset.TOO_LARGE)
                raise ResourceExhausted(f"stream {self.name!r} has more than limit={limit} bytes")
            parts.append(item)
        return b"".join(parts)

    @overload
    def playout(
        self,
        *,
        target_late: float = 0.01,
        profile: Literal["voice", "music"] = "voice",
        min_delay: float = 0.0,
        max_delay: float = 2.0,
    ) -> Playout: ...
    @overload
    def playout(self, *, profile: Literal["sync"], output_latency: float = 0.0) -> SyncPlayout: ...

    def playout(
        self, *, profile: Literal["voice", "music", "sync"] = "voice", **options: Any
    ) -> Any:
        """Play this stream: from now on its packets go to the ``Playout`` that is returned, stamped
        with the time at which their datagram was read, and :meth:`recv` has nothing any more.

        The sender's ``flush`` empties it, its ``end`` ends it; after an abort or the loss of the
        connection it plays what it has, and ends. What a reliable stream brings faster than it is
        heard waits, and its sender with it. Options as for ``Playout``.

        ``profile="sync"``, on a stream with ``time_sync``: a ``SyncPlayout``, which plays every
        sample at its capture time plus the agreed ``playout_delay``, by the clock that both sides
        share; ``output_latency`` is that of the device behind it, in s.

        Raises ``ConfigurationError`` on a stream without a format, for a second playout, and
        for options that cannot work.
        """
        format = self.format
        if format is None:
            raise ConfigurationError(
                f"stream {self.name!r} carries bytes: a playout needs an AudioFormat"
            )
        if self._feed is not None:
            raise ConfigurationError(f"stream {self.name!r} has a playout already")
        peer = self._peer
        feed: AdaptiveFeed | SyncFeed
        feed_options = (peer.loop, peer.connection.clock, self._give_room, self._fail_sender)
        if profile == "sync":
            feed = SyncFeed(self._sync_playout(format, **options), *feed_options)
            if self._decoder is not None:
                feed.decoder = OrderedDecoder(self._decoder, format)
            feed.keep_sharp(peer.clock)
        elif self._decoder is None:
            feed = AdaptiveFeed(Playout(format, profile=profile, **options), *feed_options)
        else:
            playout = CodecPlayout(format, self.codec, profile=profile, **options)
            feed = AdaptiveFeed(playout, *feed_options)
        if isinstance(feed, AdaptiveFeed):
            feed.sync = peer.clock.sync
        self._feed = feed
        waiting = [item for _, item in self._queue]
        self._queue.clear()
        self._queued_bytes = 0
        stream_id = -1 if self.realtime else 0
        for item in waiting:
            if isinstance(item, AudioFrame):
                item = ev.MediaReceived(
                    self.alias,
                    self._epoch,
                    item.sequence_number,
                    item.timestamp,
                    item.capture_ts,
                    0,
                    item.to_buffer(),
                    stream_id,
                )
            assert isinstance(item, ev.MediaReceived)
            feed.push(item, self._peer.connection.received_at)
        if self._reading is not None and waiting:
            self._reading.read(self._highest, sum(map(_size, waiting)))
        self._give_room()
        if self._finished or self._closed:
            feed.end()
        self._wake()
        return feed.playout

    def _sync_playout(self, format: AudioFormat, *, output_latency: float = 0.0) -> SyncPlayout:
        if self._timeline is None:
            raise ConfigurationError(
                f"stream {self.name!r} has no time_sync, which profile='sync' needs: open it with "
                f"create_stream({self.name!r}, time_sync=True, format=...)"
            )
        clock = self._peer.clock
        return SyncPlayout(
            format,
            clock.sync,
            playout_delay=self._timeline.delay_ns / 1e9,
            output_latency=output_latency,
            now=clock.now_ns,
        )

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
        lost = 0 if self._reading is None else self._reading.lost
        feed = self._feed
        seen = feed.statistics() if feed else None
        playing, sync = (None, seen) if isinstance(seen, SyncStatistics) else (seen, None)
        undecodable = self._undecodable
        if seen is not None and seen.codec is not None:
            undecodable += seen.codec.undecodable
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
            playing,
            0 if self._timeline is None else self._timeline.overdue,
            undecodable,
            sync,
        )

    def close(self, code: int = Reset.CANCELLED) -> None:
        """Stop receiving; the sender's next ``send`` raises ``StreamReset``. Idempotent."""
        if self._closed:
            return
        self._closed = True
        peer = self._peer
        peer.receivers.pop(self.alias, None)
        reading = self._reading
        unread = reading is not None and (bool(self._queue) or not reading.ended)
        if reading is not None:
            if self._over and not self._queue:
                reading.end()
                unread = False
            reading.stop()
        if peer.ended is None and (not self._finished or (self._over and unread)):
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
        if self.codec is not PCM:
            agreed["codec"] = self.codec.name
        if self._timeline is not None:
            agreed |= self._timeline.to_wire()
        if self._reading is not None:
            agreed |= self._reading.agreed()
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
            if self._reading is not None and number != self._highest + 1:
                self._fail_sender(f"item {number} came after item {self._highest}")
                return
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
        if self._reading is not None:
            self._reading.read(self._highest, len(event.payload))
        if self.realtime or self._paused_stream >= 0 or self._draining:
            return
        if feed.queued > RECEIVE_PACKETS or feed.queued_bytes > RECEIVE_BYTES:
            self._paused_stream = event.stream_id
            self._peer.protocol.inbox.pause(event.stream_id)

    def _keep(self, number: int, frame: Item, size: int, stream_id: int) -> None:
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
                f"the sender aborted stream {self.name!r} ({reset_name(code)}){text}", code=code
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
        if self._decoder is not None:
            self._decoder.reset()
        if self._feed is not None:
            self._feed.flush()
        self._unpause()

    def connection_lost(self, error: ConnectionClosed) -> None:
        """The connection ended. A realtime stream that only waited for stragglers is over."""
        if self._total >= 0:
            self._over = True
        elif not self._finished:
            self._error = error
        if self._reading is not None:
            self._reading.stop()
        self._wake()
        self._end_playout()

    def _end(self) -> None:
        if not self._finished:
            self._over = True
            if self._reading is not None and self._feed is not None:
                self._reading.end()
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

    def _insert(self, number: int, frame: Item) -> None:
        """Keep the queue in order of sequence numbers; the usual place is the end."""
        queue = self._queue
        if not queue or queue[-1][0] < number:
            queue.append((number, frame))
            return
        index = len(queue)
        while index and queue[index - 1][0] > number:
            index -= 1
        queue.insert(index, (number, frame))

    def _item(self, event: ev.MediaReceived) -> Item:
        if self._timeline is not None and event.capture_ts is None:
            raise InvalidPayload("a packet of a time-synchronised stream without capture time")
        if self.format is None:
            return bytes(event.payload)
        if self._decoder is not None:
            return event
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


def _size(item: Item) -> int:
    if isinstance(item, ev.MediaReceived):
        return len(item.payload)
    return len(item) if isinstance(item, bytes) else item.samples.nbytes
