"""A server process under attack over real sockets: it lives, stays small, and serves others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import hostile_client
import pytest
from full_size import report, sized

from echostream.client import RpcClient

HERE = Path(__file__).parent
MIB = 1 << 20
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE.parents[1])}

# Attack, its amount in the ordinary suite (0: only in the full one) and in the full one, and by how
# many MiB the server may grow. Floods of datagrams come as fast as one process sends them.
ATTACKS: list[tuple[str, int, int, int]] = [
    ("random_datagrams", 10_000, 1_000_000, 50),
    ("mutated_initials", 1_000, 1_000_000, 50),
    ("spoofed_initials", 1_000, 10_000, 100),
    ("noise_frames", 0, 1_000_000, 50),
    ("rapid_reset", 0, 100_000, 50),
    ("ping_flood", 0, 100_000, 50),
    ("tiny_frames", 0, 1_000_000, 50),
    ("cancel_storm", 10_000, 1_000_000, 50),
    ("stream_storm", 0, 100_000, 50),
    ("unread_answers", 0, 1_000_000, 50),
    ("unknown_methods", 5_000, 1_000_000, 50),
    ("event_gaps", 0, 60_000, 50),
    ("half_messages", 0, 120, 100),
]


RATES = [("random_datagrams", 10_000), ("mutated_initials", 10_000), ("spoofed_initials", 1_000)]
"""Floods that the server has the time to read, in datagrams per second: for the latencies."""


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a server process, which must be well until the end."""
    log = tmp_path / "log"  # and no pipe, which a server that logs much would wait for
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE / "victim_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=ENVIRONMENT,
        )
    assert process.stdout is not None
    host, _, port = process.stdout.readline().strip().rpartition(":")
    assert port, process.communicate()
    try:
        yield host, int(port)
        assert process.poll() is None
    finally:
        process.communicate(timeout=30)
    lines = [line for line in log.read_text().splitlines() if "broke the protocol" not in line]
    assert lines == []
    assert process.returncode == 0


async def attack(address: tuple[str, int], name: str, amount: int, rate: int = 0) -> None:
    """Run the hostile client in a process of its own."""
    arguments = [f"{address[0]}:{address[1]}", name, "--amount", str(amount), "--rate", str(rate)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "hostile_client.py"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    said = (await process.stdout.read()).decode().strip()
    assert await process.wait() == 0
    if said:
        print(said)


async def latencies(client: RpcClient, until: Coroutine[Any, Any, None]) -> list[float]:
    """The time of calls, s, one after the other with pauses, until ``until`` is through."""
    took = []
    ending = asyncio.ensure_future(until)
    while not ending.done():
        start = time.perf_counter()
        assert await client.request("echo", 1, timeout=30.0) == 1
        took.append(time.perf_counter() - start)
        await asyncio.sleep(0.005)
    await ending
    return sorted(took)


@pytest.mark.parametrize(("name", "small", "full", "growth"), ATTACKS)
def test_a_server_process_survives(
    name: str, small: int, full: int, growth: int, victim: tuple[str, int]
) -> None:
    amount = sized(small, full)
    if not amount:
        pytest.skip("in the full size only; in memory it runs always")
    asyncio.run(survives(victim, name, amount, growth))


@pytest.mark.parametrize(("name", "rate"), RATES)
def test_a_flood_that_can_be_read(name: str, rate: int, victim: tuple[str, int]) -> None:
    asyncio.run(survives(victim, name, sized(1, 30) * rate // 2, 50, rate))


async def survives(
    victim: tuple[str, int], name: str, amount: int, growth: int, rate: int = 0
) -> None:
    """The server grows by ``growth`` MiB at most, and answers before, during and afterwards."""
    async with RpcClient.connect(victim, insecure=True) as honest:
        quiet = await latencies(honest, asyncio.sleep(sized(0, 5)))
        before = await honest.request("facts")
        busy = await latencies(honest, attack(victim, name, amount, rate))
        after = await honest.request("facts")
        report(
            f"attack {name}",
            amount=amount,
            rate=rate or "any",
            rss_growth_mib=round((after["rss"] - before["rss"]) / MIB, 1),
            p50_quiet_ms=round(1000 * quiet[len(quiet) // 2], 2),
            p50_attacked_ms=round(1000 * busy[len(busy) // 2], 2),
            p99_quiet_ms=round(1000 * quiet[int(0.99 * len(quiet))], 2),
            p99_attacked_ms=round(1000 * busy[int(0.99 * len(busy))], 2),
        )
        assert after["rss"] - before["rss"] <= growth * MIB
        assert after["half_open"] <= 1024
        async with RpcClient.connect(victim, insecure=True) as late:
            assert await late.request("echo", "still here") == "still here"


def test_every_attack_is_known() -> None:
    known = set(hostile_client.ATTACKS) | set(hostile_client.FLOODS)
    assert {name for name, *_ in ATTACKS} <= known
