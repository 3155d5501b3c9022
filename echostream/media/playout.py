"""Playout: what a loudspeaker pulls, from what the network delivered.

A :class:`~echostream.media.jitter.JitterBuffer` decides what is due when; here it becomes audio
without clicks. ``voice`` follows the playout point by time-stretching whole pitch periods,
``music`` by a fractional resampler steered by a delay-locked loop; gaps are concealed and left by
a cross-fade. No single sample is dropped or doubled. Time is a parameter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.conceal import Concealer
from echostream.media.drift import DriftController
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.jitter import JitterBuffer, JitterStatistics
from echostream.media.resample import Resampler
from echostream.media.samples import float32_to_int16
from echostream.media.stretch import Stretcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Playout", "PlayoutStatistics"]

QUANTUM_MS = 10
STRETCH_MS = 30
HIGH_NS = 15_000_000
"""Voice is shortened when the delay is this far above its target."""
FAST_NS = 60_000_000
"""Several periods at once, and a poorer likeness will do, from here on."""
LOW_NS = 10_000_000
"""Voice is lengthened when the delay is this far below its target."""
MAX_PULL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayoutStatistics:
    """A snapshot. ``buffer`` counts packets and frames; ``stretched`` blocks were shortened or
    lengthened; ``ratio`` is the resampler's, 1.0 for voice; ``played_frames`` went out in all."""

    buffer: JitterStatistics
    stretched: int
    ratio: float
    played_frames: int


class Playout:
    """Plays one stream of ``format``: :meth:`push` packets as they come, :meth:`pull_into` audio as
    it is due.

    ``target_late`` is the share of packets that may come too late: the delay is as small as that
    allows. ``profile``: ``"voice"`` or ``"music"``. ``min_delay`` and ``max_delay`` bound the delay
    (s). One thread pushes and one pulls, for example an audio callback; neither blocks, and no
    array is allocated after the start.

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
            max_packet_ms=min(max(120.0, 2e3 * format.frame / rate), 1000.0),
        )
        inner = AudioFormat(rate, channels)
        self._concealer = Concealer(inner, profile)
        self._stretcher = Stretcher(inner)
        self._resampler = Resampler(rate, rate, channels)
        self._drift = DriftController(rate)
        self._quantum = rate * QUANTUM_MS // 1000
        self._block = max(rate * STRETCH_MS // 1000, self._stretcher.min_frames)
        room = self._block + self._stretcher.max_change + 2 * self._quantum
        self._source = np.zeros((room, channels), np.float32)
        self._made = np.zeros((room, channels), np.float32)
        self._convert = np.zeros((self._quantum, channels), np.float32)
        self._ready = self._made[:0]
        self._rate = rate
        self._stretched = 0
        self._played = 0

    # Filling.

    def push(self, frame: AudioFrame, arrival_ns: int | None = None, epoch: int = 0) -> int:
        """Take in one packet; what became of it (``media.jitter``). ``arrival_ns``: when it came,
        on the monotonic clock that :meth:`pull_into` is given."""
        return self.push_packet(
            frame.sequence_number, frame.timestamp, frame.to_bytes(), arrival_ns, epoch
        )

    def push_packet(
        self,
        sequence_number: int,
        timestamp: int,
        payload: bytes | memoryview,
        arrival_ns: int | None = None,
        epoch: int = 0,
    ) -> int:
        """The same for a packet as it travels: interleaved samples, little-endian."""
        now = time.monotonic_ns() if arrival_ns is None else arrival_ns
        return self.buffer.push(sequence_number, timestamp, payload, now, epoch)

    # Emptying.

    def pull_into(self, out: NDArray[Any], now_ns: int | None = None) -> int:
        """Fill ``out``, float32 or int16 of shape ``(frames, channels)``, with what is due.

        ``now_ns``: when its first frame is heard, on the clock of the arrivals. Returns how many
        frames were made, always all: gaps are concealed, and before the first packet it is silent.
        """
        if out.ndim != 2 or out.shape[1] != self.format.channels:
            raise ValueError(
                f"out has the shape {out.shape}; give (frames, {self.format.channels})"
            )
        now = time.monotonic_ns() if now_ns is None else now_ns
        frames = len(out)
        done = 0
        while done < frames:
            if not len(self._ready):
                self._ready = self._make(now + done * 1_000_000_000 // self._rate)
            part = self._ready[: frames - done]
            if out.dtype == np.int16:
                float32_to_int16(part, out[done : done + len(part)])
            else:
                out[done : done + len(part)] = part
            self._ready = self._ready[len(part) :]
            done += len(part)
        self._played += frames
        return frames

    def flush(self) -> int:
        """Barge-in: drop what waits to be played. Returns the timestamp (in sample frames) of the
        first frame that was not played."""
        unheard = len(self._ready)
        self._ready = self._made[:0]
        self._resampler.reset()
        return self.buffer.ring.drop() - unheard

    def statistics(self) -> PlayoutStatistics:
        """A frozen snapshot."""
        return PlayoutStatistics(
            buffer=self.buffer.statistics(),
            stretched=self._stretched,
            ratio=self._resampler.ratio if self.profile == "music" else 1.0,
            played_frames=self._played,
        )

    # One piece at a time: a quantum, or a stretched block.

    def _make(self, now: int) -> NDArray[np.float32]:
        error = self.buffer.schedule(now)  # how far before its target the playout point is
        if self.profile == "music":
            return self._make_music(error)
        ring = self.buffer.ring
        if not ring.playing:
            return self._silence()
        waiting = ring.buffered_frames
        if not waiting and error > LOW_NS:
            self.buffer.hold(self._quantum)
            return self._concealed(self._quantum)
        if -error > HIGH_NS or error > LOW_NS:
            block = self._source[: self._block]
            if self.buffer.peek_into(block) == len(block):
                return self._stretch(block, error)
        return self._plain(self._quantum, self._quantum)

    def _stretch(self, block: NDArray[np.float32], error: int) -> NDArray[np.float32]:
        size = len(block)
        if error < 0:
            removed, _ = self._stretcher.accelerate(block, self._made, fast=-error > FAST_NS)
            length = size - removed
        else:
            inserted, _ = self._stretcher.expand(block, self._made)
            length = size + inserted
        self.buffer.take_into(block, length)
        self._stretched += length != size
        made = self._made[:length]
        self._hear(made)
        return made

    def _make_music(self, error: int) -> NDArray[np.float32]:
        ring = self.buffer.ring
        if not ring.playing:
            return self._silence()
        if not ring.buffered_frames and error > LOW_NS:
            self.buffer.hold(self._quantum)
            source = self._concealed(self._resampler.needed(self._quantum))
        else:
            self._drift.update(-error * 1e-9 * self._rate, self._quantum)
            self._resampler.ratio = self._drift.ratio
            source = self._plain(self._resampler.needed(self._quantum), self._quantum)
        out = self._convert
        self._resampler.process(source, out)
        return out

    def _plain(self, count: int, instead_of: int) -> NDArray[np.float32]:
        """``count`` frames from the cursor on, gaps concealed."""
        block = self._made[:count]
        done = 0
        while done < count:
            part = block[done:]
            real = self.buffer.peek_into(part, done)
            if real:
                part = part[:real]
                self._hear(part)
            else:
                part = part[: self.buffer.ring.gap(count - done, done)]
                self._concealer.conceal(part)
            done += len(part)
        self.buffer.take_into(self._source[:count], instead_of)
        return block

    def _hear(self, part: NDArray[np.float32]) -> None:
        if self._concealer.concealing:
            self._concealer.merge(part)
        else:
            self._concealer.heard(part)

    def _concealed(self, count: int) -> NDArray[np.float32]:
        block = self._made[:count]
        self._concealer.conceal(block)
        return block

    def _silence(self) -> NDArray[np.float32]:
        block = self._made[: self._quantum]
        block[:] = 0.0
        return block
