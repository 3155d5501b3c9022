"""CPU of one exchange of timestamps in the layers above the engine, on each side.

python bench/bench_clock_driver.py

Two clock drivers whose engines hand frames to each other at once: what is counted is the frames'
coding, the stamps, the schedule with its timer, the filter and the published map. Best of five.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echostream.rpc.clock import ClockDriver

ROUNDS = 4000


class Wire:
    """A connection whose DATAGRAMs stay here."""

    arrival_age = None
    closed = None
    idle = True

    def __init__(self) -> None:
        self.engine = self
        self.frames: list[bytes] = []
        self.clock = time.monotonic
        self.received_at = 0.0
        self.on_sending = None

    def send_datagram(self, data: bytes, deadline: float) -> bool:
        self.frames.append(data)
        return True

    def info(self) -> SimpleNamespace:
        return SimpleNamespace(packets_sent=0)

    def timer(self) -> None:
        return None

    def wake(self) -> None: ...


def turn(driver: ClockDriver, wire: Wire, frame: bytes | None) -> tuple[bytes, float]:
    """Hand a frame (or the timer's call) to one side: what it sends, and the seconds it took."""
    start = time.perf_counter()
    wire.received_at = time.monotonic()
    if frame is None:
        assert driver._timer is not None
        driver._timer.cancel()  # it is time
        driver._probe()
    else:
        driver.receive(frame)
    driver.before_flush(time.monotonic())
    if wire.frames:
        driver._sending()
    took = time.perf_counter() - start
    return (wire.frames.pop() if wire.frames else b""), took


async def measure() -> None:
    best = [1.0, 1.0]
    for _ in range(5):
        loop, wires = asyncio.get_running_loop(), (Wire(), Wire())
        asking, answering = (ClockDriver(wire, loop) for wire in wires)  # type: ignore[arg-type]
        asking.start()
        spent = [0.0, 0.0]
        for _ in range(ROUNDS):
            request, first = turn(asking, wires[0], None)
            reply, there = turn(answering, wires[1], request)
            _, second = turn(asking, wires[0], reply)
            spent[0] += first + second
            spent[1] += there
        assert asking.sync.statistics().accepted > 0.9 * ROUNDS
        best = [min(b, s / ROUNDS) for b, s in zip(best, spent, strict=True)]
        asking.stop()
    print(f"asks: {best[0] * 1e6:.1f} µs, answers: {best[1] * 1e6:.1f} µs per exchange")


if __name__ == "__main__":
    asyncio.run(measure())
