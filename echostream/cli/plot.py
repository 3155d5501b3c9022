"""Dots over time on a logarithmic scale: as pixels for a PNG, and as braille for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echostream.cli.font import HEIGHT, PITCH, text_mask

__all__ = ["Series", "braille", "scatter"]

WIDTH, HEIGHT_PX = 1000, 480
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 84, 62
SCALE = 2
MAX_DOTS = 4000

WHITE, BLACK, AXIS, GRID = (255, 255, 255), (32, 36, 42), (110, 116, 124), (228, 231, 235)

# An anti-aliased disc: how far each pixel of a 7 x 7 square is covered.
_OFFSETS = np.arange(-3, 4)
_DISC = np.clip(2.7 - np.hypot(*np.meshgrid(_OFFSETS, _OFFSETS)), 0.0, 1.0)

_BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Points of one colour. ``x`` and ``y`` have one length; ``y`` is above 0."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: tuple[int, int, int]


def scatter(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str
) -> NDArray[np.uint8]:
    """The plot as pixels ``(height, width, 3)``, with axes, ticks, grid, labels and a legend."""
    image = np.full((HEIGHT_PX, WIDTH, 3), WHITE, np.float64)
    x_end, (low, high) = _x_end(series), _y_range(series)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT_PX - TOP - BOTTOM

    def column(x: NDArray[np.float64] | float) -> NDArray[np.int64]:
        return np.rint(LEFT + np.asarray(x) / x_end * across).astype(np.int64)

    def row(y: NDArray[np.float64] | float) -> NDArray[np.int64]:
        part = np.log(np.asarray(y) / low) / math.log(high / low)
        return np.rint(TOP + (1.0 - part) * down).astype(np.int64)

    for tick in _log_ticks(low, high):
        at = int(row(tick))
        image[at, LEFT : WIDTH - RIGHT] = GRID
        label = f"{tick:g}"
        _write(image, label, LEFT - 10 - _text_width(label), at - 7, BLACK)
    for tick in _linear_ticks(x_end):
        at = int(column(tick))
        image[TOP : HEIGHT_PX - BOTTOM, at] = GRID
        image[HEIGHT_PX - BOTTOM : HEIGHT_PX - BOTTOM + 6, at] = AXIS
        label = f"{tick:g}"
        _write(image, label, at - _text_width(label) // 2, HEIGHT_PX - BOTTOM + 10, BLACK)

    for each in series:
        x, y = _thinned(each)
        _dots(image, row(y), column(x), each.colour)

    image[TOP : HEIGHT_PX - BOTTOM + 1, LEFT] = AXIS
    image[HEIGHT_PX - BOTTOM, LEFT : WIDTH - RIGHT] = AXIS
    _write(image, title, LEFT, 14, BLACK)
    _write(image, y_label, 14, TOP - 32, BLACK)
    _write(image, x_label, WIDTH - RIGHT - _text_width(x_label), HEIGHT_PX - 26, BLACK)
    right = WIDTH - RIGHT
    for each in reversed(series):
        right -= _text_width(each.name)
        _write(image, each.name, right, TOP - 32, BLACK)
        right -= 14
        _dots(image, np.array([TOP - 25]), np.array([right]), each.colour)
        right -= 26
    return np.rint(image).astype(np.uint8)


def braille(
    series: Sequence[Series], *, columns: int = 60, rows: int = 7, ascii_only: bool = False
) -> list[str]:
    """One panel per series, all on one scale, as lines of text. Two by four dots per character;
    with ``ascii_only`` a character is a star where it has any."""
    x_end, (low, high) = _x_end(series), _y_range(series)
    marks = {
        round((1.0 - math.log(tick / low) / math.log(high / low)) * (rows - 1)): f"{tick:g}"
        for tick in _log_ticks(low, high)
    }
    lines = []
    for each in series:
        lines.append(f"{'ms':>6}  {each.name}")
        grid = np.zeros((rows * 4, columns * 2), bool)
        x, y = _thinned(each)
        part = np.log(y / low) / math.log(high / low)
        down = np.rint((1.0 - part) * (rows * 4 - 1)).astype(np.int64)
        across = np.rint(x / x_end * (columns * 2 - 1)).astype(np.int64)
        grid[down.clip(0, rows * 4 - 1), across.clip(0, columns * 2 - 1)] = True
        for r in range(rows):
            cells = (grid[4 * r : 4 * r + 4, 2 * c : 2 * c + 2] for c in range(columns))
            text = "".join(_cell(cell, ascii_only) for cell in cells)
            lines.append(f"{marks.get(r, ''):>6} {'|' if ascii_only else '│'}{text}".rstrip())
    corner, line = ("+", "-") if ascii_only else ("└", "─")
    end = f"{x_end:g} s"
    lines.append(f"{'':>6} {corner}{line * columns}")
    lines.append(f"{'':>8}0{end:>{columns - 1}}")
    return lines


def _cell(dots: NDArray[np.bool_], ascii_only: bool) -> str:
    bits = sum(_BRAILLE_DOTS[r][c] for r in range(4) for c in range(2) if dots[r, c])
    if not bits:
        return " "
    return "*" if ascii_only else chr(0x2800 + bits)


def _x_end(series: Sequence[Series]) -> float:
    end = max((float(each.x.max()) for each in series if each.x.size), default=1.0)
    step = _nice_step(end)
    return max(math.ceil(end / step - 1e-9), 1) * step


def _y_range(series: Sequence[Series]) -> tuple[float, float]:
    """Steps of 1, 2, 5, 10 around all values, so that there are two ticks at least."""
    found = [each.y for each in series if each.y.size]
    lowest = min((float(y.min()) for y in found), default=1.0)
    highest = max((float(y.max()) for y in found), default=1.0)
    low = _round_125(max(lowest, 1e-3), up=False)
    high = _round_125(max(highest, 1e-3), up=True)
    return (low, high) if high > low else (low, _round_125(low * 1.5, up=True))


def _round_125(value: float, *, up: bool) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    steps = [decade * step for step in (1, 2, 5, 10)]
    if up:
        return min(step for step in steps if step >= value * (1 - 1e-9))
    return max(step for step in steps if step <= value * (1 + 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    ticks, tick = [low], low
    while tick < high * (1 - 1e-9):
        tick = _round_125(tick * 1.5, up=True)
        ticks.append(tick)
    if len(ticks) > 8:  # many decades: their powers only, where the range begins or ends
        ticks = [t for t in ticks if abs(math.log10(t) - round(math.log10(t))) < 1e-9]
    return ticks


def _linear_ticks(end: float) -> list[float]:
    step = _nice_step(end)
    return [step * index for index in range(math.floor(end / step + 1e-9) + 1)]


def _nice_step(end: float) -> float:
    return _round_125(max(end, 1e-3) / 8, up=True)


def _thinned(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``MAX_DOTS`` points; of each stretch that is drawn as one, lowest and highest."""
    if series.x.size <= MAX_DOTS:
        return series.x, series.y
    keep = []
    for part in np.array_split(np.arange(series.x.size), MAX_DOTS // 2):
        keep += [part[series.y[part].argmin()], part[series.y[part].argmax()]]
    return series.x[keep], series.y[keep]


def _dots(
    image: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    colour: tuple[int, int, int],
) -> None:
    cover = np.zeros(image.shape[:2])
    for r, down in enumerate(_OFFSETS):
        for c, across in enumerate(_OFFSETS):
            at = (
                np.clip(rows + down, 0, image.shape[0] - 1),
                np.clip(columns + across, 0, image.shape[1] - 1),
            )
            np.maximum.at(cover, at, 0.75 * _DISC[r, c])
    image += cover[:, :, None] * (np.array(colour, np.float64) - image)


def _write(
    image: NDArray[np.float64], text: str, left: int, top: int, colour: tuple[int, int, int]
) -> None:
    """Write it there, or as far to the left as it needs to be on the image."""
    mask = text_mask(text, SCALE)[:, : image.shape[1]]
    left = max(min(left, image.shape[1] - mask.shape[1]), 0)
    image[top : top + HEIGHT * SCALE, left : left + mask.shape[1]][mask] = colour


def _text_width(text: str) -> int:
    return PITCH * SCALE * len(text) - SCALE
