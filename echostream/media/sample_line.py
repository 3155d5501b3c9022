"""Where the samples of one stream stand on the sender's time, and the samples themselves.

Positions are sample frames of the sender's timeline: they go on through pauses, at the nominal
rate, whereas timestamps only count what was sent. Sans-IO; one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from echostream.media.samples import int16_to_float32
from echostream.media.timebase import Timebase

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MISSING", "REAL", "SILENT", "SampleLine", "SampleRing"]

MISSING: Final = 0
REAL: Final = 1
SILENT: Final = 2

NOISE_NS = 1_000_000.0
COMPUTED_NS = 2_000.0
"""Stamps that are noisy by less were reckoned, not measured: each of them is believed."""
COMPUTED_STEP_NS = 250_000
MEASURED_STEP_NS = 10_000_000
CERTAIN_STEP_NS = 100_000_000
CONFIRMATIONS = 3


class SampleLine:
    """Places packets by their timestamp and capture time.

    While the sender goes on without a pause, packets follow each other without a seam, whatever
    the noise of their capture times is. Where it pauses or moves its timeline they begin at
    another position: stamps that were computed are followed at once, those that are noisy after
    three packets, or when they are 0.1 s off.
    """

    def __init__(self, sample_rate: int) -> None:
        self.time = Timebase(sample_rate, NOISE_NS)
        """Of positions, on the sender's clock."""
        self._shift = self._earlier_shift = 0
        self._odd = 0

    def place(self, timestamp: int, capture_ns: int, *, anew: bool = False) -> tuple[int, bool]:
        """The position of a packet's first frame, and whether a new stretch begins with it.
        ``anew``: after a flush, whose first packet is believed at once."""
        time = self.time
        if not time.started:
            self._shift = self._earlier_shift = -timestamp
            time.begin(0, capture_ns)
            return 0, True
        position = timestamp + self._shift
        missed = time.missed(position, capture_ns)
        if anew or self._moved(abs(missed)):
            earlier = timestamp + self._earlier_shift
            if not (anew or self._moved(abs(time.missed(earlier, capture_ns)))):
                return earlier, False  # it was overtaken by the first packets after a pause
            position = round(time.count_at(capture_ns))
            self._earlier_shift, self._shift = self._shift, position - timestamp
            time.begin(position, capture_ns)
            self._odd = 0
            return position, True
        time.update(position, capture_ns)
        return position, False

    def timestamp_at(self, position: float) -> float:
        """The timestamp that stands there, in the newest stretch."""
        return position - self._shift

    def _moved(self, missed: int) -> bool:
        if self.time.noise_ns < COMPUTED_NS:
            return missed > COMPUTED_STEP_NS
        if missed <= MEASURED_STEP_NS:
            self._odd = 0
            return False
        self._odd += 1
        return missed > CERTAIN_STEP_NS or self._odd >= CONFIRMATIONS


class SampleRing:
    """The newest ``frames`` positions of a stream, ``(frames, channels)`` float32, each real,
    silent or missing."""

    def __init__(self, frames: int, channels: int) -> None:
        self.size = frames
        self.end = 0
        """The position after the newest."""
        self._samples = np.zeros((frames, channels), np.float32)
        self._marks = np.zeros(frames, np.uint8)
        self._begin = 0  # nothing before it was ever here

    def clear(self) -> None:
        """Drop everything; positions go on."""
        self._marks[:] = MISSING

    def restart(self, position: int) -> None:
        """Drop everything; the next is put at ``position``."""
        self.clear()
        self.end = self._begin = position

    def put(self, position: int, samples: NDArray[Any]) -> None:
        """Keep samples, float32 or int16, at most as many as the ring has; what lies between the
        newest and them is missing. What is older than the ring reaches is dropped."""
        self._extend(position + len(samples))
        skip = max(self.end - self.size - position, 0)
        position, samples = position + skip, samples[skip:]
        while len(samples):
            at = position % self.size
            part = samples[: self.size - at]
            into = self._samples[at : at + len(part)]
            if part.dtype == np.int16:
                int16_to_float32(part, into)
            else:
                into[:] = part
            self._marks[at : at + len(part)] = REAL
            position, samples = position + len(part), samples[len(part) :]

    def hush(self, start: int, stop: int) -> None:
        """What is missing from ``start`` to ``stop`` is silence."""
        self._extend(stop)
        position = max(start, self.end - self.size)
        while position < stop:
            at = position % self.size
            part = self._marks[at : at + stop - position]
            part[part == MISSING] = SILENT
            position += len(part)

    def run(self, position: int, frames: int) -> tuple[int, int]:
        """What stands at ``position``, and for how long, up to ``frames``."""
        oldest = max(self.end - self.size, self._begin)
        if position < oldest:
            return MISSING, min(frames, oldest - position)
        if position >= self.end:
            return MISSING, frames
        at = position % self.size
        marks = self._marks[at : at + min(frames, self.end - position)]
        kind = int(marks[0])
        other = (marks != kind).argmax()
        return kind, int(other) or len(marks)

    def read(self, position: int, out: NDArray[np.float32]) -> None:
        """Copy samples of one :meth:`run`."""
        at = position % self.size
        out[:] = self._samples[at : at + len(out)]

    def _extend(self, end: int) -> None:
        """Make room up to ``end``."""
        position = max(self.end, end - self.size)
        while position < end:
            at = position % self.size
            part = self._marks[at : at + end - position]
            part[:] = MISSING
            position += len(part)
        self.end = max(self.end, end)
