"""Sizes of the tests of endurance: small in the ordinary suite, whole in ``make soak-security``."""

from __future__ import annotations

import os
import resource
import sys

__all__ = ["FULL", "report", "resident_bytes", "sized"]

FULL = os.environ.get("ECHOSTREAM_FULL") == "1"


def sized(small: int, full: int) -> int:
    """``full`` where ECHOSTREAM_FULL=1 is set."""
    return full if FULL else small


def resident_bytes() -> int:
    """Memory that this process occupies now (where that cannot be had: at its highest)."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(name: str, **figures: float | int | str) -> None:
    """Print what was measured, one line that can be found: shown by ``pytest -s``."""
    shown = ", ".join(f"{key}={value}" for key, value in figures.items())
    print(f"measured {name}: {shown}")
