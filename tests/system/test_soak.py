"""Hours of mixed traffic over UDP leave nothing behind.

One server and a client that stays serve rounds of the same work; each round also brings clients
that come and go. After each round garbage is collected and what is alive is counted: once warm, a
round must leave as many objects, tasks and open files as the one before it, and memory must not
grow. ``make soak MINUTES=60`` runs it for an hour; the suite for some rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from full_size import report, resident_bytes
from rpc_support import outcome, real, server_builder

from echostream import RpcClient, RpcServer, Session, StreamReceiver

SECONDS = float(os.environ.get("ECHOSTREAM_SOAK_S", "0"))
WARM_UP = 4
ROUNDS = 6
"""At least so many rounds are measured, however short the time."""
OBJECTS_PER_ROUND = 5.0
OBJECTS = 300
"""Growth in all that is no leak: tables that fill, timers that were cancelled and are not due. Each
round makes thousands for each kind of work."""
MEMORY = 8 * 1024 * 1024
"""The allocator's share: between the beginning and the end, medians of a third of the rounds."""


@dataclass
class Alive:
    """What is there after a round."""

    objects: int
    tasks: int
    files: int
    memory: int


def alive() -> Alive:
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    return Alive(len(gc.get_objects()), len(asyncio.all_tasks()), files, resident_bytes())


async def echo(payload: bytes) -> bytes:
    return payload


async def fail(payload: bytes) -> bytes:
    raise ValueError("as asked")


async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def note(payload: bytes) -> None:
    pass


async def read(session: Session, stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


async def work(client: RpcClient) -> None:
    """A round of everything, on one connection."""
    await asyncio.gather(*(client.request("echo", bytes(64)) for _ in range(50)))
    await client.request("echo", bytes(100_000))
    await asyncio.gather(*(outcome(client.request("fail", b"")) for _ in range(3)))
    await outcome(client.request("wait", 10.0, timeout=0.01))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(client.request("wait", 10.0), 0.01)
    for _ in range(50):
        await client.emit("note", bytes(64))
    async with await client.create_stream("read") as stream:
        for _ in range(10):
            await stream.send(bytes(20_000))
    async with await client.create_stream("read", delivery="realtime") as stream:
        for _ in range(20):
            await stream.send(bytes(160))
    stream = await client.create_stream("read")
    stream.abort()


async def one_round(server: RpcServer, lasting: RpcClient) -> None:
    await work(lasting)
    for orderly in (True, False):
        builder = RpcClient.builder().connect(server.address)
        async with builder.trust(fingerprint=server.fingerprint).build() as client:
            await work(client)
            if not orderly:
                client._peer.connection.abandon()
    while len(server.context.sessions) > 1:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)  # the end of their closing periods


async def soak() -> list[Alive]:
    builder = server_builder().handler("echo", echo).handler("fail", fail).handler("wait", wait)
    builder.listener("note", note).stream_handler("read", read)
    rounds: list[Alive] = []
    async with builder.build() as server:
        address, fingerprint = server.address, server.fingerprint
        async with RpcClient.builder().connect(address).trust(fingerprint=fingerprint).build() as c:
            started = time.monotonic()
            while len(rounds) < WARM_UP + ROUNDS or time.monotonic() < started + SECONDS:
                await one_round(server, c)
                await asyncio.sleep(0.5 if SECONDS else 0.2)  # draining periods of those who left
                rounds.append(alive())
    return rounds


def test_rounds_of_mixed_traffic_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "echostream.rpc")  # handlers fail as asked
    rounds: list[Alive] = []

    async def main() -> None:
        rounds.extend(await soak())

    real(main, seconds=SECONDS + 120)()
    measured = rounds[WARM_UP:]
    part = max(len(measured) // 3, 1)

    def growth(name: str) -> float:
        first, last = (
            statistics.median(getattr(each, name) for each in some)
            for some in (measured[:part], measured[-part:])
        )
        return last - first

    between = max(len(measured) - part, 1)
    report(
        "soak",
        rounds=len(rounds),
        objects_per_round=round(growth("objects") / between, 2),
        tasks=growth("tasks"),
        files=growth("files"),
        memory_mb=round(growth("memory") / 1e6, 2),
    )
    assert growth("objects") < OBJECTS + OBJECTS_PER_ROUND * between, measured
    assert growth("tasks") <= 0, measured
    assert growth("files") <= 0, measured
    assert growth("memory") < MEMORY, measured
