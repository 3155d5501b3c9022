"""From the thread that pushes to the one that pulls, for a group playout."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from echostream.media.recent import RecentMaximum

__all__ = ["SyncInbox", "SyncPacket"]

PACKETS = 4096
RECENT_NS = 5_000_000_000


class SyncPacket(NamedTuple):
    """Samples as they travel, and their place on the sender's timeline and clock."""

    timestamp: int
    capture_ts: int
    data: bytes
    silence: bool


class SyncInbox:
    """Packets in order of arrival, at most ``room_bytes`` of them.

    Each counter has one writer: :meth:`take` and ``taken_bytes`` are for the thread that pulls, all
    else is for the one that pushes.
    """

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._packets: deque[SyncPacket | None] = deque()
        self._transit = RecentMaximum(RECENT_NS, -inf)
        self._put_bytes = self._dropped_bytes = self._taken_bytes = 0
        self._making_up = False
        self.received = self.dropped = self.missed = 0
        self.made_up_frames = self.made_up_gaps = 0

    def arrived(self, transit_ns: int | None, now_ns: int) -> None:
        """A packet of the sender came; ``transit_ns`` after its capture, where that is known."""
        self.received += 1
        if transit_ns is not None:
            self._transit.add(transit_ns, now_ns)

    def put(self, packet: SyncPacket, made_up_frames: int = 0) -> None:
        """Hand over. What is more than is ever kept drops the oldest: nobody pulls."""
        self.made_up_frames += made_up_frames
        self.made_up_gaps += made_up_frames > 0 and not self._making_up
        self._making_up = made_up_frames > 0
        self._put_bytes += len(packet.data)
        self._packets.append(packet)
        waiting = self._put_bytes - self._dropped_bytes - self._taken_bytes
        if waiting > self._room_bytes or len(self._packets) > PACKETS:
            oldest = self._packets.popleft()
            if oldest is not None:
                self._dropped_bytes += len(oldest.data)
                self.dropped += 1

    def cut(self) -> None:
        """What was put until now is not to be played."""
        self._packets.append(None)

    @property
    def transit_ns(self) -> float:
        """The longest of late; minus infinity before the first."""
        return self._transit.value

    def take(self) -> Iterator[SyncPacket | None]:
        """All that is here; ``None`` for a cut."""
        while True:
            try:
                packet = self._packets.popleft()
            except IndexError:
                return
            if packet is not None:
                self._taken_bytes += len(packet.data)
            yield packet
