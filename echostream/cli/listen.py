"""``echostream listen``: the events that a server emits, one per line."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from echostream.builder import ClientBuilder
from echostream.cli.connection import add_connection_arguments, client_builder, json_text
from echostream.cli.errors import BadInput
from echostream.errors import ConnectionClosed
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser)
    parser.add_argument("event", metavar="EVENT")
    parser.add_argument("--count", metavar="N", type=int, help="end after N events")
    parser.add_argument("--json", action="store_true", help="texts as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Print until Ctrl-C, or until ``--count`` events came."""
    if args.count is not None and args.count < 1:
        raise BadInput(f"--count {args.count}: give 1 or more")
    try:
        run_loop(_listen(client_builder(args), args.event, args.count, args.json))
    except KeyboardInterrupt:
        pass  # how it is meant to end
    return 0


async def _listen(builder: ClientBuilder, event: str, count: int | None, as_json: bool) -> None:
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen = 0

    async def show(payload: Any) -> None:
        nonlocal seen
        if finished.done():
            return
        text = payload if isinstance(payload, str) and not as_json else json_text(payload)
        try:
            print(text.replace("\n", "\\n"), flush=True)
        except OSError as exc:  # nobody reads any more
            finished.set_exception(exc)
            return
        seen += 1
        if seen == count:
            finished.set_result(None)

    async with builder.listener(event, show).build() as client:
        print(f"listening for {event!r}; Ctrl-C ends", file=sys.stderr, flush=True)
        closed = asyncio.ensure_future(client.wait_closed())
        await asyncio.wait((finished, closed), return_when=asyncio.FIRST_COMPLETED)
        if not finished.done():
            raise ConnectionClosed("the server closed the connection")
        closed.cancel()
        await finished
