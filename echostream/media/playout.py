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
from math import ceil
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.codec import CodecStatistics
from echostream.media.conceal import Concealer
from echostream.media.drift import DriftController
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.jitter import JitterBuffer, JitterStatistics
from echostream.media.resample import Resampler
from echostream.media.samples import float32_to_int16, gain_ramp
from echostream.media.stretch import Stretcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Playout", "PlayoutStatistics"]

SECOND = 1_000_000_000
LARGEST_MS = 100
"""A longer pull is made in several pieces."""
STEP_MS = 10
STRETCH_MS = 30
FADE_MS = 5
"""Length of a cross-fade back from concealment, and of the fade into silence after a flush."""
LOW_NS = 500_000
"""Voice is lengthened, or a gap drawn out, when the delay is this far below its target."""
HIGH_NS = 17_000_000
"""Voice is shortened, or a gap passed over, when the delay is this far above its target: more than
the longest period that lengthening may have put in."""
FAST_NS = 60_000_000
"""Several periods at once, and a poorer likeness will do, from here on."""
REST_MS = 100
"""Between two stretches, unless it is that far."""


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
        self._ring = self.buffer.ring
        inner = AudioFormat(rate, channels)
        self._concealer = Concealer(inner, profile)
        self._stretcher = Stretcher(inner)
        self._resampler = Resampler(rate, rate, channels) if profile == "music" else None
        self._drift = DriftController(rate)
        self._rate = rate
        self._largest = rate * LARGEST_MS // 1000
        self._step = rate * STEP_MS // 1000
        self._fade = rate * FADE_MS // 1000
        self._block = max(rate * STRETCH_MS // 1000, self._stretcher.min_frames)
        self._seam = self._stretcher.max_change  # frames until a stretch is over
        self._patience = rate * REST_MS // 1000
        self._loose = (LOW_NS, HIGH_NS) if profile == "voice" else (HIGH_NS, FAST_NS)
        self._spare = self._fade if profile == "voice" else 0  # the next period is a while away
        self._margin = self._resampler.lookahead if self._resampler else 0
        room = self._largest + self._block + 4 * self._fade + 256
        self._source = np.zeros((room, channels), np.float32)
        self._made = np.zeros((room, channels), np.float32)
        self._scrap = np.zeros((room, channels), np.float32)
        self._ready = self._made[:0]  # made and not pulled yet
        self._turn = Lock()
        self._cut = False
        self._sounding = False
        self._over = False
        self._flushes = 0
        self._rest = 0  # frames until the next stretch
        self._tail = -1
        self._target = self._moved = 0.0
        self._error = 0
        self._span = 0
        self._pulled = 0
        self._stretched = 0

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

    @property
    def feed_forward_ppm(self) -> float:
        """The sender's drift against the clock that pulls, where somebody has measured it
        (positive: the sender is fast); music then need not learn it. May be set at any time."""
        return self._drift.feed_forward_ppm

    @feed_forward_ppm.setter
    def feed_forward_ppm(self, value: float) -> None:
        self._drift.feed_forward_ppm = value

    # Emptying.

    def pull_into(self, out: NDArray[Any], now_ns: int | None = None) -> int:
        """Fill ``out``, float32 or int16 of shape ``(frames, channels)``, with what is due.

        ``now_ns``: when its first frame is heard, on the clock of the arrivals. Returns how many
        frames the stream had, which is all of them until its end: gaps are concealed, and before
        the first packet it is silent. What is behind the end is silence.
        """
        if (
            out.ndim != 2
            or out.shape[1] != self.format.channels
            or out.dtype not in (np.float32, np.int16)
        ):
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}; give float32 or int16 of shape "
                f"(frames, {self.format.channels})"
            )
        now = time.monotonic_ns() if now_ns is None else now_ns
        if not self._turn.acquire(blocking=False):  # flush() has it: what was due is void
            out[:] = 0
            return len(out)
        try:
            return self._fill(out, now)
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
            self._cut = True
            if not self._ring.playing:
                return self._ring.drop()
            unplayed = float(self._ring.cursor_timestamp)
            if self._resampler is not None:
                unplayed -= self._resampler.pending
            self._ring.drop()
            return ceil(unplayed - len(self._ready) - 1e-6)

    def statistics(self) -> PlayoutStatistics:
        """A frozen snapshot."""
        buffer = self.buffer.statistics()
        steering = self._drift.statistics()
        music = self._resampler is not None
        return PlayoutStatistics(
            buffer=buffer,
            pulled_frames=self._pulled,
            stretched=self._stretched,
            ratio=steering.ratio if music else 1.0,
            drift_ppm=steering.drift_ppm if music else 0.0,
            delay_ns=max(buffer.target_delay_ns - self._error, 0),
        )

    def _fill(self, out: NDArray[Any], now: int) -> int:
        frames, done = len(out), 0
        self._span = frames
        if self._cut or self._flushes != self._ring.flushes:
            self._fall_silent()
        while done < frames:
            if not len(self._ready):
                made = self._make(min(frames - done, self._largest), now + self._ns(done))
                if not made:
                    break
                self._ready = self._made[:made]
            part = self._ready[: frames - done]
            if out.dtype == np.int16:
                float32_to_int16(part, out[done : done + len(part)])
            else:
                out[done : done + len(part)] = part
            self._ready = self._ready[len(part) :]
            done += len(part)
        self._pulled += done
        if done < frames:
            out[done:] = 0
        return done

    # One piece at a time, made in _made: what is asked for, or more where a cross-fade or a pitch
    # period does not fit into that.

    def _make(self, asked: int, now: int) -> int:
        """How many frames were made; 0 at the end of the stream."""
        ring = self._ring
        error = self.buffer.schedule(now)  # how much later to play
        # All of a pull is needed at its beginning, wherever packets happen to begin in it.
        error += max(self._ns(self._span) - ring.consumer_ns, 0)
        self._error = error
        waiting = ring.buffered_frames
        if self._over:
            asked = min(asked, waiting) or self._drain(asked)
            if not waiting:
                return asked
        if not ring.playing:
            self._made[:asked] = 0.0
            return asked
        if -error > max(SECOND, 4 * ring.wanted_ns):
            ring.skip(self._frames(-error))
            self._moved -= self._frames(-error)
            return self._draw_out(min(asked, self._fade))
        if not self._sounding or ring.gap(1):
            silence = not self._sounding or ring.is_silence()
            if silence and self._concealer.concealing:
                return self._fade_out(ring.gap(self._fade))
            low, high = (LOW_NS, LOW_NS) if silence else self._loose
            if error > low:
                return self._draw_out(min(asked, self._frames(error) + self._spare))
            if -error > high and waiting:
                self._moved -= ring.pass_over(min(self._frames(-error), self._largest))
        elif error > self._loose[0] and 0 < waiting < asked:
            asked = waiting  # the gap behind it shall begin a piece
        if self._resampler is not None:
            return self._resampled(self._resampler, asked, error)
        self._rest -= asked
        if (error > LOW_NS or -error > HIGH_NS) and (self._rest <= 0 or -error > FAST_NS):
            made = self._stretch(error, asked)
            if made:
                return made
        made = self._reach(asked)
        self._collect(self._made[:made])
        self._account(made, made, asked)
        return made

    def _stretch(self, error: int, asked: int) -> int:
        """Leave a pitch period out, or put one in, 15 ms from here; 0 where that cannot be."""
        block = self._source[: self._block]
        if self._concealer.concealing or self.buffer.peek_into(block) < len(block):
            return 0
        if error < 0:
            change, _ = self._stretcher.accelerate(block, self._made, fast=-error > FAST_NS)
            used, made = self._seam + change, self._seam
        else:
            change, _ = self._stretcher.expand(block, self._made)
            used, made = self._seam, self._seam + change
        self._rest = self._patience if change else self._step
        if not change:
            return 0
        self._stretched += 1
        self._concealer.heard(self._made[:made])
        self._sounding = True
        self._account(used, made, asked)
        return made

    def _resampled(self, resampler: Resampler, asked: int, error: int) -> int:
        target = self._exactly(
            self._ring.wanted_ns + max(self._ns(self._span), self._ring.consumer_ns)
        )
        excess = resampler.pending - resampler.lookahead - self._exactly(error)
        moved = self._moved + self._target - target
        self._target, self._moved = target, 0.0
        resampler.ratio = self._drift.update(excess, asked, moved)
        frames = asked
        count = resampler.needed(frames)
        if self._reach(count) > count:
            frames += self._fade + 1
            count = resampler.needed(frames)
        source, made = self._source[:count], self._made[:frames]
        self._collect(source)
        self._account(count, frames, asked)
        resampler.process(source, made)
        return frames

    def _collect(self, block: NDArray[np.float32]) -> None:
        """Fill ``block`` from the cursor on: what is there, silence where it was announced, and
        concealment."""
        ring, count, done = self._ring, len(block), 0
        while done < count:
            part = block[done:]
            real = self.buffer.peek_into(part, done)
            if real:
                self._sounding = True
                if self._concealer.concealing:
                    self._concealer.merge(part[:real])
                else:
                    self._concealer.heard(part[:real])
                done += real
                continue
            part = part[: ring.gap(count - done, done)]
            ended = self._over and done >= ring.buffered_frames
            if (ended or ring.is_silence(done)) and not self._concealer.concealing:
                part[:] = 0.0
                self._concealer.heard(part)
                self._sounding = False
            else:
                self._concealer.conceal(part)
            done += len(part)

    def _reach(self, count: int) -> int:
        """``count``, or so many more that the cross-fade out of a gap is not cut short."""
        ring, at = self._ring, 0
        concealing = self._concealer.concealing
        while at < count:
            real = self.buffer.peek_into(self._scrap[: count - at], at)
            if real and concealing:
                count = max(count, at + self._fade)
            at += real or ring.gap(count - at, at)
            concealing = not real
        return count

    def _account(self, used: int, made: int, asked: int) -> None:
        """``used`` frames of the buffer were played as ``made``: in steps of what is asked for, so
        that looking ahead is not taken for an impatient consumer."""
        if self._over:  # the filter looks beyond the end
            used = min(used, self._ring.buffered_frames)
        extra = made - used
        step = max(asked, self._fade)
        while used > step + 2 * self._margin:
            self.buffer.take_into(self._scrap[:step], step)
            used -= step
        self.buffer.take_into(self._scrap[:used], used + extra)

    def _draw_out(self, frames: int) -> int:
        """Fill time while the buffer stands still: the delay grows by ``frames``."""
        self._ring.hold(frames)
        self._moved += frames
        if self._sounding:
            self._invent(frames)
        else:
            self._made[:frames] = 0.0
        return frames

    def _invent(self, frames: int) -> None:
        """Concealment that takes nothing from the buffer."""
        if self._resampler is None:
            self._concealer.conceal(self._made[:frames])
        else:
            source = self._source[: self._resampler.needed(frames)]
            self._concealer.conceal(source)
            self._resampler.process(source, self._made[:frames])

    def _fade_out(self, frames: int) -> int:
        """Concealment that goes silent."""
        self._draw_out(frames)
        gain_ramp(self._made[:frames], 1.0, 0.0)
        self._forget()
        return frames

    def _forget(self) -> None:
        self._scrap[: self._fade] = 0.0
        self._concealer.heard(self._scrap[: self._fade])
        self._sounding = False
        if self._resampler is not None:
            self._resampler.reset()

    def _fall_silent(self) -> None:
        """After a flush: what was made already, and concealment after it, fades away."""
        self._cut = False
        self._flushes = self._ring.flushes
        kept = min(len(self._ready), self._fade)
        dropped = len(self._ready) - kept
        if dropped:
            self.buffer.take_into(self._scrap[:0], -dropped)
        if not self._sounding:
            self._ready = self._made[:0]
            return
        self._scrap[:kept] = self._ready[:kept]
        more = self._fade - kept
        if more:
            self.buffer.take_into(self._scrap[:0], more)
            self._invent(more)
            self._scrap[kept : self._fade] = self._made[:more]
        self._ready = self._made[: self._fade]
        self._ready[:] = self._scrap[: self._fade]
        gain_ramp(self._ready, 1.0, 0.0)
        self._forget()

    def _drain(self, asked: int) -> int:
        """The end: what the filter still holds."""
        if self._resampler is None or not self._sounding:
            return 0
        if self._tail < 0:
            self._tail = ceil(self._resampler.pending)
        frames = min(asked, self._tail)
        if frames:
            self._tail -= frames
            source = self._source[: self._resampler.needed(frames)]
            source[:] = 0.0
            self._resampler.process(source, self._made[:frames])
        return frames

    def _frames(self, ns: int) -> int:
        return ns * self._rate // SECOND

    def _ns(self, frames: int) -> int:
        return frames * SECOND // self._rate

    def _exactly(self, ns: int) -> float:
        return ns * 1e-9 * self._rate
