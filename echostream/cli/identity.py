"""``echostream identity``: this user's own key, tickets for it, and the keys that are known."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from echostream.cli.errors import BadInput
from echostream.cli.pairing import add_pair_arguments, run_pairing
from echostream.cli.ticket import make_ticket, print_ticket
from echostream.discovery.service import check_service_name
from echostream.errors import ConfigurationError
from echostream.transport.addresses import parse_address
from echostream.transport.identity import Identity, rotate
from echostream.transport.known_clients import KnownClients
from echostream.transport.known_hosts import KnownHosts
from echostream.transport.known_services import KnownServices
from echostream.transport.private_files import data_directory
from echostream.transport.trust import Trust

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="the key that servers of this user show (default)")
    known = actions.add_parser("known-hosts", help="the servers whose keys are known")
    clients = actions.add_parser("known-clients", help="the clients that were paired here")
    forget = actions.add_parser("forget", help="trust a server's next key as if it were new")
    forget.add_argument("address", metavar="HOST:PORT|NAME")
    forget.add_argument("--client", action="store_true", help="let a paired client in no more")
    renew = actions.add_parser("rotate", help="a new key, which clients that know the old one take")
    trust = actions.add_parser("trust", help="believe a server that is found by name")
    trust.add_argument("name", metavar="NAME")
    trust.add_argument("fingerprint", metavar="SHA256", help="what its own side shows")
    ticket = actions.add_parser("ticket", help="where this user's server is, and its key")
    ticket.add_argument(
        "addresses", metavar="HOST:PORT", nargs="+", help="':PORT' is every address of this host"
    )
    ticket.add_argument("--name", default="", help="for people who read the ticket")
    ticket.add_argument("--token", default="", help="what the client is to show; keep it secret")
    ticket.add_argument("--qr", action="store_true", help="a QR code in the terminal as well")
    ticket.add_argument("--png", metavar="FILE", help="the QR code as a picture")
    paired = actions.add_parser("pair", help="get to know another machine by a short code")
    add_pair_arguments(paired)
    for each in (show, known, clients, forget, renew, trust, ticket, paired):
        each.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Show, list or forget."""
    if args.action == "known-hosts":
        return _known_hosts(args.json)
    if args.action == "known-clients":
        return _known_clients(args.json)
    if args.action == "forget":
        return _forget(args.address, args.client, args.json)
    if args.action == "rotate":
        rotate()
        return _show(args.json)
    if args.action == "trust":
        return _trust(args.name, args.fingerprint, args.json)
    if args.action == "ticket":
        made = make_ticket(args.addresses, args.name, args.token)
        print_ticket(made, as_json=args.json, qr=args.qr, png=args.png)
        return 0
    if args.action == "pair":
        return run_pairing(args)
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
    known, services = KnownHosts(), KnownServices()
    entries = [(each.key, each.fingerprint, each.since) for each in known.entries()]
    entries += [(each.name, each.fingerprint, each.since) for each in services.entries()]
    if as_json:
        facts = [
            {"address": key, "fingerprint": fingerprint, "since": since}
            for key, fingerprint, since in entries
        ]
        print(json.dumps(facts))
    elif not entries:
        print(f"no known hosts in {known.path}")
    else:
        width = max(len(key) for key, _, _ in entries)
        for key, fingerprint, since in entries:
            print(f"{key:<{width}}  {fingerprint}  {since}".rstrip())
    return 0


def _known_clients(as_json: bool) -> int:
    known = KnownClients()
    entries = known.entries()
    if as_json:
        facts = [{"name": e.name, "fingerprint": e.fingerprint, "since": e.since} for e in entries]
        print(json.dumps(facts))
        return 0
    for each in entries:
        print(f"{each.name}  {each.fingerprint}  {each.since}".rstrip())
    if not entries:
        print(f"no known clients in {known.path}")
    return 0


def _forget(address: str, is_client: bool, as_json: bool) -> int:
    known, services = KnownHosts(), KnownServices()
    if is_client:
        if not KnownClients().forget(address):
            raise BadInput(f"no client {address!r} is in {KnownClients().path}")
    elif not services.forget(address):
        try:
            host, port = parse_address(address)
        except ConfigurationError as exc:
            raise BadInput(f"{exc}; and no service of that name is in {services.path}") from None
        if not known.forget(host, port):
            raise BadInput(f"{address} is not in {known.path}")
    print(json.dumps({"forgotten": address}) if as_json else f"{address} is forgotten")
    return 0


def _trust(name: str, fingerprint: str, as_json: bool) -> int:
    check_service_name(name)
    wanted = Trust(fingerprint=fingerprint).fingerprint
    assert wanted is not None
    KnownServices().record(name, wanted)
    done = json.dumps({"trusted": name, "fingerprint": wanted})
    print(done if as_json else f"{name} may have the key {wanted}")
    return 0
