"""Facts about the machine, without names or paths, and the time that was stolen from it."""

from __future__ import annotations

import os
import platform
import resource
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["StealMeter", "machine_facts", "resident_bytes"]

_PACKAGES = ("aioquic", "qh3", "grpcio", "msgpack", "uvloop", "eclipse-zenoh")


def machine_facts() -> dict[str, str]:
    """Cores, interpreter, kernel, load of the last minute (take it before the run: it is that of
    others), and the versions of what takes part."""
    facts = {
        "cores": str(os.cpu_count()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.1f}"
    for name in _PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return facts


class StealMeter:
    """Time that the hypervisor gave to others while we wanted to run, since the last reading.

    From ``/proc/stat`` (proc(5)): field 8 of the line ``cpu``, in ticks over all cores.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._last = self._read()

    def percent(self) -> float | None:
        """Percent of one core since the last call; ``None`` where the system does not say."""
        last, self._last = self._last, self._read()
        if last is None or self._last is None:
            return None
        (ticks, at), (last_ticks, last_at) = self._last, last
        elapsed = max(at - last_at, 1e-9)
        return 100.0 * (ticks - last_ticks) / os.sysconf("SC_CLK_TCK") / elapsed

    def _read(self) -> tuple[int, float] | None:
        try:
            line = self._stat.read_text().partition("\n")[0]
        except OSError:
            return None
        return int(line.split()[8]), time.monotonic()


def resident_bytes() -> int:
    """Resident memory of this process (``/proc/self/statm``; elsewhere its peak)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
