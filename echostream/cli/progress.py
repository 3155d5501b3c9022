"""A progress bar in one line of a terminal; silent where there is none."""

from __future__ import annotations

import sys
from typing import Self

__all__ = ["ProgressBar"]

WIDTH = 30
METER = 10


class ProgressBar:
    """For streams of ``total_s`` seconds: how far one is, and how loud."""

    def __init__(self, total_s: float, *, silent: bool = False) -> None:
        self._total_s = total_s
        self._silent = silent or not sys.stdout.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._silent:
            self._write("")

    def show(self, name: str, done_s: float, peak: float) -> None:
        """Draw it anew. ``peak`` is in 0 to 1."""
        if self._silent:
            return
        filled = round(min(done_s / self._total_s, 1.0) * WIDTH)
        loud = round(min(peak, 1.0) * METER)
        self._write(
            f"{name}  [{'#' * filled}{'.' * (WIDTH - filled)}] "
            f"{done_s:5.1f} / {self._total_s:.1f} s  level {'|' * loud}"
        )

    def _write(self, text: str) -> None:
        sys.stdout.write(f"\r\x1b[2K{text}")  # to the line's begin, and clear it
        sys.stdout.flush()
