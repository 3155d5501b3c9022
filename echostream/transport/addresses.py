"""Reading, resolving and showing socket addresses."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from echostream.errors import ConfigurationError
from echostream.transport.engine import Address

__all__ = ["display_address", "parse_address", "resolve"]


def parse_address(address: str | tuple[str, int]) -> tuple[str, int]:
    """``(host, port)`` of ``"host:port"``, ``"[::1]:5000"``, ``":0"`` or ``("host", port)``.

    An empty host means every interface. Raises :class:`ConfigurationError`.
    """
    if isinstance(address, str):
        host, colon, port_text = address.rpartition(":")
        if not colon:
            raise ConfigurationError(
                f"{address!r} has no port: write it as 'host:port', for example {address}:5000"
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host or host.startswith("["):
            raise ConfigurationError(
                f"{address!r} is ambiguous: put an IPv6 address in brackets, as in '[::1]:5000'"
            )
        if not (port_text.isascii() and port_text.isdigit()):
            raise ConfigurationError(
                f"{address!r}: {port_text!r} is not a port; it must be a number from 0 to 65535"
            )
        port = int(port_text)
    else:
        given: object = address  # callers without a type checker are told, too
        if not isinstance(given, tuple) or [type(part) for part in given] != [str, int]:
            raise ConfigurationError(
                f"{address!r} is not an address: give 'host:port' or a tuple ('host', port)"
            )
        host, port = address
        host = host.removeprefix("[").removesuffix("]")
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"port {port} is out of range: it must be from 0 to 65535")
    return host, port


async def resolve(
    host: str, port: int, *, passive: bool = False
) -> list[tuple[socket.AddressFamily, Address]]:
    """What ``host`` resolves to, in the order of RFC 6724, each in its family's shape.

    ``passive`` is for binding. Raises :class:`OSError` (``socket.gaierror``).
    """
    flags = socket.AI_PASSIVE if passive else 0
    try:  # an address needs no look-up, and so no thread
        infos = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_DGRAM, flags=flags | socket.AI_NUMERICHOST
        )
    except socket.gaierror:
        infos = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=flags
        )
    except UnicodeError:  # what IDNA cannot encode, as "a..b", is no name that exists
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    found: dict[Address, socket.AddressFamily] = {}
    for family, _, _, _, address in infos:
        if family in (socket.AF_INET, socket.AF_INET6):
            found.setdefault(cast(Address, address), socket.AddressFamily(family))
    return [(family, address) for address, family in found.items()]


def display_address(address: Address) -> tuple[str, int]:
    """``(host, port)`` for people: an IPv4 peer of a dual-stack socket is shown as IPv4."""
    host = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    return host, address[1]
