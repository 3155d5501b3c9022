"""The command line. Each verb is a module of this package with ``add_arguments(parser)`` and
``run(args) -> int``; only the one that was asked for is imported.

Exit status: 0 done; 1 it could not be done (no connection, an error answer); 2 what was typed
cannot work; 130 interrupted. Errors are one line on standard error.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from echostream._version import __version__
from echostream.cli.errors import BadInput

__all__ = ["main"]

VERBS = {
    "demo": "two programs, calls, events and a live audio stream between them",
    "serve": "run a server: MODULE:SERVER",
    "call": "call a method of a server and print its result",
    "emit": "send an event to a server",
    "listen": "print the events that a server emits",
    "play": "stream a file, or the microphone, to a server",
    "record": "take a stream from a server, into a file or to the speaker",
    "discover": "the servers that the local network announces",
    "ping": "round trip, clock offset, drift and error bound, live",
    "sync-lab": "players in several processes on a bad network: how far apart are they?",
    "replay": "what the jitter buffer makes of a recorded network",
    "bench": "how fast calls, events and streams are here, or to a server elsewhere",
    "identity": "this user's key, tickets for it, and the servers whose keys are known",
    "doctor": "check this machine, and say what to do",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. ``argv`` is without the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    status = _guarded(words)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    return status


def _guarded(words: list[str]) -> int:
    """Run one command; a user's mistake is one line and a status."""
    try:
        return _run(words)
    except SystemExit as exc:  # argparse after --help and --version
        return exc.code if isinstance(exc.code, int) else 0
    except BadInput as exc:
        return _fail(words, exc, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough; main looks after the rest
        return 0
    except OSError as exc:
        return _fail(words, exc, 1)
    except Exception as exc:
        from echostream.errors import ConfigurationError, EchoStreamError

        if isinstance(exc, EchoStreamError):
            return _fail(words, exc, 2 if isinstance(exc, ConfigurationError) else 1)
        raise


def _run(words: list[str]) -> int:
    verb = next((word for word in words if not word.startswith("-")), None)
    parser = _Parser(prog="echostream", description="Calls, events and live audio on QUIC.")
    parser.add_argument("--version", action="version", version=f"echostream {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    module = None
    for name, summary in VERBS.items():
        of_verb = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == verb:
            module = import_module(f"echostream.cli.{name.replace('-', '_')}")
            module.add_arguments(of_verb)
    args = parser.parse_args(words)
    assert module is not None
    status = module.run(args)
    assert isinstance(status, int)
    return status


class _Parser(argparse.ArgumentParser):
    """Tells an error to the caller, instead of printing the usage and leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def _fail(words: list[str], exc: Exception, status: int) -> int:
    verb = words[0] if words and words[0] in VERBS else ""
    text = " ".join(str(exc).split()) or type(exc).__name__
    print(f"echostream{' ' if verb else ''}{verb}: {text}", file=sys.stderr)
    return status
