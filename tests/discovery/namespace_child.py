"""The other process of the namespace tests. One JSON line says what to do; it ends with its
standard input."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from echostream import Identity, RpcClient, RpcServer  # noqa: E402
from echostream.discovery import discover_services  # noqa: E402
from echostream.transport.ticket import Ticket  # noqa: E402


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def greeting() -> str:
    return "hello"


async def serve(task: dict[str, Any]) -> None:
    builder = RpcServer.builder().bind(task["bind"]).identity(Identity.ephemeral())
    server = builder.handler("greeting", greeting).enable_discovery(task["name"]).build()
    async with server:
        ticket = Ticket((("10.77.0.1", server.address[1]),), server.fingerprint)
        assert server._advertiser is not None
        announced = await server._advertiser.wait_announced()
        say(announced=announced, ticket=str(ticket))
        await asyncio.to_thread(sys.stdin.read)


async def call(task: dict[str, Any]) -> None:
    if task.get("watch"):
        watching = asyncio.create_task(watch(task["name"]))
        await asyncio.to_thread(sys.stdin.read)
        watching.cancel()
        await asyncio.wait((watching,))
        return
    if "ticket" in task:
        connecting = RpcClient.connect(task["ticket"])
    else:
        connecting = RpcClient.discover(task["name"], timeout=20)
    async with connecting as client:
        say(answer=await client.request("greeting"), address=client.server_addr[0])


async def watch(name: str) -> None:
    async for change in discover_services(name):
        service = change.service
        say(
            addresses=list(service.addresses),
            port=service.port,
            fingerprint=service.fingerprint,
        )


async def main() -> None:
    task = json.loads(sys.stdin.readline())
    async with asyncio.timeout(task["limit"]):
        await {"serve": serve, "call": call}[task["role"]](task)


if __name__ == "__main__":
    asyncio.run(main())
