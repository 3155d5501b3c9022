"""``python -m bench.harness``: choose, run, print, write."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import shlex
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.harness.machine import machine_facts
from bench.harness.measure import Plan
from bench.harness.plot import draw
from bench.harness.registry import CONTENDERS
from bench.harness.report import Report, summarize, write_between_markers
from bench.harness.run import Cell, run
from bench.harness.scenarios import SCENARIOS

__all__ = ["main"]

_DEFAULT_REFERENCES = "udp,aioquic,grpc"
_SMOKE = {
    "rounds": 1,
    "seconds": 0.03,
    "listeners": 2,
    "idle_connections": 3,
    "fan_out_seconds": 0.06,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report. Returns 1 when anything that takes part failed, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'echostream[plot]'")
    missing = {
        name: why for name in options.contenders if (why := CONTENDERS[name].missing()) is not None
    }
    for name, why in missing.items():
        _note(f"{name} does not take part: {why}")
    plan = Plan(
        [CONTENDERS[name] for name in options.contenders if name not in missing],
        [SCENARIOS[name] for name in options.scenarios],
        **(
            _SMOKE
            if options.smoke
            else {
                "rounds": options.rounds,
                "seconds": options.seconds,
                "listeners": options.listeners,
                "idle_connections": options.idle_connections,
            }
        ),
    )
    facts = machine_facts()
    try:
        cells, failures = asyncio.run(_run_until_signalled(plan))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _note("stopped")
        return 130
    for failure in failures:
        _note(f"failed: {failure}")
    command = shlex.join(["python", "-m", "bench.harness", *arguments])
    report = Report(command, facts, cells, options.references, missing, failures)
    if options.json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        print(report.as_markdown(), end="")
    if options.write is not None:
        write_between_markers(options.write, report.as_markdown())
    if options.plot is not None:
        draw(summarize(cells, options.references), options.plot)
    return 1 if failures else 0


async def _run_until_signalled(plan: Plan) -> tuple[list[Cell], list[str]]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(plan, _note)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.harness", description=__doc__)
    parser.add_argument(
        "--contenders",
        type=lambda text: _names(text, CONTENDERS),
        default=list(CONTENDERS),
        metavar="NAME,...",
        help=f"of {', '.join(CONTENDERS)}",
    )
    parser.add_argument(
        "--scenarios",
        type=lambda text: _names(text, SCENARIOS),
        default=list(SCENARIOS),
        metavar="NAME,...",
        help=f"of {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--references",
        type=lambda text: _names(text, CONTENDERS),
        default=_DEFAULT_REFERENCES.split(","),
        metavar="NAME,...",
        help=f"what ratios are taken to ({_DEFAULT_REFERENCES})",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="aim for one measurement")
    parser.add_argument("--listeners", type=int, default=40, help="of the fan-out")
    parser.add_argument("--idle-connections", type=int, default=40, help="to weigh")
    parser.add_argument("--smoke", action="store_true", help="everything once, very short")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table between the markers of FILE"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table as well")
    return parser


def _names(text: str, known: Collection[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no {name!r}; known: {', '.join(known)}")
    return names


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
