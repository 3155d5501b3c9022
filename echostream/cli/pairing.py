"""``echostream identity pair``: one command on each of two machines, and a code of six digits."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from echostream.cli.errors import BadInput
from echostream.discovery.service import check_service_name
from echostream.pairing import LIFETIME_S, Paired, Pairing, pair
from echostream.runner import run
from echostream.transport.known_clients import KnownClients
from echostream.transport.known_hosts import KnownHosts

__all__ = ["add_pair_arguments", "run_pairing"]


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's arguments."""
    parser.add_argument("address", metavar="HOST:PORT", help="of the side that shows the code")
    parser.add_argument(
        "--listen", action="store_true", help="show a code here, and wait for the other machine"
    )
    parser.add_argument("--name", default="", help="what the other side is told (this host's name)")
    parser.add_argument("--code", help="what the other side shows; asked for where it is missing")
    parser.add_argument(
        "--service", metavar="NAME", help="under which name the other side will be discovered"
    )
    parser.add_argument(
        "--also",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="a further address that its servers have",
    )
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=None, help="seconds (default: 120 and 10)"
    )


def run_pairing(args: argparse.Namespace) -> int:
    """One side of a pairing."""
    if args.listen:
        if args.code is not None or args.service is not None or args.also:
            raise BadInput("--listen shows a code: --code, --service and --also are for the other")
        return run(_show(args))
    if args.service is not None:
        check_service_name(args.service)
    code = args.code if args.code is not None else _ask()
    paired: Paired = run(
        pair(
            args.address,
            code,
            name=args.name,
            addresses=args.also,
            service=args.service,
            timeout=10.0 if args.timeout is None else args.timeout,
        )
    )
    _tell(paired, str(KnownHosts().path), as_json=args.json)
    return 0


async def _show(args: argparse.Namespace) -> int:
    lifetime = LIFETIME_S if args.timeout is None else args.timeout
    waiting = await asyncio.to_thread(Pairing, args.address, lifetime=lifetime, name=args.name)
    async with waiting:
        host, port = waiting.address
        if args.json:
            print(json.dumps({"code": waiting.code, "host": host, "port": port}), flush=True)
        else:
            print(f"code  {waiting.code}", flush=True)
            print(
                f"Within {lifetime:g} s, on the other machine: echostream identity pair "
                f"THIS-HOST:{port}",
                flush=True,
            )
        paired = await waiting.wait()
    _tell(paired, str(KnownClients().path), as_json=args.json)
    return 0


def _ask() -> str:
    print("code: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line.strip():
        raise BadInput("no code: it is what the other machine shows")
    return line.strip()


def _tell(paired: Paired, path: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"paired": paired.name, "fingerprint": paired.fingerprint}))
    else:
        print(f"paired with {paired.name}\nkey    {paired.fingerprint}\nin     {path}")
