"""The plot: a PNG that others can read, dots and ticks where they belong."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from echostream.cli import plot
from echostream.cli.font import HEIGHT, PITCH, text_mask
from echostream.cli.plot import Series, braille, scatter
from echostream.cli.png import encode_png

RED, BLUE = (255, 0, 0), (0, 0, 255)


def series(name: str, y: list[float], colour: tuple[int, int, int] = RED) -> Series:
    return Series(name, np.arange(len(y), dtype=float), np.array(y, float), colour)


def decoded(png: bytes) -> np.ndarray:
    """A reader of its own, for what the writer writes; CRCs are checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_a_png_has_the_pixels(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), np.uint8)
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


def drawn(*all_series: Series) -> np.ndarray:
    return scatter(all_series, title="title", x_label="x (s)", y_label="ms")


def dots(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns in the plot's area whose hue is the colour's."""
    area = image[plot.TOP - 5 : -plot.BOTTOM + 5, plot.LEFT - 5 : -plot.RIGHT + 5].astype(int)
    main = int(np.argmax(colour))
    others = [c for c in range(3) if c != main]
    found = np.argwhere((area[:, :, main, None] - area[:, :, others] > 60).all(axis=2))
    return np.add(found, (plot.TOP - 5, plot.LEFT - 5))


def test_dots_are_where_the_values_are() -> None:
    image = drawn(series("low", [1, 1, 1, 1, 1]), series("high", [10, 10, 10, 10, 10], BLUE))
    low, high = dots(image, RED), dots(image, BLUE)
    assert abs(low[:, 0].mean() - (plot.HEIGHT_PX - plot.BOTTOM)) < 3
    assert abs(high[:, 0].mean() - plot.TOP) < 3
    assert low[:, 1].min() < plot.LEFT + 5
    assert low[:, 1].max() > plot.WIDTH - plot.RIGHT - 5


@pytest.mark.parametrize("values", [[], [1.0], [0.5] * 9, [1e-9, 1e9], list(range(1, 20_000))])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    assert drawn(series("a", values)).shape == (plot.HEIGHT_PX, plot.WIDTH, 3)
    lines = braille([series("a", values)])
    assert all(len(line) <= 68 for line in lines)


@pytest.mark.parametrize(
    ("low", "high"), [(0.05, 10), (0.2, 0.3), (1e-3, 1e3), (0.99, 1.01), (3, 3), (1e-9, 1e-9)]
)
def test_ticks_are_round_and_around_the_values(low: float, high: float) -> None:
    begin, end = plot._y_range([series("a", [low, high])])
    ticks = plot._log_ticks(begin, end)
    assert begin <= max(low, 1e-3) * 1.001
    assert end >= high * 0.999
    assert begin < end
    assert 1 <= len(ticks) <= 8
    assert all(f"{tick:e}"[0] in "125" for tick in ticks)


@pytest.mark.parametrize("end", [0.001, 0.12, 5.995, 6.0, 61, 7200])
def test_times_have_a_handful_of_ticks(end: float) -> None:
    last = plot._x_end([Series("a", np.array([0.0, end]), np.ones(2), RED)])
    ticks = plot._linear_ticks(last)
    assert end <= last * 1.001 <= end * 2 + 0.001
    assert 3 <= len(ticks) <= 10
    assert ticks[-1] == pytest.approx(last)


def test_thinning_keeps_the_peaks(seed: int) -> None:
    y = np.random.default_rng(seed).uniform(1, 2, 100_000)
    y[54_321], y[1_234] = 50.0, 0.01
    x, kept = plot._thinned(Series("a", np.arange(100_000.0), y, RED))
    assert len(x) == len(kept) == plot.MAX_DOTS
    assert (kept.max(), kept.min()) == (50.0, 0.01)


def test_the_terminal_shows_one_panel_each() -> None:
    lines = braille([series("first", [1, 10]), series("second", [10, 1])], columns=10, rows=3)
    assert [line.split()[-1] for line in (lines[0], lines[4])] == ["first", "second"]
    assert lines[1] == "    10 │" + " " * 9 + "⠈"
    assert lines[3] == "     1 │⡀"
    assert lines[5] == "    10 │⠁"
    assert lines[-1].split() == ["0", "1", "s"]


def test_a_terminal_without_unicode_gets_stars() -> None:
    text = "\n".join(braille([series("a", [1, 10])], columns=10, rows=3, ascii_only=True))
    assert text.isascii()
    assert text.count("*") == 2


def test_the_font_has_what_the_labels_need() -> None:
    for character in "abcdefghijklmnopqrstuvwxyz0123456789.,:-()/%":
        mask = text_mask(character)
        assert mask.shape == (HEIGHT, PITCH)
        assert 2 <= mask.sum() < 30, character
        assert not mask[:, 5].any()
    assert len({text_mask(c).tobytes() for c in "abcdefghijklmnopqrstuvwxyz0123456789"}) == 36
    assert not text_mask(" ").any()
    assert np.array_equal(text_mask("A"), text_mask("a"))
    assert text_mask("é").sum() == 45
    assert np.array_equal(text_mask("ab", 2)[::2, ::2], text_mask("ab"))
