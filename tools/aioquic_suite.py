"""aioquic's own connection tests, run against this project's classes.

    python -m pip download --no-deps --no-binary aioquic aioquic==1.7.2 -d build/aioquic
    tar -xzf build/aioquic/aioquic-1.7.2.tar.gz -C build/aioquic
    python tools/aioquic_suite.py build/aioquic/aioquic-1.7.2

Its ``tests/test_connection.py`` is run in turn with aioquic's class, with and without qlog (the
compiled path takes no connection that writes qlog), with ``HardenedConnection`` and with
``TypedConnection``; then the failures of ours are listed that the stock class does not share.
Nothing of aioquic's is copied into the project.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
CLASSES = ("stock, with qlog", "stock", "plain", "typed")


class Outcomes:
    """A pytest plugin that puts a class in the place of aioquic's, and notes what passed."""

    def __init__(self, which: str) -> None:
        self.which = which
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        module: Any = sys.modules[items[0].module.__name__]  # type: ignore[attr-defined]
        if self.which == "stock, with qlog":
            return
        module.QuicLogger = lambda: None
        if self.which == "stock":
            return
        from echostream.transport.quic.hardened import HardenedConnection
        from echostream.transport.quic.options import QuicOptions
        from echostream.transport.quic.typed import TypedConnection

        ours = TypedConnection if self.which == "typed" else HardenedConnection
        if self.which == "typed":  # its pacer is compiled, and aioquic's dummy is not
            module.disable_packet_pacing = unpaced
        module.QuicConnection = functools.partial(ours, QuicOptions())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
            self.passed.discard(report.nodeid)
        elif report.when == "call" and report.nodeid not in self.failed:
            self.passed.add(report.nodeid)


def unpaced(connection: Any) -> None:
    from echostream._ext.quic_path import Pacer

    connection._loss._pacer = Pacer(max_datagram_size=1200, tick=1.0, gain=1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, help="the unpacked sdist of aioquic")
    parser.add_argument("--show", action="store_true", help="show the tracebacks of failures")
    parser.add_argument("--only", choices=CLASSES, help="one of the classes")
    parser.add_argument("-k", default="", help="some of the tests, as for pytest")
    arguments = parser.parse_args()
    sys.path[:0] = [str(PROJECT), str(arguments.sources)]
    seen: dict[str, Outcomes] = {}
    for which in [arguments.only] if arguments.only else CLASSES:
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        seen[which] = outcomes = Outcomes(which)
        pytest.main(
            [
                *(
                    "-q",
                    "--no-header",
                    "--no-summary",
                    "--show-capture=no",
                    "-p",
                    "no:cacheprovider",
                ),
                *("-c", "/dev/null", "--rootdir", str(arguments.sources), "-k", arguments.k),
                *(("--tb=short", "-rf") if arguments.show else ("--tb=no", "--no-summary")),
                str(arguments.sources / "tests" / "test_connection.py"),
            ],
            plugins=[outcomes],
        )
    for which, outcomes in seen.items():
        total = len(outcomes.passed) + len(outcomes.failed)
        print(f"{which}: {len(outcomes.passed)} of {total} pass")
    if len(seen) == len(CLASSES):
        for which, other in (("plain", "stock"), ("typed", "plain")):
            for test in sorted(seen[which].failed & seen[other].passed):
                print(f"  {which} fails, {other} does not: {test.split('::')[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
