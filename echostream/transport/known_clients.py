"""The clients that were paired with this user's servers: a text file as that of known services, one
client per line, with the name that it gave itself."""

from __future__ import annotations

import os

from echostream.transport.known_services import KnownServices
from echostream.transport.private_files import data_directory

__all__ = ["KnownClients"]


class KnownClients(KnownServices):
    """The file at ``path``; by default ``known_clients`` in EchoStream's data directory."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(data_directory() / "known_clients" if path is None else path)

    def name_of(self, fingerprint: str) -> str | None:
        """What the client with this key called itself, ``None`` for one that is not known."""
        found = (each.name for each in self.entries() if each.fingerprint == fingerprint)
        return next(found, None)
