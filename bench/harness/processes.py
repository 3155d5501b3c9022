"""Child processes that are always ended, by their id."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from bench.harness.load import Result

__all__ = ["Child", "ChildFailed", "Pair", "started_pair"]

_ROOT = Path(__file__).resolve().parents[2]


class ChildFailed(Exception):  # noqa: N818 - says what happened
    """A child answered with an error, did not answer in time, or is gone."""


class Child:
    """One process of :mod:`bench.harness.child`. Use as an async context manager."""

    def __init__(self, role: str, contender: str, directory: Path) -> None:
        self.name = f"{contender} {role}"
        self._arguments = ("-m", "bench.harness.child", role, contender, str(directory))
        self._directory = directory
        self._log = directory / f"{contender}-{role}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        home = str(self._directory)  # nothing that a stack keeps lands with the user
        environment = os.environ | {
            "HOME": home,
            "XDG_CONFIG_HOME": home,
            "XDG_DATA_HOME": home,
            "XDG_STATE_HOME": home,
            "XDG_CACHE_HOME": home,
            "GRPC_VERBOSITY": "ERROR",
        }
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=_ROOT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends us
            )
        return self

    async def ask(self, op: str, /, timeout: float = 30.0, **arguments: float | str) -> Result:
        """Run one operation in the child."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(timeout):
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise self._failed(op, f"no answer within {timeout:.0f} s") from error
        except ConnectionError as error:
            raise self._failed(op, "the process is gone") from error
        if not line:
            raise self._failed(op, "the process ended")
        reply = json.loads(line)
        if "error" in reply:
            raise self._failed(op, reply["error"])
        return cast(Result, reply["ok"])

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            if kind is None:
                try:
                    await self.ask("stop", timeout=5.0)
                except ChildFailed:
                    pass
            process.stdin.close()  # the child ends when its input does
            if kind is None and await _ended(process, 2.0):
                return
            if process.returncode is None:
                process.terminate()
            await _ended(process, 2.0)
        finally:
            if process.returncode is None:
                process.kill()

    def _failed(self, op: str, why: str) -> ChildFailed:
        tail = self._log.read_text(errors="replace").strip().splitlines()[-12:]
        return ChildFailed("\n  ".join([f"{self.name}, {op}: {why}", *tail]))


async def _ended(process: asyncio.subprocess.Process, within: float) -> bool:
    try:
        async with asyncio.timeout(within):
            await process.wait()
    except TimeoutError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Pair:
    """The two processes of one contender, and the port that its server listens on."""

    server: Child
    client: Child
    port: int


@asynccontextmanager
async def started_pair(contender: str, directory: Path) -> AsyncIterator[Pair]:
    """Both processes, the server listening; ended at the exit."""
    async with (
        Child("server", contender, directory) as server,
        Child("client", contender, directory) as client,
    ):
        port = int((await server.ask("start"))["port"])
        yield Pair(server, client, port)
