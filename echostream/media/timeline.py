"""One timeline of packets and sample frames, whatever the sender does to its numbers.

Twin of ``echostream/_ext/timeline.pxd``: wrapped numbers become ones that go on for ever, and a
restart of the sender is renumbered to follow what came before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from echostream.media.delay import DelayEstimator

__all__ = ["SECOND", "Timeline", "to_frames", "to_ns", "unwrap"]

SECOND: Final = 1_000_000_000
RESTART_RUN = 4
DAY_S = 86_400
"""A timestamp further than this from the last one is another numbering."""


def to_ns(frames: int, rate: int) -> int:
    """Rounded towards zero, as C divides."""
    sign = 1 if frames >= 0 else -1
    seconds, rest = divmod(abs(frames), rate)
    return sign * (seconds * SECOND + rest * SECOND // rate)


def to_frames(ns: int, rate: int) -> int:
    """Nearest frame."""
    sign = 1 if ns >= 0 else -1
    seconds, rest = divmod(abs(ns), SECOND)
    return sign * (seconds * rate + (rest * rate + SECOND // 2) // SECOND)


def unwrap(value: int, near: int, bits: int) -> int:
    """The number congruent to ``value`` that lies nearest to ``near``."""
    if bits >= 64:
        return value
    ahead = (value - near) % (1 << bits)
    return near + (ahead if ahead < 1 << (bits - 1) else ahead - (1 << bits))


class Timeline:
    """The numbering of one stream. ``delay`` tells how long the fastest packets take.

    ``raw_sequence`` and ``raw_timestamp`` are those of the newest packet, unwrapped; with the
    shifts added they are places on the timeline.
    """

    def __init__(
        self,
        rate: int,
        capacity: int,
        sequence_bits: int,
        timestamp_bits: int,
        delay: DelayEstimator,
    ) -> None:
        self.rate = rate
        self.capacity = capacity
        self.sequence_bits = sequence_bits
        self.timestamp_bits = timestamp_bits
        self.raw_sequence = self.raw_timestamp = 0
        self.sequence_shift = self.timestamp_shift = 0
        self.run = 0
        self._delay = delay
        self._highest = self._first = self._expected_before = 0
        self._run_sequence = self._run_timestamp = self._run_arrival = 0

    def begin(self, sequence: int, timestamp: int) -> None:
        """The first packet. Timestamps are kept, unless a time in ns could not hold them."""
        self.raw_sequence = sequence
        self.raw_timestamp = timestamp
        self.timestamp_shift = 0 if timestamp // self.rate < SECOND else -timestamp
        self._first = 2 * self.capacity
        self.sequence_shift = self._first - sequence
        self._highest = self._first - 1

    def take(self, number: int, sequence: int, timestamp: int) -> int:
        """A packet of this ``number``; returns how many are expected by now."""
        if number > self._highest:
            self._highest, self.raw_sequence, self.raw_timestamp = number, sequence, timestamp
        self._first = min(self._first, number)
        return self._expected_before + self._highest - self._first + 1

    def near(self, stamp: int) -> bool:
        """Whether a timestamp may be of the present numbering."""
        return abs(stamp - self.raw_timestamp) <= DAY_S * self.rate

    def transit(self, stamp: int, arrival: int) -> int:
        """How long after the fastest packets this one came."""
        send = to_ns(stamp + self.timestamp_shift, self.rate)
        return arrival - send - self._delay.base_ns(send)

    def run_agrees(self, sequence: int, timestamp: int, arrival: int) -> bool:
        """Whether this is the fourth packet in a row of another numbering, sent at our pace."""
        following = self._run_sequence + 1
        if not self.run or unwrap(sequence, self._run_sequence, self.sequence_bits) != following:
            self.run = 0
            self._run_timestamp, self._run_arrival = timestamp, arrival
        self.run += 1
        self._run_sequence = sequence
        if self.run < RESTART_RUN:
            return False
        self.run = 0
        sent = unwrap(timestamp, self._run_timestamp, self.timestamp_bits) - self._run_timestamp
        if not 0 < sent <= DAY_S * self.rate:
            return False
        sent = to_ns(sent, self.rate)
        came = arrival - self._run_arrival
        return sent <= 2 * came and came <= 2 * sent + SECOND // 10

    def renumber(self, sequence: int, timestamp: int, arrival: int) -> None:
        """The sender began again: its next packet follows on the timeline.

        Timestamps that fit the old ones are kept; else this packet becomes one of the fastest.
        """
        stamp = unwrap(timestamp, self.raw_timestamp, self.timestamp_bits)
        self._expected_before += self._highest - self._first + 1
        self.raw_sequence = sequence
        self._first = self._highest + self.capacity + 1
        self.sequence_shift = self._first - sequence
        self._highest = self._first - 1
        near = self.near(stamp)
        if not near:
            stamp = self.raw_timestamp
        transit = self.transit(stamp, arrival)
        if near and -SECOND // 20 <= transit <= self._delay.wanted_ns + SECOND // 20:
            self.raw_timestamp = stamp
            return
        at = stamp + self.timestamp_shift
        self.timestamp_shift = at + to_frames(transit, self.rate) - timestamp
        self.raw_timestamp = timestamp
