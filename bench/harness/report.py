"""Medians, spreads and ratios of a run; as a table, as JSON, and into a README."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.harness.run import Cell
from bench.harness.scenarios import SCENARIOS

__all__ = ["BEGIN", "END", "Report", "Row", "summarize", "write_between_markers"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

_UNITS = {
    "p99_us": "p99 {:.0f} us",
    "unanswered": "{:.0f} unanswered",
    "delivered_percent": "{:.1f} % delivered",
    "client_percent": "client {:.2f} %",
    "late_p50_ms": "late p50 {:.2f} ms",
    "late_p99_ms": "p99 {:.2f} ms",
    "client_kib": "client {:.0f} KiB",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario: the medians over its rounds.

    ``ratios`` says, by name of the reference, how many times better this row is (above 1:
    better, whichever way the scenario counts): the median of the ratios within one round.
    ``steal`` is the median and the largest, in percent of one core.
    """

    scenario: str
    contender: str
    rounds: int
    median: float
    low: float
    high: float
    server_cpu_us: float | None
    client_cpu_us: float | None
    more: dict[str, float]
    ratios: dict[str, float]
    steal: tuple[float, float] | None


def summarize(cells: Sequence[Cell], references: Sequence[str]) -> list[Row]:
    """One row per scenario and contender, in the order of the cells."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.scenario, cell.contender), []).append(cell)
    rows = []
    for (scenario, contender), group in groups.items():
        values = [cell.figures.value for cell in group]
        steals = [cell.steal for cell in group if cell.steal is not None]
        ratios = {
            reference: _ratio(scenario, group, groups[scenario, reference])
            for reference in references
            if (scenario, reference) in groups
        }
        rows.append(
            Row(
                scenario,
                contender,
                len(group),
                statistics.median(values),
                min(values),
                max(values),
                _median([cell.figures.server_cpu_us for cell in group]),
                _median([cell.figures.client_cpu_us for cell in group]),
                {
                    name: statistics.median(cell.figures.more[name] for cell in group)
                    for name in group[0].figures.more
                },
                {name: ratio for name, ratio in ratios.items() if ratio is not None},
                (statistics.median(steals), max(steals)) if steals else None,
            )
        )
    order = list(SCENARIOS)
    return sorted(rows, key=lambda row: order.index(row.scenario))


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known about one run."""

    command: str
    facts: Mapping[str, str]
    cells: Sequence[Cell]
    references: Sequence[str]
    missing: Mapping[str, str]
    failures: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """For programs: the rows of the table and every measurement below them."""
        return {
            "date": _today(),
            "command": self.command,
            "machine": dict(self.facts),
            "rows": [asdict(row) for row in summarize(self.cells, self.references)],
            "cells": [asdict(cell) for cell in self.cells],
            "missing": dict(self.missing),
            "failures": list(self.failures),
        }

    def as_markdown(self) -> str:
        """For people: one table, and what they must know to read it."""
        references = [
            name for name in self.references if any(c.contender == name for c in self.cells)
        ]
        head = ["scenario", "contender", "median", "min - max", "also"]
        head += ["CPU us server / client"]
        head += [f"x {name}" for name in references]
        head += ["steal % median / max"]
        lines = [_line(head), _line(["---"] * len(head))]
        shown = ""
        for row in summarize(self.cells, references):
            scenario = SCENARIOS[row.scenario]
            title = f"**{row.scenario}**, {scenario.unit}" if row.scenario != shown else ""
            shown = row.scenario
            cpu = "-"
            if row.server_cpu_us is not None and row.client_cpu_us is not None:
                cpu = f"{_number(row.server_cpu_us)} / {_number(row.client_cpu_us)}"
                cpu += f" per {scenario.cpu_per}"
            also = ", ".join(_UNITS[name].format(value) for name, value in row.more.items())
            cells = [title, row.contender, _number(row.median)]
            cells += [f"{_number(row.low)} - {_number(row.high)}", also, cpu]
            cells += [
                f"{row.ratios[name]:.2f}" if name in row.ratios else "-" for name in references
            ]
            cells += [f"{row.steal[0]:.1f} / {row.steal[1]:.1f}" if row.steal else "-"]
            lines.append(_line(cells))
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        text = [f"{_today()}, `{self.command}`  ", f"{facts}", "", *lines, ""]
        for name, scenario in SCENARIOS.items():
            if any(cell.scenario == name for cell in self.cells):
                better = "higher" if scenario.higher_is_better else "lower"
                text.append(f"- *{name}*: {scenario.what} ({scenario.unit}, {better} is better)")
        text += [f"- *{name}* did not take part: {why}" for name, why in self.missing.items()]
        text += [f"- failed: {failure.splitlines()[0]}" for failure in self.failures]
        return "\n".join(text) + "\n"


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the two markers of ``path``; ``ValueError`` without them."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def _ratio(scenario: str, group: Sequence[Cell], reference: Sequence[Cell]) -> float | None:
    theirs = {cell.round: cell.figures.value for cell in reference}
    ratios = []
    for cell in group:
        ours, other = cell.figures.value, theirs.get(cell.round, 0.0)
        if ours > 0 and other > 0:
            better = ours / other
            ratios.append(better if SCENARIOS[scenario].higher_is_better else 1 / better)
    return statistics.median(ratios) if ratios else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _number(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
