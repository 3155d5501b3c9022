"""One of several servers of one name, for ``test_restart_by_name``; told its task as JSON on
standard input. What it runs goes to a file, one line for each call. It ends by SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from echostream import RpcServer  # noqa: E402


async def main(task: dict[str, Any]) -> None:
    log = os.open(task["calls"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def work(number: int) -> str:
        os.write(log, f"{number}\n".encode())
        await asyncio.sleep(number % 5 * 0.1)
        return f"{task['who']} {number}"

    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .tls(task["certificate"], task["key"])
        .enable_discovery(task["name"])
        .handler("work", work)
        .build()
    )
    running = asyncio.create_task(server.run())
    while server.announced_as is None and not running.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    if not running.done():
        print(json.dumps({"announced": server.announced_as}), flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
