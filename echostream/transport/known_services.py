"""The services whose keys are known, by the name under which they are looked for.

A service that is found by name may have another address every day, and several servers may have one
name. So a line says that *a* server of this name has this key; a name may have several lines::

    AudioService sha256:8ca4…724f 2026-11-22
    living%20room sha256:05d1…9e10 2026-11-23

What is not a letter, a digit, ``_``, ``.``, ``-`` or ``~`` is written as in a URL. Names differ by
more than case. Rules and errors are those of the known hosts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from echostream.errors import IdentityError
from echostream.transport.private_files import data_directory, locked, read_lines, write_lines

__all__ = ["KnownService", "KnownServices"]

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9_.~%-]+)\s+(?P<fingerprint>sha256:[0-9a-f]{64})(?:\s+(?P<since>\S+))?"
)


@dataclass(frozen=True, slots=True)
class KnownService:
    """One line of the file."""

    name: str
    """In the spelling of :func:`str.casefold`."""
    fingerprint: str
    since: str
    path: Path
    line: int
    """Where it stands, counted from 1."""


class KnownServices:
    """The file at ``path``; by default ``known_services`` in EchoStream's data directory.

    Nothing is cached; a missing file is an empty one. Errors are ``IdentityError``, and name file
    and line.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = data_directory() / "known_services" if path is None else Path(path).absolute()

    @classmethod
    def beside(cls, known_hosts: str | os.PathLike[str] | None) -> KnownServices:
        """The file that belongs to a file of known hosts, also where that one is elsewhere."""
        if known_hosts is None:
            return KnownServices()
        path = Path(known_hosts)
        return KnownServices(path.with_name(f"{path.name}.services"))

    def entries(self) -> list[KnownService]:
        """All lines, in the order of the file."""
        found = []
        for number, line in enumerate(read_lines(self.path), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            match = _LINE.fullmatch(text)
            if match is None:
                raise IdentityError(
                    f"line {number} of {self.path} is not 'NAME sha256:… date'; "
                    "mend the line or delete it"
                )
            name, fingerprint, since = match.group("name", "fingerprint", "since")
            folded = unquote(name).casefold()
            found.append(KnownService(folded, fingerprint, since or "", self.path, number))
        return found

    def lookup(self, name: str) -> tuple[KnownService, ...]:
        """What is known about servers of this name."""
        return tuple(each for each in self.entries() if each.name == name.casefold())

    def record(self, name: str, fingerprint: str, *, first: bool = False) -> None:
        """Append a line, unless it is there. ``first``: only while the name has none; where
        somebody else was first with another key, ``IdentityError``."""
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", fingerprint):
            raise IdentityError(f"{fingerprint!r} is not a fingerprint")
        with locked(self.path):
            known = self.lookup(name)
            if any(each.fingerprint == fingerprint for each in known):
                return
            if first and known:
                raise IdentityError(
                    f"another program met {name!r} just now, with the key {known[0].fingerprint}, "
                    f"and this server has {fingerprint}: connect again, and choose"
                )
            write_lines(self.path, [*read_lines(self.path), _line(name, fingerprint)])

    def replace(self, name: str, old: Collection[str], fingerprint: str) -> None:
        """A server of this name has another key from now on, and no longer one of the ``old``."""
        with locked(self.path):
            known = self.lookup(name)
            gone = {each.line for each in known if each.fingerprint in old}
            lines = [
                line for at, line in enumerate(read_lines(self.path), start=1) if at not in gone
            ]
            if all(each.fingerprint != fingerprint for each in known):
                lines.append(_line(name, fingerprint))
            write_lines(self.path, lines)

    def forget(self, name: str) -> int:
        """Remove the name's lines; how many there were."""
        with locked(self.path):
            gone = {each.line for each in self.lookup(name)}
            if gone:
                lines = read_lines(self.path)
                write_lines(
                    self.path, [line for at, line in enumerate(lines, start=1) if at not in gone]
                )
            return len(gone)


def _line(name: str, fingerprint: str) -> str:
    return f"{quote(name, safe='~')} {fingerprint} {datetime.now(UTC):%Y-%m-%d}"
