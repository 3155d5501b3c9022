"""Plain-Python twin of :mod:`echostream._ext.jitter_ring`: oracle, and fallback.

The same behaviour from simpler means: waiting packets in a dictionary, PCM in a numpy array, one
lock instead of atomics. What things mean is told in ``ext/jitter_ring.pyx``.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.media.delay import DelayEstimator, PlayoutControl

__all__ = ["ACCEPTED", "DUPLICATE", "OVERFLOW", "REJECTED", "STALE", "JitterRing"]

ACCEPTED, DUPLICATE, STALE, REJECTED, OVERFLOW = range(5)
SECOND = 1_000_000_000
BAND = 20_000
FAR = 60_000_000
DAY_S = 86_400
FOREVER = 2**63 - 1
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


def to_ns(frames: int, rate: int) -> int:
    sign = 1 if frames >= 0 else -1
    seconds, rest = divmod(abs(frames), rate)
    return sign * (seconds * SECOND + rest * SECOND // rate)


def to_frames(ns: int, rate: int) -> int:
    sign = 1 if ns >= 0 else -1
    seconds, rest = divmod(abs(ns), SECOND)
    return sign * (seconds * rate + (rest * rate + SECOND // 2) // SECOND)


def unwrap(value: int, near: int, bits: int) -> int:
    if bits >= 64:
        return value
    ahead = (value - near) % (1 << bits)
    return near + (ahead if ahead < 1 << (bits - 1) else ahead - (1 << bits))


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
        self._sequence_bits = sequence_bits
        self._timestamp_bits = timestamp_bits
        self._max_delay_ns = int(maximum_ns)
        self._hold_ns = hold_ns
        self._max_pull = max_pull
        self._delay = DelayEstimator(late, start_ns, minimum_ns, maximum_ns, start_share, settle_s)
        self._control = PlayoutControl(raise_rate, lower_rate)
        self._n = dict.fromkeys(COUNTERS, 0)
        self.known_drift_ppm = math.nan
        # producer
        self._tags = [0] * capacity
        self._waiting: dict[int, tuple[int, NDArray[np.float32], bool, int]] = {}
        self._raw_sequence = self._raw_timestamp = 0
        self._sequence_shift = self._timestamp_shift = 0
        self._highest = self._first = self._expected_before = 0
        self._epoch = 0
        self._run = self._run_sequence = self._run_timestamp = self._run_arrival = 0
        self._flushes = self._flushes_seen = 0
        self._target = self._wanted = 0
        self._deadline: int | None = None
        self._earliest = FOREVER
        # consumer
        self._size = ring_frames
        self._pcm = np.zeros((ring_frames, channels), dtype=np.float32)
        self._marks = np.zeros(ring_frames, dtype=np.uint8)
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
        self._check(sequence_number, timestamp, len(data), epoch, silence)
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
        self._check(sequence_number, timestamp, 0, epoch, True)
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
        self, sequence_number: int, timestamp: int, length: int, epoch: int, silence: bool
    ) -> None:
        too_long = length > self._max_frames * self._frame_bytes
        if length % self._frame_bytes or too_long or not (length or silence):
            raise ValueError(
                f"a payload is 1 to {self._max_frames} sample frames of {self._frame_bytes} bytes, "
                f"not {length} bytes; set max_packet_ms for longer packets"
            )
        if sequence_number < 0 or sequence_number >> self._sequence_bits:
            raise ValueError(f"sequence_number {sequence_number} needs more bits than agreed")
        if timestamp < 0 or (self._timestamp_bits < 63 and timestamp >> self._timestamp_bits):
            raise ValueError(f"timestamp {timestamp} is negative or needs more bits than agreed")
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
        if self._delay.packets == 0:
            self._epoch = epoch
            self._raw_sequence = sequence
            self._raw_timestamp = timestamp
            self._timestamp_shift = 0 if timestamp // self._rate < SECOND else -timestamp
            self._first = 2 * self._capacity
            self._sequence_shift = self._first - sequence
            self._highest = self._first - 1
        elif epoch != self._epoch:
            if (epoch - self._epoch) % 65536 >= 0x8000:
                self._n["stale"] += 1
                return STALE
            self._epoch = epoch
            self._renumber(sequence, timestamp, arrival)
            self._flushes += 1
        raw = unwrap(sequence, self._raw_sequence, self._sequence_bits)
        stamp = unwrap(timestamp, self._raw_timestamp, self._timestamp_bits)
        far = abs(raw - self._raw_sequence) >= self._capacity or not self._near(stamp)
        known = self._delay.packets > 0
        if far or (known and self._transit(stamp, arrival) > self._max_delay_ns):
            if self._run_agrees(sequence, timestamp, arrival):
                self._renumber(sequence, timestamp, arrival)
                if not far:
                    self._delay.relearn()
                raw, stamp = self._raw_sequence, self._raw_timestamp
            elif far:
                self._n["rejected"] += 1
                return REJECTED
        else:
            self._run = 0
        number = raw + self._sequence_shift
        at = stamp + self._timestamp_shift
        slot = number % self._capacity
        if self._tags[slot] >= number:
            outcome = DUPLICATE if self._tags[slot] == number else STALE
            self._n["duplicates" if outcome == DUPLICATE else "stale"] += 1
            return outcome
        if slot in self._waiting:
            self._n["overflows"] += 1
        self._tags[slot] = number
        if number > self._highest:
            self._highest, self._raw_sequence, self._raw_timestamp = number, raw, stamp
        self._first = min(self._first, number)
        self._n["expected"] = self._expected_before + self._highest - self._first + 1
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

    def _near(self, stamp: int) -> bool:
        return abs(stamp - self._raw_timestamp) <= DAY_S * self._rate

    def _transit(self, stamp: int, arrival: int) -> int:
        send = to_ns(stamp + self._timestamp_shift, self._rate)
        return arrival - send - self._delay.base_ns(send)

    def _run_agrees(self, sequence: int, timestamp: int, arrival: int) -> bool:
        following = self._run_sequence + 1
        if not self._run or unwrap(sequence, self._run_sequence, self._sequence_bits) != following:
            self._run = 0
            self._run_timestamp, self._run_arrival = timestamp, arrival
        self._run += 1
        self._run_sequence = sequence
        if self._run < 4:
            return False
        self._run = 0
        sent = unwrap(timestamp, self._run_timestamp, self._timestamp_bits) - self._run_timestamp
        if not 0 < sent <= DAY_S * self._rate:
            return False
        sent = to_ns(sent, self._rate)
        came = arrival - self._run_arrival
        return sent <= 2 * came and came <= 2 * sent + SECOND // 10

    def _renumber(self, sequence: int, timestamp: int, arrival: int) -> None:
        stamp = unwrap(timestamp, self._raw_timestamp, self._timestamp_bits)
        self._n["restarts"] += 1
        self._expected_before += self._highest - self._first + 1
        self._raw_sequence = sequence
        self._first = self._highest + self._capacity + 1
        self._sequence_shift = self._first - sequence
        self._highest = self._first - 1
        near = self._near(stamp)
        if not near:
            stamp = self._raw_timestamp
        transit = self._transit(stamp, arrival)
        if near and -SECOND // 20 <= transit <= self._delay.wanted_ns + SECOND // 20:
            self._raw_timestamp = stamp
            return
        at = stamp + self._timestamp_shift
        self._timestamp_shift = at + to_frames(transit, self._rate) - timestamp
        self._raw_timestamp = timestamp

    # -- consumer

    def _rows(self, at: int, frames: int) -> NDArray[np.int64]:
        return np.arange(at, at + frames) % self._size

    def _clear(self, at: int, frames: int) -> None:
        rows = self._rows(at, min(frames, self._size))
        self._pcm[rows] = 0.0
        self._marks[rows] = 0

    def _flush(self, number: int) -> None:
        self._n["flushed"] += min(max(self._newest - self._cursor, 0), self._size)
        self._clear(self._cursor, self._size)
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
        if end - self._cursor > self._size:
            self._skip(end - self._cursor - to_frames(self._max_delay_ns, self._rate))
            passed = max(self._cursor - at, 0)
        rows = self._rows(at + passed, len(frames) - passed)
        self._pcm[rows] = frames[passed:]
        self._marks[rows] = 1
        if len(rows) and not passed:
            self._marks[rows[0]] = 2
        self._newest = max(self._newest, end)

    def _skip(self, frames: int) -> None:
        self._n["skipped"] += min(max(self._newest - self._cursor, 0), frames)
        self._clear(self._cursor, frames)
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

    def _next_packet(self, at: int, frames: int) -> int:
        found = np.flatnonzero(self._marks[self._rows(at, frames)] == 2)
        return int(found[0]) if len(found) else frames

    def _run_of(self, at: int, frames: int, real: bool) -> int:
        found = np.flatnonzero((self._marks[self._rows(at, frames)] != 0) != real)
        return int(found[0]) if len(found) else frames

    def _take(self, frames: int) -> tuple[NDArray[np.float32], int]:
        for start in np.flatnonzero(self._marks[self._rows(self._cursor, frames)] == 2).tolist():
            self._n["played"] += 1
            early = to_ns(start, self._rate) - self._deviation
            if early > self._earliness:
                self._earliness = early
            else:
                self._earliness += (early - self._earliness) / 512.0
        out = self._pcm[self._rows(self._cursor, frames)]
        done = real = 0
        while done < frames:
            run = self._run_of(self._cursor + done, frames - done, True)
            if run:
                real += run
                self._concealing = False
                self._heard = True
                self._held = 0
                if self._cursor + done + run > self._silence_from:
                    self._silence_from = FOREVER
            else:
                run = self._run_of(self._cursor + done, frames - done, False)
                self._missing(self._cursor + done, run)
            done += run
        self._clear(self._cursor, frames)
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
        if self._marks[self._cursor % self._size]:
            move = self._control.step(error, span, grain)
        elif error > BAND:
            held = min(frames, to_frames(error, rate))
        elif (
            error < -BAND
            and self._newest > self._cursor
            and (self._control.falling or self._held or error < -FAR)
        ):
            gap = self._run_of(self._cursor, min(to_frames(-error, rate), self._size), False)
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
        block = np.vstack([taken, self._pcm[self._rows(self._cursor, 1)]]).astype(np.float64)
        position = np.arange(rest) * float(take) / rest
        row = position.astype(np.int64)
        share = (position - row)[:, None]
        out[held:] = block[row] + share * (block[row + 1] - block[row])
        self._reference += move
        self._n["raised"] += max(rest - take, 0)
        self._n["lowered"] += max(take - rest, 0)
        return min(real, rest) if real < take else rest

    def peek_into(self, out: Any, ahead: int = 0) -> int:
        if not 0 <= ahead <= self._size - self._max_pull:
            raise ValueError(f"ahead is from 0 to {self._size - self._max_pull}, not {ahead}")
        array = self._out(out)
        with self._lock:
            array[:] = self._pcm[self._rows(self._cursor + ahead, len(array))]
            return self._run_of(self._cursor + ahead, len(array), True)

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
        return timestamp + self._timestamp_shift

    def patch(self, timestamp: int, payload: Any) -> int:
        data = memoryview(payload).cast("B")
        self._check(0, timestamp, len(data), 0, False)
        samples = self._samples(data)
        with self._lock:
            at, frames = timestamp + self._timestamp_shift, len(samples)
            passed = max(self._cursor - at, 0)
            if not self._started or passed >= frames or at + frames - self._cursor > self._size:
                return 0
            frames -= passed
            rows = self._rows(at + passed, frames)
            self._pcm[rows] = samples[passed:]
            self._marks[rows] = 1
            self._newest = max(self._newest, at + passed + frames)
            self._n["concealed"] += frames
            self._n["played_frames"] -= frames
            self._n["events"] += at > self._patched
            self._patched = at + passed + frames
            return frames

    def gap(self, frames: int, ahead: int = 0) -> int:
        if not 0 <= ahead <= self._size - self._max_pull or not 0 <= frames <= self._max_pull:
            raise ValueError(f"frames is from 0 to {self._max_pull}, ahead not beyond the ring")
        with self._lock:
            return self._run_of(self._cursor + ahead, frames, False)

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
            gap = self._run_of(self._cursor, frames, False)
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

    # -- either side

    @property
    def playing(self) -> bool:
        return self._started

    @property
    def cursor_timestamp(self) -> int:
        return self._cursor

    @property
    def flushes(self) -> int:
        return self._flushes

    def is_silence(self, ahead: int = 0) -> bool:
        return not self._heard or self._cursor + ahead >= self._silence_from

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
