"""How a client decides whom it talks to when it looks for a server by name.

An announcement is not authenticated: anybody in the network may announce any name, at any address,
with any fingerprint. So the rules are those of :mod:`echostream.transport.trust`, with the name in
place of the address, which says nothing. The first that applies:

1. ``fingerprint=``: the server's key has this fingerprint.
2. ``ca=``: the certificate was issued by this authority, for ``server_name=``, or else for the name
   that is looked for.
3. Keys are known for this name: the server has one of them.
4. An address in one's own network: trust on first use. Where a fingerprint was announced, the key
   must be that one. It is written down for the name, and from then on point 3 applies.

An address outside of one's own network is not tried for a name that is not known: whoever announced
it is not where it points to.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from echostream.errors import IdentityError
from echostream.transport.known_services import KnownServices
from echostream.transport.succession import predecessors
from echostream.transport.trust import Plan, Trust, decide, is_near

__all__ = ["ServicePlan", "ServiceTrust"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTrust:
    """Whom to trust as ``service``, given what a client trusts. Stands where a ``Trust`` stands.

    ``hint`` is the announced fingerprint. ``joining``: more servers of the name may be taken on
    first use than one, because all of them were asked for together.
    """

    trust: Trust
    service: str
    hint: str | None = None
    joining: bool = False

    def known_keys(self) -> frozenset[str] | None:
        """The keys that a server of this name may have; ``None``: whatever rule 2 or 4 says.
        Reads files."""
        trust = self.trust
        if trust.fingerprint is not None:
            return frozenset({trust.fingerprint})
        if trust.ca is not None or trust.insecure:
            return None
        known = KnownServices.beside(self.trust.known_hosts).lookup(self.service)
        return frozenset(each.fingerprint for each in known) or None

    def usable(self, addresses: Sequence[str], keys: frozenset[str] | None) -> tuple[str, ...]:
        """The addresses that may be tried, where ``keys`` is what :meth:`known_keys` said."""
        if keys is not None or self.trust.ca is not None or self.trust.insecure:
            return tuple(addresses)
        return tuple(each for each in addresses if is_near(each))

    def plan(self, host: str, port: int, address: str) -> Plan:
        """What is verified during the handshake and after it. Reads files."""
        trust = self.trust
        if trust.fingerprint is not None or trust.ca is not None or trust.insecure:
            return decide(trust, host, port, address, known=None)
        keys = None if self.joining else self.known_keys()
        return ServicePlan(
            rule="first_use" if keys is None else "known_host",
            host=host,
            port=port,
            server_name=host.strip("[]").rstrip("."),
            authorities=None,
            expected=self.hint if keys is None else None,
            keys=keys,
            service=self.service,
            joining=self.joining,
            known_services=KnownServices.beside(trust.known_hosts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan(Plan):
    """What was decided before the handshake with one server that was found by name."""

    service: str
    keys: frozenset[str] | None
    """The keys it may have; ``None`` on a first use."""
    joining: bool
    known_services: KnownServices

    def check(self, certificate: bytes | None, *, resumed: str | None = None) -> str:
        """The server's fingerprint, or ``IdentityError``. Touches no file."""
        shown = Plan.check(self, certificate, resumed=resumed)
        if (
            self.keys is not None
            and shown not in self.keys
            and not self._succeeds(certificate, self.keys)
        ):
            raise IdentityError(
                f"a server that says to be {self.service!r}, at {self._where}, has the key "
                f"{shown}, which {self.known_services.path} does not list for that name: somebody "
                "answers in its place, or it is a new server, or was set up anew. Ask whoever "
                "runs it for its fingerprint. If it is the one shown: "
                f"echostream identity trust '{self.service}' {shown}"
            )
        return shown

    def accept(self, certificate: bytes | None, *, resumed: str | None = None) -> str:
        """:meth:`check`, and on a first use the line in the file."""
        shown = self.check(certificate, resumed=resumed)
        if self.rule == "first_use":
            self.known_services.record(self.service, shown, first=not self.joining)
            logger.info("first met %r: its key %s is trusted now", self.service, shown)
        elif self.keys is not None and shown not in self.keys and certificate is not None:
            self.known_services.replace(self.service, predecessors(certificate), shown)
            logger.info("%r has a new key, %s, which an old one signed", self.service, shown)
        return shown
