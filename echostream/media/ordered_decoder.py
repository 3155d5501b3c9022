"""Decoding in order, for a playout that knows when each packet is due.

A decoder wants its packets in the order in which they were sent, and can conceal a lost one only
between its neighbours. So what is behind a gap waits, until the missing packet comes or is given
up; then the codec fills the gap, from the packet behind it where it can (FEC). Sans-IO; one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from echostream.errors import ProtocolError
from echostream.media.codec import CodecStatistics, Decoder
from echostream.media.frame import AudioFormat

__all__ = ["OrderedDecoder", "OrderedPacket"]

SECOND = 1_000_000_000

LEAP: Final = 64
"""Packets that may wait behind a gap; a sequence number further off is another numbering."""
LONGEST_S: Final = 0.1
"""A longer gap is left to the playout's concealment, which fades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedPacket:
    """One packet, encoded on the way in and samples on the way out.

    ``made_up``: it is the codec's, in place of what was lost; ``too_late``: its time is filled
    already, and there is no payload.
    """

    sequence_number: int
    timestamp: int
    capture_ts: int
    payload: bytes | memoryview
    arrival_ns: int
    silence: bool = False
    made_up: bool = False
    too_late: bool = False


class OrderedDecoder:
    """Packets in by :meth:`push`, samples out of what it returns, in order and without gaps.

    ``missing_ts`` says from when on something is missing; who knows that it is needed now calls
    :meth:`give_up`. A packet that cannot be decoded is counted, and concealed like a lost one.
    """

    def __init__(self, decoder: Decoder, format: AudioFormat) -> None:
        self._decoder = decoder
        self._rate = format.sample_rate
        self._frame = format.frame
        self._staged: dict[int, OrderedPacket] = {}  # by extended sequence number
        self._decoded = self._undecodable = self._concealed = self._dropped = self._repeated = 0
        self._next = self._end = -1
        self._broken = self._silent = False

    def push(self, packet: OrderedPacket) -> Iterator[OrderedPacket]:
        """Take in a packet as it came; what can be played now."""
        ahead = (packet.sequence_number - self._next) & 0xFFFF_FFFF
        ahead -= (ahead & 0x8000_0000) << 1
        if self._next < 0 or abs(ahead) > LEAP:
            yield from self.drain()
            self._forget()
            self._next, ahead = packet.sequence_number, 0
        number = self._next + ahead
        if ahead < 0:
            self._dropped += 1
            yield self._without_payload(packet)
        elif number in self._staged:
            self._repeated += 1
        else:
            self._staged[number] = packet
            yield from self._in_order()

    @property
    def missing_ts(self) -> int | None:
        """Capture time of the first frame that is missing; ``None`` where nothing waits for it."""
        if not self._staged:
            return None
        behind = self._staged[min(self._staged)]
        return behind.capture_ts - self._ns(max(behind.timestamp - self._end, 0))

    def give_up(self) -> Iterator[OrderedPacket]:
        """Do without what is missing: fill the gap, and go on behind it."""
        if self._staged:
            yield from self._play(min(self._staged))
            yield from self._in_order()

    def drain(self) -> Iterator[OrderedPacket]:
        """All that waits: nothing more will come."""
        while self._staged:
            yield from self.give_up()

    def flush(self) -> None:
        """Drop what waits; another numbering may follow."""
        self._dropped += len(self._staged)
        self._staged.clear()
        self._forget()

    def statistics(self) -> CodecStatistics:
        """A frozen snapshot."""
        return CodecStatistics(
            decoded=self._decoded,
            undecodable=self._undecodable,
            concealed_frames=self._concealed,
            dropped=self._dropped,
            duplicates=self._repeated,
        )

    def _in_order(self) -> Iterator[OrderedPacket]:
        while self._next in self._staged:
            yield from self._play(self._next)

    def _play(self, number: int) -> Iterator[OrderedPacket]:
        packet = self._staged.pop(number)
        lost = number != self._next or self._broken
        self._next = number + 1
        if lost and not self._silent and self._decoder.conceals:
            yield from self._fill(packet)
        payload: bytes | memoryview = b""
        frames = 0
        if packet.payload or not packet.silence:
            try:
                samples = self._decoder.decode(packet.payload)
            except ProtocolError:
                self._undecodable += 1
                self._broken = True
                return
            self._decoded += 1
            payload, frames = samples.data.cast("B"), len(samples)
        self._broken = False
        self._silent = packet.silence
        self._end = packet.timestamp + frames
        yield OrderedPacket(
            sequence_number=packet.sequence_number,
            timestamp=packet.timestamp,
            capture_ts=packet.capture_ts,
            payload=payload,
            arrival_ns=packet.arrival_ns,
            silence=packet.silence,
        )

    def _fill(self, packet: OrderedPacket) -> Iterator[OrderedPacket]:
        """The codec's concealment for the time before ``packet``."""
        gap = packet.timestamp - self._end if self._end >= 0 else 0
        while 0 < gap <= LONGEST_S * self._rate:
            frames = min(gap, self._frame)
            stamp = packet.capture_ts - self._ns(gap)
            gap -= frames
            samples = self._decoder.conceal(frames, None if gap else packet.payload)
            self._concealed += frames
            yield OrderedPacket(
                sequence_number=packet.sequence_number,
                timestamp=self._end,
                capture_ts=stamp,
                payload=samples.data.cast("B"),
                arrival_ns=packet.arrival_ns,
                made_up=True,
            )
            self._end += frames

    def _without_payload(self, packet: OrderedPacket) -> OrderedPacket:
        return OrderedPacket(
            sequence_number=packet.sequence_number,
            timestamp=packet.timestamp,
            capture_ts=packet.capture_ts,
            payload=b"",
            arrival_ns=packet.arrival_ns,
            too_late=True,
        )

    def _forget(self) -> None:
        self._next = self._end = -1
        self._broken = self._silent = False
        self._decoder.reset()

    def _ns(self, frames: int) -> int:
        return frames * SECOND // self._rate
