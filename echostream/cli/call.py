"""``echostream call``: one request, its result on standard output."""

from __future__ import annotations

import argparse
from typing import Any

from echostream.builder import ClientBuilder
from echostream.cli.connection import (
    add_connection_arguments,
    client_builder,
    json_text,
    parse_json,
)
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser)
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("payload", metavar="JSON", nargs="?", help="the payload (default: none)")
    parser.add_argument("--json", action="store_true", help="the result as JSON in one line")


def run(args: argparse.Namespace) -> int:
    """Call, and print: a text as it is, all else as JSON."""
    builder, payload = client_builder(args), parse_json(args.payload)
    result = run_loop(_call(builder, args.method, payload, args.timeout))
    if args.json:
        print(json_text(result))
    else:
        print(result if isinstance(result, str) else json_text(result, indent=2))
    return 0


async def _call(builder: ClientBuilder, method: str, payload: Any, timeout: float) -> Any:
    async with builder.build() as client:
        return await client.request(method, payload, timeout=timeout)
