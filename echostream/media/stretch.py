"""Time-stretch for voice: play faster or slower by whole pitch periods, at unchanged pitch.

WSOLA in the manner of NetEq's accelerate and preemptive expand (``time_stretch.cc``), with a
reference signal that takes every channel in by its energy, and a raised-cosine cross-fade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from echostream.errors import ConfigurationError
from echostream.media import signal_py

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from echostream.media.frame import AudioFormat

__all__ = ["PyWsola", "Stretcher"]

NORMAL_THRESHOLD, FAST_THRESHOLD = 0.9, 0.5


class Stretcher:
    """Shorten or lengthen float32 blocks of ``format`` by up to 15 ms at a time.

    A block of at least :attr:`min_frames` (30 ms) is looked at around the frame 15 ms into it, for
    a period of 2.5 to 15 ms. Where the power of all channels together is below ``silence_dbfs``,
    15 ms may always go or come. Blocks that are too short, too irregular or not finite come out as
    they are. Nothing is kept between calls and no array is allocated. One thread at a time.
    """

    __slots__ = ("kernel", "max_change", "min_frames")

    min_frames: int
    """A shorter block is never changed."""
    max_change: int
    """Frames by which a block may grow or shrink."""

    def __init__(self, format: AudioFormat, *, silence_dbfs: float = -50.0) -> None:
        if not silence_dbfs < 0.0:
            raise ConfigurationError("silence_dbfs must be below 0 (full scale), usually -50")
        self.max_change = format.sample_rate * 15 // 1000
        self.min_frames = 2 * self.max_change
        self.kernel = Wsola(format.sample_rate, format.channels, 10.0 ** (silence_dbfs / 10.0))

    def accelerate(
        self, block: NDArray[np.float32], out: NDArray[np.float32], *, fast: bool = False
    ) -> tuple[int, float]:
        """Write ``block`` to ``out`` with frames removed; ``(frames removed, correlation)``.

        The result is the first ``len(block) - removed`` frames of ``out``. ``fast`` takes out
        several periods at once and is content with a correlation of 0.5 instead of 0.9.
        """
        threshold = FAST_THRESHOLD if fast else NORMAL_THRESHOLD
        return self.kernel.process(block, out, False, threshold, fast)

    def expand(self, block: NDArray[np.float32], out: NDArray[np.float32]) -> tuple[int, float]:
        """Write ``block`` to ``out`` with one period repeated; ``(frames inserted, correlation)``.

        The result is the first ``len(block) + inserted`` frames of ``out``, which must hold
        ``len(block) + max_change``.
        """
        return self.kernel.process(block, out, True, NORMAL_THRESHOLD, False)


class PyWsola:
    """The same as ``echostream._ext.stretch.Wsola``, in numpy."""

    def __init__(self, rate: int, channels: int, silence: float) -> None:
        if not 8000 <= rate <= 192000:
            raise ValueError("rate must be 8000 to 192000 Hz")
        if not 1 <= channels <= signal_py.MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {signal_py.MAX_CHANNELS}")
        self._channels = channels
        self._shortest = rate // 400
        self._longest = rate * 15 // 1000
        self._step = signal_py.decimation(rate)
        self._silence = silence

    def process(
        self,
        block: NDArray[np.float32],
        out: NDArray[np.float32],
        insert: bool,
        threshold: float,
        several: bool,
    ) -> tuple[int, float]:
        if block.shape[1] != self._channels or out.shape[1] != self._channels:
            raise ValueError(f"arrays must have the shape (frames, {self._channels})")
        if len(out) < len(block) + (self._longest if insert else 0):
            raise ValueError("out is too short for the result")
        changed, found = self._seam(block, threshold, several)
        old = self._longest - (0 if insert else changed)
        new = old - changed if insert else old + changed
        if changed:
            faded = signal_py.cross_fade(block[old : old + changed], block[new : new + changed])
            out[:old] = block[:old]
            out[old : old + changed] = faded
            out[old + changed :][: len(block) - new - changed] = block[new + changed :]
        else:
            out[: len(block)] = block
        return changed, found

    def _seam(
        self, block: NDArray[np.float32], threshold: float, several: bool
    ) -> tuple[int, float]:
        longest = self._longest
        if len(block) < 2 * longest:
            return 0, 0.0
        mono, power = signal_py.mono_reference(block[: 2 * longest])
        if power < self._silence:
            return longest, signal_py.correlation(mono[longest:], mono[:longest])
        if not power < 1e20:
            return 0, 0.0
        lag, found = signal_py.find_lag(mono, longest, longest, self._shortest, longest, self._step)
        if several and 2 * lag <= longest:
            multiple, other = signal_py.best_lag(mono, longest, longest - lag, longest, lag)
            if other >= threshold:
                lag, found = multiple, other
        return (lag if found >= threshold else 0), found


try:
    from echostream._ext.stretch import Wsola
except ImportError:  # nothing is compiled
    Wsola = PyWsola  # type: ignore[assignment,misc]
