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
from echostream.cli.errors import BadInput
from echostream.errors import ConfigurationError, MethodNotFound
from echostream.rpc.schema import DESCRIBE, asyncapi
from echostream.runner import run as run_loop

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_connection_arguments(parser)
    parser.add_argument("method", metavar="METHOD", nargs="?")
    parser.add_argument("payload", metavar="JSON", nargs="?", help="the payload (default: none)")
    parser.add_argument("--json", action="store_true", help="the result as JSON in one line")
    parser.add_argument(
        "--stream", action="store_true", help="the method answers with many results: one per line"
    )
    parser.add_argument("--list", action="store_true", help="what the server offers")
    parser.add_argument(
        "--schema", action="store_true", help="the same as an AsyncAPI document with JSON Schemas"
    )


def run(args: argparse.Namespace) -> int:
    """Call, and print: a text as it is, all else as JSON."""
    builder, payload = client_builder(args), parse_json(args.payload)
    if args.list or args.schema:
        if args.method is not None:
            raise BadInput("--list and --schema take no METHOD")
        return _show(args, run_loop(_describe(builder, args.timeout)))
    if args.method is None:
        raise BadInput("METHOD is missing: --list shows what there is (see echostream call --help)")
    if args.stream:
        run_loop(_print_stream(builder, args.method, payload, args.timeout))
        return 0
    result = run_loop(_call(builder, args.method, payload, args.timeout))
    if args.json:
        print(json_text(result))
    else:
        print(result if isinstance(result, str) else json_text(result, indent=2))
    return 0


async def _call(builder: ClientBuilder, method: str, payload: Any, timeout: float) -> Any:
    async with builder.build() as client:
        return await client.request(method, payload, timeout=timeout)


async def _print_stream(builder: ClientBuilder, method: str, payload: Any, timeout: float) -> None:
    async with (
        builder.build() as client,
        client.request_stream(method, payload, timeout=timeout) as results,
    ):
        async for result in results:
            print(json_text(result), flush=True)


async def _describe(builder: ClientBuilder, timeout: float) -> dict[str, Any]:
    async with builder.build() as client:
        try:
            found: dict[str, Any] = await client.request(DESCRIBE, returns=dict, timeout=timeout)
        except MethodNotFound:
            raise ConfigurationError(
                "the server does not say what it offers: build it with .introspection()"
            ) from None
        return found


def _show(args: argparse.Namespace, found: dict[str, Any]) -> int:
    if args.schema:
        print(json_text(asyncapi(found, title=args.address), indent=2))
    elif args.json:
        print(json_text(found))
    else:
        for kind in ("methods", "events", "streams"):
            for entry in found[kind]:
                line = f"{kind[:-1]} {entry['name']}"
                if "argument" in entry:
                    many = entry.get("shape") in ("client_streaming", "bidirectional")
                    line += f" ({_shown(entry['argument'], many)})"
                if "result" in entry:
                    many = entry["shape"] in ("server_streaming", "bidirectional")
                    line += f" -> {_shown(entry['result'], many)}"
                doc = entry["doc"].split("\n")[0]
                print(f"{line}  # {doc}" if doc else line)
    return 0


def _shown(schema: dict[str, Any], many: bool) -> str:
    text = schema.get("$ref", "").rpartition("/")[2] or schema.get("title") or schema.get("type")
    if not text and "anyOf" in schema:
        text = " | ".join(_shown(each, False) for each in schema["anyOf"])
    if text == "array":
        text = f"list[{_shown(schema.get('items', {}), False)}]"
    return f"{text or 'any'}..." if many else str(text or "any")
