"""``echostream ping``: the way to a server, and its clock, once per interval."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Callable
from typing import TypeAlias

from echostream.builder import ClientBuilder
from echostream.cli.connection import add_connection_arguments, client_builder
from echostream.cli.errors import BadInput
from echostream.client import RpcClient
from echostream.media.clock import ClockSync
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]

Row: TypeAlias = dict[str, float | int | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.description = (
        "Exchange timestamps with a server. offset: its monotonic clock minus this machine's; "
        "bound: how far the offset may be off, guaranteed."
    )
    add_connection_arguments(parser)
    parser.add_argument("--count", metavar="N", type=int, help="end after N lines")
    parser.add_argument(
        "--interval", metavar="S", type=float, default=1.0, help="seconds between two (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Print until Ctrl-C, or ``--count`` lines; 1 when nothing was answered."""
    if args.count is not None and args.count < 1:
        raise BadInput(f"--count {args.count}: give 1 or more")
    if not 0.01 <= args.interval <= 3600:
        raise BadInput(f"--interval {args.interval:g}: give 0.01 to 3600")
    round_trips: list[float] = []
    lines = 0

    def show(row: Row) -> None:
        nonlocal lines
        lines += 1
        rtt = row["rtt_ms"]
        if rtt is not None:
            round_trips.append(rtt)
        print(json.dumps(row) if args.json else _line(row), flush=True)

    try:
        run_loop(_ping(client_builder(args), args, show))
    except KeyboardInterrupt:
        pass  # how it is meant to end
    if lines and not args.json:
        text = f"{len(round_trips)} of {lines} answered"
        if round_trips:
            low, mid, high = min(round_trips), statistics.median(round_trips), max(round_trips)
            text += f"; round trip {low:.3f} / {mid:.3f} / {high:.3f} ms (least, median, most)"
        print(text)
    return 0 if round_trips or not lines else 1


async def _ping(
    builder: ClientBuilder, args: argparse.Namespace, show: Callable[[Row], None]
) -> None:
    async with builder.build() as client:
        clock = client.clock
        await clock.wait_synchronized(timeout=args.timeout)
        number = 0
        while args.count is None or number < args.count:
            if number:
                await asyncio.sleep(args.interval)
            number += 1
            answered = await _exchange(client, min(args.interval, 1.0))
            show(_row(clock, number, answered))


async def _exchange(client: RpcClient, seconds: float) -> bool:
    """Make one exchange and then another, because the first is complete with the second's reply;
    whether that was so."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    wanted = client.clock.statistics().accepted + 2
    while loop.time() < until:
        client._peer.clock.ask()
        await asyncio.sleep(0.02)
        if client.clock.statistics().accepted >= wanted:
            return True
    return False


def _row(clock: ClockSync, number: int, answered: bool) -> Row:
    seen = clock.statistics()
    return {
        "number": number,
        "rtt_ms": round(clock.rtt_ns / 1e6, 6) if answered else None,
        "min_rtt_ms": round(seen.min_rtt_ns / 1e6, 6),
        "offset_ns": seen.offset_ns,
        "drift_ppm": round(seen.drift_ppm, 3),
        "drift_bound_ppm": round(seen.drift_bound_ppm, 3),
        "bound_ms": round(seen.error_bound_ns / 1e6, 6),
        "exchanges": seen.accepted,
    }


def _line(row: Row) -> str:
    rtt, offset = row["rtt_ms"], row["offset_ns"]
    assert offset is not None
    way = f"rtt {rtt:.3f} ms" if rtt is not None else "no answer"
    return (
        f"{row['number']:>4}  {way:<14}  offset {offset / 1e9:+.6f} s  "
        f"drift {row['drift_ppm']:+.2f} ppm  bound {row['bound_ms']:.3f} ms"
    )
