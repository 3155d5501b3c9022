"""The table as a picture: one panel per scenario, a bar per contender, whiskers from min to max."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness.report import Row
from bench.harness.scenarios import SCENARIOS

__all__ = ["draw"]

_COLUMNS = 3
_OURS, _FLOOR, _OTHERS = "#c2410c", "#9ca3af", "#4b6a88"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of ``rows`` to ``path``. Needs matplotlib (the ``plot`` extra)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.scenario for row in rows))
    height = -(-len(names) // _COLUMNS)
    figure, axes = pyplot.subplots(
        height, _COLUMNS, figsize=(4.6 * _COLUMNS, 2.6 * height), squeeze=False
    )
    panels = list(axes.flat)
    for panel, name in zip(panels, names, strict=False):
        _panel(panel, name, [row for row in rows if row.scenario == name])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _panel(axes: Any, name: str, rows: Sequence[Row]) -> None:
    scenario = SCENARIOS[name]
    best_last = sorted(rows, key=lambda row: row.median, reverse=not scenario.higher_is_better)
    medians = [row.median for row in best_last]
    spread = [
        [row.median - row.low for row in best_last],
        [row.high - row.median for row in best_last],
    ]
    colours = [{"echostream": _OURS, "udp": _FLOOR}.get(r.contender, _OTHERS) for r in best_last]
    axes.barh(
        [row.contender for row in best_last],
        medians,
        xerr=spread,
        color=colours,
        error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
    )
    better = "more" if scenario.higher_is_better else "less"
    axes.set_title(f"{name} ({scenario.unit}, {better} is better)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, max([*medians, 1e-9]) * 1.35)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
