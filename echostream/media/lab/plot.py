"""Pictures of a run and of late-versus-delay curves. matplotlib is loaded when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.lab.result import Outcome, Result

__all__ = ["plot_curves", "plot_run"]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigurationError("plots need matplotlib: pip install matplotlib") from error
    return pyplot, pyplot.subplots(figsize=(width, height), constrained_layout=True)


def plot_run(path: str | Path, result: Result) -> None:
    """Network delay of every packet, and the playout point over them."""
    pyplot, (figure, axes) = _figure(11.0, 4.5)
    trace = result.trace
    seconds = trace.send_ns / 1e9
    network = trace.network_delay_ns() / 1e6
    late = result.outcome == Outcome.LATE
    axes.plot(seconds, network, ".", markersize=2, color="0.6", label="network delay")
    axes.plot(seconds[late], network[late], ".", markersize=4, color="tab:red", label="late")
    axes.plot(seconds, result.delay_ns() / 1e6, color="tab:blue", linewidth=1, label="playout")
    axes.set(xlabel="sent (s)", ylabel="ms above the smallest", title=trace.name)
    axes.legend()
    _save(pyplot, figure, path)


def plot_curves(
    path: str | Path, title: str, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Mean delay (ms) against the share of late packets, a line for each policy."""
    pyplot, (figure, axes) = _figure(7.0, 5.0)
    for name, points in curves.items():
        late = [max(100.0 * point[0], 1e-3) for point in points]
        axes.plot(late, [point[1] for point in points], "o-", markersize=3, label=name)
    axes.set(xscale="log", xlabel="late (%)", ylabel="mean playout delay (ms)", title=title)
    top = float(np.median([delay for points in curves.values() for _, delay in points])) * 4
    axes.set_ylim(0, top)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(pyplot, figure, path)


def _save(pyplot: Any, figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: the plot cannot be written: {error}") from error
    finally:
        pyplot.close(figure)
