"""A server in a process of its own, run as users run one, and what a command says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LIMIT_S = 60

APP = """
import asyncio
from datetime import UTC, datetime

import numpy as np

from echostream import ConnectionClosed, RpcError, RpcServer, Session, handler, listener


@handler("math.double")
async def double(number: int) -> int:
    return 2 * number


@handler("hello")
async def hello(name: str) -> str:
    return f"hello {name}"


@handler("mixed")
async def mixed():
    return {"bytes": b"ab", "array": np.array([1.0, 2.5]), "when": datetime(2026, 1, 1, tzinfo=UTC)}


@handler("fail")
async def fail() -> None:
    raise RuntimeError("a text that stays here")


@handler("leave")
async def leave(session: Session) -> None:
    raise RpcError("not you", status=7)


@listener("say")
async def say(session: Session, text: str) -> None:
    session.server_ctx.set("said", text)


@handler("count")
async def count(start: int):
    "Count on."
    for number in range(start, start + 3):
        yield number


@handler("said")
async def said(session: Session) -> str:
    return session.server_ctx.get("said")


@listener("hang up")
async def hang_up(session: Session) -> None:
    for each in session.server_ctx.sessions:
        await each.close("bye")


async def tick(session: Session) -> None:
    async def ticking():
        try:
            for number in range(10_000):
                await session.emit("tick", {"number": number})
                await session.emit("text", f"line {number}\\nand more")
                await asyncio.sleep(0.01)
        except ConnectionClosed:
            pass

    session.set("ticking", asyncio.create_task(ticking()))


def make():
    return (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .handler(double)
        .handler(hello)
        .handler(mixed)
        .handler(fail)
        .handler(leave)
        .handler(said)
        .handler(count)
        .introspection()
        .listener(say)
        .listener(hang_up)
        .on_connect(tick)
    )


builder = make()
built = make().build()
number = 3


def broken():
    return 1 / 0


async def coroutine():
    return make()


def without_address():
    return RpcServer.builder()
"""


@dataclass(frozen=True)
class Served:
    address: str
    fingerprint: str
    process: subprocess.Popen[str]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    def complains(self, status: int, *words: str) -> None:
        """One clear line on standard error, and nothing else."""
        assert self.status == status, self
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("echostream")
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "ECHOSTREAM_HOME": str(home)}


def start(target: str, folder: Path) -> Served:
    """``echostream serve`` in ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "echostream.cli", "serve", target, "--json"],
        cwd=folder,
        env=environment(folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate(timeout=LIMIT_S)[1])
    told = json.loads(line)
    return Served(f"{told['host']}:{told['port']}", told["fingerprint"], process)


def stop(served: Served) -> tuple[int, str]:
    """Ctrl-C; returns exit status and what it logged."""
    if os.name == "posix":
        import signal

        served.process.send_signal(signal.SIGINT)
    else:
        served.process.terminate()
    _, err = served.process.communicate(timeout=LIMIT_S)
    return served.process.returncode, err
