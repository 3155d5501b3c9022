"""How many lanes, and what is large: latency of calls and events where packets are lost.

python bench/bench_lanes.py [calls mixed events limit] [--seconds 20] [--seeds 3] [--loss 0.02]

Real QUIC engines in virtual time: what is shown is the waiting for the network (round trips,
retransmissions, head-of-line blocking) and no computing. The round trip is 30 ms. A "lane count" of
0 is one QUIC stream for each call.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from echostream import Session, handler, listener
from echostream.builder import ServerBuilder
from echostream.client import RpcClient
from echostream.protocol import outbox
from echostream.testing import Impairment, quic_pair, run_virtual

CALL_LANES = (0, 1, 2, 3, 4, 6, 8, 16)
EVENT_LANES = (1, 2, 4, 8)
OWN_STREAM_SIZES = (2048, 4096, 8192, 16_384, 32_768, 65_536)
AHEAD = (1024, 4096, 16_384, 65_536)


@dataclass(frozen=True, slots=True)
class Load:
    """A path and how long it is used."""

    seconds: float
    loss: float
    seed: int
    rate: float = 0.0

    @property
    def path(self) -> Impairment:
        return Impairment(delay=0.015, loss=self.loss, rate=self.rate)


@contextmanager
def constants(**values: int) -> Iterator[None]:
    """Other constants of the outbox, for connections made meanwhile."""
    before = {name: getattr(outbox, name) for name in values}
    for name, value in values.items():
        setattr(outbox, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(outbox, name, value)


@handler("echo")
async def echo(value: bytes) -> bytes:
    return value


async def timed(client: RpcClient, size: int, took: list[float], priority: int = 3) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await client.request("echo", bytes(size), priority=priority)
    took.append(loop.time() - start)


async def calls(
    load: Load, *, rate: int = 1000, burst: int = 1, large: int = 0, large_size: int = 0
) -> list[float]:
    """``rate`` calls of 100 bytes per second, ``burst`` at a time; the time of each, s. Beside them
    ``large`` calls per second of ``large_size`` bytes, which are not timed."""
    took: list[float] = []
    builder = ServerBuilder().handler(echo).limits(calls=100_000)
    async with (
        quic_pair(builder, up=load.path, down=load.path, seed=load.seed) as (_, client),
        asyncio.TaskGroup() as group,
    ):
        await client.request("echo", bytes(1))
        every = rate // burst // large if large else 0
        for turn in range(int(load.seconds * rate / burst)):
            for _ in range(burst):
                group.create_task(timed(client, 100, took))
            if every and turn % every == 0:
                group.create_task(timed(client, large_size, []))
            await asyncio.sleep(burst / rate)
    return took


async def events(load: Load, names: int = 20) -> list[float]:
    """1,000 events per second under ``names`` names; the time of each, s."""
    took: list[float] = []
    loop = asyncio.get_running_loop()
    builder = ServerBuilder()
    for number in range(names):

        @listener(f"event.{number}")
        async def heard(session: Session, sent: float) -> None:
            took.append(loop.time() - sent)

        builder.listener(heard)
    async with quic_pair(builder, up=load.path, down=load.path, seed=load.seed) as (_, client):
        for turn in range(int(load.seconds * 1000)):
            await client.emit(f"event.{turn % names}", loop.time())
            await asyncio.sleep(0.001)
        await asyncio.sleep(2)
    return took


async def urgent(load: Load) -> list[float]:
    """Ten urgent calls per second beside as many calls of 8 KiB as a thin path takes, and more."""
    took: list[float] = []
    builder = ServerBuilder().handler(echo).limits(calls=100_000)
    async with quic_pair(builder, up=load.path, down=Impairment(delay=0.015), seed=load.seed) as (
        _,
        client,
    ):
        loop = asyncio.get_running_loop()
        end = loop.time() + load.seconds

        async def bulk() -> None:
            while loop.time() < end:
                await client.request("echo", bytes(8192), priority=7)

        async with asyncio.TaskGroup() as group:
            for _ in range(128):
                group.create_task(bulk())
            await asyncio.sleep(1)
            while loop.time() < end:
                group.create_task(timed(client, 100, took, 0))
                await asyncio.sleep(0.1)
    return took


def row(name: str, samples: list[float]) -> tuple[float, str]:
    """p99 in ms, and a line of the table."""
    samples.sort()

    def at(q: float) -> float:
        return 1000 * samples[min(int(q * len(samples)), len(samples) - 1)]

    return at(
        0.99
    ), f"| {name} | {at(0.5):.1f} | {at(0.9):.1f} | {at(0.99):.1f} | {at(0.999):.1f} |"


def table(title: str, rows: list[str]) -> None:
    print(
        f"\n{title}\n\n| | p50 ms | p90 ms | p99 ms | p99.9 ms |\n|---|--:|--:|--:|--:|", flush=True
    )
    for line in rows:
        print(line, flush=True)


def pooled(measure: object, options: argparse.Namespace, rate: float = 0.0) -> list[float]:
    """The samples of all seeds."""
    assert callable(measure)
    found: list[float] = []
    for seed in range(1, options.seeds + 1):
        found += run_virtual(measure(Load(options.seconds, options.loss, seed, rate)))
    return found


def of_lanes(lanes: int) -> dict[str, int]:
    return {"OWN_STREAM_SIZE": 0} if lanes == 0 else {"CALL_LANES": lanes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["calls", "mixed", "events", "limit"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loss", type=float, default=0.02)
    options = parser.parse_args()
    if "calls" in options.what:
        for burst in (1, 10):
            p99 = {}
            lines = []
            for lanes in CALL_LANES:
                with constants(**of_lanes(lanes)):
                    samples = pooled(lambda load, burst=burst: calls(load, burst=burst), options)
                p99[lanes], line = row(f"{lanes} lanes" if lanes else "a stream per call", samples)
                lines.append(line)
            table(f"Calls, {burst} per turn", lines)
            for lanes in CALL_LANES[2:]:
                print(
                    f"{lanes} lanes: p99 {p99[lanes] / p99[0]:.2f} of a stream per call, ", end=""
                )
                print(f"{p99[lanes] / p99[1]:.2f} of one stream for all", flush=True)
    if "mixed" in options.what:
        for size, large in ((6000, 20), (24_000, 5)):  # what 2 % of loss leaves of the rate
            lines = []
            for threshold in OWN_STREAM_SIZES:
                with constants(OWN_STREAM_SIZE=threshold):
                    samples = pooled(
                        lambda load, size=size, large=large: calls(
                            load, rate=100, large=large, large_size=size
                        ),
                        options,
                    )
                lines.append(row(f"own stream from {threshold} bytes", samples)[1])
            table(f"100 small calls beside {large} of {size} bytes per second", lines)
    if "events" in options.what:
        lines = []
        for lanes in EVENT_LANES:
            with constants(EVENT_LANES=lanes):
                lines.append(row(f"{lanes} event lanes", pooled(events, options))[1])
        table("Events of 20 names", lines)
    if "limit" in options.what:
        lines = []
        for ahead in AHEAD:
            with constants(AHEAD=ahead):
                name = f"{ahead} bytes written ahead of the window"
                lines.append(row(name, pooled(urgent, options, 1.25e6))[1])
        table("Urgent calls beside a full path of 10 Mbit/s", lines)


def test_lanes() -> None:
    """Each load once, tiny."""
    for measure in (calls, events, urgent):
        assert run_virtual(measure(Load(1.2, 0.02, 1, 1.25e6)))


if __name__ == "__main__":
    main()
