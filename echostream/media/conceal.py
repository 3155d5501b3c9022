"""Concealment of lost PCM: go on with what was heard, fade, and come back without a seam.

``voice`` repeats the last pitch periods (three lags in turn, as NetEq's expand does) and mixes them
with noise of the same colour, the more the less periodic the voice was and the longer the gap
lasts. ``music`` and ``sync`` extrapolate by autoregression (Burg), of order 192 at about 11 kHz and
of order 32 for what lies above; the order falls as channels are added, to bound the work.

The level stays for 20 ms, sinks by 0.8 % per ms until 60 ms and by 1.6 % per ms from there: a gap
of more than 102 ms ends in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from echostream.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from echostream.media.frame import AudioFormat

try:
    from echostream._ext.conceal import Extrapolator
except ImportError:  # nothing is compiled
    from echostream.media.conceal_py import Extrapolator  # type: ignore[assignment]

__all__ = ["Concealer"]


class Concealer:
    """Fill gaps in one stream of float32 blocks ``(frames, channels)``, of any size.

    Every block that is played goes through one of three calls, in order of time: :meth:`heard`,
    :meth:`conceal` in place of a lost one, :meth:`merge` for the first block after a gap. What
    comes out is finite and within +-16 whatever went in. No array is allocated; one thread at a
    time.
    """

    __slots__ = ("kernel",)

    def __init__(
        self, format: AudioFormat, profile: Literal["voice", "music", "sync"] = "voice"
    ) -> None:
        if profile not in ("voice", "music", "sync"):
            raise ConfigurationError(f'profile is {profile!r}; give "voice", "music" or "sync"')
        self.kernel = Extrapolator(format.sample_rate, format.channels, profile == "voice")

    @property
    def concealing(self) -> bool:
        """Whether the last block was concealed."""
        return self.kernel.concealing

    @property
    def gain(self) -> float:
        """Level of the concealment that would come next, 1.0 to 0.0; 1.0 outside a gap."""
        return self.kernel.gain

    def heard(self, samples: NDArray[np.float32]) -> None:
        """Remember a block that is played as it is."""
        self.kernel.heard(samples)

    def conceal(self, out: NDArray[np.float32]) -> None:
        """Fill ``out`` with what might have been there."""
        self.kernel.conceal(out)

    def merge(self, samples: NDArray[np.float32]) -> None:
        """Blend the first 5 ms of ``samples``, in place, with the end of the concealment.

        The samples keep their time. The concealment is bent by up to 3.75 ms (voice) so that the
        two meet in phase. Outside a gap it is the same as :meth:`heard`.
        """
        self.kernel.merge(samples)
