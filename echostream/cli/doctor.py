"""``echostream doctor``: what on this machine could stand in the way, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from echostream import _ext
from echostream.errors import IdentityError
from echostream.transport.endpoint import SOCKET_BUFFER
from echostream.transport.private_files import data_directory, read_private

__all__ = ["CHECKS", "Finding", "add_arguments", "run"]

LOOPBACK_TIMEOUT_S = 1.0
COARSE_CLOCK_S = 1e-4


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``advice`` is what to do about a ``warn`` or ``fail``."""

    state: Literal["ok", "warn", "fail"]
    text: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Check everything; 1 when something fails, 0 also with warnings."""
    findings = {name: check() for name, check in CHECKS.items()}
    if args.json:
        print(json.dumps([{"check": name, **asdict(found)} for name, found in findings.items()]))
    else:
        width = max(map(len, findings))
        for name, found in findings.items():
            print(f"{found.state:<4}  {name:<{width}}  {found.text}")
            if found.advice:
                print(f"{'':<{width + 6}}  -> {found.advice}")
    return int(any(found.state == "fail" for found in findings.values()))


def python() -> Finding:
    """Version and implementation."""
    text = f"{platform.python_implementation()} {platform.python_version()}"
    if platform.python_implementation() != "CPython":
        return Finding("warn", text, "compiled parts and uvloop want CPython: it is faster here")
    return Finding("ok", text)


def extensions() -> Finding:
    """The compiled parts; each has a slower twin in Python."""
    names = sorted(path.stem for path in Path(_ext.__path__[0]).glob("*.pyi"))
    missing = []
    for name in names:
        try:
            import_module(f"echostream._ext.{name}")
        except ImportError:
            missing.append(name)
    if missing:
        return Finding(
            "warn",
            f"{len(missing)} of {len(names)} are missing: {', '.join(missing)}",
            "the slower twins in Python are used; install a wheel, or build with a C compiler: "
            "python setup.py build_ext --inplace",
        )
    return Finding("ok", ", ".join(names))


def event_loop() -> Finding:
    """uvloop."""
    if importlib.util.find_spec("uvloop") is not None:
        return Finding("ok", "uvloop")
    if sys.platform == "win32":
        return Finding("ok", "asyncio (uvloop does not exist for Windows)")
    return Finding("warn", "asyncio, because uvloop is missing", "pip install uvloop")


def udp() -> Finding:
    """One datagram to ourselves over IPv4."""
    try:
        return Finding("ok", f"127.0.0.1, {_echo(socket.AF_INET, '127.0.0.1') * 1e6:.0f} us")
    except OSError as exc:
        return Finding(
            "fail", f"127.0.0.1: {exc}", "let UDP on the loopback interface through the firewall"
        )


def ipv6() -> Finding:
    """One datagram to ourselves over IPv6."""
    try:
        return Finding("ok", f"::1, {_echo(socket.AF_INET6, '::1') * 1e6:.0f} us")
    except OSError as exc:
        return Finding(
            "warn",
            f"::1: {exc}",
            "only IPv4 can be used here: bind '0.0.0.0:PORT', not '[::]:PORT'",
        )


def _echo(family: socket.AddressFamily, host: str) -> float:
    with (
        socket.socket(family, socket.SOCK_DGRAM) as sender,
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((host, 0))
        receiver.settimeout(LOOPBACK_TIMEOUT_S)
        begin = time.perf_counter()
        sender.sendto(b"echostream", receiver.getsockname())
        receiver.recv(64)
        return time.perf_counter() - begin


def socket_buffers() -> Finding:
    """Whether the system grants what an endpoint asks for."""
    granted = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name, option in (("receive", socket.SO_RCVBUF), ("send", socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
            except OSError:
                pass  # macOS refuses what Linux cuts
            granted[name] = sock.getsockopt(socket.SOL_SOCKET, option)
            if sys.platform == "linux":
                granted[name] //= 2  # the kernel doubles it for its own use, socket(7)
    text = ", ".join(f"{name} {size // 1024} KiB" for name, size in granted.items())
    if min(granted.values()) >= SOCKET_BUFFER:
        return Finding("ok", text)
    advice = {
        "linux": f"sysctl -w net.core.rmem_max={SOCKET_BUFFER} net.core.wmem_max={SOCKET_BUFFER}",
        "darwin": f"sysctl -w kern.ipc.maxsockbuf={2 * SOCKET_BUFFER}",
    }.get(sys.platform, "raise the system's limit")
    return Finding(
        "warn",
        f"{text}; {SOCKET_BUFFER // 1024} KiB are asked for",
        f"against loss in bursts: {advice}",
    )


def clock() -> Finding:
    """The step of the monotonic clock."""
    steps = []
    for _ in range(50):
        begin = now = time.monotonic_ns()
        while now == begin:
            now = time.monotonic_ns()
        steps.append(now - begin)
    step_s = min(steps) / 1e9
    text = f"monotonic, steps of {step_s * 1e6:.3g} us"
    if step_s > COARSE_CLOCK_S:
        return Finding("warn", text, "times are coarse: use Python 3.13 or newer on Windows")
    return Finding("ok", text)


def data() -> Finding:
    """Where keys are kept."""
    try:
        folder = data_directory()
        read_private(folder / "known_hosts", secret=False)
    except IdentityError as exc:
        return Finding("fail", "the data directory cannot be used", str(exc))
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            "fail",
            f"{folder} cannot be written",
            f"let this user write to {there}, or name another directory in ECHOSTREAM_HOME",
        )
    if there != folder:
        return Finding("ok", f"{folder} (made at the first use)")
    mode = folder.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o022:
        return Finding(
            "fail" if mode & 0o002 else "warn",
            f"{folder} has mode {mode:04o}: others may write there",
            f"chmod 700 {folder}",
        )
    return Finding("ok", f"{folder}, mode {mode:04o}")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": python,
    "extensions": extensions,
    "event loop": event_loop,
    "udp": udp,
    "ipv6": ipv6,
    "socket buffers": socket_buffers,
    "clock": clock,
    "data directory": data,
}
