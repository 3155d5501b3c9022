"""Tickets on the command line, as text and as QR codes."""

from __future__ import annotations

import json
from typing import Any

from echostream.cli.errors import BadInput
from echostream.discovery.service import ranked
from echostream.transport.addresses import parse_address
from echostream.transport.identity import Identity
from echostream.transport.ticket import MAX_ADDRESSES, Ticket

__all__ = ["make_ticket", "print_ticket"]


def make_ticket(addresses: list[str], name: str, token: str) -> Ticket:
    """A ticket for this user's server at these addresses. ``:PORT`` is every address of this host
    that others can reach."""
    found: list[tuple[str, int]] = []
    for text in addresses:
        host, port = parse_address(text)
        if host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            found += [(each, port) for each in _reachable()]
        else:
            found.append((host, port))
    unique = tuple(dict.fromkeys(found))[:MAX_ADDRESSES]
    return Ticket(unique, Identity.self_signed().fingerprint, name=name, token=token)


def print_ticket(ticket: Ticket, *, as_json: bool, qr: bool, png: str | None) -> None:
    """As text, and where that was asked for as a QR code, in the terminal or in a file."""
    if as_json and qr:
        raise BadInput("--json and --qr contradict each other; give one")
    if png is not None and not png.lower().endswith(".png"):
        raise BadInput(f"--png {png}: the name of the file must end with .png")
    text = str(ticket)
    code: Any = _qr(text) if qr or png is not None else None
    if as_json:
        hosts = [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for host, port in ticket.addresses
        ]
        print(json.dumps({"ticket": text, "addresses": hosts, "fingerprint": ticket.fingerprint}))
    else:
        print(text)
    if qr:
        code.terminal(compact=True)
    if png is not None:
        code.save(png, kind="png", scale=8)


def _qr(text: str) -> Any:
    try:
        import segno
    except ImportError:
        raise BadInput("QR codes need segno: pip install 'echostream[qr]'") from None
    return segno.make(text, micro=False)


def _reachable() -> tuple[str, ...]:
    from echostream.discovery.interfaces import local_addresses

    every = [each for ips in local_addresses().values() for each in ips]
    return ranked(each for each in every if "%" not in each)
