"""The work of a client process. Stack-independent: it sees a ``Client`` and its ``Connection``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.harness.contract import Client, Connection
from bench.harness.scenarios import FRAME_SIZE, MESSAGE_SIZE, Scenario

__all__ = ["Load", "Result"]

Result = dict[str, float]

_MESSAGE = bytes(i & 0xFF for i in range(MESSAGE_SIZE))
_FRAME = bytes(i & 0xFF for i in range(FRAME_SIZE))
_BURST = 32
"""One-way messages per turn of the loop, for every contender."""
_GRACE_S = 2.0
"""How long calls may still be answered after the time is over."""


class Load:
    """One scenario against one server: :meth:`prepare`, :meth:`measure` (often), :meth:`finish`."""

    def __init__(self, client: Client, scenario: Scenario, port: int) -> None:
        self._client = client
        self._scenario = scenario
        self._port = port
        self._connections: list[Connection] = []
        self._late_ns: list[int] = []

    async def prepare(self, connections: int) -> None:
        """Open ``connections`` connections, with one call on each where the stack has calls."""
        for _ in range(connections):
            connection = await self._client.connect(self._port)
            self._connections.append(connection)
            if self._scenario.kind == "fan-out":
                await connection.listen(self._on_frame)
            else:
                await _checked_call(connection)

    async def measure(self, amount: float) -> Result:
        """Run once. ``amount`` is in seconds for calls and handshakes, else in messages, bytes
        or frames. The result has ``count`` and ``elapsed`` (s), or, where the server counts,
        ``count`` sent and ``started_ns``."""
        match self._scenario.kind:
            case "serial":
                return await self._serial(amount)
            case "calls":
                return await self._calls(amount)
            case "handshakes":
                return await self._handshakes(amount)
            case "bulk-down":
                return await self._bulk_down(int(amount))
            case "counted":
                return await self._one_way(int(amount))
            case kind:
                raise ValueError(f"{kind} is not measured by the client")

    def collect(self) -> Result:
        """The frames that came since the last call: ``count`` and their lateness in ms."""
        late, self._late_ns = sorted(self._late_ns), []
        return {
            "count": len(late),
            "late_p50_ms": _quantile(late, 0.50) / 1e6,
            "late_p99_ms": _quantile(late, 0.99) / 1e6,
        }

    async def finish(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            await connection.close()
        self._connections.clear()
        await self._client.close()

    async def _serial(self, seconds: float) -> Result:
        (connection,) = self._connections
        durations: list[int] = []
        clock = time.perf_counter_ns
        started = last = clock()
        deadline = started + int(seconds * 1e9)
        async with asyncio.timeout(seconds + _GRACE_S):
            while last < deadline:
                await _checked_call(connection)
                now = clock()
                durations.append(now - last)
                last = now
        durations.sort()
        return {
            "count": len(durations),
            "elapsed": (last - started) / 1e9,
            "p50_us": _quantile(durations, 0.50) / 1e3,
            "p99_us": _quantile(durations, 0.99) / 1e3,
        }

    async def _calls(self, seconds: float) -> Result:
        (connection,) = self._connections
        clock = time.perf_counter
        count = 0
        started = last = clock()
        deadline = started + seconds

        async def lane() -> None:
            nonlocal count, last
            while clock() < deadline:
                await _checked_call(connection)
                count += 1
                last = clock()

        lanes = [asyncio.create_task(lane()) for _ in range(self._scenario.in_flight)]
        done, stuck = await asyncio.wait(lanes, timeout=seconds + _GRACE_S)
        for task in stuck:  # a lost datagram of a stack that does not repeat it
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        for task in done:
            task.result()
        return {"count": count, "elapsed": last - started, "unanswered": len(stuck)}

    async def _handshakes(self, seconds: float) -> Result:
        count = 0
        started = time.perf_counter()
        while (now := time.perf_counter()) < started + seconds:
            connection = await self._client.connect(self._port)
            await _checked_call(connection)
            await connection.close()
            count += 1
        return {"count": count, "elapsed": now - started}

    async def _bulk_down(self, size: int) -> Result:
        (connection,) = self._connections
        started = time.perf_counter()
        count = await connection.receive_bulk(size)
        if count != size:
            raise RuntimeError(f"asked for {size} bytes, got {count}")
        return {"count": count, "elapsed": time.perf_counter() - started}

    async def _one_way(self, amount: int) -> Result:
        (connection,) = self._connections
        started = time.monotonic_ns()
        match self._scenario.name:
            case "events":
                await _bursts(connection.emit, _MESSAGE, amount)
            case "realtime":
                await _bursts(connection.send_frame, _FRAME, amount)
            case "bulk-up":
                await connection.send_bulk(amount)
        return {"count": amount, "started_ns": started}

    def _on_frame(self, frame: bytes) -> None:
        due = int.from_bytes(frame[:8], "big")
        self._late_ns.append(time.monotonic_ns() - due)


async def _checked_call(connection: Connection) -> None:
    if await connection.call(_MESSAGE) != _MESSAGE:
        raise RuntimeError("the answer is not the echo of the call")


async def _bursts(send: Callable[[bytes], Awaitable[None]], payload: bytes, amount: int) -> None:
    for i in range(amount):
        await send(payload)
        if i % _BURST == _BURST - 1:
            await asyncio.sleep(0)


def _quantile(ordered: list[int], q: float) -> float:
    return float(ordered[min(int(q * len(ordered)), len(ordered) - 1)]) if ordered else 0.0
