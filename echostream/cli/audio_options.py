"""What ``play`` and ``record`` share: the sound card, and how long."""

from __future__ import annotations

import argparse
import math

from echostream.cli.errors import BadInput

__all__ = ["add_audio_arguments", "check_seconds", "device_of"]


def add_audio_arguments(parser: argparse.ArgumentParser) -> None:
    """``--device``, ``--seconds`` and ``--json``."""
    parser.add_argument(
        "--device", metavar="NAME", help="sound card, by number or part of its name"
    )
    parser.add_argument("--seconds", metavar="S", type=float, help="end after so much audio")
    parser.add_argument("--json", action="store_true", help="what was done, as JSON, at the end")


def device_of(args: argparse.Namespace, *, used: bool) -> int | str | None:
    """``--device``. Raises ``BadInput`` where no sound card is used."""
    if args.device is None:
        return None
    if not used:
        raise BadInput("--device: no sound card is used for a file")
    return int(args.device) if args.device.isdecimal() else str(args.device)


def check_seconds(args: argparse.Namespace) -> None:
    """``--seconds`` and ``--timeout``. Raises ``BadInput``."""
    for name in ("seconds", "timeout"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise BadInput(f"--{name} {value:g}: give more than 0")
