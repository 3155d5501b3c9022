"""One server or client process: ``python -m bench.harness.child ROLE CONTENDER DIRECTORY``.

It takes one JSON object per line on standard input, ``{"op": NAME, ...arguments}``, and answers
each with one line: ``{"ok": result}`` or ``{"error": text}``. It ends when its standard input
ends, also in the midst of an operation, so that it cannot outlive its parent.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness.certificate import certificate_at
from bench.harness.contract import Client, Server
from bench.harness.load import Load, Result
from bench.harness.machine import resident_bytes
from bench.harness.registry import CONTENDERS
from bench.harness.scenarios import FRAME_INTERVAL_S, FRAME_SIZE, SCENARIOS

__all__ = ["ClientProcess", "ServerProcess", "main"]


class _Process:
    """What both roles answer. An operation is a coroutine method ``op_NAME``."""

    async def op_usage(self) -> Result:
        """CPU seconds of all threads so far."""
        return {"cpu": time.process_time()}

    async def op_settle(self) -> Result:
        """Collect garbage, as before every measurement and in every contender; the collector
        stays on meanwhile, as it is for users. Returns the memory that is left."""
        gc.collect()
        return {"resident": resident_bytes()}

    async def op_stop(self) -> Result:
        """The last operation."""
        return {}


class ServerProcess(_Process):
    """A server, its counter and its broadcasts."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def op_start(self) -> Result:
        """Listen; returns the port."""
        return {"port": await self._server.start()}

    async def op_reset(self) -> Result:
        """Start counting from zero."""
        self._server.received.reset()
        return {}

    async def op_received(self, count: int, quiet: float) -> Result:
        """Wait for ``count`` in all, or until nothing came for ``quiet`` seconds."""
        received = self._server.received
        seen, since = received.count, time.monotonic()
        while received.count < count and time.monotonic() - since < quiet:
            await asyncio.sleep(0.01)
            if received.count != seen:
                seen, since = received.count, time.monotonic()
        return {"count": received.count, "last_ns": received.last_ns}

    async def op_broadcast(self, seconds: float) -> Result:
        """A frame to every listener every 20 ms. It begins with the time it was due
        (``time.monotonic_ns``, 8 bytes); a turn that is missed is sent late, not skipped."""
        frames = sent = 0
        started = time.monotonic()
        cpu = time.process_time()
        while (due := frames * FRAME_INTERVAL_S) < seconds:
            await asyncio.sleep(started + due - time.monotonic())
            due_ns = int((started + due) * 1e9)
            sent += await self._server.broadcast(due_ns.to_bytes(8, "big").ljust(FRAME_SIZE, b"."))
            frames += 1
        await asyncio.sleep(started + frames * FRAME_INTERVAL_S - time.monotonic())
        elapsed = time.monotonic() - started
        return {"sent": sent, "cpu": time.process_time() - cpu, "elapsed": elapsed}

    async def op_stop(self) -> Result:
        """Stop listening."""
        await self._server.stop()
        return {}


class ClientProcess(_Process):
    """A client, and the load that it is asked for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._load: Load | None = None

    async def op_prepare(self, scenario: str, port: int, connections: int) -> Result:
        """Begin a scenario."""
        if self._load is None:
            self._load = Load(self._client, SCENARIOS[scenario], port)
        await self._load.prepare(connections)
        return {}

    async def op_measure(self, amount: float) -> Result:
        """See :meth:`Load.measure`."""
        assert self._load is not None
        return await self._load.measure(amount)

    async def op_collect(self) -> Result:
        """See :meth:`Load.collect`."""
        assert self._load is not None
        return self._load.collect()

    async def op_finish(self) -> Result:
        """End the scenario."""
        load, self._load = self._load, None
        assert load is not None
        await load.finish()
        return {}


async def _serve(process: _Process, replies: Any) -> None:
    requests = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(requests), sys.stdin
    )
    following = asyncio.create_task(requests.readline())
    while line := await following:
        following = asyncio.create_task(requests.readline())
        answering = asyncio.create_task(_answer(process, json.loads(line)))
        await asyncio.wait((answering, following), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():  # the parent gave up, or is gone
            return
        replies.write(json.dumps(answering.result()) + "\n")
        replies.flush()


async def _answer(process: _Process, arguments: dict[str, Any]) -> dict[str, Any]:
    op = arguments.pop("op")
    try:
        return {"ok": await getattr(process, f"op_{op}")(**arguments)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main(role: str, name: str, directory: Path) -> None:
    """Answer on what standard output was; prints of any library go to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = CONTENDERS[name]
    module = importlib.import_module(f"bench.harness.contenders.{contender.module}")
    certificate = certificate_at(directory)

    async def run() -> None:
        process: _Process
        if role == "server":
            process = ServerProcess(module.server(certificate, contender.variant))
        else:
            process = ClientProcess(module.client(certificate, contender.variant))
        await _serve(process, replies)

    status = 1
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)  # threads of a stack that nobody stopped do not keep the process


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
