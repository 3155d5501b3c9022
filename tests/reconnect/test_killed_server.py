"""A server process that is killed and started again, and many clients that must not care."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from full_size import report, sized
from rpc_support import outcome, real

from echostream import Identity, RpcClient
from echostream.rpc.context import ClientContext

CLIENTS = sized(20, 100)
EVENTS = sized(100, 1000)
CALLS = sized(200, 1000)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9")


async def started(task: dict[str, Any]) -> tuple[asyncio.subprocess.Process, tuple[str, int]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("kept_server.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    line = await process.stdout.readline()
    assert line, "the server ended"
    host, port = json.loads(line)["address"]
    return process, (host, port)


class Program:
    """One client: subscribes, emits, and counts the ticks of each connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connections = 0
        self.ticks = 0
        self.heard = asyncio.Event()
        self.back_at = 0.0

    async def on_connect(self, ctx: ClientContext) -> None:
        await ctx.request("subscribe")
        self.connections += 1
        self.ticks = 0
        self.heard.clear()
        self.back_at = asyncio.get_running_loop().time()

    async def tick(self, count: int) -> None:
        self.ticks += 1
        self.heard.set()

    async def talk(self, client: RpcClient) -> None:
        for value in range(EVENTS):
            await client.emit("store", self.number * EVENTS + value)
            if value % 10 == 0:
                await asyncio.sleep(3.0 * 10 / EVENTS)


def test_a_server_killed_and_restarted(tmp_path: Path) -> None:
    identity = Identity.ephemeral()
    (tmp_path / "cert.pem").write_bytes(identity.certificate_pem)
    (tmp_path / "key.pem").write_bytes(identity.private_key_pem)
    (tmp_path / "key.pem").chmod(0o600)
    task = {
        "port": 0,
        "events": str(tmp_path / "events"),
        "calls": str(tmp_path / "calls"),
        "certificate": str(tmp_path / "cert.pem"),
        "key": str(tmp_path / "key.pem"),
    }
    facts: dict[str, float] = {}
    ended: Counter[str] = Counter()

    @lambda test: real(test, seconds=sized(60, 300))
    async def main() -> None:
        loop = asyncio.get_running_loop()
        process, address = await started(task)
        programs = [Program(number) for number in range(CLIENTS)]
        clients = []
        for program in programs:
            builder = RpcClient.builder().connect(address).trust(fingerprint=identity.fingerprint)
            builder.reconnect(keepalive=1.0).on_connect(program.on_connect)
            clients.append(await builder.listener("tick", program.tick).build())
        pairs = list(zip(programs, clients, strict=True))
        talking = [asyncio.create_task(program.talk(client)) for program, client in pairs]
        await asyncio.sleep(1.0)
        calls = [
            asyncio.create_task(outcome(clients[number % CLIENTS].request("work", number)))
            for number in range(CALLS)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.05)
        process.kill()
        killed = loop.time()
        await process.wait()
        for call, number in zip(calls, range(CALLS), strict=True):
            answer = await call
            ended["ok" if answer == number else type(answer).__name__] += 1
        facts["detected"] = loop.time() - killed
        await asyncio.sleep(max(killed + 1.0 - loop.time(), 0))
        process, _ = await started(task | {"port": address[1]})
        up = loop.time()
        for program, client in pairs:
            while program.connections < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await client.wait_connected()
        facts["back"] = max(program.back_at for program in programs) - up
        await asyncio.gather(*talking)
        for program, client in pairs:
            await asyncio.wait_for(program.heard.wait(), 10)
            assert client._link is not None
            kept = client._link.resumption
            while len(kept.journal) or kept.pending:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        facts["resent"] = sum(client._link.resumption.resent for client in clients)
        await asyncio.gather(*(client.close() for client in clients))
        process.kill()
        await process.communicate()

    main()
    report("server killed and restarted", clients=CLIENTS, **facts, **ended)
    assert set(ended) <= {"ok", "Unavailable"}
    assert sum(ended.values()) == CALLS
    ran = Counter((tmp_path / "calls").read_text().split())
    assert max(ran.values()) == 1
    heard: dict[str, list[int]] = defaultdict(list)
    for line in (tmp_path / "events").read_text().splitlines():
        name, _, value = line.split()
        heard[name].append(int(value))
    expected = [list(range(n * EVENTS, (n + 1) * EVENTS)) for n in range(CLIENTS)]
    assert sorted(heard.values()) == expected
