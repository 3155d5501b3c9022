"""The clock between two processes of this machine, whose true offset is 0.

python bench/bench_clock_loopback.py [--runs 5] [--seconds 10]

Prints, over all runs: the published offset (= its error) and the bound, sampled every 10 ms from
the moment the clock is synchronised; how long after connecting the error stays below 100 µs;
the error that the map would have 60 s after its last exchange; and the CPU time of one exchange on
each side (what many sessions cost: bench_clock_sessions.py).
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echostream import Identity, RpcClient, RpcServer, Session, handler, run

SECOND = 1_000_000_000
STEP_S = 0.01


@handler("cpu")
async def cpu(session: Session) -> float:
    """CPU seconds of this process so far."""
    return time.process_time()


async def serve() -> None:
    """The server's process."""
    server = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral()).handler(cpu)
    async with server.build() as started:
        print(started.address[1], started.fingerprint, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def watch(port: int, fingerprint: str, seconds: float) -> dict[str, list[float]]:
    """One connection's figures, in µs, ms and ppm."""
    builder = RpcClient.builder().connect(("127.0.0.1", port)).trust(fingerprint=fingerprint)
    async with builder.build() as client:
        connected = time.monotonic()
        clock = client.clock
        await clock.wait_synchronized(timeout=5.0)
        synchronized = time.monotonic()
        errors, bounds, wrong_until = [], [], synchronized
        while time.monotonic() < connected + seconds:
            error = abs(clock.offset_ns) / 1e3
            if error > 100.0:
                wrong_until = time.monotonic()
            errors.append(error)
            bounds.append(clock.error_bound_ns / 1e3)
            await asyncio.sleep(STEP_S)
        now = time.monotonic_ns()
        return {
            "error": errors,
            "bound": bounds,
            "uncovered": [float(e > b) for e, b in zip(errors, bounds, strict=True)],
            "first": [(wrong_until - connected) * 1e3],
            "holdover": [abs(clock.offset_at(now + 60 * SECOND)) / 1e3],
            "drift": [abs(clock.drift_ppm)],
            "rtt": [clock.statistics().min_rtt_ns / 1e3],
        }


class Dense:
    """A probe every 2 ms, for ever."""

    def next_probe_ns(self, now_ns: int) -> int:
        return now_ns + 2_000_000

    latest_probe_ns = next_probe_ns

    def probe_sent(self, now_ns: int, *known: object, carried: bool) -> None: ...

    def restart(self, now_ns: int) -> None: ...


async def cost(port: int, fingerprint: str, seconds: float) -> tuple[float, float]:
    """CPU µs of one exchange, at the client and at the server."""
    builder = RpcClient.builder().connect(("127.0.0.1", port)).trust(fingerprint=fingerprint)
    async with builder.build() as client:
        driver = client._peer.clock
        driver._schedule = Dense()  # type: ignore[assignment]
        driver._arm()
        await asyncio.sleep(0.3)
        ours, theirs = time.process_time(), await client.request("cpu")
        before = driver.sync.statistics().accepted
        await asyncio.sleep(seconds)
        count = driver.sync.statistics().accepted - before
        ours, theirs = time.process_time() - ours, await client.request("cpu") - theirs
        return ours / count * 1e6, theirs / count * 1e6


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


async def measure(runs: int, seconds: float) -> None:
    command = [sys.executable, __file__, "--serve"]
    process = subprocess.Popen(  # noqa: ASYNC220
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port, fingerprint = process.stdout.readline().split()
        figures: dict[str, list[float]] = {}
        for _ in range(runs):
            for name, values in (await watch(int(port), fingerprint, seconds)).items():
                figures.setdefault(name, []).extend(values)
        ours, theirs = await cost(int(port), fingerprint, min(seconds, 3.0))
    finally:
        process.stdin.close()
        process.wait(10)
    for name, unit in (
        ("error", "µs"),
        ("bound", "µs"),
        ("first", "ms"),
        ("holdover", "µs"),
        ("drift", "ppm"),
        ("rtt", "µs"),
    ):
        values = figures[name]
        print(
            f"{name:9} p50 {quantile(values, 0.5):8.2f}  p99 {quantile(values, 0.99):8.2f}  "
            f"max {max(values):8.2f} {unit}   ({len(values)} values)"
        )
    print(f"uncovered {sum(figures['uncovered']):.0f} of {len(figures['uncovered'])}")
    print(f"one exchange: {ours:.0f} µs of CPU at the side that asks, {theirs:.0f} µs at the other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    run(serve() if options.serve else measure(options.runs, options.seconds))


if __name__ == "__main__":
    main()
