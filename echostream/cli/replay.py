"""``echostream replay TRACE.csv``: what the jitter buffer makes of a recorded network."""

from __future__ import annotations

import argparse
import json
import sys

from echostream.errors import ConfigurationError
from echostream.media.jitter import PROFILES
from echostream.media.lab.plot import plot_run
from echostream.media.lab.policies import POLICIES, run_policy
from echostream.media.lab.replay import replay
from echostream.media.lab.result import Summary
from echostream.media.lab.trace_file import read_trace, write_packets

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the subcommand."""
    parser.description = (
        "Play a recorded trace through the jitter buffer that streams use, and report delay and "
        "losses beside the smallest fixed delay that would have done (B0)."
    )
    parser.add_argument(
        "trace", metavar="TRACE.csv", help="sequence_number,send_ms,arrival_ms; empty: lost"
    )
    parser.add_argument(
        "--frame-ms", type=float, metavar="MS", help="audio in a packet (default: from send times)"
    )
    parser.add_argument(
        "--late", type=float, default=0.01, metavar="SHARE", help="wanted late share (0.01)"
    )
    parser.add_argument("--profile", choices=sorted(PROFILES), default="voice")
    parser.add_argument(
        "--policy",
        choices=list(POLICIES),
        default="echostream",
        help="another project's delay policy, simulated packet by packet",
    )
    parser.add_argument("--packets", metavar="OUT.csv", help="write what became of every packet")
    parser.add_argument("--plot", metavar="OUT.png", help="draw delays and playout (matplotlib)")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run it; 0, or 2 after one line about what was wrong with the input."""
    try:
        trace = read_trace(args.trace, frame_ms=args.frame_ms)
        if args.policy == "echostream":
            result = replay(trace, late=args.late, profile=args.profile)
        elif not 0.0001 <= args.late <= 0.5:
            raise ConfigurationError(f"--late is a share from 0.0001 to 0.5, not {args.late}")
        else:
            result = run_policy(args.policy, trace, late=args.late)
        if args.packets:
            try:
                write_packets(args.packets, result)
            except OSError as error:
                raise ConfigurationError(
                    f"{args.packets}: cannot be written: {error.strerror}"
                ) from error
        if args.plot:
            plot_run(args.plot, result)
    except ConfigurationError as error:
        print(f"echostream replay: {error}", file=sys.stderr)
        return 2
    summary = result.summary()
    if args.json:
        facts = {"trace": trace.name, "policy": result.policy, "late_wanted": args.late}
        print(json.dumps(facts | summary.as_dict()))
    else:
        print(_text(result.policy, summary))
    return 0


def _text(policy: str, s: Summary) -> str:
    rows = [
        ("policy", policy),
        ("packets", f"{s.packets}"),
        ("lost", f"{s.lost}"),
        ("duplicate", f"{s.duplicate}"),
        ("late", f"{s.late}"),
        ("late_rate", f"{100 * s.late_rate:.3f} %"),
        ("mean delay", f"{s.mean_delay_ms:.2f} ms"),
        ("p95 delay", f"{s.p95_delay_ms:.2f} ms"),
        ("p99 delay", f"{s.p99_delay_ms:.2f} ms"),
        ("concealed", f"{s.concealed_ms:.0f} ms"),
        ("concealment events", f"{s.concealment_events}"),
        ("stretch ratio", f"{s.stretch_ratio:.5f}"),
        ("B0", f"{s.b0_ms:.2f} ms"),
        ("mean / B0", f"{s.ratio_to_b0:.3f}"),
    ]
    return "\n".join(f"{name:<20}{value:>16}" for name, value in rows)
