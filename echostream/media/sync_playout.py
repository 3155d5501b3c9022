"""Group playout: every sample is heard at the moment that its sender named.

Three lines meet here: the sender's stamps say at what time of its clock a sample is to be heard,
a ``ClockSync`` where that is on the local clock, and the pulls when a frame of the output is heard.
Where they should meet and where the resampler stands is known exactly, so nothing is learned from
a buffer's level: the ratio follows the three rates, and what is missing is made good within half a
second, at most 500 ppm (less than a cent) away from the nominal rate. Time is a parameter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.conceal import Concealer
from echostream.media.cues import Cues
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.media.pull import Pull
from echostream.media.recent import RecentMaximum
from echostream.media.resample import Resampler
from echostream.media.sample_line import MISSING, REAL, SampleLine, SampleRing
from echostream.media.samples import gain_ramp
from echostream.media.sync_inbox import RECENT_NS, SyncInbox, SyncPacket
from echostream.media.sync_statistics import SyncStatistics
from echostream.media.timebase import Timebase

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RemoteClock", "SyncPlayout", "SyncStatistics"]

SECOND = 1_000_000_000
MAX_PPM = 500.0
CATCH_UP_S = 0.5
"""An error is led back with this time constant, within ``MAX_PPM``."""
JUMP_S = 0.005
"""A larger one is left behind at once, by a cross-fade: it would take more than 10 s."""
FILTER_NS = 1000.0
"""What the resampler's place between two samples may be off by."""
PIECE_MS = 20
FADE_MS = 5
RING_S = 4.0
"""Beyond the playout delay: how far ahead of its time a packet may come."""
WAIT_S = 5
"""How long a stream that has ended waits for a clock that is not known yet."""


class RemoteClock(Protocol):
    """What is asked of a ``ClockSync``."""

    @property
    def synchronized(self) -> bool: ...
    def to_local(self, remote_ns: int) -> int: ...
    def to_remote(self, local_ns: int) -> int: ...
    def error_bound_at(self, local_ns: int) -> float: ...


class SyncPlayout:
    """Plays one stream of ``format`` by the sender's clock: a frame with capture time C is heard at
    C + ``playout_delay`` (s) on that clock, which ``clock`` maps to the local one.

    ``output_latency`` (s): from the moment that a pull names to the air: the device's, an
    amplifier's. ``now``: the local clock in ns, for calls that name no time. One thread pushes and
    one pulls, for example an audio callback; neither blocks, nor waits for the other.

    Raises :class:`ConfigurationError` for options that cannot work.
    """

    profile = "sync"

    def __init__(
        self,
        format: AudioFormat,
        clock: RemoteClock,
        *,
        playout_delay: float = 0.1,
        output_latency: float = 0.0,
        now: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not 0.0 <= playout_delay <= 10.0:
            raise ConfigurationError(f"playout_delay is {playout_delay} s; give 0 to 10")
        if not 0.0 <= output_latency <= 5.0:
            raise ConfigurationError(f"output_latency is {output_latency} s; give 0 to 5")
        rate, channels = format.sample_rate, format.channels
        self.format = format
        self._clock = clock
        self.now = now
        self._delay_ns = round(playout_delay * SECOND)
        self._latency_ns = round(output_latency * SECOND)
        self._rate = rate
        self._fade = rate * FADE_MS // 1000
        self._piece = rate * PIECE_MS // 1000
        self._wire = np.dtype("<i2" if format.sample_type == "int16" else "<f4")
        self._frame_bytes = self._wire.itemsize * channels
        self._over = False
        self._fresh = True  # what comes next begins the ring anew
        # Of the one that pulls.
        self._line = SampleLine(rate)
        self._ring = SampleRing(1 << int((RING_S + playout_delay) * rate).bit_length(), channels)
        self._inbox = SyncInbox(self._ring.size * self._frame_bytes)
        self._resampler = Resampler(rate, rate, channels)
        self._concealer = Concealer(AudioFormat(rate, channels), "sync")
        self._output = Timebase(rate)
        room = self._piece + 4 * self._fade + 256
        self._source = np.zeros((room, channels), np.float32)
        self._made = np.zeros((room, channels), np.float32)
        self._old = np.zeros((self._fade, channels), np.float32)
        self._pull = Pull(channels)
        self._cursor = 0  # the position after what was collected
        self._ahead = 0  # collected and not resampled yet
        self._quiet_from: int | None = None  # after it the sender is silent
        self._playing = self._sounding = False
        self._span = 0
        self._waited = 0
        self._drift = 0.0
        self._hushed = 0  # frames of silence since the last sound
        self._error_ns = 0
        self._heard_ns = 0
        self._peak = RecentMaximum(RECENT_NS)
        self._cues = Cues()
        self._jumps = self._late = self._early = 0
        self._pulled = self._concealed = self._gaps = 0

    # Filling.

    def push(self, frame: AudioFrame, arrival_ns: int | None = None) -> None:
        """Take in one frame with its ``capture_ts``. ``arrival_ns``: when it came, on the local
        clock."""
        if frame.capture_ts is None:
            raise ValueError("a frame without capture_ts has no moment at which to play it")
        self.push_packet(frame.timestamp, frame.capture_ts, frame.to_buffer(), arrival_ns)

    def push_packet(
        self,
        timestamp: int,
        capture_ts: int,
        payload: bytes | memoryview,
        arrival_ns: int | None = None,
        silence: bool = False,
        made_up: bool = False,
    ) -> None:
        """The same for a packet as it travels: interleaved samples, little-endian. ``silence``:
        nothing follows for a while (DTX), which is then not taken for loss. ``made_up``: a codec's
        concealment, counted as that. What is more than is ever kept drops the oldest. Raises
        ``ValueError`` for a payload of another format."""
        data = bytes(payload)
        frames, rest = divmod(len(data), self._frame_bytes)
        if rest or frames > self._ring.size // 2:
            raise ValueError(f"{len(data)} bytes are no packet of {self.format}")
        if not made_up:
            self._arrived(capture_ts, arrival_ns)
        packet = SyncPacket(timestamp, capture_ts, data, silence)
        self._inbox.put(packet, frames if made_up else 0)

    def push_late(self, capture_ts: int, arrival_ns: int | None = None) -> None:
        """A packet whose audio nobody wants any more, for a caller that decodes it himself: it is
        counted as late, and in the headroom."""
        self._arrived(capture_ts, arrival_ns)
        self._inbox.missed += 1

    def _arrived(self, capture_ts: int, arrival_ns: int | None) -> None:
        now = self.now() if arrival_ns is None else arrival_ns
        known = self._clock.synchronized
        self._inbox.arrived(now - self._clock.to_local(capture_ts) if known else None, now)

    def ahead_ns(self, capture_ts: int) -> int:
        """How long from now until a frame is to be handed out; 0 until the clock is known."""
        if not self._clock.synchronized:
            return 0
        return self._clock.to_local(capture_ts + self._delay_ns) - self._latency_ns - self.now()

    def needed_in_ns(self, capture_ts: int) -> int:
        """How long from now until a pull asks for a frame; 0 or less until the clock is known."""
        return self.ahead_ns(capture_ts) + self._latency_ns - self._lead_ns()

    def cue(self, capture_ts: int, value: Any) -> None:
        """Mark a moment of the stream, on the sender's clock as its capture times are:
        :meth:`passed_cues` returns ``value`` once it was pulled."""
        self._cues.add(capture_ts, value)

    def end(self) -> None:
        """Nothing will be pushed any more: behind the last frame is the end, not a gap."""
        self._over = True

    # Emptying.

    def pull_into(self, out: NDArray[Any], now_ns: int | None = None) -> int:
        """Fill ``out``, float32 or int16 of shape ``(frames, channels)``, with what is due.

        ``now_ns``: when its first frame leaves for the air, on the local clock; it is heard the
        output latency later. Noise in it is averaged out, as the frames come at a steady rate.
        Returns how many frames the stream had, which is all of them until its end.
        """
        self._pull.check(out)
        now = self.now() if now_ns is None else now_ns
        frames = len(out)
        self._span = max(frames, self._span - self._span // 64)
        self._output.update(self._pulled, now)
        self._ingest()
        done = self._pull.fill(out, self._piece_at)
        self._pulled += frames
        self._heard_ns = self._heard_at(self._pulled)
        self._cues.advance(self._heard_ns, self._cue_heard if self._clock.synchronized else None)
        return done

    async def blocks(self, frames: int) -> AsyncIterator[NDArray[np.float32]]:
        """What is due, ``frames`` at a time, in real time; ends with the stream."""
        if frames < 1:
            raise ConfigurationError(f"frames is {frames}; give 1 or more")
        start, pulled = self.now(), 0
        while True:
            due = start + pulled * SECOND // self._rate
            await asyncio.sleep((due - self.now()) / SECOND)
            if self.now() - due > SECOND:  # suspended, or nobody asked: go on from here
                start, pulled = self.now(), 0
                due = start
            out = np.empty((frames, self.format.channels), np.float32)
            real = self.pull_into(out, due)
            if real:
                yield out[:real]
            if real < frames:
                return
            pulled += frames

    def flush(self) -> int:
        """Drop what waits to be played, cues too. Returns the timestamp (in sample frames) of the
        first frame that was not played. What is heard ends with a fade of 5 ms; what is pushed
        from now on is played."""
        unplayed = self._line.timestamp_at(self._cursor - self._ahead - self._resampler.pending)
        self._cues.forget_new()
        self._inbox.cut()
        return ceil(unplayed - 1e-6)

    def passed_cues(self) -> list[tuple[int, Any]]:
        """The cues that the pulls have passed since the last call, each with the local time (ns)
        at which its moment is heard: the last pull's, or a little before or after it."""
        return self._cues.passed()

    def statistics(self) -> SyncStatistics:
        """A frozen snapshot; from any thread."""
        clock_bound = self._clock.error_bound_at(self.now())
        noise = self._output.noise_ns + self._line.time.noise_ns + FILTER_NS
        return SyncStatistics(
            playing=self._playing,
            error_ns=self._error_ns,
            error_peak_ns=int(self._peak.value),
            error_bound_ns=abs(self._error_ns) + clock_bound + noise if self._playing else inf,
            clock_bound_ns=clock_bound,
            playout_delay_ns=self._delay_ns,
            output_latency_ns=self._latency_ns,
            headroom_ns=self._delay_ns - self._inbox.transit_ns - self._lead_ns(),
            ratio=self._resampler.ratio,
            drift_ppm=self._drift * 1e6,
            jumps=self._jumps,
            received=self._inbox.received,
            late=self._late + self._inbox.missed,
            early=self._early + self._inbox.dropped,
            pulled_frames=self._pulled,
            concealed_frames=self._concealed + self._inbox.made_up_frames,
            concealment_events=self._gaps + self._inbox.made_up_gaps,
        )

    def _lead_ns(self) -> int:
        """How long before it is heard a frame has to be here."""
        frames = self._span + self._resampler.lookahead
        return self._latency_ns + frames * SECOND // self._rate

    # Taking in what was pushed, on the thread that pulls.

    def _ingest(self) -> None:
        for packet in self._inbox.take():
            if packet is None:
                self._fall_silent()
            else:
                self._take(*packet)

    def _take(self, timestamp: int, capture_ts: int, data: bytes, silence: bool) -> None:
        ring = self._ring
        position, stretch = self._line.place(timestamp, capture_ts, anew=self._fresh)
        frames = len(data) // self._frame_bytes
        end = position + frames
        if self._fresh:
            ring.restart(position)
            self._fresh = False
        elif self._playing and end - self._cursor > ring.size - 2 * self._piece:
            self._early += 1
            return
        elif stretch and position > ring.end:
            ring.hush(ring.end, position)
        if self._quiet_from is not None and position >= self._quiet_from:
            ring.hush(self._quiet_from, position)
            self._quiet_from = None
        if silence:
            self._quiet_from = end
        if self._playing and position < self._cursor:
            self._late += 1
        ring.put(position, _samples(data, self._wire, self.format.channels))

    def _fall_silent(self) -> None:
        """After a flush: what is heard fades away."""
        if self._sounding:
            self._render(self._fade)
            gain_ramp(self._made[: self._fade], 1.0, 0.0)
            self._pull.ready = self._made[: self._fade]
        else:
            self._pull.ready = self._made[:0]
        self._rest()
        self._playing = False
        self._fresh = True
        self._quiet_from = None
        self._ring.clear()
        self._cues.forget_waiting()

    def _cue_heard(self, moment: int) -> int:
        return self._clock.to_local(moment + self._delay_ns)

    # One piece at a time, made in _made.

    def _piece_at(self, asked: int, done: int) -> NDArray[np.float32]:
        return self._made[: self._make(min(asked, self._piece), self._pulled + done)]

    def _make(self, asked: int, count: int) -> int:
        """Output frames from number ``count`` on: how many were made; 0 at the end."""
        ring = self._ring
        if self._fresh or not (self._playing or self._clock.synchronized):
            if self._over:  # what is there may still wait for the clock
                self._waited += asked
                if self._fresh or self._waited > WAIT_S * self._rate:
                    return 0
            self._made[:asked] = 0.0
            return asked
        start = self._due_at(count)
        if not self._sounding:
            self._seek(start)
        position = self._position
        if self._over:
            asked = min(asked, ceil(ring.end - position))
            if asked <= 0:
                return 0
        error = start - position
        self._error_ns = round(error * SECOND / self._rate)
        if abs(error) > JUMP_S * self._rate:
            return self._jump(start)
        if self._sounding:
            self._peak.add(abs(self._error_ns), self._output.ns)
        follow = (self._due_at(count + asked) - start) / asked
        self._drift = follow - 1.0
        ratio = follow + error / (CATCH_UP_S * self._rate)
        self._resampler.ratio = min(max(ratio, 1.0 - MAX_PPM * 1e-6), 1.0 + MAX_PPM * 1e-6)
        self._render(asked)
        return asked

    @property
    def _position(self) -> float:
        """Of the next frame that the resampler makes."""
        return self._cursor - self._ahead - self._resampler.pending

    def _heard_at(self, count: int) -> int:
        return self._output.ns_at(count) + self._latency_ns

    def _due_at(self, count: int) -> float:
        """The position that is to be heard in output frame ``count``."""
        remote = self._clock.to_remote(self._heard_at(count))
        return self._line.time.count_at(remote - self._delay_ns)

    def _seek(self, position: float) -> None:
        """Go on from there, to the nearest frame: nothing is heard now."""
        if not self._playing or abs(position - self._position) >= 0.5:
            self._resampler.reset()
            self._cursor, self._ahead = round(position), 0
        self._playing = True

    def _jump(self, start: float) -> int:
        """Cross over to another position."""
        fade, made = self._fade, self._made
        self._jumps += 1
        self._render(fade)
        self._old[:] = made[:fade]
        self._resampler.reset()
        self._cursor, self._ahead = round(start), 0
        self._render(fade)
        gain_ramp(self._old, 1.0, 0.0)
        gain_ramp(made[:fade], 0.0, 1.0)
        made[:fade] += self._old
        return fade

    def _render(self, frames: int) -> None:
        """Make output frames at the present ratio."""
        count = self._resampler.needed(frames)
        self._collect(count)
        self._resampler.process(self._source[:count], self._made[:frames])
        self._ahead -= count
        self._source[: self._ahead] = self._source[count : count + self._ahead].copy()
        if self._sounding and self._hushed > 2 * self._fade:
            self._rest()

    def _rest(self) -> None:
        """It is silent."""
        self._sounding = False
        self._ahead = 0
        self._resampler.reset()
        self._old[:] = 0.0
        self._concealer.heard(self._old)

    def _collect(self, count: int) -> None:
        """Have ``count`` frames ready in _source: what is there, silence where the sender paused,
        and concealment."""
        ring, concealer = self._ring, self._concealer
        while self._ahead < count:
            want = count - self._ahead
            if concealer.concealing:  # the cross-fade out of it shall not be cut short
                want = max(want, self._fade)
            kind, run = ring.run(self._cursor, want)
            part = self._source[self._ahead : self._ahead + run]
            self._ahead += run
            if kind == REAL:
                ring.read(self._cursor, part)
                self._sounding = True
                self._hushed = 0
            elif kind == MISSING and self._lost_at(self._cursor):
                self._concealed += run
                self._gaps += not concealer.concealing
                concealer.conceal(part)
                self._hushed = 0 if concealer.gain else self._hushed + run
                self._cursor += run
                continue
            else:
                part[:] = 0.0
                self._hushed += run
            self._cursor += run
            if concealer.concealing:
                concealer.merge(part)
            else:
                concealer.heard(part)

    def _lost_at(self, position: int) -> bool:
        """Whether what is missing there was, or will be, sent."""
        if not self._sounding or (self._over and position >= self._ring.end):
            return False
        return self._quiet_from is None or position < self._quiet_from


def _samples(data: bytes, wire: np.dtype[Any], channels: int) -> NDArray[Any]:
    """As this machine has them."""
    samples = np.frombuffer(data, wire).reshape(-1, channels)
    return samples.astype(wire.newbyteorder("="), copy=False)
