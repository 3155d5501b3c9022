"""What the demo shows at the end: a table, a picture, and facts for programs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echostream.cli.demo.client import Outcome
from echostream.cli.plot import Series, scatter
from echostream.cli.png import encode_png

__all__ = ["facts", "latency_series", "picture", "table"]

COLOURS = {"reliable": (31, 99, 209), "realtime": (226, 106, 28)}


def facts(outcome: Outcome) -> dict[str, Any]:
    """The figures of one delivery. Latencies in ms; a missing one is ``None``."""
    received = outcome.received
    frame_ms = (received.arrived_ns - received.captured_ns) / 1e6
    return {
        "delivery": outcome.delivery,
        "frames_sent": outcome.packets_sent,
        "frames_received": received.frames,
        "bytes_received": received.bytes,
        "lost": received.lost,
        "late": received.late,
        "frame_p50_ms": _quantile(frame_ms, 0.50),
        "frame_p99_ms": _quantile(frame_ms, 0.99),
        "calls_to_server": len(outcome.called_ns),
        "call_p50_ms": _quantile(outcome.called_ns / 1e6, 0.50),
        "call_p99_ms": _quantile(outcome.called_ns / 1e6, 0.99),
        "calls_to_client": len(received.asked_ns),
        "call_back_p50_ms": _quantile(received.asked_ns / 1e6, 0.50),
        "call_back_p99_ms": _quantile(received.asked_ns / 1e6, 0.99),
        "events_emitted": received.events,
        "events_received": outcome.events,
        "sha256": received.sha256,
    }


_ROWS = [
    ("frames sent", "frames_sent"),
    ("frames received", "frames_received"),
    ("bytes received", "bytes_received"),
    ("lost", "lost"),
    ("late", "late"),
    ("one way, p50", "frame_p50_ms"),
    ("one way, p99", "frame_p99_ms"),
    ("calls to the server", "calls_to_server"),
    ("round trip, p50", "call_p50_ms"),
    ("round trip, p99", "call_p99_ms"),
    ("calls to the client", "calls_to_client"),
    ("round trip, p50", "call_back_p50_ms"),
    ("round trip, p99", "call_back_p99_ms"),
    ("events to the client", "events_received"),
]


def table(columns: list[dict[str, Any]]) -> list[str]:
    """The figures as lines of text, one column per delivery."""
    lines = [f"{'':<22}" + "".join(f"{each['delivery']:>14}" for each in columns)]
    for label, key in _ROWS:
        inner = f"  {label}" if key.endswith("_ms") else label
        lines.append(f"{inner:<22}" + "".join(f"{_cell(key, each[key]):>14}" for each in columns))
    return lines


def latency_series(outcomes: list[Outcome]) -> list[Series]:
    """Latency of each frame, in ms, over the time in its stream, in s."""
    return [_series(outcome) for outcome in outcomes]


def picture(series: list[Series]) -> bytes:
    """The latency over time as a PNG."""
    labelled = [
        Series(
            f"{each.name}: p50 {_cell('_ms', _quantile(each.y, 0.5))}, "
            f"p99 {_cell('_ms', _quantile(each.y, 0.99))}",
            each.x,
            each.y,
            each.colour,
        )
        for each in series
    ]
    return encode_png(
        scatter(
            labelled,
            title="latency of each frame, one way, over loopback",
            x_label="time since the first frame (s)",
            y_label="ms",
        )
    )


def _series(outcome: Outcome) -> Series:
    captured, arrived = outcome.received.captured_ns, outcome.received.arrived_ns
    first = captured.min() if captured.size else 0
    return Series(
        outcome.delivery,
        (captured - first) / 1e9,
        np.maximum((arrived - captured) / 1e6, 1e-3),
        COLOURS[outcome.delivery],
    )


def _quantile(values: NDArray[np.float64], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 4) if values.size else None


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} ms" if key.endswith("_ms") else f"{value:,}"
