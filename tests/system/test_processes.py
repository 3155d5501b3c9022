"""Real processes: killed, stopped, and with readers that sleep."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rpc_support import outcome, real, server_builder

from echostream import ConnectionClosed, RpcClient, Session, Unavailable

sys.path.insert(0, str(Path(__file__).parent))

from child import common, traffic

CHILD = Path(__file__).parent / "child.py"
KILLS = int(os.environ.get("ECHOSTREAM_TEST_KILLS", "6"))
BULK = int(os.environ.get("ECHOSTREAM_TEST_BULK_MB", "48")) << 20
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def hear(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the child ended"
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def child(role: str, **task: Any) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHILD),
        role,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.close()
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def limited(kills: int) -> Any:
    """As ``real``, with time enough for ``kills`` processes."""
    return lambda test: real(test, seconds=60 + 10 * kills)


async def _ends(tasks: set[asyncio.Task[Any]]) -> None:
    """Each ends by name: soon after the idle timeout, and in no other way."""
    done, pending = await asyncio.wait(tasks, timeout=10)
    assert pending == set()
    errors = [task.result() for task in done]
    assert {type(error) for error in errors} <= {ConnectionClosed}, errors


@limited(KILLS)
async def test_a_server_that_is_killed_in_the_middle_of_traffic(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(KILLS // 2):
        async with child("serve", traffic=True, sleep=0) as server:
            facts = await server.hear()
            builder = common(RpcClient.builder().connect(tuple(facts["address"])))
            client = await builder.trust(fingerprint=facts["fingerprint"]).build()
            before = asyncio.all_tasks()
            tasks = {asyncio.create_task(outcome(traffic(client))) for _ in range(3)}
            tasks.add(asyncio.create_task(outcome(client.request("wait", 3600.0, timeout=3600))))
            await asyncio.wait(tasks, timeout=chance.random() * 0.3)
            server.process.kill()
            await _ends(tasks)
            await client.close()
            await asyncio.wait_for(_settled(before), 10)


async def _settled(before: set[asyncio.Task[Any]]) -> None:
    """Wait until no task is left but those that were there."""
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        await asyncio.wait(left)


@limited(KILLS)
async def test_a_client_that_is_killed_in_the_middle_of_traffic(seed: int) -> None:
    chance = random.Random(seed)
    came: asyncio.Queue[None] = asyncio.Queue()
    gone: asyncio.Queue[None] = asyncio.Queue()
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(session: Session) -> None:
        tasks.update(asyncio.create_task(outcome(traffic(session))) for _ in range(2))
        came.put_nowait(None)

    async def disconnected(session: Session) -> None:
        gone.put_nowait(None)

    builder = common(server_builder()).on_connect(connected).on_disconnect(disconnected)
    async with builder.build() as server:
        before = asyncio.all_tasks()
        for _ in range(KILLS - KILLS // 2):
            tasks.clear()
            async with child(
                "call", address=server.address, fingerprint=server.fingerprint
            ) as client:
                await came.get()
                await asyncio.wait(tasks, timeout=chance.random() * 0.3)
                client.process.kill()
                async with asyncio.timeout(10):
                    await gone.get()
                await _ends(tasks)
                assert server.context.sessions == ()
        await asyncio.wait_for(_settled(before), 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@real
async def test_a_signal_drains_the_server(number: int) -> None:
    async with child("serve", sleep=0) as server:
        facts = await server.hear()
        builder = common(RpcClient.builder().connect(tuple(facts["address"])))
        async with builder.trust(fingerprint=facts["fingerprint"]).build() as client:
            running = asyncio.create_task(client.request("wait", 0.7))
            assert await client.request("echo", 1) == 1
            server.process.send_signal(number)
            refused = await _first_refusal(client)
            assert isinstance(refused, Unavailable)
            assert await running == "waited"
            await client.wait_closed()
            events = [(await server.hear())["event"] for _ in range(3)]
            assert events == ["disconnected", "shutdown", "end"]
            assert await server.process.wait() == 0


async def _first_refusal(client: RpcClient) -> Any:
    while not isinstance(result := await outcome(client.request("echo")), Exception):
        pass
    return result


@limited(BULK >> 26)
async def test_memory_stays_bounded_behind_a_reader_that_sleeps() -> None:
    """The whole is ``make soak``: 1 GB."""
    async with child("serve", sleep=2.0) as server:
        facts = await server.hear()
        async with child("call", **facts, bytes=BULK, linger=5.0) as client:
            assert (await client.hear())["event"] == "connected"
            sent = await client.hear()
            got = await server.hear()
    print(f"sent {sent}, got {got}")
    assert got["got"] == sent["sent"] == BULK
    assert sent["grown"] <= 32 << 20
    assert got["grown"] <= 32 << 20
