"""Playout of a stream whose packets have to be decoded first.

A decoder wants its packets in order, and can conceal a lost one only between its neighbours. When a
packet counts as lost is known where audio is pulled: so packets wait, as they came, until the
playout point needs what is behind a gap. Then the codec fills the gap, from the packet behind it
where that can (FEC).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from echostream.errors import ConfigurationError, ProtocolError
from echostream.media.codec import Codec, CodecStatistics, Decoder
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.playout import Playout, PlayoutStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from echostream._ext.jitter_ring import JitterRing

__all__ = ["CodecPlayout"]

SECOND = 1_000_000_000

ROOM: Final = 512
"""Packets that may wait to be taken in; nobody pulls when there are more."""
LEAP: Final = 64
"""Packets that may wait behind a gap; a sequence number further off is another numbering."""
RESTART_RUN: Final = 4
"""Packets in a row that far behind are a sender that began again; fewer are stragglers."""
BURST: Final = 16
"""Packets decoded for one pull: what a stall held back must not make a callback late."""
ALONE_S: Final = 0.1
"""How long the codec goes on where nothing follows; then the playout's concealment fades out."""
MAX_TIMESTAMP: Final = 1 << 62


class _Packet(NamedTuple):
    sequence_number: int
    timestamp: int
    payload: bytes
    arrival_ns: int
    epoch: int
    silence: bool


class CodecPlayout(Playout):
    """A :class:`Playout` for packets of ``codec``; options as there.

    ``push_packet`` takes them as they travel; they are decoded by the thread that pulls. The
    codec's own concealment is used where it has one, else that of the profile. A packet that cannot
    be decoded is counted, and concealed like a lost one.
    """

    def __init__(self, format: AudioFormat, codec: Codec, **options: Any) -> None:
        super().__init__(format, **options)
        self._stage = _Stage(codec.decoder(format), format, self.buffer.ring)
        self._stage_turn = Lock()  # pull and flush; a pull does not wait for it

    def push(self, frame: AudioFrame, arrival_ns: int | None = None, epoch: int = 0) -> int:
        """Raises ``ConfigurationError``: what is played here is encoded (:meth:`push_packet`)."""
        raise ConfigurationError("this playout decodes: give the packets to push_packet")

    def push_packet(
        self,
        sequence_number: int,
        timestamp: int,
        payload: bytes | memoryview,
        arrival_ns: int | None = None,
        epoch: int = 0,
        silence: bool = False,
    ) -> int:
        """Take in one packet; it is decoded when it is needed. Returns 0; 3 for one that is larger
        than the codec's can be; 4 without room."""
        if not 0 <= timestamp < MAX_TIMESTAMP:
            raise ValueError(f"timestamp {timestamp} is negative or needs more than 62 bits")
        now = time.monotonic_ns() if arrival_ns is None else arrival_ns
        if len(payload) > self._stage.max_packet:
            self._stage.oversized += 1
            return 3
        packet = _Packet(sequence_number, timestamp, bytes(payload), now, epoch, silence)
        return 0 if self._stage.put(packet) else 4

    def pull_into(self, out: NDArray[Any], now_ns: int | None = None) -> int:
        """See :meth:`Playout.pull_into`; decoding allocates."""
        now = time.monotonic_ns() if now_ns is None else now_ns
        if self._stage_turn.acquire(blocking=False):
            try:
                # A resampler looks that far ahead; a stretch may use up a block at the end.
                needed = len(out) + self._margin
                self._stage.decode(needed, now, self._block if self._over else -1)
            finally:
                self._stage_turn.release()
        return super().pull_into(out, now)

    def flush(self) -> int:
        """See :meth:`Playout.flush`."""
        with self._stage_turn:
            self._stage.flush()
            return super().flush()

    def statistics(self) -> PlayoutStatistics:
        """A frozen snapshot."""
        return replace(super().statistics(), codec=self._stage.statistics())


class _Stage:
    """Packets on their way into the ring. :meth:`put` is for the thread that pushes, all else for
    the one that pulls."""

    def __init__(self, decoder: Decoder, format: AudioFormat, ring: JitterRing) -> None:
        self._decoder = decoder
        self._ring = ring
        self.max_packet = decoder.max_packet
        self.oversized = 0
        self._rate = format.sample_rate
        self._frame = format.frame
        self._came: deque[_Packet] = deque()
        self._staged: dict[int, _Packet] = {}  # by extended sequence number
        self._epoch = 0
        self._next = -1
        self._end = -1  # timestamp behind what was decoded or made up
        self._broken = False  # the last packet could not be decoded
        self._silent = False
        self._astray = 0  # packets in a row that are far older than the newest
        self._alone = 0  # frames made up since the last packet
        self._decoded = self._undecodable = self._concealed = 0
        self._dropped = self._overflows = self._repeated = 0

    def put(self, packet: _Packet) -> bool:
        """Whether there was room."""
        if len(self._came) >= ROOM:
            self._overflows += 1
            return False
        self._came.append(packet)
        return True

    def decode(self, frames: int, now: int, rest: int) -> None:
        """Bring into the ring what the next ``frames`` need, and what came in order. ``rest``: -1,
        or nothing more will come, and so many frames more are needed."""
        self._take_in()
        for _ in range(BURST):
            if not self._staged:
                break
            number = min(self._staged)
            if number != self._next and self._may_still_come(frames + max(rest, 0)):
                return
            self._play(number)
        else:
            return
        if self._decoder.conceals and rest < 0:
            self._go_on(frames, now)

    def flush(self) -> None:
        """Decode what came in order; the rest is dropped."""
        self._take_in()
        while self._next in self._staged:
            self._play(self._next)
        self._forget()

    def statistics(self) -> CodecStatistics:
        """A frozen snapshot."""
        return CodecStatistics(
            decoded=self._decoded,
            undecodable=self._undecodable + self.oversized,
            concealed_frames=self._concealed,
            dropped=self._dropped + self._overflows,
            duplicates=self._repeated,
        )

    def _take_in(self) -> None:
        while self._came:
            packet = self._came.popleft()
            if packet.epoch != self._epoch and self._next >= 0:
                if (packet.epoch - self._epoch) & 0xFFFF >= 0x8000:
                    self._dropped += 1
                    continue
                self._forget()
            self._epoch = packet.epoch
            ahead = (packet.sequence_number - self._next) & 0xFFFF_FFFF
            ahead -= (ahead & 0x8000_0000) << 1
            self._astray = self._astray + 1 if ahead < -LEAP else 0
            if self._next < 0 or ahead > LEAP or self._astray >= RESTART_RUN:
                self._forget()
                self._next, ahead = packet.sequence_number, 0
            if ahead < 0:
                self._too_late(packet)
            elif self._next + ahead in self._staged:
                self._repeated += 1
            else:
                self._staged[self._next + ahead] = packet

    def _may_still_come(self, frames: int) -> bool:
        """Whether what is missing is not needed yet."""
        if self._end < 0 or len(self._staged) > LEAP // 2:
            return False
        return not self._ring.playing or self._due() > frames

    def _due(self) -> int:
        """Frames until the end of what is decoded is played."""
        return self._ring.position(self._end) - self._ring.cursor_timestamp

    def _play(self, number: int) -> None:
        """Decode the first staged packet, and fill the gap before it."""
        packet = self._staged.pop(number)
        lost = number != self._next or self._broken
        self._next = number + 1
        gap = packet.timestamp - self._end if self._end >= 0 else 0
        if gap < 0 and self._alone:  # its time is filled already
            self._too_late(packet)
            return
        if lost and not self._silent and self._decoder.conceals:
            self._fill(gap, packet.payload)
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
        self._alone = 0
        self._end = packet.timestamp + frames
        self._ring.push(
            packet.sequence_number & 0xFFFF_FFFF,
            packet.timestamp,
            payload,
            packet.arrival_ns,
            packet.epoch,
            packet.silence,
        )

    def _fill(self, gap: int, following: bytes) -> None:
        """The codec's concealment for ``gap`` frames before ``following``."""
        frame = self._frame
        if gap > LEAP * frame:
            return
        while gap > 0:
            part = min(gap, frame)
            gap -= part
            self._patch(part, None if gap else following)

    def _patch(self, frames: int, following: bytes | None) -> None:
        samples = self._decoder.conceal(frames, following)
        self._concealed += self._ring.patch(self._end, samples)
        self._end += frames

    def _go_on(self, needed: int, now: int) -> None:
        """Nothing is here: let the codec go on with what was heard, a while."""
        ring = self._ring
        if not ring.playing or self._end < 0 or self._silent:
            return
        held = now - ring.cursor_timestamp * SECOND // self._rate
        if ring.target_ns + ring.consumer_ns - held > self._frame * SECOND // self._rate // 2:
            return  # the playout point moves: the gap is drawn out instead
        while 0 <= self._due() < needed and self._alone < ALONE_S * self._rate:
            self._patch(self._frame, None)
            self._alone += self._frame

    def _too_late(self, packet: _Packet) -> None:
        self._ring.push_late(
            packet.sequence_number & 0xFFFF_FFFF,
            packet.timestamp,
            packet.arrival_ns,
            packet.epoch,
        )

    def _forget(self) -> None:
        self._dropped += len(self._staged)
        self._staged.clear()
        self._next = self._end = -1
        self._broken = self._silent = False
        self._alone = self._astray = 0
        self._decoder.reset()
