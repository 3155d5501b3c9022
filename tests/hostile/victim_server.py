"""The server that is attacked: prints its address, and serves until its input ends."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from full_size import resident_bytes

from echostream import Identity, RpcServer, StreamReceiver, handler, run, stream_handler


@handler("echo")
async def echo(value: Any) -> Any:
    return value


@handler("echo.bytes")
async def echo_bytes(value: bytes) -> bytes:
    return value


@handler("slow")
async def slow() -> None:
    await asyncio.sleep(3600)


@stream_handler("audio")
async def audio(stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


async def main() -> None:
    builder = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral())
    builder.handler(echo).handler(echo_bytes).handler(slow).stream_handler(audio)
    server: RpcServer

    @handler("facts")
    async def facts() -> dict[str, Any]:
        return {"rss": resident_bytes(), **asdict(server.statistics())}

    server = builder.handler(facts).build()
    async with server:
        print(":".join(map(str, server.address)), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    run(main())
