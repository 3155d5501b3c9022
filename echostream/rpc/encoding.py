"""From what a program sends to packets of a codec: cut into its frames, encoded, stamped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.media.codec import Codec
from echostream.media.frame import AudioFormat

__all__ = ["StreamEncoder"]


class StreamEncoder:
    """Takes audio in pieces of any length, and gives out packets with the capture time of the first
    sample that their decoder will give out (ns, or ``None``)."""

    def __init__(self, codec: Codec, format: AudioFormat) -> None:
        self._codec = codec
        self._format = format
        self._encoder = codec.encoder(format)
        self._buffer = np.zeros((format.frame, format.channels), format.dtype)
        self._filled = 0
        self._stamp: int | None = None  # of the first sample in the buffer
        self._unheard = 0  # frames that went in and have not come out

    @property
    def frame(self) -> int:
        """Sample frames in each packet."""
        return self._encoder.frame

    @property
    def waiting(self) -> int:
        """Sample frames that do not fill a packet yet."""
        return self._filled

    def push(
        self, samples: NDArray[Any], capture_ts: int | None
    ) -> Iterator[tuple[bytes, int | None]]:
        """The packets that ``samples`` fill. What is left waits for more."""
        done = 0
        while done < len(samples):
            if not self._filled:
                self._stamp = None if capture_ts is None else capture_ts + self._ns(done)
            part = samples[done : done + self.frame - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            done += len(part)
            self._unheard = self._encoder.lookahead
            if self._filled == self.frame:
                yield self._packet()

    def rest(self) -> Iterator[tuple[bytes, int | None]]:
        """What is left, filled up with silence, so that all of it comes out of a decoder."""
        while self._filled or self._unheard > 0:
            self._buffer[self._filled :] = 0
            self._unheard -= self.frame - self._filled
            yield self._packet()

    def reset(self) -> None:
        """Forget what waits, and all that was encoded."""
        self._encoder = self._codec.encoder(self._format)
        self._filled = self._unheard = 0
        self._stamp = None

    def _packet(self) -> tuple[bytes, int | None]:
        stamp = self._stamp
        self._filled = 0
        if stamp is not None:
            self._stamp = stamp + self._ns(self.frame)
            stamp -= self._ns(self._encoder.lookahead)
        return self._encoder.encode(self._buffer), stamp

    def _ns(self, frames: int) -> int:
        return frames * 1_000_000_000 // self._format.sample_rate
