"""Files: whole, broken off and resumed, wrong, and where they must not go."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rpc_support import WIRE, idle, outcome, session_of, virtual

from echostream import (
    ConfigurationError,
    InvalidPayload,
    ResourceExhausted,
    RpcClient,
    RpcError,
    RpcServer,
)
from echostream.codes import Status
from echostream.contrib.files import FileStore, fetch_file, open_remote, send_file
from echostream.testing import connected_pair

DATA = random.Random(5).randbytes(1_000_000)


@asynccontextmanager
async def stores(
    folder: Path, direction: str = "up", **options: int
) -> AsyncIterator[tuple[Any, Path, Path]]:
    """One side that calls, its folder, and that of the other."""
    here, there = folder / "here", folder / "there"
    here.mkdir()
    there.mkdir()
    store = FileStore(there, **options)
    server, client = RpcServer.builder(), RpcClient.builder()
    serving = server if direction == "up" else client
    serving.handler("put", store.receive).handler("get", store.send)
    async with connected_pair(server, client, up=WIRE, down=WIRE) as (started, connected):
        session = await session_of(started)
        yield connected if direction == "up" else session, here, there
        await asyncio.sleep(1)
        assert idle(session)
        assert idle(connected)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("size", [0, 1, 65_536, len(DATA)])
@virtual
async def test_there_and_back(tmp_path: Path, direction: str, size: int) -> None:
    seen: list[tuple[int, int]] = []
    async with stores(tmp_path, direction) as (side, here, there):
        (here / "a.bin").write_bytes(DATA[:size])
        info = await send_file(side, "put", here / "a.bin", progress=lambda *p: seen.append(p))
        assert info.sha256 == hashlib.sha256(DATA[:size]).hexdigest()
        assert (there / "a.bin").read_bytes() == DATA[:size]
        if size:
            assert seen[-1] == (size, size)
            assert seen == sorted(seen)
        info = await fetch_file(side, "get", "a.bin", here / "b.bin")
        assert (info.size, info.resumed) == (size, 0)
        assert (here / "b.bin").read_bytes() == DATA[:size]
        assert sorted(p.name for p in (*here.iterdir(), *there.iterdir())) == [
            "a.bin",
            "a.bin",
            "b.bin",
        ]


@virtual
async def test_what_broke_off_is_resumed(tmp_path: Path) -> None:
    async with stores(tmp_path) as (side, here, there):
        (here / "a.bin").write_bytes(DATA)

        def stop_at(limit: int) -> Callable[[int, int], None]:
            def progress(done: int, size: int) -> None:
                if done > limit:
                    raise ConnectionAbortedError

            return progress

        with pytest.raises(ConnectionAbortedError):
            await send_file(side, "put", here / "a.bin", progress=stop_at(400_000))
        await asyncio.sleep(1)
        assert 0 < (there / "a.bin.part").stat().st_size < len(DATA)
        info = await send_file(side, "put", here / "a.bin")
        assert 0 < info.resumed < len(DATA)
        assert (there / "a.bin").read_bytes() == DATA

        with pytest.raises(ConnectionAbortedError):
            await fetch_file(side, "get", "a.bin", here / "b.bin", progress=stop_at(400_000))
        info = await fetch_file(side, "get", "a.bin", here / "b.bin")
        assert info.resumed >= 400_000
        assert (here / "b.bin").read_bytes() == DATA


@virtual
async def test_a_part_of_another_file_is_found_out(tmp_path: Path) -> None:
    async with stores(tmp_path) as (side, here, there):
        (here / "a.bin").write_bytes(DATA)
        (there / "a.bin.part").write_bytes(b"something else")
        for _ in range(2):
            result = await outcome(send_file(side, "put", here / "a.bin"))
            if isinstance(result, Exception):
                assert isinstance(result, RpcError)
                assert result.status == Status.DATA_LOSS
        assert (there / "a.bin").read_bytes() == DATA
        (here / "c.bin.part").write_bytes(DATA + b"longer")
        error = await outcome(fetch_file(side, "get", "a.bin", here / "c.bin"))
        assert error.status == Status.OUT_OF_RANGE
        await fetch_file(side, "get", "a.bin", here / "c.bin")
        (there / "d.bin.part").write_bytes(DATA)
        (here / "d.bin").write_bytes(b"short")
        await send_file(side, "put", here / "d.bin")
        assert (there / "d.bin").read_bytes() == b"short"


@virtual
async def test_reading_a_remote_file(tmp_path: Path) -> None:
    async with stores(tmp_path) as (side, _, there):
        (there / "a.bin").write_bytes(DATA)
        async with open_remote(side, "get", "a.bin") as file:
            assert await file.read(10) == DATA[:10]
            assert file.size == len(DATA)
            assert await file.read(100_000) == DATA[10:100_010]
            assert await file.read_all() == DATA[100_010:]
            assert await file.read(5) == b""
        async with open_remote(side, "get", "a.bin", offset=999_990) as file:
            assert b"".join([chunk async for chunk in file]) == DATA[999_990:]
        async with open_remote(side, "get", "a.bin") as file:
            with pytest.raises(ResourceExhausted, match="limit=1000"):
                await file.read_all(1000)
        async with open_remote(side, "get", "a.bin") as file:
            await file.read(1)  # and no more
        async with open_remote(side, "get", "none") as file:
            with pytest.raises(RpcError, match="no file 'none'"):
                await file.read()


@pytest.mark.parametrize(
    "name", ["../a", "a/b", "..", ".hidden", "", "a\\b", "c:a", "a\0", "x" * 300, "a.part"]
)
@virtual
async def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    async with stores(tmp_path) as (side, here, _):
        (here / "a.bin").write_bytes(b"x")
        for awaitable in (
            send_file(side, "put", here / "a.bin", name=name),
            fetch_file(side, "get", name, here / "b.bin"),
        ):
            assert isinstance(await outcome(awaitable), InvalidPayload)
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.bin", "here", "there"]


@virtual
async def test_limits_and_liars(tmp_path: Path) -> None:
    async with stores(tmp_path, max_size=1000) as (side, here, there):
        (here / "a.bin").write_bytes(DATA)
        with pytest.raises(ResourceExhausted, match="max_size=1000"):
            await send_file(side, "put", here / "a.bin")

        async def say(*items: Any) -> AsyncIterator[Any]:
            for item in items:
                yield item

        async def put(*items: Any) -> Any:
            return await outcome(_last(side.request_stream("put", say(*items))))

        head = {"name": "x", "size": 3}
        for items, said in (
            ((), "'name'"),
            (({"name": 5},), "'name'"),
            (({"name": "x", "size": True},), "'size'"),
            ((head, b"1234"), "more than the 3"),
            ((head, b"123"), "without its checksum"),
            ((head, b"123", {"sha256": "0"}), "do not fit"),
            ((head, b"123", 7), "'sha256'"),
        ):
            (there / "x.part").unlink(missing_ok=True)
            error = await put(*items)
            assert isinstance(error, RpcError)
            assert said in error.message
        wait = asyncio.Event()

        async def slowly() -> AsyncIterator[Any]:
            yield head
            await wait.wait()

        task = asyncio.create_task(outcome(_last(side.request_stream("put", slowly()))))
        await asyncio.sleep(0.1)
        assert (await put(head)).status == Status.ABORTED
        wait.set()
        await task
        assert [p.name for p in there.iterdir() if p.name == "x"] == []
    with pytest.raises(ConfigurationError, match="no directory"):
        FileStore(tmp_path / "nowhere")


async def _last(results: Any) -> Any:
    return [item async for item in results]
