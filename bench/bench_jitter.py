"""Cost of one push and one pull, beyond copying the samples, and proof that nothing is allocated.

    python bench/bench_jitter.py

Figures are the best of several rounds on one core, the loop's own cost subtracted. What does not
depend on size is what packets and pulls of a single sample cost; the rest is copying.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import numpy as np

from echostream.media.jitter import JitterBuffer

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
    print(f"blocks left over by 10^6 operations: {allocations()}")


if __name__ == "__main__":
    main()
