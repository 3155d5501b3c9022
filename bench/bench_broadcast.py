"""How long one event takes to reach many: real connections over loopback, one of them not reading.

    python bench/bench_broadcast.py [--members 100] [--rounds 60] [--blocks 3] [--payload 200]

The members are in a process of their own. What is measured is from the call of ``broadcast`` to the
listener, on the machine's monotonic clock, of all members but the first, whose listener stops and
goes on from block to block. Where it stops, its backlog is filled before, so that its events are
*kept back* from the start: they wait, and the oldest are dropped. Processor times are per
broadcast; *on its way* is from the call until the server has sent the last packet of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import echostream
from echostream import Identity, RpcClient, RpcServer

PAUSE_S = 0.05


async def be_members(port: int, fingerprint: str, members: int) -> None:
    """The members' process. Lines on stdin: ``stop``, ``go``, ``figures``; each is answered."""
    took: list[float] = []
    reads = asyncio.Event()
    reads.set()

    async def heard(value: tuple[float, bytes]) -> None:
        took.append(time.monotonic() - value[0])

    async def first_heard(value: tuple[float, bytes]) -> None:
        await reads.wait()

    async with AsyncExitStack() as stack:
        for number in range(members):
            client = RpcClient.builder().connect(("127.0.0.1", port))
            client.listener("told", heard if number else first_heard).trust(fingerprint=fingerprint)
            await stack.enter_async_context(client.build())
        print("[]", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "figures":
                print(json.dumps([time.process_time(), *took]), flush=True)
                took.clear()
            else:
                reads.clear() if line == "stop" else reads.set()
                print("[]", flush=True)


class Members:
    """That process, as the server's sees it."""

    def __init__(self, server: RpcServer, members: int) -> None:
        command = [sys.executable, __file__, "--join", str(server.address[1]), server.fingerprint]
        self._process = subprocess.Popen(
            [*command, "--members", str(members)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def say(self, line: str = "") -> list[float]:
        """Say something (nothing: wait until they are there) and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer: list[float] = json.loads(await asyncio.to_thread(self._process.stdout.readline))
        return answer

    async def leave(self) -> None:
        await asyncio.to_thread(self._process.communicate, timeout=30)


class Row:
    """What was seen with the first member reading, or without."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.turn: list[float] = []
        self.server = self.members = 0.0
        self.kept_back = 0


async def measure(members: int, rounds: int, blocks: int, payload: int) -> dict[bool, Row]:
    """By whether the first member reads. Blocks of both take turns, after one that warms up."""
    rows = {True: Row(), False: Row()}
    builder = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral())
    async with builder.build() as server:
        process = Members(server, members)
        try:
            await process.say()
            while len(server.context.sessions) < members:  # noqa: ASYNC110 - a few turns
                await asyncio.sleep(0.01)
            room, filler = server.context.group("room"), server.context.group("filler")
            for session in server.context.sessions:
                room.join(session)
            first = next(iter(server.context.sessions))
            await block(Row(), process, room, rounds, payload)
            for _ in range(blocks):
                await block(rows[True], process, room, rounds, payload)
                await process.say("stop")
                filler.join(first)
                while not filler.statistics().waiting:
                    await filler.broadcast("told", [0.0, bytes(8192)])
                    await asyncio.sleep(0.002)  # a member that reads is never that far behind
                filler.leave(first)
                await block(rows[False], process, room, rounds, payload)
                await process.say("go")
                await asyncio.sleep(0.5)
        finally:
            await process.leave()
    return rows


async def block(row: Row, process: Members, room: Any, rounds: int, payload: int) -> None:
    theirs = (await process.say("figures"))[0]
    ours, before = time.process_time(), kept_back(room)
    for _ in range(rounds):
        began = time.monotonic()
        await room.broadcast("told", [began, bytes(payload)])
        await asyncio.sleep(0)  # what the turn wrote leaves at its end
        row.turn.append(time.monotonic() - began)
        await asyncio.sleep(PAUSE_S)
    row.server += time.process_time() - ours
    row.kept_back += kept_back(room) - before
    await asyncio.sleep(2 * PAUSE_S)
    until, *took = await process.say("figures")
    row.members += until - theirs
    row.took += took


def kept_back(group: Any) -> int:
    """Events that did not leave for a member because it does not read."""
    statistics = group.statistics()
    return int(statistics.waiting + statistics.dropped)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)] * 1e3


async def main(options: argparse.Namespace) -> None:
    rows = await measure(options.members, options.rounds, options.blocks, options.payload)
    print(
        f"| {options.members} members | p50 ms | p90 ms | p99 ms | on its way p50 "
        "| server, processor ms | members, processor ms | arrived | kept back |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    rounds = options.rounds * options.blocks
    for reads, row in rows.items():
        figures = [
            "all read" if reads else "one has stopped",
            *(f"{quantile(row.took, q):.1f}" for q in (0.5, 0.9, 0.99)),
            f"{quantile(row.turn, 0.5):.1f}",
            f"{row.server / rounds * 1e3:.1f}",
            f"{row.members / rounds * 1e3:.1f}",
            f"{len(row.took) / rounds / (options.members - 1):.2%}",
            str(row.kept_back),
        ]
        print("|", " | ".join(figures), "|")


def test_broadcast() -> None:
    """Once, tiny."""
    rows = asyncio.run(measure(3, 4, 1, 10))
    assert [len(row.took) for row in rows.values()] == [8, 8]
    assert [row.kept_back for row in rows.values()] == [0, 4]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--payload", type=int, default=200)
    parser.add_argument("--join", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join is None:
        echostream.run(main(options))
    else:
        echostream.run(be_members(int(options.join[0]), options.join[1], options.members))
