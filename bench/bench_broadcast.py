"""How long one event takes to reach many: real connections over loopback, one of them not reading.

    python bench/bench_broadcast.py [--members 100] [--rounds 200] [--payload 200]

All run in one process on one core, so that a delivery waits for the packets of the others: what is
measured is from the call of ``broadcast`` to the listener, of all members but the one that sleeps.
The second row is the same without it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import echostream
from echostream import Identity, RpcClient, RpcServer


async def measure(
    members: int, rounds: int, payload: int, sleeper: bool
) -> tuple[list[float], float]:
    """Seconds from the broadcast to each listener, and processor time of a round, all sides."""
    took: list[float] = []
    never = asyncio.Event()

    async def heard(value: tuple[float, bytes]) -> None:
        took.append(time.perf_counter() - value[0])

    async def sleeps(value: tuple[float, bytes]) -> None:
        await never.wait()

    builder = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral())
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(builder.build())
        for number in range(members):
            client = RpcClient.builder().connect(server.address)
            client.listener("told", sleeps if sleeper and not number else heard)
            client.trust(fingerprint=server.fingerprint)
            await stack.enter_async_context(client.build())
        while len(server.context.sessions) < members:  # noqa: ASYNC110 - a few turns
            await asyncio.sleep(0.01)
        room = server.context.group("room")
        for session in server.context.sessions:
            room.join(session)
        began = time.process_time()
        for number in range(rounds):
            await room.broadcast("told", [time.perf_counter(), bytes(payload)])
            if number == rounds // 10:
                took.clear()  # warm
            await asyncio.sleep(0.05)
        spent = (time.process_time() - began) / rounds
        never.set()
    return took, spent


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)] * 1e3


async def main(options: argparse.Namespace) -> None:
    print("| members | p50 ms | p99 ms | processor ms, all sides |\n|---|--:|--:|--:|")
    for sleeper in (True, False):
        took, spent = await measure(options.members, options.rounds, options.payload, sleeper)
        title = f"{options.members}, one of them sleeps" if sleeper else f"{options.members}"
        print(
            f"| {title} | {quantile(took, 0.5):.1f} | {quantile(took, 0.99):.1f} "
            f"| {spent * 1e3:.1f} |",
            flush=True,
        )


def test_broadcast() -> None:
    """Once, tiny."""
    assert len(asyncio.run(measure(3, 4, 10, sleeper=True))[0]) >= 6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--payload", type=int, default=200)
    echostream.run(main(parser.parse_args()))
