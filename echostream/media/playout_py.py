"""Plain-Python twin of :mod:`echostream._ext.playout_loop`: oracle, and fallback.

The same steps in the same order, on whatever ring and kernels it is given, compiled or not.
"""

from __future__ import annotations

from math import ceil, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from echostream.media.drift import DriftController
from echostream.media.pull import Pull
from echostream.media.resample import ONE
from echostream.media.samples import gain_ramp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from echostream._ext.conceal import Extrapolator
    from echostream._ext.jitter_ring import JitterRing
    from echostream._ext.resample import Polyphase
    from echostream._ext.stretch import Wsola
    from echostream.media.playout_rules import PlayoutRules

__all__ = ["PlayoutLoop"]

SECOND = 1_000_000_000


class PlayoutLoop:
    """See :class:`echostream._ext.playout_loop.PlayoutLoop`."""

    def __init__(
        self,
        ring: JitterRing,
        concealer: Extrapolator,
        stretcher: Wsola,
        resampler: Polyphase | None,
        rules: PlayoutRules,
    ) -> None:
        self._ring = ring
        self._concealer = concealer
        self._stretcher = stretcher
        self._resampler = resampler
        self._rules = rules
        self._rate = rules.rate
        self._channels = rules.channels
        self._fade = rules.fade
        self._drift = DriftController(
            rules.rate, max_ppm=rules.max_ppm, max_slew_ppm=rules.max_slew_ppm
        )
        room = rules.largest + rules.block + 4 * rules.fade + 256
        self._source = np.zeros((room, rules.channels), np.float32)
        self._made = np.zeros((room, rules.channels), np.float32)
        self._scrap = np.zeros((room, rules.channels), np.float32)
        self._pull = Pull(rules.channels)
        self._cut = False
        self._sounding = False
        self._over = False
        self._flushes = 0
        self._rest = 0  # frames until the next stretch
        self._tail = -1
        self._target = self._moved = 0.0
        self._span = 0
        self.feed_forward_ppm = nan
        self.error_ns = 0
        self.pulled_frames = 0
        self.stretched = 0

    @property
    def ratio(self) -> float:
        return self._drift.ratio

    @property
    def drift_ppm(self) -> float:
        return self._drift.statistics().drift_ppm if self._resampler is not None else 0.0

    def end(self) -> None:
        self._over = True

    def flush(self) -> int:
        self._cut = True
        if not self._ring.playing:
            return self._ring.drop()
        unplayed = float(self._ring.cursor_timestamp)
        if self._resampler is not None:
            unplayed -= self._resampler.pending
        self._ring.drop()
        return ceil(unplayed - len(self._pull.ready) - 1e-6)

    def fill(self, out: NDArray[Any], now_ns: int) -> int:
        self._pull.check(out)
        self._span = len(out)
        if self._cut or self._flushes != self._ring.flushes:
            self._fall_silent()
        done = self._pull.fill(out, lambda asked, done: self._piece(asked, now_ns + self._ns(done)))
        self.pulled_frames += done
        return done

    # One piece at a time, made in _made: what is asked for, or more where a cross-fade or a pitch
    # period does not fit into that.

    def _piece(self, asked: int, now: int) -> NDArray[np.float32]:
        return self._made[: self._make(min(asked, self._rules.largest), now)]

    def _make(self, asked: int, now: int) -> int:
        """How many frames were made; 0 at the end of the stream."""
        ring, rules = self._ring, self._rules
        error = ring.schedule(now)  # how much later to play
        # All of a pull is needed at its beginning, wherever packets happen to begin in it.
        error += max(self._ns(self._span) - ring.consumer_ns, 0)
        self.error_ns = error
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
            low = rules.low_ns if silence else rules.loose_low_ns
            high = rules.low_ns if silence else rules.loose_high_ns
            if error > low:
                return self._draw_out(min(asked, self._frames(error) + self._rules.spare))
            if -error > high and waiting:
                self._moved -= ring.pass_over(min(self._frames(-error), self._rules.largest))
        elif error > rules.loose_low_ns and 0 < waiting < asked:
            asked = waiting  # the gap behind it shall begin a piece
        if self._resampler is not None:
            return self._resampled(self._resampler, asked, error)
        self._rest -= asked
        if (error > rules.low_ns or -error > rules.high_ns) and (
            self._rest <= 0 or -error > rules.fast_ns
        ):
            made = self._stretch(error, asked)
            if made:
                return made
        made = self._reach(asked)
        self._collect(self._made[:made])
        self._account(made, made, asked)
        return made

    def _stretch(self, error: int, asked: int) -> int:
        """Leave a pitch period out, or put one in, 15 ms from here; 0 where that cannot be."""
        rules = self._rules
        block = self._source[: rules.block]
        if self._concealer.concealing or self._ring.peek_into(block) < len(block):
            return 0
        insert, fast = error > 0, -error > rules.fast_ns
        change, _ = self._stretcher.process(
            block, self._made, insert, rules.poor_likeness if fast else rules.normal_likeness, fast
        )
        used = rules.seam if insert else rules.seam + change
        made = rules.seam + change if insert else rules.seam
        self._rest = self._rules.patience if change else self._rules.step
        if not change:
            return 0
        self.stretched += 1
        self._concealer.heard(self._made[:made])
        self._sounding = True
        self._account(used, made, asked)
        return made

    def _resampled(self, resampler: Polyphase, asked: int, error: int) -> int:
        target = self._exactly(
            self._ring.wanted_ns + max(self._ns(self._span), self._ring.consumer_ns)
        )
        excess = resampler.pending - self._rules.margin - self._exactly(error)
        moved = self._moved + self._target - target
        self._target, self._moved = target, 0.0
        self._steer(resampler, excess, asked, moved)
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

    def _steer(self, resampler: Polyphase, excess: float, asked: int, moved: float) -> None:
        forward = self.feed_forward_ppm
        if forward == forward and forward != self._drift.feed_forward_ppm:
            self._drift.feed_forward_ppm = forward
        resampler.step = round(self._drift.update(excess, asked, moved) * ONE)

    def _collect(self, block: NDArray[np.float32]) -> None:
        """Fill ``block`` from the cursor on: what is there, silence where it was announced, and
        concealment."""
        ring, count, done = self._ring, len(block), 0
        while done < count:
            part = block[done:]
            real = self._ring.peek_into(part, done)
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
            real = self._ring.peek_into(self._scrap[: count - at], at)
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
        while used > step + 2 * self._rules.margin:
            self._ring.take_into(self._scrap[:step], step)
            used -= step
        self._ring.take_into(self._scrap[:used], used + extra)

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
        kept = min(len(self._pull.ready), self._fade)
        dropped = len(self._pull.ready) - kept
        if dropped:
            self._ring.take_into(self._scrap[:0], -dropped)
        if not self._sounding:
            self._pull.ready = self._made[:0]
            return
        self._scrap[:kept] = self._pull.ready[:kept]
        more = self._fade - kept
        if more:
            self._ring.take_into(self._scrap[:0], more)
            self._invent(more)
            self._scrap[kept : self._fade] = self._made[:more]
        self._pull.ready = self._made[: self._fade]
        self._pull.ready[:] = self._scrap[: self._fade]
        gain_ramp(self._pull.ready, 1.0, 0.0)
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
