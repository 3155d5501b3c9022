"""A transport without sockets, packets or encryption: two engines in one process.

For tests and for measuring the floors above: over a perfect path, a write costs about as much as
a call. Over an impaired one, what QUIC would show is modelled per segment: latency, reordering,
head-of-line blocking on the stream that lost something and on no other, a limited rate.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from echostream.transport.connection import Connection
from echostream.transport.engine import (
    Address,
    Closed,
    DatagramReceived,
    EngineEvent,
    EngineInfo,
    HandshakeCompleted,
    PingAcknowledged,
    StopSending,
    StreamData,
    StreamReset,
)
from echostream.transport.impairment import Impairment
from echostream.transport.memory_link import MemoryLink

__all__ = ["DATAGRAM_QUEUE", "MAX_DATAGRAM_PAYLOAD", "MemoryEngine", "MemoryLink", "memory_pair"]

MAX_DATAGRAM_PAYLOAD = 1170
"""Bytes: what fits QUIC's smallest packet of 1200."""

DATAGRAM_QUEUE = 64
LEAST_URGENT = 256
"""Of a stream that was given no urgency."""
SEGMENT = 1150
"""Bytes of stream data per segment on an impaired path."""

_CONTROL_SIZE = 40
_OVERHEAD = 50
_ALPN = "echostream/1"

_Deliver: TypeAlias = Callable[..., None]


class _Sending:
    """The sending part of a stream."""

    __slots__ = (
        "acked",
        "chunks",
        "ended",
        "limit",
        "segments",
        "sent",
        "stopped",
        "unsent",
        "urgency",
    )

    def __init__(self, limit: int) -> None:
        self.chunks: deque[bytes | memoryview] = deque()
        self.unsent = 0
        self.sent = 0
        self.acked = 0
        self.limit = limit
        self.segments = 0
        self.ended = False
        self.urgency = LEAST_URGENT
        self.stopped = False


class _Receiving:
    """The receiving part of a stream."""

    __slots__ = ("credit", "discard", "early", "segments")

    def __init__(self) -> None:
        self.segments = 0
        self.early: dict[int, tuple[bytes, bool]] = {}
        self.credit = 0
        self.discard = False


class MemoryEngine:
    """Implements :class:`echostream.transport.engine.Engine` towards one other MemoryEngine.

    ``feed`` and ``flush`` carry nothing: segments go to the peer directly, or wait in it for
    their time of arrival. ``notify`` is called when the peer did either; it must not call back
    into the engine at once. The peer's receive windows are taken to equal ours.
    """

    def __init__(
        self,
        link: MemoryLink,
        *,
        is_client: bool,
        stream_window: int = 1 << 20,
        connection_window: int = 8 << 20,
        max_streams: int = 128,
        idle_timeout: float | None = None,
    ) -> None:
        self.notify: Callable[[], None] = _nothing
        self._client = is_client
        self._link = link
        self._impairer = link.impairer(from_client=is_client)
        self._idle_timeout = idle_timeout
        self._peer: MemoryEngine = self
        self._events: deque[EngineEvent] = deque()
        self._now = 0.0
        self._heard = 0.0
        self._established = False
        self._closed = False
        self._forget_at = 0.0
        # What waits: for the next flush, for its arrival here, for being sent again.
        self._control: list[tuple[_Deliver, tuple[Any, ...]]] = []
        self._datagrams: deque[tuple[bytes, float | None]] = deque()
        self._arrivals: list[tuple[float, int, _Deliver, tuple[Any, ...]]] = []
        self._again: list[tuple[float, int, int, _Deliver, tuple[Any, ...]]] = []
        self._early: list[tuple[_Deliver, tuple[Any, ...]]] = []
        self._order = 0
        # Streams. An id below _opened is known or over.
        self._sending: dict[int, _Sending] = {}
        self._receiving: dict[int, _Receiving] = {}
        self._ready: dict[int, _Sending] = {}
        self._blocked: dict[int, _Sending] = {}
        self._opened = [0, 0, 0, 0]
        self._stream_limit = [max_streams] * 4
        self._stream_window = stream_window
        self._data_window = connection_window
        self._data_limit = connection_window
        self._data_sent = 0
        self._data_credit = 0
        self._lent: dict[int, int] = {}
        self._in_flight = 0
        self._buffered = 0
        self._acks: dict[int, int] = {}
        self._segments_sent = self._segments_received = 0
        self._segments_lost = self._datagrams_dropped = 0

    @classmethod
    def pair(cls, link: MemoryLink, **options: Any) -> tuple[MemoryEngine, MemoryEngine]:
        """A client and a server engine that are each other's peer; both take ``options``."""
        client, server = cls(link, is_client=True, **options), cls(link, is_client=False, **options)
        client._peer, server._peer = server, client
        return client, server

    # Engine

    @property
    def is_client(self) -> bool:
        return self._client

    def connect(self, address: Address, now: float) -> None:
        self._now = self._heard = self._peer._heard = now
        self._control.append((self._peer._take_hello, ()))

    def feed(self, data: bytes, address: Address, now: float) -> None:
        raise ValueError("a memory engine takes no UDP datagrams")

    def next_event(self) -> EngineEvent | None:
        return self._events.popleft() if self._events else None

    def timer(self) -> float | None:
        times = [heap[0][0] for heap in (self._arrivals, self._again) if heap]
        if self._closed:
            return min(self._forget_at, *times) if self._again else None
        if self._idle_timeout is not None:
            times.append(self._heard + self._idle_timeout)
        return min(times, default=None)

    def on_timer(self, now: float) -> None:
        self._now = now
        if self._closed and now >= self._forget_at:
            self._again.clear()
        while self._again and self._again[0][0] <= now:
            _, _, size, deliver, args = heapq.heappop(self._again)
            self._attempt(size, True, deliver, args)
        while self._arrivals and self._arrivals[0][0] <= now:
            _, _, deliver, args = heapq.heappop(self._arrivals)
            self._arrive(now, deliver, args)
        if self._idle_timeout is not None and now >= self._heard + self._idle_timeout:
            self._end(Closed(1, "Idle timeout", by_peer=False, application=False))

    def open_stream(self, bidirectional: bool, urgency: int | None = None) -> int:
        kind = (0 if self._client else 1) | (0 if bidirectional else 2)
        stream_id = self._opened[kind] << 2 | kind
        self._opened[kind] += 1
        self._sending[stream_id] = _Sending(self._stream_window)
        if bidirectional:
            self._receiving[stream_id] = _Receiving()
        if urgency is not None:
            self.prioritize(stream_id, urgency)
        return stream_id

    def prioritize(self, stream_id: int, urgency: int) -> None:
        if stream_id in self._sending:
            self._sending[stream_id].urgency = urgency

    def send_stream(self, stream_id: int, data: bytes | bytearray | memoryview, fin: bool) -> None:
        if self._closed:
            return
        stream = self._sending.get(stream_id)
        if stream is None or stream.ended:
            raise ValueError(f"stream {stream_id} cannot be written to: it was ended or reset")
        stream.ended = fin
        if stream.stopped:  # the peer wants no more; StopSending tells
            if fin:
                del self._sending[stream_id]
            return
        if data:
            chunk = bytes(data)
            stream.chunks.append(chunk)
            stream.unsent += len(chunk)
            self._buffered += len(chunk)
        if data or fin:
            self._ready[stream_id] = stream

    def reset_stream(self, stream_id: int, code: int) -> None:
        stream = self._sending.pop(stream_id, None)
        if stream is None or stream.stopped:
            return
        self._drop_unsent(stream_id, stream)
        self._control.append((self._peer._take_reset, (stream_id, code)))
        self._check_over(stream_id)

    def stop_stream(self, stream_id: int, code: int) -> None:
        stream = self._receiving.get(stream_id)
        if stream is not None and not stream.discard:
            stream.discard = True
            self._control.append((self._peer._take_stop, (stream_id, code)))
            for segment, (data, fin) in stream.early.items():
                self._credit_connection(len(data))
                stream.early[segment] = b"", fin

    def consume(self, stream_id: int, count: int) -> None:
        if count < 0:
            raise ValueError(f"cannot consume {count} bytes")
        lent = min(self._lent.get(stream_id, 0), count)
        if lent:
            self._lent[stream_id] -= lent
        self._credit_connection(count - lent)
        stream = self._receiving.get(stream_id)
        if stream is not None:
            stream.credit += count
            if stream.credit * 4 >= self._stream_window:
                self._control.append((self._peer._take_credit, (stream_id, stream.credit)))
                stream.credit = 0

    def lend(self, stream_id: int, count: int) -> None:
        self._lent[stream_id] = self._lent.get(stream_id, 0) + count
        self._credit_connection(count)

    def send_datagram(self, data: bytes, deadline: float | None = None) -> bool:
        if len(data) > MAX_DATAGRAM_PAYLOAD:
            return False
        if len(self._datagrams) == DATAGRAM_QUEUE:
            self._datagrams.popleft()
            self._datagrams_dropped += 1
        self._datagrams.append((bytes(data), deadline))
        return True

    @property
    def max_datagram_payload(self) -> int:
        return MAX_DATAGRAM_PAYLOAD

    def buffered(self, stream_id: int) -> int:
        stream = self._sending.get(stream_id)
        return 0 if stream is None else stream.unsent + stream.sent - stream.acked

    def unsent(self, stream_id: int) -> int:
        stream = self._sending.get(stream_id)
        return 0 if stream is None else stream.unsent

    @property
    def buffered_total(self) -> int:
        return self._buffered

    @property
    def window_left(self) -> int:
        return max(self._window() - self._in_flight, 0)

    def limit_queue(self, target: float | None) -> None:
        """There is none to limit: the window is that of the path, and little more."""

    def change_connection_id(self) -> None:
        """There is one path, and nobody who watches it."""

    def ping(self, uid: int) -> None:
        self._control.append((self._peer._take_ping, (uid,)))

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._end(Closed(int(code), reason, by_peer=False, application=True))
            self._control.append((self._peer._take_close, (int(code), reason)))

    def info(self) -> EngineInfo:
        round_trip = self._link.round_trip
        return EngineInfo(
            smoothed_rtt=round_trip,
            latest_rtt=round_trip,
            min_rtt=round_trip,
            congestion_window=self._window(),
            bytes_in_flight=self._in_flight,
            packets_sent=self._segments_sent,
            packets_received=self._segments_received,
            packets_lost=self._segments_lost,
            datagrams_dropped=self._datagrams_dropped,
            buffered=self._buffered,
        )

    idle = False

    def flush(self, now: float) -> list[tuple[bytes, Address]]:
        self._now = now
        if self._acks:
            self._control.append((self._peer._take_acks, (self._acks,)))
            self._acks = {}
        if self._control:
            if self._closed:  # what is left to say is that; for how long: RFC 9000, section 10.2
                self._forget_at = now + 3 * self._link.retransmission
            control, self._control = self._control, []
            for deliver, args in control:
                self._transmit(_CONTROL_SIZE, True, deliver, args)
        if self._established and not self._closed:
            while self._datagrams:
                data, deadline = self._datagrams.popleft()
                if deadline is not None and deadline < now:
                    self._datagrams_dropped += 1
                    continue
                size = len(data) + _OVERHEAD
                self._transmit(size, False, self._peer._take_datagram, (data,))
            while self._ready:
                window = self._window() - self._in_flight
                if window <= 0:
                    break
                stream_id = next(iter(self._ready))
                if len(self._ready) > 1:
                    stream_id = min(self._ready, key=self._urgency_of)
                self._flush_stream(stream_id, self._ready.pop(stream_id), window)
        return []

    # Sending

    def _urgency_of(self, stream_id: int) -> int:
        return self._ready[stream_id].urgency

    def _flush_stream(self, stream_id: int, stream: _Sending, window: int) -> None:
        """Send one segment of a stream; round robin over the streams that have more."""
        kind = stream_id & 3
        if kind & 1 != self._client and stream_id >> 2 >= self._stream_limit[kind]:
            self._blocked[stream_id] = stream
            return
        credit = min(stream.limit - stream.sent, self._data_limit - self._data_sent)
        if credit <= 0 < stream.unsent:
            self._blocked[stream_id] = stream
            return
        most = min(credit, window, stream.unsent)
        if not self._link.perfect[self._client]:
            most = min(most, SEGMENT)
        data = _take(stream.chunks, most)
        size = len(data)
        stream.unsent -= size
        stream.sent += size
        self._data_sent += size
        self._in_flight += size
        fin = stream.ended and not stream.unsent
        segment = stream.segments
        stream.segments += 1
        if stream.unsent:
            self._ready[stream_id] = stream
        args = (stream_id, segment, data, fin)
        self._transmit(size + _OVERHEAD, True, self._peer._take_stream, args)

    def _transmit(
        self, size: int, reliable: bool, deliver: _Deliver, args: tuple[Any, ...]
    ) -> None:
        if self._link.perfect[self._client] and not self._peer._arrivals:
            self._segments_sent += 1
            self._peer._arrive(self._now, deliver, args)
            self._peer.notify()
        else:
            self._attempt(size, reliable, deliver, args)

    def _attempt(self, size: int, reliable: bool, deliver: _Deliver, args: tuple[Any, ...]) -> None:
        self._segments_sent += 1
        self._order += 1
        arrival = self._impairer.segment(size, self._now, bounded=not reliable)
        if arrival is not None:
            peer = self._peer
            if peer._closed:
                return
            first = not peer._arrivals or arrival < peer._arrivals[0][0]
            heapq.heappush(peer._arrivals, (arrival, self._order, deliver, args))
            if first:
                peer.notify()
            return
        self._segments_lost += 1
        if reliable:
            again = self._now + self._link.retransmission
            heapq.heappush(self._again, (again, self._order, size, deliver, args))

    def _window(self) -> int:
        """What may be unacknowledged: enough to fill the path, not to fill its queue."""
        impairment = self._impairer.impairment
        if not impairment.rate:
            return 1 << 62
        return int(impairment.rate * self._link.round_trip) + (32 << 10)

    def _drop_unsent(self, stream_id: int, stream: _Sending) -> None:
        unacked = stream.sent - stream.acked
        self._in_flight -= unacked
        self._buffered -= unacked + stream.unsent
        stream.chunks.clear()
        stream.unsent = 0
        stream.acked = stream.sent
        self._ready.pop(stream_id, None)
        self._blocked.pop(stream_id, None)

    # Receiving: what the peer's segments call

    def _arrive(self, now: float, deliver: _Deliver, args: tuple[Any, ...]) -> None:
        self._segments_received += 1
        self._heard = now
        if self._closed:
            return
        if self._established or deliver in (self._take_hello, self._take_close):
            deliver(*args)
        else:  # overtook the handshake
            self._early.append((deliver, args))

    def _take_hello(self) -> None:
        self._established = True
        self._events.append(HandshakeCompleted(_ALPN, None, False, False))
        if not self._client:
            self._control.append((self._peer._take_hello, ()))
        early, self._early = self._early, []
        for deliver, args in early:
            deliver(*args)

    def _take_stream(self, stream_id: int, segment: int, data: bytes, fin: bool) -> None:
        self._acks[stream_id] = self._acks.get(stream_id, 0) + len(data)
        stream = self._receiving_part(stream_id)
        if stream is None:  # over: nobody will consume this
            self._credit_connection(len(data))
            return
        if segment != stream.segments:
            if stream.discard:
                self._credit_connection(len(data))
                data = b""
            stream.early[segment] = data, fin
            return
        while True:
            stream.segments += 1
            if not stream.discard:
                self._events.append(StreamData(stream_id, data, fin))
            else:
                self._credit_connection(len(data))
                if fin:  # the end is reported, here and at a reset
                    self._events.append(StreamData(stream_id, b"", True))
            if fin:
                del self._receiving[stream_id]
                self._check_over(stream_id)
                return
            if stream.segments not in stream.early:
                return
            data, fin = stream.early.pop(stream.segments)

    def _take_reset(self, stream_id: int, code: int) -> None:
        stream = self._receiving_part(stream_id)
        if stream is None:
            return
        for data, _ in stream.early.values():
            self._credit_connection(len(data))
        self._events.append(StreamReset(stream_id, code))
        del self._receiving[stream_id]
        self._check_over(stream_id)

    def _take_stop(self, stream_id: int, code: int) -> None:
        self._open_to(stream_id)
        stream = self._sending.get(stream_id)
        if stream is None or stream.stopped:
            return
        self._events.append(StopSending(stream_id, code))
        self._drop_unsent(stream_id, stream)
        stream.stopped = True
        if stream.ended:
            del self._sending[stream_id]
        self._control.append((self._peer._take_reset, (stream_id, code)))
        self._check_over(stream_id)

    def _take_acks(self, acks: dict[int, int]) -> None:
        for stream_id, count in acks.items():
            stream = self._sending.get(stream_id)
            if stream is None or stream.stopped:
                continue
            stream.acked += count
            self._in_flight -= count
            self._buffered -= count
            if stream.ended and not stream.unsent and stream.acked == stream.sent:
                del self._sending[stream_id]
                self._check_over(stream_id)

    def _take_credit(self, stream_id: int | None, count: int) -> None:
        if stream_id is None:
            self._data_limit += count
        elif stream_id in self._sending:
            self._sending[stream_id].limit += count
        self._unblock()

    def _take_stream_credit(self, kind: int, count: int) -> None:
        self._stream_limit[kind] += count
        self._unblock()

    def _unblock(self) -> None:
        self._ready.update(self._blocked)
        self._blocked.clear()

    def _take_datagram(self, data: bytes) -> None:
        self._events.append(DatagramReceived(data))

    def _take_ping(self, uid: int) -> None:
        self._control.append((self._peer._take_pong, (uid,)))

    def _take_pong(self, uid: int) -> None:
        self._events.append(PingAcknowledged(uid))

    def _take_close(self, code: int, reason: str) -> None:
        self._end(Closed(code, reason, by_peer=True, application=True))
        self._again.clear()

    # Bookkeeping

    def _receiving_part(self, stream_id: int) -> _Receiving | None:
        self._open_to(stream_id)
        return self._receiving.get(stream_id)

    def _open_to(self, stream_id: int) -> None:
        """A stream opens all lower ones of its kind (RFC 9000, section 3.2)."""
        kind = stream_id & 3
        if kind & 1 == self._client:  # the peer's kinds: 1 and 3 at a client, 0 and 2 at a server
            while self._opened[kind] <= stream_id >> 2:
                opened = self._opened[kind] << 2 | kind
                self._opened[kind] += 1
                self._receiving[opened] = _Receiving()
                if not kind & 2:
                    self._sending[opened] = _Sending(self._stream_window)

    def _check_over(self, stream_id: int) -> None:
        """A stream of the peer's that is over makes room for another (RFC 9000, section 4.6)."""
        sending = self._sending.get(stream_id)
        if (
            stream_id & 1 == self._client
            and stream_id not in self._receiving
            and (sending is None or sending.stopped)
        ):
            self._control.append((self._peer._take_stream_credit, (stream_id & 3, 1)))

    def _credit_connection(self, count: int) -> None:
        self._data_credit += count
        if self._data_credit * 4 >= self._data_window:
            self._control.append((self._peer._take_credit, (None, self._data_credit)))
            self._data_credit = 0

    def _end(self, event: Closed) -> None:
        self._closed = True
        self._events.append(event)
        self._again.clear()
        self._arrivals.clear()
        self._control.clear()
        for waiting in (self._datagrams, self._early, self._sending, self._receiving):
            waiting.clear()
        self._ready.clear()
        self._blocked.clear()
        self._acks.clear()
        self._buffered = self._in_flight = 0


def memory_pair(
    *,
    up: Impairment | None = None,
    down: Impairment | None = None,
    seed: int = 1,
    link: MemoryLink | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    **options: Any,
) -> tuple[Connection, Connection]:
    """A client's and a server's connection over a :class:`MemoryLink`; attach their handlers.

    Give ``link`` to change its faults later. ``options`` are those of :class:`MemoryEngine`.
    """
    loop = loop or asyncio.get_running_loop()
    client_engine, server_engine = MemoryEngine.pair(
        link or MemoryLink(up=up, down=down, seed=seed), **options
    )
    client = Connection(client_engine, _send_nothing, peer_address=("memory-server", 1), loop=loop)
    server = Connection(server_engine, _send_nothing, peer_address=("memory-client", 2), loop=loop)
    client_engine.notify, server_engine.notify = client.poll, server.poll
    client_engine.connect(client.peer_address, client.clock())
    client.wake()
    return client, server


def _take(chunks: deque[bytes | memoryview], most: int) -> bytes:
    """The first ``most`` bytes of ``chunks``, which hold at least as many."""
    taken: list[bytes | memoryview] = []
    while most and chunks:
        chunk = chunks.popleft()
        if len(chunk) > most:
            view = memoryview(chunk)
            chunks.appendleft(view[most:])
            chunk = view[:most]
        most -= len(chunk)
        taken.append(chunk)
    return bytes(taken[0]) if len(taken) == 1 else b"".join(taken)


def _nothing() -> None:
    """Nobody is told."""


def _send_nothing(datagrams: list[tuple[bytes, Address]]) -> None:
    """A memory engine sends no UDP datagrams."""
