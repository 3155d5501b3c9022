"""The servers whose keys are known: a text file that a person can read and mend.

One server per line: ``host:port``, its fingerprint, and the day it was first seen::

    192.168.1.5:5000 sha256:8ca4…724f 2026-11-22
    [fe80::1]:5000 sha256:05d1…9e10 2026-11-23

Empty lines and lines that begin with ``#`` are left alone. A line that cannot be read is an error
and not skipped, because a skipped line would be a server that is trusted anew.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from echostream.errors import IdentityError
from echostream.transport.private_files import data_directory, locked, read_lines, write_lines

__all__ = ["KnownHost", "KnownHosts", "host_key"]

_LINE = re.compile(
    r"(?P<host>\S+):(?P<port>[0-9]{1,5})\s+(?P<fingerprint>sha256:[0-9a-f]{64})(?:\s+(?P<since>\S+))?"
)


@dataclass(frozen=True, slots=True)
class KnownHost:
    """One line of the file."""

    key: str
    """``host:port``, as :func:`host_key` writes it."""
    fingerprint: str
    since: str
    """The day it was first seen, in ISO 8601; empty where the line has none."""
    path: Path
    line: int
    """Where it stands, counted from 1."""


def host_key(host: str, port: int) -> str:
    """``host:port`` in the one spelling that the file uses: lower case, no final dot, addresses in
    their canonical form (an IPv4-mapped one as IPv4), IPv6 in brackets."""
    name = host.strip().rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        if not name or re.search(r"[\s#]", name):
            raise IdentityError(f"{host!r} is not a host name") from None
        return f"{name}:{port}"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return f"[{address}]:{port}"
        address = address.ipv4_mapped
    return f"{address}:{port}"


class KnownHosts:
    """The file at ``path``; by default ``known_hosts`` in EchoStream's data directory.

    Nothing is cached: each call reads the file, so that what other processes and people write
    counts at once. A missing file is an empty one. Errors are
    :class:`~echostream.errors.IdentityError` and name file and line.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.path = data_directory() / "known_hosts" if path is None else Path(path).absolute()

    def entries(self) -> list[KnownHost]:
        """All lines, in the order of the file."""
        known: dict[str, KnownHost] = {}
        for number, line in enumerate(read_lines(self.path), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            match = _LINE.fullmatch(text)
            if match is None:
                raise IdentityError(
                    f"line {number} of {self.path} is not 'host:port sha256:… date'; "
                    "mend the line or delete it"
                )
            host, port, fingerprint, since = match.group("host", "port", "fingerprint", "since")
            key = host_key(host, int(port))  # a person may have written it another way
            if key in known:
                raise IdentityError(
                    f"lines {known[key].line} and {number} of {self.path} both name {key}; "
                    "delete one of them"
                )
            known[key] = KnownHost(key, fingerprint, since or "", self.path, number)
        return list(known.values())

    def lookup(self, host: str, port: int) -> KnownHost | None:
        """What is known about this server."""
        key = host_key(host, port)
        return next((entry for entry in self.entries() if entry.key == key), None)

    def record(self, host: str, port: int, fingerprint: str) -> KnownHost:
        """Append a line, if the server has none, and return the server's line.

        Two processes that meet a server at the same time both get the line of the first: the
        caller compares it with the fingerprint that it saw.
        """
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", fingerprint):
            raise IdentityError(f"{fingerprint!r} is not a fingerprint")
        with locked(self.path):
            if (entry := self.lookup(host, port)) is not None:
                return entry
            lines = read_lines(self.path)
            since = f"{datetime.now(UTC):%Y-%m-%d}"
            new = KnownHost(host_key(host, port), fingerprint, since, self.path, len(lines) + 1)
            write_lines(self.path, [*lines, f"{new.key} {fingerprint} {since}"])
            return new

    def replace(self, host: str, port: int, fingerprint: str) -> None:
        """The server has another key from now on. Nothing where it has no line (any more)."""
        with locked(self.path):
            entry = self.lookup(host, port)
            if entry is not None:
                lines = read_lines(self.path)
                since = f"{datetime.now(UTC):%Y-%m-%d}"
                lines[entry.line - 1] = f"{entry.key} {fingerprint} {since}"
                write_lines(self.path, lines)

    def forget(self, host: str, port: int) -> bool:
        """Remove the server's line; ``False`` where it has none."""
        with locked(self.path):
            entry = self.lookup(host, port)
            if entry is None:
                return False
            lines = read_lines(self.path)
            del lines[entry.line - 1]
            write_lines(self.path, lines)
            return True
