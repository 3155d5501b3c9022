"""One measurement with the two processes of one contender."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.harness.load import Result
from bench.harness.processes import ChildFailed, Pair
from bench.harness.registry import Contender
from bench.harness.scenarios import Scenario

__all__ = ["Figures", "Plan", "measure_fan_out", "measure_memory", "measure_rate"]

_LOSSLESS_QUIET_S = 3.0
_LOSSY_QUIET_S = 0.3
_ALSO = ("p99_us", "unanswered")
_FIRST_CONNECTIONS = 2
"""Opened before the first memory reading, so that what is made once does not count."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. ``seconds`` is the aim for one measurement, after a warm-up of
    ``warm_up_share`` of it."""

    contenders: Sequence[Contender]
    scenarios: Sequence[Scenario]
    rounds: int = 5
    seconds: float = 0.5
    listeners: int = 40
    idle_connections: int = 40
    warm_up_share: float = 0.3
    fan_out_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Figures:
    """``value`` is in the scenario's unit, ``server_cpu_us`` and ``client_cpu_us`` are per
    ``cpu_per`` of the scenario, ``more`` has what else was seen, by name."""

    value: float
    server_cpu_us: float | None = None
    client_cpu_us: float | None = None
    more: dict[str, float] = field(default_factory=dict)


async def measure_rate(plan: Plan, scenario: Scenario, pair: Pair) -> Figures:
    """Everything that is so many per second, and the serial round trip."""
    connections = 0 if scenario.kind == "handshakes" else 1
    await pair.client.ask(
        "prepare", scenario=scenario.name, port=pair.port, connections=connections
    )
    amount: float = plan.seconds * plan.warm_up_share
    if scenario.warm_up:
        first = await _once(scenario, pair, scenario.warm_up)
        second = await _once(scenario, pair, scenario.amount(first["rate"] * amount))
        amount = scenario.amount(second["rate"] * plan.seconds)
    else:
        await _once(scenario, pair, amount)
        amount = plan.seconds
    await _ask_both(pair, "settle")
    before = await _ask_both(pair, "usage")
    result = await _once(scenario, pair, amount)
    after = await _ask_both(pair, "usage")
    await pair.client.ask("finish")
    units = max(result["received"] * scenario.scale, 1e-9)
    more = {name: value for name, value in result.items() if name in _ALSO}
    if scenario.lossy:
        more["delivered_percent"] = 100 * result["received"] / result["count"]
    return Figures(
        result["p50_us"] if scenario.kind == "serial" else result["rate"] * scenario.scale,
        1e6 * (after[0]["cpu"] - before[0]["cpu"]) / units,
        1e6 * (after[1]["cpu"] - before[1]["cpu"]) / units,
        more,
    )


async def measure_fan_out(plan: Plan, scenario: Scenario, pair: Pair) -> Figures:
    """Many listeners in the client process; what one of them costs the server."""
    await pair.client.ask(
        "prepare", scenario=scenario.name, port=pair.port, connections=plan.listeners
    )
    await pair.server.ask("broadcast", seconds=plan.seconds * plan.warm_up_share)
    await _ask_both(pair, "settle")
    await pair.client.ask("collect")
    before = await pair.client.ask("usage")
    sent = await pair.server.ask("broadcast", seconds=plan.fan_out_seconds)
    after = await pair.client.ask("usage")
    await asyncio.sleep(_LOSSY_QUIET_S)
    heard = await pair.client.ask("collect")
    await pair.client.ask("finish")
    if not heard["count"]:
        raise ChildFailed(f"{pair.server.name}: no listener heard anything")
    per_listener = 100 / sent["elapsed"] / plan.listeners
    return Figures(
        sent["cpu"] * per_listener,
        more={
            "client_percent": (after["cpu"] - before["cpu"]) * per_listener,
            "late_p50_ms": heard["late_p50_ms"],
            "late_p99_ms": heard["late_p99_ms"],
            "delivered_percent": 100 * heard["count"] / sent["sent"],
        },
    )


async def measure_memory(plan: Plan, scenario: Scenario, pair: Pair) -> Figures:
    """Growth of both processes per connection that was opened, called on once, and left idle.

    ``pair`` is to be a fresh one."""
    readings = []
    for connections in (_FIRST_CONNECTIONS, plan.idle_connections):
        await pair.client.ask(
            "prepare", scenario=scenario.name, port=pair.port, connections=connections
        )
        readings.append(await _ask_both(pair, "settle"))
    await pair.client.ask("finish")
    server, client = (
        (now["resident"] - then["resident"]) / 1024 / plan.idle_connections
        for then, now in zip(*readings, strict=True)
    )
    return Figures(server, more={"client_kib": client})


async def _once(scenario: Scenario, pair: Pair, amount: float) -> Result:
    """One run of the load. Adds ``received`` (what arrived) and ``rate`` (per second)."""
    if scenario.kind != "counted":
        result = await pair.client.ask("measure", amount=amount)
        result["received"] = result["count"]
        result["rate"] = result["count"] / max(result["elapsed"], 1e-9)
        return result
    await pair.server.ask("reset")
    result = await pair.client.ask("measure", amount=amount)
    quiet = _LOSSY_QUIET_S if scenario.lossy else _LOSSLESS_QUIET_S
    received = await pair.server.ask("received", count=result["count"], quiet=quiet)
    if not received["count"] or (received["count"] != result["count"] and not scenario.lossy):
        raise ChildFailed(f"{pair.server.name}: {received['count']} of {result['count']} arrived")
    elapsed = (received["last_ns"] - result["started_ns"]) / 1e9
    return result | {"received": received["count"], "rate": received["count"] / elapsed}


async def _ask_both(pair: Pair, op: str) -> tuple[Result, Result]:
    return await pair.server.ask(op), await pair.client.ask(op)
