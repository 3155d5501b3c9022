"""Cost of one push and one pull, beyond copying the samples, and proof that nothing is allocated.

    python bench/bench_jitter.py

Beside it, in turns, a copy of the same bytes (numpy: memcpy) and aiortc's jitter buffer, as its
receivers make it for audio (16 packets, 4 ahead), where aiortc is installed (extra ``bench``).

Figures are the best of several rounds on one core, the loop's own cost subtracted. What does not
depend on size is what packets and pulls of a single sample cost; the rest is copying.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from echostream.media.jitter import JitterBuffer

try:
    from aiortc.jitterbuffer import JitterBuffer as JitterBufferOfAiortc
    from aiortc.rtp import RtpPacket
except ImportError:
    JitterBufferOfAiortc = None

ROUNDS = 9
COUNT = 20_000
RATE = 48_000
FRAME = 960  # 20 ms
PULL = 480  # 10 ms
MS = 1_000_000


def best(run: Callable[[], None]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return min(times) / COUNT


def speeds(frames: int, channels: int) -> tuple[float, float]:
    """(push, pull) of packets and pulls of this many frames."""
    payload = np.zeros((frames, channels), dtype=np.float32)
    out = np.zeros((frames, channels), dtype=np.float32)
    buffer = JitterBuffer(RATE, channels)
    step = frames * 1_000_000_000 // RATE
    clock = 0

    def stream(pulls: bool) -> Callable[[], None]:
        def run() -> None:
            nonlocal clock
            put, take = buffer.push, buffer.pull_into
            now = clock * step
            for number in range(clock, clock + COUNT):
                put(number, number * frames, payload, now)
                if pulls:
                    take(out, now)
                now += step
            clock += COUNT

        return run

    def loop() -> None:
        now = 0
        for number in range(COUNT):
            _ = number * frames
            if loop is None:
                pass
            now += step

    idle = best(loop)
    both = best(stream(True))
    # Nothing pulls: every push finds its slot taken and drops the oldest, which costs it more.
    push = best(stream(False)) - idle
    return push, both - idle - push


def beside(channels: int) -> str:
    """Packets of 20 ms: one push and one pull, a copy, and what aiortc does with one; medians."""
    payload = np.zeros((FRAME, channels), dtype=np.float32)
    out = np.zeros((FRAME, channels), dtype=np.float32)
    data = payload.tobytes()
    buffer = JitterBuffer(RATE, channels)
    count = COUNT // 4
    at = 0

    def ours() -> None:
        nonlocal at
        for number in range(at, at + count):
            buffer.push(number, number * FRAME, payload, number * 20 * MS)
            buffer.pull_into(out, number * 20 * MS)
        at += count

    def copy() -> None:
        for _ in range(count):
            np.copyto(out, payload)

    runs: dict[str, Callable[[], None]] = {"ours": ours, "memcpy": copy}
    if JitterBufferOfAiortc is not None:
        theirs = JitterBufferOfAiortc(capacity=16, prefetch=4)
        packets = []
        for number in range(1 << 16):
            packet = RtpPacket(sequence_number=number, timestamp=number * FRAME & 0xFFFFFFFF)
            packet._data = data
            packets.append(packet)
        sequence = 0

        def add() -> None:
            nonlocal sequence
            for _ in range(count):
                theirs.add(packets[sequence & 0xFFFF])
                sequence += 1

        runs["aiortc"] = add
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter_ns()
            run()
            times[name].append((time.perf_counter_ns() - start) / count)
    middle = {name: statistics.median(values) for name, values in times.items()}
    text = ", ".join(f"{name} {ns:.0f} ns" for name, ns in middle.items())
    ratios = [f"{middle['ours'] / middle['memcpy']:.1f} x memcpy"]
    if "aiortc" in middle:
        ratios.append(f"aiortc's takes {middle['aiortc'] / middle['ours']:.1f} x as long")
    return f"{text}: {', '.join(ratios)}"


def allocations(operations: int = 1_000_000) -> int:
    """Blocks that are left over after this many pushes and pulls (a third of them pushes)."""
    buffer = JitterBuffer(RATE, 1)
    payload = np.zeros((FRAME, 1), dtype=np.float32)
    out = np.zeros((PULL, 1), dtype=np.float32)
    put, take = buffer.push, buffer.pull_into

    def run(first: int, last: int) -> None:
        for number in range(first, last):
            now = number * 20 * MS
            put(number, number * FRAME, payload, now)
            take(out, now)
            take(out, now + 10 * MS)

    packets = operations // 3 + 1
    run(0, 1000)
    gc.collect()
    before = sys.getallocatedblocks()
    before = sys.getallocatedblocks()  # now with the block of the number itself
    run(1000, packets)
    return sys.getallocatedblocks() - before


def main() -> None:
    bare = speeds(1, 1)
    print(f"packets and pulls of one sample: push {bare[0]:.0f} ns, pull {bare[1]:.0f} ns")
    for channels in (1, 2):
        full = speeds(FRAME, channels)
        size = FRAME * channels * 4
        print(
            f"of 20 ms, {channels} channel(s), {size} bytes: push {full[0]:.0f} ns "
            f"(copy {full[0] - bare[0]:.0f}), pull {full[1]:.0f} ns "
            f"(copy and clear {full[1] - bare[1]:.0f})"
        )
    for channels in (1, 2):
        print(f"push and pull of 20 ms, {channels} channel(s): {beside(channels)}")
    print(f"blocks left over by 10^6 operations: {allocations()}")


if __name__ == "__main__":
    main()
