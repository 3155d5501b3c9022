"""What is measured, in which unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FRAME_INTERVAL_S", "FRAME_SIZE", "MESSAGE_SIZE", "SCENARIOS", "Kind", "Scenario"]

MESSAGE_SIZE = 64
FRAME_SIZE = 160
FRAME_INTERVAL_S = 0.020

Kind = Literal["serial", "calls", "handshakes", "bulk-down", "counted", "fan-out", "memory"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row group of the table.

    ``kind`` says how it is run: ``counted`` is sent by the client and counted at the server,
    the first four are timed in the client, the last two have a procedure of their own.
    ``warm_up`` is the first amount (messages, bytes or frames) of a scenario that is given by
    amount, and ``limit`` the largest; the amount is set by the rate that the warm-up showed.
    ``scale`` turns a rate into ``unit``; ``lossy`` says that not all need to arrive.
    """

    name: str
    what: str
    unit: str
    kind: Kind
    higher_is_better: bool = True
    in_flight: int = 1
    warm_up: int = 0
    limit: int = 0
    scale: float = 1.0
    cpu_per: str = "call"
    lossy: bool = False

    def amount(self, wanted: float) -> int:
        """``wanted`` within the bounds of a scenario that is given by amount."""
        return min(max(int(wanted), self.warm_up), self.limit)


_MB = 1_000_000

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("serial", "one call after the other, 64 B, p50", "us", "serial", False),
        *(
            Scenario(f"calls-{n}", f"{n} calls in flight, 64 B", "calls/s", "calls", in_flight=n)
            for n in (16, 64, 256)
        ),
        Scenario(
            "events",
            "one-way messages, 64 B, counted at the server",
            "events/s",
            "counted",
            warm_up=500,
            limit=400_000,
            cpu_per="event",
        ),
        Scenario(
            "bulk-up",
            "one stream to the server",
            "MB/s",
            "counted",
            warm_up=_MB,
            limit=256 * _MB,
            scale=1 / _MB,
            cpu_per="MB",
        ),
        Scenario(
            "bulk-down",
            "one stream from the server",
            "MB/s",
            "bulk-down",
            warm_up=_MB,
            limit=256 * _MB,
            scale=1 / _MB,
            cpu_per="MB",
        ),
        Scenario(
            "realtime",
            "160 B datagrams as fast as they are taken, counted at the server",
            "frames/s",
            "counted",
            warm_up=300,
            limit=200_000,
            cpu_per="frame",
            lossy=True,
        ),
        Scenario(
            "handshakes",
            "connect, one call, close, one after the other",
            "1/s",
            "handshakes",
            cpu_per="handshake",
        ),
        Scenario(
            "fan-out",
            "160 B every 20 ms to each listener: server CPU per listener",
            "% of a core",
            "fan-out",
            False,
        ),
        Scenario(
            "memory", "server memory per idle connection", "KiB", "memory", higher_is_better=False
        ),
    )
}
