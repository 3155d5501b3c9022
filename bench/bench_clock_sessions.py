"""What the clocks of many sessions cost one server, in the steady state, over loopback.

python bench/bench_clock_sessions.py [--sessions 100] [--seconds 64]

A server process and a client process with so many connections, each with a clock, whose exchanges
have thinned out. Prints the server's CPU time with clocks less that without them, per exchange and
as a share of a core for 1,000 sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echostream import RpcClient, run

SETTLE_S = 100.0
"""Until the exchanges have thinned out."""


async def connect(port: int, fingerprint: str, count: int) -> list[RpcClient]:
    clients = []
    for _ in range(count):
        builder = RpcClient.builder().connect(("127.0.0.1", port)).trust(fingerprint=fingerprint)
        clients.append(await builder.build())
    return clients


async def measure(sessions: int, seconds: float) -> None:
    server = Path(__file__).with_name("bench_clock_loopback.py")
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, server, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port, fingerprint = process.stdout.readline().split()
        clients = await connect(int(port), fingerprint, sessions)

        async def cpu(pause: float) -> float:
            before = await clients[0].request("cpu")
            await asyncio.sleep(pause)
            return float(await clients[0].request("cpu") - before) / pause

        idle = await cpu(seconds / 4)
        for client in clients:
            client.clock  # noqa: B018 - starts it
            await asyncio.sleep(5.0 / sessions)
        await asyncio.sleep(SETTLE_S)
        accepted = sum(client.clock.statistics().accepted for client in clients)
        busy = await cpu(seconds)
        count = sum(client.clock.statistics().accepted for client in clients) - accepted
        bounds = sorted(client.clock.error_bound_ns for client in clients)
        for client in clients:
            await client.close()
    finally:
        process.stdin.close()
        process.wait(10)
    rate = count / seconds / sessions
    print(f"{sessions} sessions, {rate:.2f} exchanges a second each; server without: {idle:.2%}")
    print(f"error bounds: median {bounds[sessions // 2] / 1e3:.0f}, most {bounds[-1] / 1e3:.0f} µs")
    print(f"one exchange: {(busy - idle) * seconds / count * 1e6:.0f} µs of the server's CPU")
    print(f"1,000 sessions: {(busy - idle) * 1000 / sessions:.2%} of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=64.0)
    options = parser.parse_args()
    run(measure(options.sessions, options.seconds))


if __name__ == "__main__":
    main()
