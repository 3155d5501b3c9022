"""``echostream sync-lab``: players in processes of their own, with clocks and sound cards that are
wrong, behind a bad network; what they truly played at one time, against what they promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.builder import ServerBuilder
from echostream.cli.errors import BadInput
from echostream.cli.plot import Series, braille, scatter
from echostream.cli.png import encode_png
from echostream.cli.sync_receiver import BLOCK, GROUP, RATE, WRAP_NS, Skew, ramp, receive
from echostream.contrib.group import Group, Member
from echostream.errors import EchoStreamError
from echostream.media.frame import AudioFormat
from echostream.rpc.session import Session
from echostream.runner import run as run_loop
from echostream.testing import Impairment, UdpRelay
from echostream.transport.identity import Identity

__all__ = ["add_arguments", "run"]

SECOND = 1_000_000_000
GRID_NS = 100_000_000
START_S = 30.0
TRUE, PROMISED = (31, 119, 180), (214, 39, 40)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--receivers", metavar="N", type=int, default=4, help="2 to 16 (4)")
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help="of music (10)")
    parser.add_argument("--delay", metavar="MS", type=float, default=3.0, help="one way (3)")
    parser.add_argument("--jitter", metavar="MS", type=float, default=2.0, help="+- so much (2)")
    parser.add_argument("--loss", metavar="PERCENT", type=float, default=1.0, help="(1)")
    parser.add_argument(
        "--stalls",
        metavar="S",
        type=float,
        default=0.0,
        help="a stall every S seconds, as on Wi-Fi",
    )
    parser.add_argument(
        "--skew", metavar="PPM", type=float, default=50.0, help="of clocks and cards, +- (50)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=1)
    parser.add_argument("--png", metavar="FILE.png", type=Path, help="draw it there, too")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--receiver", nargs=3, metavar="X", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run it and show what came of it; 1 where an error passed its bound."""
    if args.receiver:
        return receive(args.receiver)
    path = _path(args)
    skews = _skews(args.receivers, args.skew, args.seed)
    if not args.json:
        print(
            f"{args.receivers} players, {args.seconds:g} s; the true error between any two of them"
        )
    reports, members = run_loop(_play(skews, path, args.seconds, args.seed))
    apart = Apart(reports)
    if not apart.errors.size:
        raise EchoStreamError("nothing was heard by two players at one time")
    series = apart.series()
    if args.png:
        picture = scatter(series, title="sync-lab", x_label="time (s)", y_label="ms")
        try:
            args.png.write_bytes(encode_png(picture))
        except OSError as exc:
            raise BadInput(f"cannot write {args.png}: {exc.strerror}") from None
    rows = [_facts(skew, m) for skew, m in zip(skews, members, strict=True)]
    if args.json:
        print(json.dumps({"players": rows, "pairs": apart.facts()}))
    else:
        print(*_table(rows), sep="\n")
        print(*["", *braille(series, ascii_only=not _can_show("⠿│")), ""], sep="\n")
        print(*apart.summary(), sep="\n")
    return int(apart.facts()["beyond_bound"] > 0)


class Apart:
    """What the players played at one time, two by two. Times from the first common one, in s;
    errors and bounds in ms."""

    def __init__(self, reports: list[list[tuple[int, float, float]]]) -> None:
        times, errors, bounds = [], [], []
        found = [r for r in map(np.array, reports) if len(r)]
        grid = np.arange(
            max((r[0, 0] for r in found), default=0),
            min((r[-1, 0] for r in found), default=0),
            GRID_NS,
        )
        for one, other in combinations(found, 2):
            for at in grid:
                row, match = (r[np.abs(r[:, 0] - at).argmin()] for r in (one, other))
                if max(abs(row[0] - at), abs(match[0] - at)) > GRID_NS / 2:
                    continue
                apart = (row[1] - match[1] + WRAP_NS / 2) % WRAP_NS - WRAP_NS / 2
                times.append((at - grid[0]) / SECOND)
                errors.append(abs(apart) / 1e6)
                bounds.append((row[2] + match[2]) / 1e6)
        self.times, self.errors, self.bounds = map(np.array, (times, errors, bounds))

    def series(self) -> list[Series]:
        """For a plot."""
        named = (("true error", self.errors, TRUE), ("error bound", self.bounds, PROMISED))
        return [Series(name, self.times, np.maximum(y, 1e-3), colour) for name, y, colour in named]

    def facts(self) -> dict[str, Any]:
        """The figures."""
        settled = self.errors[self.times >= 2.0]
        return {
            "comparisons": self.errors.size,
            "error_p50_ms": _quantile(self.errors, 0.5),
            "error_p99_ms": _quantile(self.errors, 0.99),
            "error_max_ms": _quantile(self.errors, 1.0),
            "error_p99_after_2s_ms": _quantile(settled, 0.99),
            "bound_p50_ms": _quantile(self.bounds, 0.5),
            "beyond_bound": int((self.errors > self.bounds).sum()),
        }

    def summary(self) -> list[str]:
        """The same, to read."""
        seen = self.facts()
        p50, p99, most = (seen[f"error_{name}_ms"] * 1e3 for name in ("p50", "p99", "max"))
        return [
            f"true error: median {p50:.1f} µs, p99 {p99:.1f} µs, most {most:.1f} µs; "
            f"{seen['comparisons']} comparisons",
            f"bound: median {seen['bound_p50_ms'] * 1e3:.0f} µs; "
            f"errors beyond it: {seen['beyond_bound']}",
        ]


def _quantile(values: NDArray[np.float64], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 6) if values.size else None


def _path(args: argparse.Namespace) -> Impairment:
    if not 2 <= args.receivers <= 16:
        raise BadInput(f"--receivers {args.receivers}: give 2 to 16")
    if not 3 <= args.seconds <= 3600:
        raise BadInput(f"--seconds {args.seconds:g}: give 3 to 3600")
    if not 0 <= args.skew <= 400:
        raise BadInput(f"--skew {args.skew:g}: give 0 to 400, the most that can be followed")
    try:
        return Impairment(
            delay=args.delay / 1e3,
            jitter=args.jitter / 1e3,
            loss=args.loss / 1e2,
            stall_every=args.stalls,
        )
    except ValueError as exc:
        raise BadInput(f"this path cannot be: {exc}") from None


def _skews(count: int, ppm: float, seed: int) -> list[Skew]:
    draw, now = random.Random(seed), time.monotonic_ns()
    return [
        Skew(now, draw.randrange(100 * SECOND), *(draw.uniform(-ppm, ppm) / 2 for _ in range(2)))
        for _ in range(count)
    ]


async def _play(
    skews: list[Skew], path: Impairment, seconds: float, seed: int
) -> tuple[list[list[tuple[int, float, float]]], list[Member]]:
    arrivals: asyncio.Queue[Session] = asyncio.Queue()
    builder = ServerBuilder().bind("127.0.0.1:0").identity(Identity.ephemeral())
    async with builder.on_connect(arrivals.put).build() as server:
        relay = await UdpRelay.start(server.address, up=path, down=path, seed=seed)
        processes = []
        members = []
        try:
            async with relay, Group(GROUP, AudioFormat(RATE, 1)) as group:
                for skew in skews:  # one after the other: then it is known who is who
                    words = (str(relay.address[1]), server.fingerprint, json.dumps(asdict(skew)))
                    processes.append(await _start(*words))
                    session = await _arrival(arrivals, processes[-1])
                    members.append(await group.add(session, timeout=START_S))
                await group.start()
                end = group.frame + seconds * RATE
                while group.frame < end:
                    await group.send(ramp(group.frame, 2 * BLOCK))
                await group.refresh()
                for member in members:
                    await group.remove(member.session)
                outputs = [(await process.communicate())[0] for process in processes]
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
    return [json.loads(output or b"[]") for output in outputs], members


async def _start(*words: str) -> asyncio.subprocess.Process:
    package = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    program = (sys.executable, "-m", "echostream.cli", "sync-lab", "--receiver")
    return await asyncio.create_subprocess_exec(
        *program, *words, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": search}
    )


async def _arrival(
    arrivals: asyncio.Queue[Session], process: asyncio.subprocess.Process
) -> Session:
    """The session of a player that was started. Raises ``EchoStreamError`` when it ended."""
    arrival, ended = asyncio.ensure_future(arrivals.get()), asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait((arrival, ended), return_when=asyncio.FIRST_COMPLETED, timeout=START_S)
        if not arrival.done():
            raise EchoStreamError("a player's process did not connect")
        return arrival.result()
    finally:
        arrival.cancel()
        ended.cancel()


def _facts(skew: Skew, member: Member) -> dict[str, Any]:
    report = member.report
    return {
        "clock_ppm": round(skew.clock_ppm, 2),
        "card_ppm": round(skew.card_ppm, 2),
        "measured_card_ppm": round(-report.drift_ppm, 2),
        "bound_ms": round(report.error_bound_ns / 1e6, 6),
        "received": report.received,
        "late": report.late,
        "concealed_ms": round(report.concealed_frames * 1e3 / RATE, 1),
        "jumps": report.jumps,
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["player  clock ppm  card ppm  measured  bound ms  late  concealed ms  jumps"]
    for number, row in enumerate(rows):
        lines.append(
            f"{number:>6}  {row['clock_ppm']:>+9.1f}  {row['card_ppm']:>+8.1f}"
            f"  {row['measured_card_ppm']:>+8.1f}  {row['bound_ms']:>8.3f}  {row['late']:>4}"
            f"  {row['concealed_ms']:>12.0f}  {row['jumps']:>5}"
        )
    return lines


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
