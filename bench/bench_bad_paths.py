"""Goodput of one stream over bad paths: the compiled path beside the plain one, and congestion
controllers beside each other.

    python bench/bench_bad_paths.py [--seconds 8] [--seeds 2] [--variants compiled plain cubic]

Real QUIC engines in virtual time: 15 ms each way, a bottleneck with 60 ms of queue, and loss or
jitter in both directions. Virtual time has no processor: the compiled path cannot gain here, it may
only lose where it does something else than the plain one. A figure is Mbit/s of payload that the
server's handler got in the given time, without the first second; the median of the seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echostream import RpcClient, Session, StreamReceiver
from echostream.builder import ServerBuilder
from echostream.testing import Impairment, quic_pair, run_virtual
from echostream.transport.quic import accelerated

VARIANTS: dict[str, tuple[bool, str]] = {
    "compiled": (True, "westwood"),
    "plain": (False, "westwood"),
    "reno": (False, "reno"),
    "cubic": (False, "cubic"),
}
"""Whether the data path is compiled, and the congestion controller."""
RATES = (1, 10, 100)
QUEUE_S = 0.06
FAULTS: dict[str, dict[str, float]] = {
    "clean": {},
    "1 % lost": {"loss": 0.01},
    "5 % lost": {"loss": 0.05},
    "10 % lost": {"loss": 0.10},
    "jitter 5 ms": {"jitter": 0.005},
    "jitter 15 ms": {"jitter": 0.015},
    "bursts": {"burst_start": 0.002, "burst_end": 0.3},
    "5 ms and 1 %": {"jitter": 0.005, "loss": 0.01},
}


@contextmanager
def data_path(compiled: bool) -> Iterator[None]:
    """Connections made meanwhile take the compiled path or the plain one."""
    before = accelerated.typed_class
    if not compiled:
        accelerated.typed_class = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        accelerated.typed_class = before


async def goodput(
    rate: float, fault: dict[str, float], congestion: str, seconds: float, seed: int
) -> float:
    """Mbit/s."""
    per_second = rate * 1e6 / 8
    path = Impairment(
        delay=0.015, rate=per_second, queue=max(int(per_second * QUEUE_S / 1480), 8), **fault
    )
    got = 0

    async def take(session: Session, stream: StreamReceiver) -> None:
        nonlocal got
        async for piece in stream:
            got += len(piece)

    server = ServerBuilder().stream_handler("up", take).quic(congestion_control=congestion)
    client = RpcClient.builder().quic(congestion_control=congestion)
    async with quic_pair(server, client, up=path, down=path, seed=seed) as (_, connected):
        stream = await connected.create_stream("up")

        async def send() -> None:
            piece = bytes(1 << 14)
            while True:
                await stream.send(piece)

        task = asyncio.create_task(send())
        await asyncio.sleep(1)
        before = got
        await asyncio.sleep(seconds)
        amount = got - before
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return amount * 8 / seconds / 1e6


def test_bad_paths() -> None:
    """Each congestion controller carries something over a path that loses."""
    for compiled, congestion in VARIANTS.values():
        with data_path(compiled):
            assert run_virtual(goodput(10, FAULTS["1 % lost"], congestion, 0.5, 1)) > 0.5


def main(options: Any) -> None:
    print("| Mbit/s | path | " + " | ".join(options.variants) + " |")
    print("|--:|---|" + "--:|" * len(options.variants))
    for rate in options.rates:
        seconds = options.seconds * (2 if rate == 1 else 1) / (2 if rate == 100 else 1)
        for name, fault in FAULTS.items():
            cells = []
            for variant in options.variants:
                compiled, congestion = VARIANTS[variant]
                with data_path(compiled):
                    cells.append(
                        statistics.median(
                            run_virtual(goodput(rate, fault, congestion, seconds, seed))
                            for seed in range(1, options.seeds + 1)
                        )
                    )
            print(
                f"| {rate} | {name} | " + " | ".join(f"{c:.2f}" for c in cells) + " |", flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    main(parser.parse_args())
