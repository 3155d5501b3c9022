"""A ring of PCM frames addressed by their timestamp. Twin of ``echostream/_ext/pcm.pxd``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PcmRing"]


class PcmRing:
    """Sample frame ``t`` lives in row ``t % size``; what never came is silence.

    The marks tell what is real: 0 nothing, 1 a frame, 2 the first frame of a packet.
    """

    def __init__(self, size: int, channels: int) -> None:
        self.size = size
        self._samples = np.zeros((size, channels), dtype=np.float32)
        self._marks = np.zeros(size, dtype=np.uint8)

    def write(self, at: int, frames: NDArray[np.float32], first: bool) -> None:
        """Place ``frames`` (at most ``size``) at timestamp ``at``; ``first``: a packet begins."""
        rows = self._rows(at, len(frames))
        self._samples[rows] = frames
        self._marks[rows] = 1
        if len(rows) and first:
            self._marks[rows[0]] = 2

    def read(self, at: int, frames: int) -> NDArray[np.float32]:
        """A copy of ``frames`` from timestamp ``at``."""
        return self._samples[self._rows(at, frames)]

    def clear(self, at: int, frames: int) -> None:
        """Set ``frames`` from timestamp ``at`` to silence that is not real."""
        rows = self._rows(at, min(frames, self.size))
        self._samples[rows] = 0.0
        self._marks[rows] = 0

    def real(self, at: int) -> bool:
        """Whether there is a frame."""
        return bool(self._marks[at % self.size])

    def run(self, at: int, frames: int) -> int:
        """How many frames from ``at`` on are real, at most ``frames``."""
        return self._until(self._marks[self._rows(at, frames)] == 0, frames)

    def gap(self, at: int, frames: int) -> int:
        """How many frames from ``at`` on are not real, at most ``frames``."""
        return self._until(self._marks[self._rows(at, frames)] != 0, frames)

    def packets(self, at: int, frames: int) -> list[int]:
        """How far after ``at`` packets begin."""
        found: list[int] = np.flatnonzero(self._marks[self._rows(at, frames)] == 2).tolist()
        return found

    def _rows(self, at: int, frames: int) -> NDArray[np.int64]:
        return np.arange(at, at + frames) % self.size

    @staticmethod
    def _until(ends: NDArray[np.bool_], frames: int) -> int:
        found = np.flatnonzero(ends)
        return int(found[0]) if len(found) else frames
