"""``echostream emit``: one event to a server."""

from __future__ import annotations

import argparse
from typing import Any

from echostream.builder import ClientBuilder
from echostream.cli.connection import add_connection_arguments, client_builder, parse_json
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser)
    parser.add_argument("event", metavar="EVENT")
    parser.add_argument("payload", metavar="JSON", nargs="?", help="the payload (default: none)")


def run(args: argparse.Namespace) -> int:
    """Send it; returns when the server's transport has acknowledged it."""
    run_loop(_emit(client_builder(args), args.event, parse_json(args.payload)))
    return 0


async def _emit(builder: ClientBuilder, event: str, payload: Any) -> None:
    async with builder.build() as client:
        await client.emit(event, payload)
