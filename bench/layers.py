"""Where the time of a call goes, layer by layer.

    python bench/layers.py [--seconds 2] [--in-flight 1 64]

Client and server are in one process, on one core: once with the memory transport (no QUIC, no
sockets: what is left is ours) and once with real QUIC over a network in memory. The processor time
of a call is for both sides together. The shares are from a sampling profiler (ITIMER_PROF): a
sample belongs to the layer of the innermost frame that is a file of the project or of a library;
compiled code shows in the layer that called it, and asyncio, uvloop and the standard library in
the layer ``loop`` if nothing of ours is further in.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import echostream
from echostream import RpcClient, RpcServer, handler
from echostream.builder import ServerBuilder
from echostream.testing import connected_pair, quic_pair

ROOT = Path(__file__).resolve().parents[1]
INTERVAL_S = 0.0005
LAYERS = (
    ("echostream/protocol/", "protocol"),
    ("echostream/rpc/", "rpc"),
    ("echostream/transport/quic/", "engine"),
    ("echostream/transport/memory", "memory network"),
    ("echostream/transport/", "driver"),
    ("echostream/testing/", "memory network"),
    ("echostream/", "client, server"),
    ("bench/", "the program"),
    ("aioquic/", "aioquic"),
    ("cryptography/", "engine"),
)


@handler("echo")
async def echo(value: bytes) -> bytes:
    return value


def layer(frame: FrameType | None) -> str:
    """The layer of the innermost frame that has one."""
    while frame is not None:
        name = frame.f_code.co_filename
        for part, title in LAYERS:
            if part in name and ".virtual" not in name:
                return title
        frame = frame.f_back
    return "loop"


class Sampler:
    """Counts layers while it is entered."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def _sample(self, number: int, frame: FrameType | None) -> None:
        self.counts[layer(frame)] += 1

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)


async def load(client: RpcClient, in_flight: int, seconds: float) -> int:
    """Keep ``in_flight`` calls under way for ``seconds`` of processor time; their number."""
    until = time.process_time() + seconds
    payload = b"x" * 64

    async def caller() -> int:
        calls = 0
        while time.process_time() < until:
            await client.request("echo", payload)
            calls += 1
        return calls

    return sum(await asyncio.gather(*(caller() for _ in range(in_flight))))


async def measure(
    title: str,
    pair: AbstractAsyncContextManager[tuple[RpcServer, RpcClient]],
    in_flight: int,
    seconds: float,
) -> None:
    """Run one row and print it."""
    async with pair as (_, client):
        await load(client, in_flight, seconds / 4)
        before = time.process_time()
        calls = await load(client, in_flight, seconds)
        cost = (time.process_time() - before) / calls * 1e6
        with Sampler() as sampler:
            await load(client, in_flight, seconds)
    total = sampler.counts.total() or 1
    shares = ", ".join(f"{name} {n / total:.0%}" for name, n in sampler.counts.most_common())
    print(f"| {title} | {in_flight} | {cost:.1f} | {cost / 2:.1f} | {shares} |", flush=True)


async def main(options: Any) -> None:
    print("| transport | in flight | us per call, both sides | per side | where |")
    print("|---|--:|--:|--:|---|")
    for in_flight in options.in_flight:
        for title, pair in (("memory", connected_pair), ("QUIC", quic_pair)):
            server = ServerBuilder().handler(echo)
            await measure(title, pair(server), in_flight, options.seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64])
    echostream.run(main(parser.parse_args()))
