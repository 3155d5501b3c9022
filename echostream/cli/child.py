"""A server of this package in a process of its own, for the verbs that need two programs.

The pipe to its standard input is what ties the two: it closes when the parent dies, in whatever
way, and the server, which has ``on_start(end_with_stdin)``, ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from echostream.errors import EchoStreamError
from echostream.rpc.context import ServerContext

__all__ = ["end_with_stdin", "serving_process"]

END_TIMEOUT_S = 5.0


@contextmanager
def serving_process(
    target: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[tuple[str, int], str]]:
    """Run ``echostream serve TARGET``: yields its address and fingerprint, and ends it in every
    case. The target's server must have ``on_start(end_with_stdin)``."""
    package = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "echostream.cli", "serve", target, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {}), "PYTHONPATH": search},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            _, errors = process.communicate(timeout=END_TIMEOUT_S)
            last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise EchoStreamError(f"the server process did not start: {last}")
        told = json.loads(line)
        yield (told["host"], told["port"]), told["fingerprint"]
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Let the server finish; what does not is ended."""
    try:
        process.communicate(timeout=END_TIMEOUT_S)  # closes its standard input
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    except BaseException:  # Ctrl-C once more
        process.kill()
        process.wait()
        raise


async def end_with_stdin(ctx: ServerContext) -> None:
    """For the server's ``on_start``: interrupt this process when its standard input ends."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
