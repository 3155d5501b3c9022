"""The other process of the system tests: ``python child.py ROLE``, told its task as JSON on
standard input, one line; it answers with JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from echostream import Identity, RpcClient, RpcServer, Session, StreamReceiver  # noqa: E402
from echostream.errors import EchoStreamError  # noqa: E402

QUIC = {"idle_timeout": 1.0, "keep_alive": 0.3}


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def echo(value: Any) -> Any:
    return value


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "waited"


async def note(value: Any) -> None:
    """An event that nobody needs."""


async def read(stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


async def hold(stream: StreamReceiver) -> None:
    await asyncio.sleep(3600)


def common(builder: Any) -> Any:
    builder.quic(**QUIC).handler("echo", echo).handler("wait", wait).listener("note", note)
    return builder.stream_handler("read", read).stream_handler("hold", hold)


async def traffic(side: Any) -> None:
    """Everything at once, for ever, over one client or session."""

    async def calls() -> None:
        while True:
            await side.request("echo", bytes(500))

    async def events() -> None:
        while True:
            await side.emit("note", bytes(2000))
            await asyncio.sleep(0)

    async def stream(name: str, delivery: str) -> None:
        async with await side.create_stream(name, delivery=delivery) as sender:
            while True:
                await sender.send(bytes(1000))
                await asyncio.sleep(0.001)
                if name == "read" and sender.statistics().packets % 50 == 0:
                    await sender.flush()

    await asyncio.gather(
        calls(),
        calls(),
        events(),
        side.request("wait", 3600.0),
        stream("read", "reliable"),
        stream("read", "realtime"),
        stream("hold", "reliable"),
    )


async def serve(task: dict[str, Any]) -> None:
    """Serve until a signal; the peer's sessions get traffic where the task says so."""
    tasks: set[asyncio.Task[Any]] = set()

    async def slow(stream: StreamReceiver) -> None:
        """Sleeps, reads with pauses, and says what memory that took."""
        before = most = resident()
        await asyncio.sleep(task["sleep"])
        got = 0
        async for item in stream:
            got += len(item)
            if got % (16 << 20) < len(item):
                most = max(most, resident())
                await asyncio.sleep(0.01)
        say(got=got, grown=max(most, resident()) - before)

    async def connected(session: Session) -> None:
        if task.get("traffic"):
            tasks.add(asyncio.create_task(traffic(session)))

    async def disconnected(session: Session) -> None:
        say(event="disconnected")

    async def stopping(ctx: Any) -> None:
        say(event="shutdown")

    builder = common(RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral()))
    builder.stream_handler("slow", slow).on_connect(connected).on_disconnect(disconnected)
    server = builder.on_shutdown(stopping).build()

    async def announce() -> None:
        while True:
            try:
                say(address=server.address, fingerprint=server.fingerprint)
                return
            except EchoStreamError:
                await asyncio.sleep(0.01)

    tasks.add(asyncio.create_task(announce()))
    await server.run()
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    say(event="end")


async def call(task: dict[str, Any]) -> None:
    """A client that makes traffic, or sends much."""
    builder = common(RpcClient.builder().connect(tuple(task["address"])))
    async with builder.trust(fingerprint=task["fingerprint"]).build() as client:
        say(event="connected")
        if not task.get("bytes"):
            await traffic(client)
        stream = await client.create_stream("slow")
        before = most = resident()
        piece = bytes(64 << 10)
        for index in range(task["bytes"] // len(piece)):
            await stream.send(piece)
            if index % 256 == 0:
                most = max(most, resident())
        await stream.end()
        say(sent=task["bytes"], grown=max(most, resident()) - before)
        await asyncio.sleep(task["linger"])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    role = {"serve": serve, "call": call}[sys.argv[1]]
    asyncio.run(role(json.loads(sys.stdin.readline())))
