"""What is announced about a server, and how it is read from somebody who may be hostile.

TXT record, one key per fact (RFC 6763, section 6): ``txtvers=1`` first, ``proto`` the highest wire
version, ``name`` what clients ask for (the instance's own name may have been changed because it
was taken), ``id`` of this run of the server, ``caps`` its capabilities, ``fp`` the fingerprint
of its key, then the program's own properties.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from echostream.errors import ConfigurationError
from echostream.protocol.hello import CAPABILITIES, VERSION

__all__ = [
    "SERVICE_TYPE",
    "Announcement",
    "Service",
    "check_service_name",
    "ranked",
    "service_from",
]

SERVICE_TYPE = "_echostream._udp.local."
MAX_NAME_BYTES = 63
"""Of an instance's name: one DNS label (RFC 1035, section 2.3.4)."""
MAX_TXT_BYTES = 1200
"""So that everything about a service fits one packet (RFC 6763, section 6.2)."""
MAX_ADDRESSES = 16
_OWN_KEYS = ("txtvers", "proto", "name", "id", "caps", "fp")

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server as the network announces it. Anybody may announce anything: only the key that it
    proves to have when connecting says who it is."""

    name: str
    """What clients ask for."""
    instance: str
    """Its own name on the network; differs from ``name`` where that was taken."""
    addresses: tuple[str, ...]
    """The likeliest first; link-local ones of IPv6 with their interface."""
    port: int
    fingerprint: str | None = None
    """Of the key that it says to have: a hint."""
    id: str = ""
    """Of this run of the server."""
    capabilities: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=_nothing)
    """What the program announced about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a server says about itself. Checked when it is made: ``ConfigurationError``."""

    name: str
    properties: Mapping[str, str] = field(default_factory=_nothing)

    def __post_init__(self) -> None:
        check_service_name(self.name)
        for key, value in self.properties.items():
            if not isinstance(key, str) or not re.fullmatch(r"[a-z0-9_.-]{1,9}", key):
                raise ConfigurationError(
                    f"{key!r} cannot be announced: a key is 1 to 9 of a-z, 0-9, '_', '.' and '-'"
                )
            if key in _OWN_KEYS:
                raise ConfigurationError(f"{key!r} is announced already: choose another key")
            if not isinstance(value, str) or len(value.encode()) > 200:
                raise ConfigurationError(f"{key}={value!r} must be a text of at most 200 bytes")
        size = len(_packed(self.txt(id="0" * 16, fingerprint="sha256:" + "0" * 64)))
        if size > MAX_TXT_BYTES:
            raise ConfigurationError(
                f"what is announced about {self.name!r} takes {size} bytes; "
                f"at most {MAX_TXT_BYTES} travel well"
            )

    def txt(self, *, id: str, fingerprint: str | None) -> dict[str, str]:
        """The TXT record."""
        known = {} if fingerprint is None else {"fp": fingerprint}
        return {
            "txtvers": "1",
            "proto": str(VERSION),
            "name": self.name,
            "id": id,
            "caps": ",".join(CAPABILITIES),
            **known,
            **self.properties,
        }


def check_service_name(name: object) -> str:
    """A name that DNS-SD carries (RFC 6763, section 4.1.1). Raises ``ConfigurationError``."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"a service is found by its name, as 'AudioService', not by {type(name).__name__}"
        )
    size = len(name.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_NAME_BYTES or not name.isprintable() or name != name.strip():
        raise ConfigurationError(
            f"{name!r} cannot name a service: 1 to {MAX_NAME_BYTES} bytes of printable text"
        )
    return name


def service_from(
    instance: str,
    port: int,
    addresses: Iterable[str],
    txt: Mapping[bytes, bytes | None],
    own: Iterable[str] = (),
) -> Service | None:
    """What an announcement says, ``None`` where it is none of a server that this side can use.

    ``own`` are this host's addresses; see :func:`ranked`.
    """
    facts = read_txt(txt)
    if facts is None or not 0 < port <= 65535 or not instance.isprintable():
        return None
    usable = ranked(addresses, own)
    if not usable:
        return None
    name = facts.pop("name", instance)
    try:
        check_service_name(name)
    except ConfigurationError:
        return None
    fingerprint = facts.pop("fp", "")
    known = re.fullmatch(r"sha256:[0-9a-f]{64}", fingerprint)
    id = facts.pop("id", "")
    caps = facts.pop("caps", "")
    for key in _OWN_KEYS:
        facts.pop(key, None)
    return Service(
        name=name,
        instance=instance,
        addresses=usable,
        port=port,
        fingerprint=fingerprint if known else None,
        id=id if re.fullmatch(r"[0-9A-Za-z-]{1,64}", id) else "",
        capabilities=tuple(each for each in caps.split(",") if each)[:64],
        properties=MappingProxyType(facts),
    )


def read_txt(txt: Mapping[bytes, bytes | None]) -> dict[str, str] | None:
    """The pairs that are printable text; ``None`` for a version that is not ours.

    Keys without a value and what is not text are left out. Versions that are not named are 1."""
    facts: dict[str, str] = {}
    for raw_key, raw_value in txt.items():
        if raw_value is None:
            continue
        try:
            key, value = raw_key.decode("ascii").lower(), raw_value.decode()
        except UnicodeDecodeError:
            continue
        if key.isprintable() and value.isprintable():
            facts.setdefault(key, value)
    if facts.get("txtvers", "1") != "1" or not re.fullmatch(
        r"[1-9]\d{0,3}", facts.get("proto", "1")
    ):
        return None
    return facts


def ranked(addresses: Iterable[str], own: Iterable[str] = ()) -> tuple[str, ...]:
    """The addresses that can be connected to, the likeliest first, at most ``MAX_ADDRESSES``.

    Left out: multicast, broadcast and unspecified ones, link-local ones of IPv6 without their
    interface, and loopback where there are others, because only a server on this host has it.
    Likewise ``own`` addresses, unless all are: the address of a container bridge is the same on
    many hosts, and would lead to this one.
    """
    found: dict[IpAddress, None] = {}
    for text in addresses:
        try:
            address: IpAddress = ipaddress.ip_address(text)
        except ValueError:
            continue
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            elif address.is_link_local and address.scope_id is None:
                continue
        if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
            continue
        found[address] = None
        if len(found) == 4 * MAX_ADDRESSES:
            break
    mine = set(own)
    ours = {address for address in found if address.is_loopback or _plain(address) in mine}
    usable = [address for address in found if address not in ours] or list(found)
    if any(not address.is_loopback for address in usable):
        usable = [address for address in usable if not address.is_loopback]
    return tuple(str(address) for address in sorted(usable, key=_distance)[:MAX_ADDRESSES])


def _distance(address: IpAddress) -> tuple[int, int]:
    """Private networks, then public ones, then link-local ones; IPv6 before IPv4 (RFC 6724)."""
    reach = 2 if address.is_link_local else 0 if address.is_private else 1
    return reach, -address.version


def _plain(address: IpAddress) -> str:
    return str(address).partition("%")[0]


def _packed(txt: Mapping[str, str]) -> bytes:
    entries = [f"{key}={value}".encode() for key, value in txt.items()]
    return b"".join(bytes([min(len(each), 255)]) + each for each in entries)
