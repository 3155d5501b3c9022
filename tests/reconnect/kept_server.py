"""The server of ``test_killed_server``, told its task as JSON on standard input, one line.

What it hears goes to a file, with one write for each event."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from echostream import RpcServer, Session  # noqa: E402
from echostream.rpc.call import current_call  # noqa: E402


async def main(task: dict[str, Any]) -> None:
    upto: dict[str, int] = defaultdict(int)
    path = Path(task["events"])
    if path.exists():
        for line in path.read_text().splitlines():
            name, number, _ = line.split()
            upto[name] = max(upto[name], int(number))
    disk = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    calls = os.open(task["calls"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def store(session: Session, value: int) -> None:
        os.write(disk, f"{session.resume_id} {current_call().event_number} {value}\n".encode())

    async def on_resume(session: Session) -> int:
        assert session.resume_id is not None
        return upto[session.resume_id]

    async def work(number: int) -> int:
        os.write(calls, f"{number}\n".encode())
        await asyncio.sleep(number % 7 * 0.05)
        return number

    async def subscribe(session: Session) -> None:
        session.set("subscribed", True)

    server = (
        RpcServer.builder()
        .bind(("127.0.0.1", task["port"]))
        .tls(task["certificate"], task["key"])
        .limits(calls=1000)
        .handler("work", work)
        .handler("subscribe", subscribe)
        .listener("store", store)
        .on_resume(on_resume)
        .build()
    )

    async def tick() -> None:
        count = 0
        while True:
            await asyncio.sleep(0.1)
            count += 1
            await server.context.broadcast(
                "tick", count, where=lambda s: s.get("subscribed", bool, False)
            )

    async with server:
        print(json.dumps({"address": server.address}), flush=True)
        await tick()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
