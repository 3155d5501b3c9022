"""From pieces of any length to the caller's array."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from echostream.media.samples import float32_to_int16

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Pull"]


class Pull:
    """What was made and not pulled yet, ``ready``, and the way out of it. One thread."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self.ready: NDArray[np.float32] = np.zeros((0, channels), np.float32)

    def check(self, out: NDArray[Any]) -> None:
        """``ValueError`` for an array that cannot be filled."""
        if (
            out.ndim != 2
            or out.shape[1] != self._channels
            or out.dtype not in (np.float32, np.int16)
        ):
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}; give float32 or int16 of shape "
                f"(frames, {self._channels})"
            )

    def fill(self, out: NDArray[Any], make: Callable[[int, int], NDArray[np.float32]]) -> int:
        """How many frames of ``out`` were filled; behind them is silence.

        ``make(asked, done)`` makes about ``asked`` frames, where ``done`` are out already; none at
        the end.
        """
        done = 0
        while done < len(out):
            if not len(self.ready):
                self.ready = make(len(out) - done, done)
                if not len(self.ready):
                    break
            part = self.ready[: len(out) - done]
            if out.dtype == np.int16:
                float32_to_int16(part, out[done : done + len(part)])
            else:
                out[done : done + len(part)] = part
            self.ready = self.ready[len(part) :]
            done += len(part)
        out[done:] = 0
        return done
