"""The jitter buffer's figures on all traces, beside bounds and other policies.

    python bench/lab_jitter.py [--out bench] [--quick]

Writes ``jitter.md`` (the tables) and ``jitter-*.png`` (late-versus-delay curves) into ``--out``.
Recorded traces are read from beside the project and left out where they are absent.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from echostream.media.lab.bounds import fixed_bound, segment_bound, trajectory_bound
from echostream.media.lab.plot import plot_curves
from echostream.media.lab.policies import (
    POLICIES,
    EchoStream,
    Fixed,
    JackTrip,
    NetEq,
    Roc,
    Speex,
    run_policy,
)
from echostream.media.lab.replay import replay
from echostream.media.lab.result import Outcome, Summary
from echostream.media.lab.simulate import Policy, simulate, simulate_prefetch
from echostream.media.lab.trace_file import read_trace
from echostream.media.lab.traces import SYNTHETIC, Trace, synthetic

RECORDED = Path(__file__).parents[1].parent / "shared" / "data" / "traces"
LATES = (0.001, 0.003, 0.01, 0.03)
WITH_B2 = ("T1", "T3")
ASKED_SAVING = 25
"""Percent of NetEq's mean delay."""
QUANTILES = (0.01, 0.3, 0.7, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98)
"""Of NetEq: close together, because its delay is anything but a straight line between them."""

KNOBS: dict[str, tuple[Callable[[float], Policy], tuple[float, ...]]] = {
    "echostream": (EchoStream, LATES),
    "fixed": (Fixed, (20, 40, 60, 100, 200, 400, 800, 1200)),
    "neteq, waits": (lambda q: NetEq(q), QUANTILES),
    "neteq, by the clock": (lambda q: NetEq(q, holds=False), QUANTILES),
    "speex": (Speex, (0.25, 1.0, 4.0)),
    "roc": (Roc, (0.6, 1.2, 2.0)),
    "jacktrip": (JackTrip, (-20.0, -10.0, 0.0, 20.0)),
}

Points = list[tuple[float, float, float]]


def measure(trace: Trace) -> dict[str, Points]:
    """(share of late packets, mean delay, concealed ms) of every policy and setting."""
    curves: dict[str, Points] = {}
    for name, (make, knobs) in KNOBS.items():
        for knob in knobs:
            s = simulate(trace, make(knob)).summary()
            curves.setdefault(name, []).append(point(s))
    s = simulate_prefetch(trace).summary()
    curves["aiortc"] = [point(s)]
    return curves


def point(s: Summary) -> tuple[float, float, float]:
    return s.late_rate, s.mean_delay_ms, s.concealed_ms


def delay_at(points: Points, value: float, column: int) -> float:
    """Delay of a curve where ``column`` (0 late, 2 concealed) has this value; NaN outside it.

    Linear in the logarithm between neighbours, as the curves are nearly straight there.
    """
    rows = sorted((math.log(max(p[column], 1e-6)), p[1]) for p in points)
    at = math.log(max(value, 1e-6))
    if len(rows) < 2 or not rows[0][0] <= at <= rows[-1][0]:
        return math.nan
    return float(np.interp(at, [row[0] for row in rows], [row[1] for row in rows]))


def beaten_by(ours: tuple[float, float, float], trace: Trace) -> tuple[str, str]:
    """Policies with their published setting and no more delay that are better by late packets,
    and those that are better by concealed time."""
    fewer, less = [], []
    for name in POLICIES:
        if name != "echostream":
            late, delay, concealed = point(run_policy(name, trace).summary())
            if late <= ours[0] and delay <= ours[1]:
                fewer.append(name)
            if concealed <= ours[2] and delay <= ours[1]:
                less.append(name)
    return ", ".join(fewer) or "none", ", ".join(less) or "none"


def route_change(trace: Trace) -> str:
    result = replay(trace)
    bound = segment_bound(trace, 0.01)
    seconds = trace.send_ns / 1e9
    low, high = (change / 1e9 for change in trace.changes_ns)
    before, between = seconds < low, (seconds >= low + 3) & (seconds < high)
    after = seconds >= high + 10
    delay, played = result.delay_ns(), result.outcome == Outcome.PLAYED
    parts = [
        f"{np.mean(delay[part & played]) / 1e6:.2f} / {b / 1e6:.2f} ms"
        for part, b in zip((before, between, after), bound, strict=True)
    ]
    settled = before | between | after
    level = np.select([before, between, after], bound)
    ratio = np.mean(delay[settled & played]) / np.mean(level[settled])
    return f"{', '.join(parts)}; ratio {ratio:.3f}"


def seeds_table(packets: int) -> list[str]:
    """T1 and T11 on several seeds, beside NetEq as it is published and what no policy can beat."""
    lines = [
        "",
        "## T1 and T11 on other seeds",
        "",
        "NetEq with its published settings, as it plays by default. Savings are shares of its mean "
        "delay: `B0 saves` is the exact bound at 1 % late, `ours` the buffer asked for 1 %. T1's "
        "delays are independent draws, and the share of late packets is a convex function of the "
        "delay in the tail; therefore a delay that moves costs more than one that stands still, "
        "and no causal policy is below B0 on average: what B0 does not save at 1 % late, nobody "
        "can. NetEq cannot be set to 1 %: its steps are 20 ms, and on T1 less than one packet in "
        "a thousand is late at its lowest setting. `same late`: what B0 at *NetEq's own* late "
        "rate would save. How much there is to save depends on how the sender's packets fall on "
        "NetEq's ticks of 10 ms, so that it differs from seed to seed.",
        "",
        "| trace | seed | NetEq late % | NetEq delay | B0 | ours late % | ours delay "
        "| B0 saves % | ours saves % | same late % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for name in ("T1", "T11"):
        saved = []
        for seed in range(1, 9):
            trace = synthetic(name, seed=seed, packets=packets // 2)
            late, theirs, _ = point(simulate(trace, NetEq(0.95)).summary())
            rate, ours, _ = point(simulate(trace, EchoStream(0.01)).summary())
            bound, same = fixed_bound(trace, 0.01) / 1e6, fixed_bound(trace, late) / 1e6
            saved.append((100 * (1 - bound / theirs), 100 * (1 - ours / theirs)))
            lines.append(
                f"| {name} | {seed} | {100 * late:.3f} | {theirs:.2f} | {bound:.2f} "
                f"| {100 * rate:.2f} | {ours:.2f} | {saved[-1][0]:.1f} | {saved[-1][1]:.1f} "
                f"| {100 * (1 - same / theirs):.1f} |"
            )
        possible, ours = np.mean(saved, axis=0)
        lines.append(f"| {name} | mean | | | | | | {possible:.1f} | {ours:.1f} | |")
        verdicts.append(verdict(name, saved))
    lines += ["", *verdicts]
    return lines


def verdict(name: str, saved: list[tuple[float, float]]) -> str:
    """In words: on which seeds the buffer saves what was asked, and what B0 does on the others."""
    reached = sum(ours >= ASKED_SAVING for _, ours in saved)
    text = f"{name}: {ASKED_SAVING} % less than NetEq on {reached} of {len(saved)} seeds."
    for seed, (possible, ours) in enumerate(saved, 1):
        if ours < ASKED_SAVING:
            text += f" Seed {seed}: {ours:.1f} %, where B0 saves {possible:.1f} %."
    return text


def number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--quick", action="store_true", help="3000 packets, no pictures")
    options = parser.parse_args()
    packets = 3000 if options.quick else 30_000
    traces = [synthetic(name, packets=packets) for name in SYNTHETIC]
    traces += [read_trace(path) for path in sorted(RECORDED.glob("*.csv"))]
    lines = [
        "# Jitter buffer: measured",
        "",
        f"Written by `python bench/lab_jitter.py`; {packets} packets of 20 ms, seed 1. Delays are "
        "means in ms above the trace's smallest network delay, 1 % late asked for.",
        "",
        "## The buffer, sample by sample",
        "",
        "| trace | late % | delay | B0 | delay / B0 | p99 | concealed ms | events | stretched |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trace in traces:
        s = replay(trace).summary()
        lines.append(
            f"| {trace.name} | {100 * s.late_rate:.2f} | {s.mean_delay_ms:.2f} | {s.b0_ms:.2f} "
            f"| {s.ratio_to_b0:.3f} | {s.p99_delay_ms:.1f} | {s.concealed_ms:.0f} "
            f"| {s.concealment_events} | {s.stretch_ratio:.4f} |"
        )
    if not options.quick:
        t5 = next(trace for trace in traces if trace.name == "T5")
        lines += ["", f"T5, settled delay / B0seg: {route_change(t5)}.", ""]
        for trace in traces:
            if trace.name in WITH_B2:
                part = synthetic(trace.name, packets=3000)
                lower, upper = trajectory_bound(part, 0.01)
                fixed = fixed_bound(part, 0.01) / 1e6
                lines.append(
                    f"{trace.name}, first 3000 packets: B2 (clairvoyant, slope 0.1) from "
                    f"{lower / 1e6:.2f} to {upper / 1e6:.2f} ms, B0 {fixed:.2f} ms."
                )
    lines += [
        "",
        "## Against other policies, packet by packet",
        "",
        "NetEq at our late rate: `by the clock` plays on over an empty buffer as we do; `waits` is "
        "its own way, in which a stall of any length is one late packet, so that it is compared "
        "at equal concealed time. `-`: the policy cannot be set to that. `lowest`: its least "
        "delay over all settings. Speex and JackTrip go back by leaving packets out: late ones. "
        "`beaten by`: published settings with less delay *and* fewer late "
        "packets, or less concealed time.",
        "",
        "| trace | late % | delay | NetEq by the clock | NetEq waits | NetEq lowest "
        "| beaten by (late) | beaten by (concealed) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for trace in traces:
        curves = measure(trace)
        ours = next(p for late, p in zip(LATES, curves["echostream"], strict=True) if late == 0.01)
        fewer, less = beaten_by(ours, trace)
        clock, waits = curves["neteq, by the clock"], curves["neteq, waits"]
        lines.append(
            f"| {trace.name} | {100 * ours[0]:.2f} | {ours[1]:.2f} "
            f"| {number(delay_at(clock, ours[0], 0))} | {number(delay_at(waits, ours[2], 2))} "
            f"| {min(p[1] for p in clock + waits):.2f} "
            f"| {fewer} | {less} |"
        )
        if not options.quick:
            plot_curves(
                options.out / f"jitter-{trace.name}.png",
                f"{trace.name}: {trace.description or 'recorded'}",
                {name: [(p[0], p[1]) for p in points] for name, points in curves.items()},
            )
        print(lines[-1], flush=True)
    lines += seeds_table(packets)
    (options.out / "jitter.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
