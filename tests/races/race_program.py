"""Threads on the jitter ring and on playouts, as hard as they can: to be run under ThreadSanitizer.

``test_races.py`` builds for it and runs it. Blocks of packets and of pulls are long, because two
threads are apart only while neither has the GIL; within a round nothing else orders them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import numpy as np

from echostream._ext.jitter_ring import JitterRing
from echostream._ext.playout_loop import PlayoutLoop
from echostream.media import playout as playout_module
from echostream.media.frame import AudioFormat
from echostream.media.jitter import JitterBuffer
from echostream.media.playout import Playout

RATE, FRAME, LONG, MS = 48_000, 240, 960, 1_000_000
PULL = 128
"""Packets in one pull of a playout: many pieces of 100 ms, most of them begun without the GIL."""


def together(rounds: int, *parts: Callable[[int], None]) -> None:
    """Each part in a thread of its own, begun at the same moment in every round."""
    gate = threading.Barrier(len(parts))
    faults: list[BaseException] = []

    def turns(part: Callable[[int], None]) -> None:
        try:
            for number in range(rounds):
                gate.wait(60)
                part(number)
        except BaseException as fault:
            faults.append(fault)
            gate.abort()

    threads = [threading.Thread(target=turns, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def ring(rounds: int, block: int) -> None:
    """One pushes blocks, one pulls them, one looks; a small ring, so that both claim its slots, and
    long packets, so that reading one takes a while."""
    buffer = JitterBuffer(RATE, 8, sample_type="int16", capacity=64, start_delay_ms=20.0)
    payloads = np.zeros((block, LONG * 16), np.uint8)
    out = np.zeros((LONG, 8), np.float32)
    cursors = np.zeros(block, np.int64)
    order = np.random.default_rng(1).permuted(np.arange(block).reshape(-1, 8), axis=1).ravel()

    def produce(turn: int) -> None:
        numbers = turn * block + order
        epoch = turn // 8 % 65536
        buffer.push_many(numbers, numbers * LONG, payloads, numbers * 20 * MS, epoch)

    def consume(turn: int) -> None:
        buffer.ring.pull_many_into(out, turn * block * 20 * MS, cursors)

    def look(turn: int) -> None:
        for _ in range(block):
            assert buffer.statistics().buffered_ns >= 0
            assert buffer.ring.cursor_timestamp is not None
            assert buffer.ring.playing in (True, False)
            buffer.ring.known_drift_ppm = float(turn)

    together(rounds, produce, consume, look)
    seen = buffer.statistics()
    print(f"ring: {seen.received} received, {seen.overflows} overflows, {seen.played} played")
    assert min(seen.overflows, seen.played, seen.restarts) > 0, "the rounds did not do their work"


def playout(profile: str, rounds: int, block: int) -> None:
    """The same for a playout, whose third thread cuts it off and tells it the drift."""
    playout = Playout(AudioFormat(RATE, 2, "int16"), profile=profile)
    wave = (np.sin(np.arange(2 * RATE) / 50.0) * 9000).astype(np.int16).reshape(-1, 2)
    lost = (np.random.default_rng(2).random(4096) < 0.05).tolist()

    def produce(turn: int) -> None:
        for number in range(turn * block, (turn + 1) * block):
            if not lost[number & 4095]:
                at = number * FRAME % (RATE - FRAME)
                payload = wave[at : at + FRAME].tobytes()
                playout.push_packet(number, number * FRAME, payload, number * 5 * MS)

    def consume(turn: int) -> None:
        out = np.empty((PULL * FRAME, 2), np.int16)
        for number in range(turn * block, (turn + 1) * block, PULL):
            playout.pull_into(out, number * 5 * MS)

    def disturb(turn: int) -> None:
        loop = playout._loop
        for _ in range(block):
            assert playout.statistics().delay_ns >= 0
            # These alone: a look at the ring before them would order them behind its pulls.
            assert min(loop.ratio for _ in range(10)) > 0
            assert loop.error_ns is not None
        playout.feed_forward_ppm = float(turn % 100)
        if turn % 4 == 3:
            playout.flush()

    together(rounds, produce, consume, disturb)
    seen = playout.statistics()
    print(f"{profile}: {seen.pulled_frames} pulled, {seen.buffer.concealed_frames} concealed")
    assert seen.buffer.played > 0, "the rounds did not do their work"


def main() -> None:
    assert type(JitterBuffer(RATE).ring) is JitterRing
    assert playout_module.PlayoutLoop is PlayoutLoop
    sys.setswitchinterval(1e-5)
    ring(rounds=40, block=256)
    for profile in ("voice", "music"):
        playout(profile, rounds=8, block=2 * PULL)


if __name__ == "__main__":
    main()
