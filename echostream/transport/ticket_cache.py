"""A client's session tickets: each is used once, and only towards the server that gave it.

A ticket holds the secret that resumes a session (RFC 8446, section 4.6.1), and a resumed session
shows no certificate: what it proves is that the server is the one that gave the ticket. So a ticket
is kept with that server's fingerprint and with what it was trusted by, and used only where the same
would be trusted again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from echostream.errors import IdentityError
from echostream.transport.known_hosts import host_key
from echostream.transport.private_files import (
    data_directory,
    locked,
    read_private,
    write_private,
)
from echostream.transport.trust import Plan

__all__ = ["KeptTicket", "TicketCache"]

logger = logging.getLogger(__name__)

LIFETIME_S = 86_400.0
"""What our servers grant (RFC 8446, section 4.6.1, allows a week)."""
PER_SERVER = 4
SERVERS = 256
"""Bounds of the file: the oldest give way."""


class KeptTicket(NamedTuple):
    """``ticket`` is the engine's; ``binding`` what the server was trusted by; ``expires`` a time of
    the wall clock, as the ticket's own."""

    fingerprint: str
    binding: str
    ticket: bytes
    expires: float


class TicketCache:
    """Tickets of one client, in memory; with ``path`` in a file too (mode 0600) that later runs of
    the program find."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept: dict[str, deque[KeptTicket]] = {}

    @staticmethod
    def default_path() -> Path:
        """Where tickets are kept, beside the known hosts."""
        return data_directory() / "tickets.json"

    def put(self, plan: Plan, fingerprint: str, ticket: bytes) -> None:
        """Keep a ticket of a server that proved to be ``fingerprint`` and was accepted."""
        kept = KeptTicket(fingerprint, _binding(plan), ticket, time.time() + LIFETIME_S)
        self._change(host_key(plan.host, plan.port), kept)

    def put_soon(self, plan: Plan, fingerprint: str, ticket: bytes) -> None:
        """The same, from an event loop that must not wait for a disk."""
        if self._path is None:
            self.put(plan, fingerprint, ticket)
        else:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, self.put, plan, fingerprint, ticket)

    def take(self, plan: Plan) -> KeptTicket | None:
        """The newest ticket for this server that ``plan`` would trust, once."""
        return self._change(host_key(plan.host, plan.port), None, plan)

    def _change(
        self, server: str, put: KeptTicket | None, plan: Plan | None = None
    ) -> KeptTicket | None:
        if self._path is None:
            return self._apply(server, put, plan)
        try:
            with locked(self._path):
                self._kept = _decode(read_private(self._path, secret=True))
                taken = self._apply(server, put, plan)
                write_private(self._path, _encode(self._kept))
                return taken
        except IdentityError as error:  # without tickets everything works, but slower
            logger.warning("session tickets are not kept: %s", error)
            self._path = None
            return None

    def _apply(self, server: str, put: KeptTicket | None, plan: Plan | None) -> KeptTicket | None:
        now = time.time()
        queue = self._kept.pop(server, deque(maxlen=PER_SERVER))
        if put is not None:
            queue.append(put)
        taken = None
        while plan is not None and queue and taken is None:
            newest = queue.pop()
            if newest.expires > now and _trusted(plan, newest):
                taken = newest
        if queue:
            self._kept[server] = queue
        while len(self._kept) > SERVERS:
            del self._kept[next(iter(self._kept))]
        return taken


def _binding(plan: Plan) -> str:
    if plan.rule == "authority":
        assert plan.authorities is not None
        digest = hashlib.sha256(repr(plan.authorities).encode()).hexdigest()
        return f"authority {digest} {plan.server_name}"
    return "insecure" if plan.rule == "insecure" else "key"


def _trusted(plan: Plan, kept: KeptTicket) -> bool:
    """A key is trusted by itself, whatever the ticket was given under: TLS proved it then."""
    if plan.expected is not None:
        return kept.fingerprint == plan.expected
    return plan.rule != "first_use" and kept.binding == _binding(plan)


def _encode(kept: dict[str, deque[KeptTicket]]) -> bytes:
    rows = {
        server: [
            [k.fingerprint, k.binding, base64.b64encode(k.ticket).decode(), k.expires]
            for k in queue
        ]
        for server, queue in kept.items()
    }
    return json.dumps(rows).encode()


def _decode(data: bytes | None) -> dict[str, deque[KeptTicket]]:
    """What the file holds; nothing for a file that somebody else wrote."""
    if data is None:
        return {}
    try:
        return {
            str(server): deque(
                (
                    KeptTicket(str(fp), str(binding), base64.b64decode(ticket), float(expires))
                    for fp, binding, ticket, expires in rows
                ),
                maxlen=PER_SERVER,
            )
            for server, rows in json.loads(data).items()
        }
    except (ValueError, TypeError, AttributeError):
        logger.warning("the file of session tickets cannot be read, and is written anew")
        return {}
