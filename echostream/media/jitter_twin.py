"""Plain-Python twin of :mod:`echostream._ext.jitter_ring`: oracle, and fallback.

The same behaviour from simpler means: waiting packets in a dictionary, PCM in a numpy array, one
lock instead of atomics (what is for display is read without it). What things mean is told in
``ext/jitter_ring.pyx``.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.media.delay import DelayEstimator, PlayoutControl
from echostream.media.pcm_ring import PcmRing
from echostream.media.timeline import SECOND, Timeline, to_frames, to_ns, unwrap

__all__ = ["ACCEPTED", "DUPLICATE", "OVERFLOW", "REJECTED", "STALE", "JitterRing"]

ACCEPTED, DUPLICATE, STALE, REJECTED, OVERFLOW = range(5)
BAND = 20_000
FAR = 60_000_000
FOREVER = 2**63 - 1
FARTHEST = 1 << 62
COUNTERS = (
    "expected",
    "received",
    "duplicates",
    "stale",
    "rejected",
    "overflows",
    "restarts",
    "late",
    "played",
    "played_frames",
    "concealed",
    "events",
    "silent",
    "raised",
    "lowered",
    "skipped",
    "flushed",
)


class JitterRing:
    """See :class:`echostream._ext.jitter_ring.JitterRing`."""

    def __init__(
        self,
        sample_rate: int,
        channels: int,
        int16: bool,
        capacity: int,
        max_packet_frames: int,
        ring_frames: int,
        sequence_bits: int,
        timestamp_bits: int,
        late: float,
        start_ns: float,
        minimum_ns: float,
        maximum_ns: float,
        raise_rate: float,
        lower_rate: float,
        hold_ns: int,
        max_pull: int,
        start_share: float = 0.5,
        settle_s: float = 2.0,
    ) -> None:
        for name, value in (("capacity", capacity), ("ring_frames", ring_frames)):
            if value < 64 or value & (value - 1):
                raise ValueError(f"{name} is a power of two from 64 on, not {value}")
        if not (0 < sample_rate <= 768_000 and 0 < channels <= 64 and max_packet_frames > 0):
            raise ValueError("sample_rate, channels and max_packet_frames are positive")
        self._lock = threading.RLock()
        self._rate = sample_rate
        self._channels = channels
        self._int16 = int16
        self._frame_bytes = channels * (2 if int16 else 4)
        self._max_frames = max_packet_frames
        self._capacity = capacity
        self._max_delay_ns = int(maximum_ns)
        self._hold_ns = hold_ns
        self._max_pull = max_pull
        self._delay = DelayEstimator(late, start_ns, minimum_ns, maximum_ns, start_share, settle_s)
        self._line = Timeline(sample_rate, capacity, sequence_bits, timestamp_bits, self._delay)
        self._control = PlayoutControl(raise_rate, lower_rate)
        self._n = dict.fromkeys(COUNTERS, 0)
        self.known_drift_ppm = math.nan
        # producer
        self._tags = [0] * capacity
        self._waiting: dict[int, tuple[int, NDArray[np.float32], bool, int]] = {}
        self._epoch = 0
        self._flushes = self._flushes_seen = 0
        self._target = self._wanted = 0
        self._deadline: int | None = None
        self._earliest = FOREVER
        # consumer
        self._pcm = PcmRing(ring_frames, channels)
        self._started = self._concealing = self._heard = False
        self._cursor = self._newest = self._held = self._patched = 0
        self._silence_from = FOREVER
        self._reference = self._deviation = self._earliness = 0.0

    # -- producer

    def push(
        self,
        sequence_number: int,
        timestamp: int,
        payload: Any,
        arrival_ns: int,
        epoch: int = 0,
        silence: bool = False,
    ) -> int:
        data = memoryview(payload).cast("B")
        self._check(sequence_number, timestamp, len(data), arrival_ns, epoch, silence)
        frames = self._samples(data)
        with self._lock:
            return self._push(sequence_number, timestamp, frames, arrival_ns, epoch, silence)

    def _samples(self, data: memoryview) -> NDArray[np.float32]:
        if self._int16:
            samples = np.frombuffer(data, np.int16).astype(np.float32) * np.float32(1.0 / 32768.0)
        else:
            samples = np.frombuffer(data, np.float32).copy()
        return samples.reshape(-1, self._channels)

    def push_late(
        self, sequence_number: int, timestamp: int, arrival_ns: int, epoch: int = 0
    ) -> int:
        self._check(sequence_number, timestamp, 0, arrival_ns, epoch, True)
        nothing = np.zeros((0, self._channels), np.float32)
        with self._lock:
            outcome = self._push(sequence_number, timestamp, nothing, arrival_ns, epoch, False)
            self._n["late"] += outcome == ACCEPTED
            return outcome

    def push_many(
        self,
        sequence_numbers: NDArray[np.int64],
        timestamps: NDArray[np.int64],
        payloads: NDArray[np.uint8],
        arrivals_ns: NDArray[np.int64],
        epoch: int = 0,
    ) -> int:
        count = len(payloads)
        if not count == len(sequence_numbers) == len(timestamps) == len(arrivals_ns):
            raise ValueError(
                "sequence_numbers, timestamps, payloads and arrivals_ns have one length"
            )
        accepted = 0
        for row in range(count):
            outcome = self.push(
                int(sequence_numbers[row]),
                int(timestamps[row]),
                payloads[row],
                int(arrivals_ns[row]),
                epoch,
            )
            accepted += outcome == ACCEPTED
        return accepted

    def _check(
        self,
        sequence_number: int,
        timestamp: int,
        length: int,
        arrival: int,
        epoch: int,
        silence: bool,
    ) -> None:
        whole = {
            "sequence_number": sequence_number,
            "timestamp": timestamp,
            "arrival_ns": arrival,
            "epoch": epoch,
        }
        for name, value in whole.items():
            if not -FOREVER <= value <= FOREVER:
                raise ValueError(f"{name} needs more than 63 bits")
        too_long = length > self._max_frames * self._frame_bytes
        if length % self._frame_bytes or too_long or not (length or silence):
            raise ValueError(
                f"a payload is 1 to {self._max_frames} sample frames of {self._frame_bytes} bytes, "
                f"not {length} bytes; set max_packet_ms for longer packets"
            )
        if sequence_number < 0 or sequence_number >> self._line.sequence_bits:
            raise ValueError(f"sequence_number {sequence_number} needs more bits than agreed")
        bits = self._line.timestamp_bits
        if timestamp < 0 or (bits < 63 and timestamp >> bits):
            raise ValueError(f"timestamp {timestamp} is negative or needs more bits than agreed")
        if not -FARTHEST <= arrival <= FARTHEST:
            raise ValueError(f"arrival_ns {arrival} is more than 146 years away")
        if not 0 <= epoch < 65536:
            raise ValueError(f"epoch is from 0 to 65535, not {epoch}")

    def _push(
        self,
        sequence: int,
        timestamp: int,
        frames: NDArray[np.float32],
        arrival: int,
        epoch: int,
        silence: bool,
    ) -> int:
        line = self._line
        if self._delay.packets == 0:
            self._epoch = epoch
            line.begin(sequence, timestamp)
        elif epoch != self._epoch:
            if (epoch - self._epoch) % 65536 >= 0x8000:
                self._n["stale"] += 1
                return STALE
            self._epoch = epoch
            self._n["restarts"] += 1
            line.renumber(sequence, timestamp, arrival)
            self._flushes += 1
        raw = unwrap(sequence, line.raw_sequence, line.sequence_bits)
        stamp = unwrap(timestamp, line.raw_timestamp, line.timestamp_bits)
        far = abs(raw - line.raw_sequence) >= self._capacity or not line.near(stamp)
        known = self._delay.packets > 0
        if far or (known and line.transit(stamp, arrival) > self._max_delay_ns):
            if line.run_agrees(sequence, timestamp, arrival):
                self._n["restarts"] += 1
                line.renumber(sequence, timestamp, arrival)
                if not far:
                    self._delay.relearn()
                raw, stamp = line.raw_sequence, line.raw_timestamp
            elif far:
                self._n["rejected"] += 1
                return REJECTED
        else:
            line.run = 0
        number = raw + line.sequence_shift
        at = stamp + line.timestamp_shift
        slot = number % self._capacity
        if self._tags[slot] >= number:
            outcome = DUPLICATE if self._tags[slot] == number else STALE
            self._n["duplicates" if outcome == DUPLICATE else "stale"] += 1
            return outcome
        if slot in self._waiting:
            self._n["overflows"] += 1
        self._tags[slot] = number
        self._n["expected"] = line.take(number, raw, stamp)
        self._n["received"] += 1
        self._earliest = min(self._earliest, at)
        self._waiting[slot] = (at, frames, silence, self._flushes)
        send = to_ns(at, self._rate)
        missed = self._deadline is not None and arrival - send > self._deadline
        self._delay.know(-self.known_drift_ppm)
        self._delay.update(send, arrival, missed)
        self._wanted = self._delay.wanted_ns
        self._target = self._delay.target_ns(send)
        return ACCEPTED

    # -- consumer

    def _flush(self, number: int) -> None:
        self._n["flushed"] += min(max(self._newest - self._cursor, 0), self._pcm.size)
        self._pcm.clear(self._cursor, self._pcm.size)
        self._newest = self._silence_from = self._cursor
        self._flushes_seen = number

    def _place(self, at: int, frames: NDArray[np.float32], silence: bool, flush: int) -> None:
        end = at + len(frames)
        if flush < self._flushes_seen:
            self._n["flushed"] += len(frames)
            return
        if flush > self._flushes_seen:
            self._flush(flush)
        if silence:
            self._silence_from = end
        passed = max(self._cursor - at, 0)
        if passed:
            self._n["late"] += len(frames) > 0
            if passed >= len(frames):
                return
        if end - self._cursor > self._pcm.size:
            self._skip(end - self._cursor - to_frames(self._max_delay_ns, self._rate))
            passed = max(self._cursor - at, 0)
        self._pcm.write(at + passed, frames[passed:], first=not passed)
        self._newest = max(self._newest, end)

    def _skip(self, frames: int) -> None:
        self._n["skipped"] += min(max(self._newest - self._cursor, 0), frames)
        self._pcm.clear(self._cursor, frames)
        self._cursor += frames
        self._newest = max(self._newest, self._cursor)
        self._reference -= to_ns(frames, self._rate)

    def _ingest(self) -> None:
        if self._flushes != self._flushes_seen:
            self._flush(self._flushes)
        for slot in sorted(self._waiting):
            self._place(*self._waiting[slot])
        self._waiting.clear()

    def schedule(self, now_ns: int) -> int:
        with self._lock:
            if not self._started:
                if not self._delay.packets:
                    return 0
                self._started = True
                live = to_frames(now_ns - self._target, self._rate)
                self._cursor = self._newest = min(live, self._earliest)
                self._reference = float(now_ns - to_ns(self._cursor, self._rate))
            self._ingest()
            offset = float(now_ns - to_ns(self._cursor, self._rate))
            self._deviation = offset - self._reference
            if abs(self._deviation) > SECOND / 2:
                self._reference = offset
                self._deviation = 0.0
            self._reference += self._deviation / 32.0
            self._deadline = int(self._reference - self._earliness)
            return int(self._target + self._earliness - self._reference)

    def _take(self, frames: int) -> tuple[NDArray[np.float32], int]:
        for start in self._pcm.packets(self._cursor, frames):
            self._n["played"] += 1
            early = to_ns(start, self._rate) - self._deviation
            if early > self._earliness:
                self._earliness = early
            else:
                self._earliness += (early - self._earliness) / 512.0
        out = self._pcm.read(self._cursor, frames)
        done = real = 0
        while done < frames:
            run = self._pcm.run(self._cursor + done, frames - done)
            if run:
                real += run
                self._concealing = False
                self._heard = True
                self._held = 0
                if self._cursor + done + run > self._silence_from:
                    self._silence_from = FOREVER
            else:
                run = self._pcm.gap(self._cursor + done, frames - done)
                self._missing(self._cursor + done, run)
            done += run
        self._pcm.clear(self._cursor, frames)
        self._n["played_frames"] += real
        self._cursor += frames
        return out, real

    def _missing(self, at: int, frames: int) -> None:
        if not self._heard or at >= self._silence_from:
            self._n["silent"] += frames
            return
        self._n["concealed"] += frames
        self._n["events"] += not self._concealing
        self._concealing = True

    def _hold(self, frames: int) -> None:
        self._missing(self._cursor, frames)
        self._reference += to_ns(frames, self._rate)

    def _out(self, out: Any) -> NDArray[np.float32]:
        array = np.asarray(out)
        if array.dtype != np.float32 or array.size % self._channels:
            raise ValueError(f"out is a C-contiguous float32 array of frames of {self._channels}")
        frames = array.reshape(-1, self._channels)
        if len(frames) > self._max_pull:
            raise ValueError(f"one pull is at most {self._max_pull} frames, not {len(frames)}")
        return frames

    def pull_into(self, out: Any, now_ns: int) -> int:
        array = self._out(out)
        with self._lock:
            return self._pull(array, now_ns)

    def pull_many_into(self, out: Any, now_ns: int, cursors: NDArray[np.int64]) -> None:
        array = self._out(out)
        with self._lock:
            for number in range(len(cursors)):
                self._pull(array, now_ns + to_ns(number * len(array), self._rate))
                cursors[number] = self._cursor

    def _pull(self, out: NDArray[np.float32], now: int) -> int:
        frames, rate = len(out), self._rate
        error = self.schedule(now)
        if not self._started:
            out[:] = 0.0
            self._n["silent"] += frames
            return 0
        if -error > max(SECOND, 4 * self._wanted):
            self._skip(to_frames(-error, rate))
            error = 0
        held, move, grain = 0, 0.0, SECOND / rate
        span = to_ns(frames, rate)
        self._control.watch(error, span, self._wanted)
        if self._pcm.real(self._cursor):
            move = self._control.step(error, span, grain)
        elif error > BAND:
            held = min(frames, to_frames(error, rate))
        elif (
            error < -BAND
            and self._newest > self._cursor
            and (self._control.falling or self._held or error < -FAR)
        ):
            gap = self._pcm.gap(self._cursor, min(to_frames(-error, rate), self._pcm.size))
            self._cursor += gap
            self._newest = max(self._newest, self._cursor)
            self._reference -= to_ns(gap, rate)
        if held:
            self._hold(held)
            out[:held] = 0.0
        rest = frames - held
        tail = rest - (self._newest - self._cursor)
        waits = self._held < self._hold_ns and self._heard and self._silence_from == FOREVER
        if tail > 0 and waits:
            tail = min(tail, rest)
            out[held : frames - tail], real = self._take(rest - tail)
            self._hold(tail)
            self._held += to_ns(tail, rate)
            out[frames - tail :] = 0.0
            return real
        take = rest - int(move / grain + (0.5 if move > 0.0 else -0.5))
        taken, real = self._take(take)
        if take == rest:
            out[held:] = taken
            return real
        block = np.vstack([taken, self._pcm.read(self._cursor, 1)]).astype(np.float64)
        position = np.arange(rest) * float(take) / rest
        row = position.astype(np.int64)
        share = (position - row)[:, None]
        out[held:] = block[row] + share * (block[row + 1] - block[row])
        self._reference += move
        self._n["raised"] += max(rest - take, 0)
        self._n["lowered"] += max(take - rest, 0)
        return min(real, rest) if real < take else rest

    def peek_into(self, out: Any, ahead: int = 0) -> int:
        if not 0 <= ahead <= self._pcm.size - self._max_pull:
            raise ValueError(f"ahead is from 0 to {self._pcm.size - self._max_pull}, not {ahead}")
        array = self._out(out)
        with self._lock:
            array[:] = self._pcm.read(self._cursor + ahead, len(array))
            return self._pcm.run(self._cursor + ahead, len(array))

    def take_into(self, out: Any, instead_of: int) -> int:
        array = self._out(out)
        if not self._started:
            raise ValueError("nothing has arrived yet: call schedule first")
        with self._lock:
            array[:], real = self._take(len(array))
            self._reference += to_ns(instead_of - len(array), self._rate)
            self._n["raised"] += max(instead_of - len(array), 0)
            self._n["lowered"] += max(len(array) - instead_of, 0)
            return real

    def position(self, timestamp: int) -> int:
        return timestamp + self._line.timestamp_shift

    def patch(self, timestamp: int, payload: Any) -> int:
        data = memoryview(payload).cast("B")
        self._check(0, timestamp, len(data), 0, 0, False)
        samples = self._samples(data)
        with self._lock:
            at, frames = timestamp + self._line.timestamp_shift, len(samples)
            passed = max(self._cursor - at, 0)
            if not self._started or passed >= frames or at + frames - self._cursor > self._pcm.size:
                return 0
            frames -= passed
            self._pcm.write(at + passed, samples[passed:], first=False)
            self._newest = max(self._newest, at + passed + frames)
            self._n["concealed"] += frames
            self._n["played_frames"] -= frames
            self._n["events"] += at > self._patched
            self._patched = at + passed + frames
            return frames

    def gap(self, frames: int, ahead: int = 0) -> int:
        if not 0 <= ahead <= self._pcm.size - self._max_pull or not 0 <= frames <= self._max_pull:
            raise ValueError(f"frames is from 0 to {self._max_pull}, ahead not beyond the ring")
        with self._lock:
            return self._pcm.gap(self._cursor + ahead, frames)

    def drop(self) -> int:
        with self._lock:
            self._ingest()
            self._flush(self._flushes_seen)
            if self._started:
                return self._cursor
            return self._earliest if self._delay.packets else 0

    def pass_over(self, frames: int) -> int:
        if not 0 <= frames <= self._max_pull:
            raise ValueError(f"frames is from 0 to {self._max_pull}, not {frames}")
        with self._lock:
            gap = self._pcm.gap(self._cursor, frames)
            self._cursor += gap
            self._newest = max(self._newest, self._cursor)
            self._reference -= to_ns(gap, self._rate)
            return gap

    def skip(self, frames: int) -> None:
        if frames < 0:
            raise ValueError(f"frames is 0 or more, not {frames}")
        with self._lock:
            self._skip(frames)

    def hold(self, frames: int) -> None:
        if not 0 <= frames <= self._max_pull:
            raise ValueError(f"frames is from 0 to {self._max_pull}, not {frames}")
        with self._lock:
            self._hold(frames)

    def is_silence(self, ahead: int = 0) -> bool:
        return not self._heard or self._cursor + ahead >= self._silence_from

    # -- anybody, for display

    @property
    def playing(self) -> bool:
        return self._started

    @property
    def cursor_timestamp(self) -> int:
        return self._cursor

    @property
    def flushes(self) -> int:
        return self._flushes

    @property
    def buffered_frames(self) -> int:
        return max(self._newest - self._cursor, 0) if self._started else 0

    @property
    def target_ns(self) -> int:
        return self._target

    @property
    def wanted_ns(self) -> int:
        return self._wanted

    @property
    def drift_ppm(self) -> float:
        return -self._delay.skew_ppm

    @property
    def consumer_ns(self) -> int:
        return int(self._earliness)

    def counters(self) -> tuple[int, ...]:
        with self._lock:
            return tuple(self._n[name] for name in COUNTERS)
