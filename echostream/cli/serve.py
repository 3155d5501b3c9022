"""``echostream serve MODULE:SERVER``: run the server that a module holds."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import os
import sys
import traceback
from importlib import import_module
from typing import Any

from echostream.builder import ServerBuilder
from echostream.cli.errors import BadInput
from echostream.errors import ConfigurationError
from echostream.runner import run as run_loop
from echostream.server import RpcServer

__all__ = ["add_arguments", "load", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "target",
        metavar="MODULE:SERVER",
        help="an RpcServer, a ServerBuilder, or a function that returns one; "
        "modules are looked for in the current folder, too",
    )
    parser.add_argument("--json", action="store_true", help="say in JSON where it listens")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, then let running calls finish."""
    server = load(args.target)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    run_loop(_serve(server, args.json))
    return 0


async def _serve(server: RpcServer, as_json: bool) -> None:
    async with server:
        running = asyncio.ensure_future(server.run())
        await asyncio.sleep(0)  # now it handles signals: whoever reads the address may send one
        host, port = server.address
        if as_json:
            told = {"host": host, "port": port, "fingerprint": server.fingerprint}
            print(json.dumps(told), flush=True)
        else:
            shown = f"[{host}]" if ":" in host else host
            print(f"serving on {shown}:{port}, key {server.fingerprint}", flush=True)
        await running


def load(target: str) -> RpcServer:
    """The server that ``MODULE:SERVER`` names. Raises ``BadInput`` that says what is wrong."""
    module_name, colon, attribute = target.partition(":")
    if not (colon and attribute.isidentifier()) or not all(
        part.isidentifier() for part in module_name.split(".")
    ):
        raise BadInput(f"{target!r}: write MODULE:SERVER, for example app:server for app.py")
    module = _import(module_name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise BadInput(f"{target!r}: {module_name} has no {attribute!r}") from None
    if callable(found) and not isinstance(found, RpcServer | ServerBuilder):
        try:
            found = found()
        except ConfigurationError:
            raise
        except Exception as exc:
            raise BadInput(f"{target!r}: {attribute}() failed: {_where(exc)}") from exc
    if isinstance(found, ServerBuilder):
        found = found.build()
    if not isinstance(found, RpcServer):
        if hasattr(found, "close") and hasattr(found, "__await__"):
            found.close()  # a coroutine that nobody will await
        raise BadInput(
            f"{target!r} is of type {type(found).__name__}: it must be an RpcServer, "
            "a ServerBuilder, or a function that returns one"
        )
    return found


def _import(name: str) -> Any:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    except ModuleNotFoundError:
        raise BadInput(f"there is no module {name!r} in {os.getcwd()}, nor installed") from None
    except Exception as exc:  # a package on the way to it
        raise BadInput(f"{name} cannot be imported: {_where(exc)}") from exc
    try:
        return import_module(name)
    except ConfigurationError:
        raise
    except Exception as exc:
        raise BadInput(f"{name} cannot be imported: {_where(exc)}") from exc


def _where(exc: Exception) -> str:
    """The error and the line that it comes from, in one line."""
    if isinstance(exc, SyntaxError):
        return f"{exc.msg} ({exc.filename}, line {exc.lineno})"
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__}: {exc} ({last.filename}, line {last.lineno})"
