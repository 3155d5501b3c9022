"""Traces as CSV: ``sequence_number,send_ms,arrival_ms``, an empty arrival is a lost packet."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from echostream.errors import ConfigurationError
from echostream.media.lab.result import Outcome, Result
from echostream.media.lab.traces import LOST, Trace

__all__ = ["read_trace", "write_packets", "write_trace"]

HEADER = ["sequence_number", "send_ms", "arrival_ms"]
LONGEST_MS = 1e9  # 11 days: what is beyond is a mistake of unit


def read_trace(path: str | Path, *, frame_ms: float | None = None) -> Trace:
    """Read a trace. The frame is ``frame_ms``, or the commonest distance of two send times.

    Packets are in the order of their send times; a repeated sequence number with the same send
    time is a duplicate. Raises :class:`ConfigurationError` that names file, line and expectation.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_rows(path, csv.reader(file)))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: is not a CSV text file: {error}") from error
    if not any(arrival is not None for _, _, arrival in rows):
        raise ConfigurationError(f"{path}: has no packet that arrived; expected at least one")
    send = np.array([row[1] for row in rows])
    arrival = np.array([math.nan if row[2] is None else row[2] for row in rows])
    steps = np.round(np.diff(np.unique(send)), 3)
    if frame_ms is None:
        values, counts = np.unique(steps, return_counts=True)
        frame_ms = float(values[np.argmax(counts)]) if len(values) else 20.0
    if not 0.1 <= frame_ms <= 1000.0:
        raise ConfigurationError(
            f"{path}: frames of {frame_ms:g} ms; expected 0.1 to 1000 ms (send times are in ms; "
            f"--frame-ms sets the frame)"
        )
    lost = np.isnan(arrival)
    return Trace(
        name=path.stem,
        sequence_number=np.array([row[0] for row in rows], dtype=np.int64),
        send_ns=np.rint(send * 1e6).astype(np.int64),
        arrival_ns=np.where(lost, LOST, np.rint(np.where(lost, 0, arrival) * 1e6)).astype(np.int64),
        frame_ns=round(frame_ms * 1e6),
        description=str(path),
    )


def _rows(path: Path, lines: Iterable[list[str]]) -> Iterable[tuple[int, float, float | None]]:
    before = -math.inf
    for number, fields in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if number == 1:
            if [field.strip() for field in fields] != HEADER:
                raise ConfigurationError(f"{where}: expected the header {','.join(HEADER)}")
            continue
        if not fields:
            continue
        if len(fields) != 3:
            raise ConfigurationError(f"{where}: expected 3 fields, found {len(fields)}")
        try:
            sequence = int(fields[0])
        except ValueError:
            raise ConfigurationError(
                f"{where}: expected a whole sequence_number, found {fields[0]!r}"
            ) from None
        if not 0 <= sequence < 2**62:
            raise ConfigurationError(f"{where}: expected a sequence_number from 0 on")
        send = _time(where, "send_ms", fields[1])
        if send < before:
            raise ConfigurationError(
                f"{where}: expected rows in the order of send_ms, found {send:g} after {before:g}"
            )
        before = send
        yield sequence, send, _time(where, "arrival_ms", fields[2]) if fields[2].strip() else None


def _time(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= LONGEST_MS:
        raise ConfigurationError(
            f"{where}: expected {name} in milliseconds, from 0 to {LONGEST_MS:.0f}, found {text!r}"
        )
    return value


def write_trace(path: str | Path, trace: Trace) -> None:
    """Write a trace as :func:`read_trace` reads it."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(HEADER)
        for sequence, send, arrival in zip(
            trace.sequence_number.tolist(),
            trace.send_ns.tolist(),
            trace.arrival_ns.tolist(),
            strict=True,
        ):
            out.writerow([sequence, _ms(send), "" if arrival == LOST else _ms(arrival)])


def write_packets(path: str | Path, result: Result) -> None:
    """One row for each row of the trace: when it was played, or why not."""
    trace = result.trace
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow([*HEADER, "playout_ms", "outcome"])
        for sequence, send, arrival, playout, outcome in zip(
            trace.sequence_number.tolist(),
            trace.send_ns.tolist(),
            trace.arrival_ns.tolist(),
            result.playout_ns.tolist(),
            result.outcome.tolist(),
            strict=True,
        ):
            out.writerow(
                [
                    sequence,
                    _ms(send),
                    "" if arrival == LOST else _ms(arrival),
                    "" if math.isnan(playout) else f"{playout / 1e6:.6f}",
                    Outcome(outcome).name.lower(),
                ]
            )


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.6f}".rstrip("0").rstrip(".")
