"""This host's network interfaces, and the multicast sockets on them."""

from __future__ import annotations

import ipaddress

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncZeroconf

from echostream.errors import DiscoveryError

__all__ = ["described", "local_addresses", "multicast_interfaces", "open_multicast"]


def local_addresses() -> dict[str, list[str]]:
    """Addresses by interface. Link-local ones of IPv6 carry their interface: ``fe80::1%2``."""
    found: dict[str, list[str]] = {}
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            if isinstance(each.ip, str):
                text = each.ip
            else:
                text = each.ip[0].partition("%")[0]
                if ipaddress.ip_address(text).is_link_local:
                    text = f"{text}%{adapter.index}"
            found.setdefault(adapter.nice_name, []).append(text)
    return found


def described() -> str:
    """The interfaces and their addresses, for people."""
    found = local_addresses()
    return ", ".join(f"{name} ({' '.join(ips)})" for name, ips in found.items()) or "none"


def multicast_interfaces() -> list[str | int]:
    """Where multicast DNS is spoken: each IPv4 address, and each interface that has IPv6. Not on
    ``::1``, which has no multicast."""
    found: list[str | int] = []
    for adapter in ifaddr.get_adapters():
        found += [str(each.ip) for each in adapter.ips if isinstance(each.ip, str)]
        if adapter.index is not None and any(
            not isinstance(each.ip, str) and each.ip[0] != "::1" for each in adapter.ips
        ):
            found.append(adapter.index)
    return found


def open_multicast(interfaces: list[str] | None) -> AsyncZeroconf:
    """The multicast sockets on these addresses, by default on all. ``DiscoveryError`` without."""
    if interfaces == ["::1"]:
        raise DiscoveryError("::1 carries no multicast: bind the server to 127.0.0.1, or to [::]")
    try:
        chosen = multicast_interfaces() if interfaces is None else list(interfaces)
        return AsyncZeroconf(interfaces=chosen)
    except (OSError, RuntimeError, ValueError, ZeroconfError) as exc:
        where = "any interface" if interfaces is None else ", ".join(interfaces)
        raise DiscoveryError(
            f"multicast DNS cannot be used on {where} (UDP port 5353): {exc}. An address always "
            "works: RpcClient.connect('HOST:PORT'), or ECHOSTREAM_SERVICES='NAME=HOST:PORT'"
        ) from exc
