"""From a stream's packets to its playout: stamped, paced, flushed, ended."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from echostream.media.clock import ClockSync
from echostream.media.frame import AudioFormat
from echostream.media.ordered_decoder import OrderedDecoder, OrderedPacket
from echostream.media.playout import Playout, PlayoutStatistics
from echostream.media.sync_playout import SyncPlayout, SyncStatistics
from echostream.protocol.events import MediaReceived
from echostream.protocol.frame_types import MEDIA_DTX
from echostream.rpc.clock import ClockDriver

__all__ = ["AdaptiveFeed", "PlayoutFeed", "SyncFeed"]

LEAD_S = 0.06
"""A reliable stream may run this far ahead of real time; what is further ahead waits."""
SYNC_LEAD_S = 0.5
"""The same for one that names its times, ahead of them."""
RESTART_S = 1.0
"""Behind real time by more than that, a reliable stream has paused, and begins anew."""
MAX_TIMESTAMP = 1 << 62
"""Of what is played: times behind it do not fit 64 bits any more."""
GIVE_UP_S = 0.01
"""Before a pull may need what a codec makes up for a lost packet: for a loop that is late."""
PACE = 1.0005
"""What waits is released a little faster than real time (less than a cent), so that a sender with a
fast clock does not lengthen the queue for ever."""
CLOCK_EVERY_S = 1.0
TRUSTED_PPM = 100.0
"""The largest error that the session clock may admit of its drift (its bound; the true error is
far below) for the playout to begin from it."""


class Player(Protocol):
    """What every playout has."""

    format: AudioFormat

    def flush(self) -> int: ...
    def end(self) -> None: ...
    def statistics(self) -> PlayoutStatistics | SyncStatistics: ...


class PlayoutFeed(ABC):
    """Hands the packets of one stream to its playout.

    Packets of a realtime stream go on at once. A reliable stream may bring audio faster than it is
    heard (speech that was synthesised, a file): that waits here in order, and the stream's credit
    with it, so that the sender waits too: ``on_room`` tells that something was taken out,
    ``on_fault`` that a packet does not fit the format. ``clock``: seconds, that of the arrivals.
    """

    lead_s = LEAD_S

    def __init__(
        self,
        playout: Player,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        on_room: Callable[[], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self.playout = playout
        self._on_room = on_room
        self._on_fault = on_fault
        self._loop = loop
        self._clock = clock
        self._rate = playout.format.sample_rate
        self._waiting: deque[MediaReceived] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self.dropped = 0

    @property
    def queued(self) -> int:
        """Packets that wait for their time."""
        return len(self._waiting)

    @property
    def queued_bytes(self) -> int:
        return self._waiting_bytes

    def push(self, event: MediaReceived, arrival: float) -> None:
        """Take in one packet that arrived at ``arrival`` (s, monotonic)."""
        if event.timestamp >= MAX_TIMESTAMP:
            self._on_fault(f"timestamp {event.timestamp} is 2**62 or more")
            return
        if event.stream_id >= 0 and (self._waiting or self._lead(event, arrival) > self.lead_s):
            self._waiting.append(event)
            self._waiting_bytes += len(event.payload)
            self._arm(self._clock())
        else:
            self._play(event, arrival)

    def flush(self) -> int:
        """Drop what waits; the timestamp of the first frame that was not played."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._stop()
        return self.playout.flush()

    def end(self) -> None:
        """Nothing more will come; what waits is still played."""
        self._over = True
        if not self._waiting:
            self._finish()

    def statistics(self) -> PlayoutStatistics | SyncStatistics:
        """What the playout tells, and the decoder before it."""
        return self.playout.statistics()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(self) -> None:
        """All of it was handed over."""
        self.playout.end()

    @abstractmethod
    def _lead(self, event: MediaReceived, now: float) -> float:
        """Seconds by which this packet is ahead of real time."""

    @abstractmethod
    def _push(self, event: MediaReceived, arrival: float) -> None:
        """Hand it to the playout. ``ValueError`` for one that does not fit the format."""

    def _play(self, event: MediaReceived, arrival: float) -> None:
        try:
            self._push(event, arrival)
        except ValueError as exc:
            self._on_fault(str(exc))

    def _arm(self, now: float) -> None:
        if self._timer is None:
            wait = max(self._lead(self._waiting[0], now) - self.lead_s, 0.0)
            self._timer = self._loop.call_later(wait, self._release)

    def _release(self) -> None:
        self._timer = None
        now = self._clock()
        while self._waiting and self._lead(self._waiting[0], now) <= self.lead_s + 1e-3:
            event = self._waiting.popleft()
            self._waiting_bytes -= len(event.payload)
            self._play(event, now)
        self._on_room()
        if self._waiting:
            self._arm(now)
        elif self._over:
            self._finish()


class AdaptiveFeed(PlayoutFeed):
    """Of a playout that finds its own delay: time is counted from the first packet on."""

    playout: Playout
    sync: ClockSync | None = None
    """The session's clock: what it knows of the sender's drift, a live stream need not learn."""
    _sync_due = 0.0
    _origin_s = 0.0
    _origin = -1

    def flush(self) -> int:
        self._origin = -1
        return super().flush()

    def _lead(self, event: MediaReceived, now: float) -> float:
        if self._origin >= 0:
            due = self._origin_s + (event.timestamp - self._origin) / (self._rate * PACE)
            if due - now > -RESTART_S:
                return due - now
        self._origin_s, self._origin = now, event.timestamp
        return 0.0

    def _push(self, event: MediaReceived, arrival: float) -> None:
        if event.stream_id < 0 and arrival >= self._sync_due:
            self._sync_due = arrival + CLOCK_EVERY_S
            self._follow_clock()
        self.playout.push_packet(
            event.sequence_number,
            event.timestamp,
            event.payload,
            int(arrival * 1e9),
            event.epoch,
            bool(event.flags & MEDIA_DTX),
        )

    def _follow_clock(self) -> None:
        sync = self.sync
        if sync is not None and sync.synchronized and sync.drift_bound_ppm <= TRUSTED_PPM:
            self.playout.feed_forward_ppm = sync.drift_ppm


class SyncFeed(PlayoutFeed):
    """Of a playout that keeps to the sender's times."""

    lead_s = SYNC_LEAD_S
    playout: SyncPlayout
    decoder: OrderedDecoder | None = None
    """Of a stream that is encoded."""
    _sharp: ClockDriver | None = None
    _gap: asyncio.TimerHandle | None = None
    """Until what is missing cannot be waited for any longer."""

    def keep_sharp(self, clock: ClockDriver) -> None:
        """Have the playout's clock as good as it can be, until the end."""
        self._sharp = clock
        clock.sharpen(1)

    def end(self) -> None:
        if self._sharp is not None:
            self._sharp.sharpen(-1)
            self._sharp = None
        super().end()

    def _lead(self, event: MediaReceived, now: float) -> float:
        return 0.0 if event.capture_ts is None else self.playout.ahead_ns(event.capture_ts) / 1e9

    def _push(self, event: MediaReceived, arrival: float) -> None:
        if event.capture_ts is None:
            raise ValueError("a packet of a time-synchronised stream without capture time")
        arrival_ns = self.playout.now() - int((self._clock() - arrival) * 1e9)
        silence = bool(event.flags & MEDIA_DTX)
        if self.decoder is None:
            self.playout.push_packet(
                event.timestamp, event.capture_ts, event.payload, arrival_ns, silence
            )
            return
        packet = OrderedPacket(
            sequence_number=event.sequence_number,
            timestamp=event.timestamp,
            capture_ts=event.capture_ts,
            payload=event.payload,
            arrival_ns=arrival_ns,
            silence=silence,
        )
        self._take(self.decoder, self.decoder.push(packet))

    def statistics(self) -> SyncStatistics:
        seen = self.playout.statistics()
        return seen if self.decoder is None else replace(seen, codec=self.decoder.statistics())

    def flush(self) -> int:
        if self.decoder is not None:
            self.decoder.flush()
        self._stop_waiting()
        return super().flush()

    def _finish(self) -> None:
        self._stop_waiting()
        if self.decoder is not None:
            self._take(self.decoder, self.decoder.drain())
        super()._finish()

    def _take(self, decoder: OrderedDecoder, packets: Iterable[OrderedPacket]) -> None:
        """Hand over what was decoded, and wait for what is missing as long as that may be."""
        for packet in packets:
            if packet.too_late:
                self.playout.push_late(packet.capture_ts, packet.arrival_ns)
            else:
                self.playout.push_packet(
                    packet.timestamp,
                    packet.capture_ts,
                    packet.payload,
                    packet.arrival_ns,
                    packet.silence,
                    packet.made_up,
                )
        self._stop_waiting()
        missing = decoder.missing_ts
        if missing is not None:
            wait = self.playout.needed_in_ns(missing) / 1e9 - GIVE_UP_S
            self._gap = self._loop.call_later(max(wait, 0.0), self._give_up, decoder)

    def _give_up(self, decoder: OrderedDecoder) -> None:
        self._gap = None
        self._take(decoder, decoder.give_up())

    def _stop_waiting(self) -> None:
        if self._gap is not None:
            self._gap.cancel()
            self._gap = None
