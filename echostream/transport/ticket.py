"""A ticket: everything that a client needs to reach one server, as one line of text.

::

    echostream://FINGERPRINT@HOST:PORT[,HOST:PORT...][?name=NAME&token=TOKEN]

FINGERPRINT is the 64 hexadecimal digits of the server's key, so a ticket says where the server is
*and* who: whoever answers there with another key is refused. A host is a name, an IPv4 address, or
an IPv6 address in brackets. ``name`` is for people; ``token`` is what the client says about itself
(:mod:`echostream.rpc.authentication`). Other parameters are ignored. Who has a ticket with a token
may do what its holder may: keep it like a password.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, unquote_to_bytes

from echostream.errors import ConfigurationError
from echostream.transport.addresses import parse_address

__all__ = ["SCHEME", "Ticket"]

SCHEME = "echostream://"
MAX_LENGTH = 2048
MAX_ADDRESSES = 16
MAX_TEXT = 512


@dataclass(frozen=True, slots=True)
class Ticket:
    """One server: where, and with which key. Checked when it is made: ``ConfigurationError``.

    ``str(ticket)`` and :meth:`parse` are each other's inverse.
    """

    addresses: tuple[tuple[str, int], ...]
    """Hosts and ports, one to 16; a client tries all."""
    fingerprint: str
    name: str = ""
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise ConfigurationError(
                f"a ticket has 1 to {MAX_ADDRESSES} addresses, not {len(self.addresses)}"
            )
        object.__setattr__(self, "addresses", tuple(map(_checked, self.addresses)))
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", self.fingerprint):
            raise ConfigurationError(
                f"{self.fingerprint!r} is not a fingerprint: it is 'sha256:' and 64 hexadecimal "
                "digits"
            )
        for what, text in (("name", self.name), ("token", self.token)):
            if len(text) > MAX_TEXT or not text.isprintable():
                raise ConfigurationError(
                    f"a ticket's {what} must be printable, of at most {MAX_TEXT} characters"
                )
        if len(str(self)) > MAX_LENGTH:
            raise ConfigurationError(f"the ticket would be longer than {MAX_LENGTH} characters")

    def __str__(self) -> str:
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses
        )
        given = {"name": self.name, "token": self.token}
        query = "&".join(f"{key}={quote(text, safe='')}" for key, text in given.items() if text)
        digits = self.fingerprint.removeprefix("sha256:")
        return f"{SCHEME}{digits}@{hosts}" + (f"?{query}" if query else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a ticket. Raises ``ConfigurationError``, which does not repeat the token."""
        text = text.strip()
        if len(text) > MAX_LENGTH:
            raise ConfigurationError(f"this is no ticket: longer than {MAX_LENGTH} characters")
        match = re.fullmatch(
            r"echostream://(?:sha256:)?([0-9A-Fa-f]{64})@([^?@/#\s]+)/?(?:\?([^#\s]*))?", text
        )
        if match is None:
            raise ConfigurationError(
                "this is no ticket: it looks like echostream://FINGERPRINT@HOST:PORT, and "
                "`echostream identity ticket` prints one"
            )
        digits, hosts, query = match.groups()
        given = dict(_parameters(query or ""))
        return cls(
            tuple(_hosts(hosts)),
            "sha256:" + digits.lower(),
            name=given.get("name", ""),
            token=given.get("token", ""),
        )


def _hosts(text: str) -> Iterable[tuple[str, int]]:
    parts = text.split(",", MAX_ADDRESSES + 1)
    return [parse_address(part) for part in parts]


def _parameters(query: str) -> Iterable[tuple[str, str]]:
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if equals:
            try:
                yield key, unquote_to_bytes(value).decode()
            except UnicodeDecodeError:
                raise ConfigurationError(f"the ticket's {key!r} is not text") from None


def _checked(address: tuple[str, int]) -> tuple[str, int]:
    host, port = parse_address(address)
    if not port:
        raise ConfigurationError(f"a ticket's address has a port: {host}:0 cannot be connected to")
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", host):
            raise ConfigurationError(f"{host!r} is neither a host name nor an address") from None
        return host.lower(), port
    if "%" in host:
        raise ConfigurationError(
            f"{host} means something on one host only: leave it out of the ticket"
        )
    return str(literal), port
