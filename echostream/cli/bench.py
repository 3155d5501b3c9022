"""``echostream bench``: how fast calls, events and streams are on this machine, or over a network.

Without an address it starts a server process on the loopback interface, and measures the floor as
well: one UDP datagram there and back. With one, a server of ``echostream.cli.bench_server`` has to
run there. Each figure is the median of rounds that take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import cast

from echostream.builder import ClientBuilder
from echostream.cli.bench_server import PORT
from echostream.cli.child import serving_process
from echostream.cli.connection import add_connection_arguments, client_builder
from echostream.cli.errors import BadInput
from echostream.client import RpcClient
from echostream.errors import MethodNotFound, RpcError
from echostream.runner import run as run_loop

__all__ = ["Figure", "add_arguments", "run"]

ROUNDS = 3
MESSAGE = bytes(64)
FRAME = bytes(160)
CHUNK = bytes(16 * 1024)
IN_FLIGHT = 64
BURST = 16
FRAMES_PER_S = 1000
SETTLED_S = 1.0
ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. ``low`` and ``high`` are of the rounds."""

    name: str
    unit: str
    median: float
    low: float
    high: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser, optional=True)
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=1.0, help="for each figure (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, and print one line per figure."""
    if not (math.isfinite(args.seconds) and 0 < args.seconds <= 3600):
        raise BadInput(f"--seconds {args.seconds:g}: give more than 0, and up to 3600")
    if args.address is None:
        with serving_process("echostream.cli.bench_server:make") as (address, fingerprint):
            builder = ClientBuilder().connect(address).trust(fingerprint=fingerprint)
            figures = run_loop(_measure(builder, args.seconds))
    else:
        figures = run_loop(_measure(client_builder(args), args.seconds))
    if args.json:
        print(json.dumps([asdict(figure) for figure in figures]))
        return 0
    where = args.address or "a server process on the loopback interface"
    print(f"to {where}, {ROUNDS} rounds; 64-byte messages, 160-byte frames\n")
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        print(
            f"{figure.name:<{width}}  {_number(figure.median):>10} {figure.unit:<9}"
            f" {_number(figure.low)} - {_number(figure.high)}"
        )
    return 0


async def _measure(builder: ClientBuilder, seconds: float) -> list[Figure]:
    values: dict[tuple[str, str], list[float]] = {}
    span = seconds / ROUNDS
    async with builder.build() as client:
        floor = await _floor(client)
        try:
            for _ in range(ROUNDS):
                if floor is not None:
                    took = await _serial(floor.echo, span)
                    values.setdefault(("UDP datagram and back", "µs p50"), []).append(took[0])
                for name, unit, value in await _round(client, span):
                    values.setdefault((name, unit), []).append(value)
        except MethodNotFound as exc:
            raise RpcError(
                f"the server is not one that can be measured ({exc.message}): run there "
                f"`echostream serve echostream.cli.bench_server:make_public` (port {PORT})",
                status=exc.status,
            ) from None
        finally:
            if floor is not None:
                floor.close()
    return [
        Figure(name, unit, statistics.median(found), min(found), max(found))
        for (name, unit), found in values.items()
    ]


async def _round(client: RpcClient, span: float) -> list[tuple[str, str, float]]:
    async def call() -> None:
        await client.request("bench.echo", MESSAGE)

    p50, p99 = await _serial(call, span)
    return [
        ("call and answer", "µs p50", p50),
        ("call and answer, slowest", "µs p99", p99),
        (f"calls, {IN_FLIGHT} in flight", "calls/s", await _concurrent(call, span)),
        ("events", "events/s", await _events(client, span)),
        ("reliable stream", "MB/s", await _bulk(client, span)),
        (f"realtime frames, {FRAMES_PER_S}/s", "% arrive", await _realtime(client, span)),
    ]


async def _serial(echo: Callable[[], Awaitable[object]], span: float) -> tuple[float, float]:
    """Median and 99th percentile of the round trips, µs."""
    took: list[int] = []
    until = time.perf_counter_ns() + int(span * 1e9)
    last = time.perf_counter_ns()
    while last < until or not took:
        await echo()
        now = time.perf_counter_ns()
        took.append(now - last)
        last = now
    took.sort()
    return took[len(took) // 2] / 1e3, took[len(took) * 99 // 100] / 1e3


async def _concurrent(call: Callable[[], Awaitable[None]], span: float) -> float:
    begin = time.perf_counter()
    done = 0

    async def caller() -> None:
        nonlocal done
        await call()
        done += 1
        while time.perf_counter() - begin < span:
            await call()
            done += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begin)


async def _events(client: RpcClient, span: float) -> float:
    begin = time.perf_counter()
    sent = 0
    while time.perf_counter() - begin < span or not sent:
        for _ in range(BURST):
            await client.emit("bench.event", MESSAGE)
        sent += BURST
        await asyncio.sleep(0)
    await _arrived(client, sent)
    return sent / (time.perf_counter() - begin)


async def _bulk(client: RpcClient, span: float) -> float:
    sent = 0
    async with await client.create_stream("bench.stream") as stream:
        begin = time.perf_counter()
        while time.perf_counter() - begin < span or not sent:
            await stream.send(CHUNK)
            sent += len(CHUNK)
    await _arrived(client, sent)
    return sent / (time.perf_counter() - begin) / 1e6


async def _realtime(client: RpcClient, span: float) -> float:
    """Paced, as media is: how much of it arrives."""
    loop = asyncio.get_running_loop()
    total = max(int(span * FRAMES_PER_S), 1)
    async with await client.create_stream("bench.stream", delivery="realtime") as stream:
        begin = loop.time()
        for sent in range(total):
            await asyncio.sleep(begin + sent / FRAMES_PER_S - loop.time())
            await stream.send(FRAME)
    found, until = 0, loop.time() + SETTLED_S
    while found < total and loop.time() < until:
        found += await client.request("bench.counted", returns=int, timeout=ANSWER_S)
    return 100 * found / total


async def _arrived(client: RpcClient, sent: int) -> None:
    """Wait until the server has counted all of it."""
    found = 0
    while found < sent:
        found += await client.request("bench.counted", returns=int, timeout=ANSWER_S)


class _Floor(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is not its subclass

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def close(self) -> None:
        self._transport.close()

    async def echo(self) -> None:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.sendto(MESSAGE)
        async with asyncio.timeout(ANSWER_S):
            await self._answer


async def _floor(client: RpcClient) -> _Floor | None:
    """The UDP echo of a server on this machine; ``None`` where there is none."""
    try:
        port = await client.request("bench.udp_port", returns=int, timeout=ANSWER_S)
    except MethodNotFound:
        return None
    loop = asyncio.get_running_loop()
    _, floor = await loop.create_datagram_endpoint(_Floor, remote_addr=("127.0.0.1", port))
    return floor


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
