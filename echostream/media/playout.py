"""Playout: what a loudspeaker pulls, from what the network delivered.

A :class:`~echostream.media.jitter.JitterBuffer` decides what is due when; here it becomes audio
without clicks. ``voice`` follows the playout point by time-stretching whole pitch periods,
``music`` by a fractional resampler whose ratio moves gently; gaps are concealed and left by a
cross-fade. No single sample is dropped or doubled. Time is a parameter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.codec import CodecStatistics
from echostream.media.conceal import Concealer
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.jitter import JitterBuffer, JitterStatistics
from echostream.media.playout_rules import rules_of
from echostream.media.resample import Resampler
from echostream.media.stretch import Stretcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from echostream._ext.playout_loop import PlayoutLoop
else:
    try:
        from echostream._ext.playout_loop import PlayoutLoop
    except ImportError:  # not compiled
        from echostream.media.playout_py import PlayoutLoop

__all__ = ["Playout", "PlayoutStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayoutStatistics:
    """A snapshot. ``buffer`` counts packets and frames, lost, late and concealed apart.

    ``pulled_frames`` went out in all; ``stretched`` blocks were shortened or lengthened (voice);
    ``ratio`` is the resampler's, 1.0 for voice; ``drift_ppm`` the sender's clock against the one
    that pulls, as far as music has learned it. ``delay_ns`` is the time from the arrival of the
    fastest packets to their playout, now; ``buffer.target_delay_ns`` what it should be. ``codec``:
    what became of packets that had to be decoded.
    """

    buffer: JitterStatistics
    pulled_frames: int
    stretched: int
    ratio: float
    drift_ppm: float
    delay_ns: int
    codec: CodecStatistics | None = None


class Playout:
    """Plays one stream of ``format``: :meth:`push` packets as they come, :meth:`pull_into` audio as
    it is due.

    ``target_late`` is the share of packets that may come too late: the delay is as small as that
    allows. ``profile``: ``"voice"`` or ``"music"``. ``min_delay`` and ``max_delay`` bound the delay
    (s). One thread pushes and one pulls, for example an audio callback; neither blocks, and the
    steady state allocates nothing that stays. :meth:`flush` and :meth:`statistics` may be called
    from a third.

    Raises :class:`ConfigurationError` for options that cannot work.
    """

    def __init__(
        self,
        format: AudioFormat,
        *,
        target_late: float = 0.01,
        profile: Literal["voice", "music"] = "voice",
        min_delay: float = 0.0,
        max_delay: float = 2.0,
    ) -> None:
        if profile not in ("voice", "music"):
            raise ConfigurationError(f'profile is {profile!r}; give "voice" or "music"')
        rate, channels = format.sample_rate, format.channels
        self.format = format
        self.profile = profile
        self.buffer = JitterBuffer(
            rate,
            channels,
            sample_type=format.sample_type,
            target_late=target_late,
            profile=profile,
            min_delay_ms=min_delay * 1e3,
            max_delay_ms=max_delay * 1e3,
            start_delay_ms=min(40.0, max_delay * 1e3),
            max_packet_ms=min(max(120.0, 2e3 * format.frame / rate), 1000.0),
        )
        inner = AudioFormat(rate, channels)
        resampler = Resampler(rate, rate, channels) if profile == "music" else None
        rules = rules_of(inner, resampler.lookahead if resampler else 0)
        self._loop = PlayoutLoop(
            self.buffer.ring,
            Concealer(inner, profile).kernel,
            Stretcher(inner).kernel,
            resampler.kernel if resampler else None,
            rules,
        )
        self._margin, self._block = rules.margin, rules.block
        self._over = False
        self._rate = rate
        self._turn = Lock()

    # Filling.

    def push(self, frame: AudioFrame, arrival_ns: int | None = None, epoch: int = 0) -> int:
        """Take in one packet; what became of it (``media.jitter``). ``arrival_ns``: when it came,
        on the monotonic clock that :meth:`pull_into` is given."""
        return self.push_packet(
            frame.sequence_number, frame.timestamp, frame.to_buffer(), arrival_ns, epoch
        )

    def push_packet(
        self,
        sequence_number: int,
        timestamp: int,
        payload: bytes | memoryview,
        arrival_ns: int | None = None,
        epoch: int = 0,
        silence: bool = False,
    ) -> int:
        """The same for a packet as it travels: interleaved samples, little-endian. ``silence``:
        nothing follows for a while (DTX), which is then not taken for loss."""
        now = time.monotonic_ns() if arrival_ns is None else arrival_ns
        return self.buffer.push(sequence_number, timestamp, payload, now, epoch, silence)

    def end(self) -> None:
        """Nothing will be pushed any more: behind the last frame is the end, not a gap."""
        self._over = True
        self._loop.end()

    @property
    def feed_forward_ppm(self) -> float:
        """The sender's drift against the clock that pulls, where somebody has measured it
        (positive: the sender is fast; NaN while nobody has); music then need not learn it. May
        be set at any time, by any thread."""
        return self._loop.feed_forward_ppm

    @feed_forward_ppm.setter
    def feed_forward_ppm(self, value: float) -> None:
        self._loop.feed_forward_ppm = value
        self.buffer.ring.known_drift_ppm = value

    # Emptying.

    def pull_into(self, out: NDArray[Any], now_ns: int | None = None) -> int:
        """Fill ``out``, float32 or int16 of shape ``(frames, channels)``, with what is due.

        ``now_ns``: when its first frame is heard, on the clock of the arrivals. Returns how many
        frames the stream had, which is all of them until its end: gaps are concealed, and before
        the first packet it is silent. What is behind the end is silence.
        """
        now = time.monotonic_ns() if now_ns is None else now_ns
        if not self._turn.acquire(blocking=False):  # flush() has it: what was due is void
            out[:] = 0
            return len(out)
        try:
            return self._loop.fill(out, now)
        finally:
            self._turn.release()

    async def blocks(self, frames: int) -> AsyncIterator[NDArray[np.float32]]:
        """What is due, ``frames`` at a time, in real time by the running loop's clock; ends
        with the stream. The arrivals must be on that clock (``time.monotonic_ns``, as by default).
        """
        if frames < 1:
            raise ConfigurationError(f"frames is {frames}; give 1 or more")
        clock = asyncio.get_running_loop().time
        start, pulled = clock(), 0
        while True:
            due = start + pulled / self._rate
            await asyncio.sleep(due - clock())
            if clock() - due > 1.0:  # suspended, or nobody asked: go on from here
                start, pulled = clock(), 0
                due = start
            out = np.empty((frames, self.format.channels), np.float32)
            real = self.pull_into(out, int(due * 1e9))
            if real:
                yield out[:real]
            if real < frames:
                return
            pulled += frames

    def flush(self) -> int:
        """Barge-in: drop what waits to be played. Returns the timestamp (in sample frames) of the
        first frame that was not played. What is heard ends with a fade of 5 ms."""
        with self._turn:
            return self._loop.flush()

    def statistics(self) -> PlayoutStatistics:
        """A frozen snapshot."""
        buffer = self.buffer.statistics()
        loop = self._loop
        return PlayoutStatistics(
            buffer=buffer,
            pulled_frames=loop.pulled_frames,
            stretched=loop.stretched,
            ratio=loop.ratio,
            drift_ppm=loop.drift_ppm,
            delay_ns=max(buffer.target_delay_ns - loop.error_ns, 0),
        )
