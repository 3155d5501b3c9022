"""``echostream identity``: this user's own key, and the servers whose keys are known."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from echostream.cli.errors import BadInput
from echostream.transport.addresses import parse_address
from echostream.transport.identity import Identity
from echostream.transport.known_hosts import KnownHosts
from echostream.transport.private_files import data_directory

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="the key that servers of this user show (default)")
    known = actions.add_parser("known-hosts", help="the servers whose keys are known")
    forget = actions.add_parser("forget", help="trust a server's next key as if it were new")
    forget.add_argument("address", metavar="HOST:PORT")
    for each in (show, known, forget):
        each.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Show, list or forget."""
    if args.action == "known-hosts":
        return _known_hosts(args.json)
    if args.action == "forget":
        return _forget(args.address, args.json)
    return _show(args.json)


def _show(as_json: bool) -> int:
    """The identity that servers use which name none. It is made here where there is none yet."""
    identity = Identity.self_signed()
    folder = data_directory()
    facts = {
        "fingerprint": identity.fingerprint,
        "file": str(folder / "default.pem"),
        "known_hosts": str(folder / "known_hosts"),
        "not_after": identity.not_after.isoformat(),
    }
    if as_json:
        print(json.dumps(facts))
        return 0
    days = (identity.not_after - datetime.now(UTC)).days
    print(f"fingerprint  {identity.fingerprint}")
    print(f"key in       {facts['file']}")
    print(f"valid until  {identity.not_after:%Y-%m-%d} ({days} days; renewed with the same key)")
    print(f"known hosts  {facts['known_hosts']}")
    return 0


def _known_hosts(as_json: bool) -> int:
    known = KnownHosts()
    entries = known.entries()
    if as_json:
        facts = [
            {"address": each.key, "fingerprint": each.fingerprint, "since": each.since}
            for each in entries
        ]
        print(json.dumps(facts))
    elif not entries:
        print(f"no known hosts in {known.path}")
    else:
        width = max(len(each.key) for each in entries)
        for each in entries:
            print(f"{each.key:<{width}}  {each.fingerprint}  {each.since}".rstrip())
    return 0


def _forget(address: str, as_json: bool) -> int:
    known = KnownHosts()
    host, port = parse_address(address)
    if not known.forget(host, port):
        raise BadInput(f"{address} is not in {known.path}")
    print(json.dumps({"forgotten": address}) if as_json else f"{address} is forgotten")
    return 0
