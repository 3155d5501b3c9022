"""Pairing: two machines that know nothing of each other come to know each other's keys.

One shows a short code (:class:`Pairing`), on the other it is typed (:func:`pair`). Both then have
the other's fingerprint on file: the server's among the known hosts of the client, the client's
among the known clients of the server, which :func:`paired_clients` lets in.

The exchange runs over an ordinary connection whose server is not verified: the code does that, see
:mod:`echostream.transport.code_exchange`. A code is good for one attempt and for a short time, so
that somebody in between has one guess in a million.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from echostream.builder import ServerBuilder
from echostream.client import RpcClient
from echostream.errors import ConfigurationError, IdentityError, PermissionDenied, RpcError
from echostream.plugin.base import ServerPlugin
from echostream.rpc.authentication import Authorize, Credentials
from echostream.rpc.session import Session
from echostream.server import RpcServer
from echostream.transport.addresses import parse_address
from echostream.transport.code_exchange import MISMATCH, CodeExchange
from echostream.transport.identity import Identity
from echostream.transport.known_clients import KnownClients
from echostream.transport.known_hosts import KnownHosts
from echostream.transport.known_services import KnownServices
from echostream.transport.trust import Plan, Trust

__all__ = ["Paired", "Pairing", "pair", "paired_clients"]

logger = logging.getLogger("echostream.pairing")

BEGIN, CONFIRM = "echostream.pair", "echostream.pair.confirm"
LIFETIME_S = 120.0
ATTEMPT_S = 10.0
"""How long the one attempt may take: both machines compute, nobody thinks."""
DIGITS = 6
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Paired:
    """The other side: its key, what it calls itself, and where it is."""

    fingerprint: str
    name: str
    address: tuple[str, int]


class Pairing(ServerPlugin):
    """The side that shows the code. Usually it is a server of its own for as long as that takes::

        async with Pairing(":5000") as pairing:
            print(pairing.code)
            client = await pairing.wait()

    ``identity``: the key that this machine's servers show, by default that which is kept for this
    user. ``lifetime``: seconds until the code is worth nothing. ``name``: what the client is told.
    """

    name = "pairing"

    def __init__(
        self,
        address: str | tuple[str, int] = ":0",
        *,
        identity: Identity | None = None,
        lifetime: float = LIFETIME_S,
        name: str = "",
        known_clients: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(lifetime, int | float) or not 1 <= lifetime <= 3600:
            raise ConfigurationError(f"lifetime={lifetime!r} must be seconds, from 1 to 3600")
        self._address = address
        self._identity = identity or Identity.self_signed()
        self._lifetime = lifetime
        self._name = _own_name(name)
        self._known = KnownClients(known_clients)
        self._attempt: tuple[Session, CodeExchange, str] | None = None
        self._writing: asyncio.Task[bool] | None = None
        self._server: RpcServer | None = None
        self._done: asyncio.Future[Paired] | None = None
        self._timer: asyncio.TimerHandle | None = None
        digits = f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"
        self.code = f"{digits[:3]} {digits[3:]}"
        """What has to be typed on the other side."""
        CodeExchange(digits, client="", server="", is_client=False)  # is the extra there?

    def install(self, builder: ServerBuilder) -> ServerBuilder:
        """The whole of a pairing server; nothing else should be served beside it."""
        builder.bind(self._address).identity(self._identity).authenticate(self._authenticate)
        builder.limits(calls=2, streams=1, message_size=4096)
        builder.handler(BEGIN, self._begin).handler(CONFIRM, self._confirm)
        return builder.on_start(self._open).on_disconnect(self._left)

    async def __aenter__(self) -> Self:
        self._server = RpcServer.builder().plugin(self).build()
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._cancel_timer()
        if self._server is not None:
            await self._server.shutdown(drain=1.0)

    @property
    def address(self) -> tuple[str, int]:
        """Where the other side finds this one."""
        if self._server is None:
            raise ConfigurationError("the pairing has no address before `async with`")
        return self._server.address

    async def wait(self) -> Paired:
        """Wait until a client is paired; it is among the known clients then. Raises
        ``IdentityError`` when the attempt failed, or the code's time is over."""
        return await asyncio.shield(self._outcome)

    @property
    def _outcome(self) -> asyncio.Future[Paired]:
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
            self._done.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._done

    async def _open(self, _: Any) -> None:
        self._limit(self._lifetime, f"no client tried the code within {self._lifetime:g} s")

    def _limit(self, seconds: float, message: str) -> None:
        self._cancel_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._fail, message)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, message: str) -> None:
        self._cancel_timer()
        if not self._outcome.done():
            logger.warning("pairing failed: %s", message)
            self._outcome.set_exception(IdentityError(message))

    async def _authenticate(self, session: Session, credentials: Credentials) -> None:
        if credentials.fingerprint is None:
            raise PermissionDenied("this side only pairs, and for that it wants the client's key")

    async def _begin(self, session: Session, said: dict[str, Any]) -> dict[str, Any]:
        """The client's part of the exchange. From here on the code is used up."""
        if self._attempt is not None or self._outcome.done():
            raise PermissionDenied("the code was tried before, or its time is over: make a new one")
        assert session.fingerprint is not None
        exchange = CodeExchange(
            _digits(self.code),
            client=session.fingerprint,
            server=self._identity.fingerprint,
            is_client=False,
        )
        name = _shown_name(said.get("name"))
        self._attempt = session, exchange, name
        self._limit(ATTEMPT_S, f"the client did not finish within {ATTEMPT_S:g} s")
        try:
            exchange.agree(said.get("message"))
        except IdentityError as error:
            self._fail(str(error))
            raise PermissionDenied(str(error)) from None
        return {"message": exchange.message, "name": self._name}

    async def _confirm(self, session: Session, proof: bytes) -> bytes:
        """The client's proof; it is answered with ours where it is right."""
        under_way = self._attempt is not None and self._writing is None and not self._outcome.done()
        if self._attempt is None or self._attempt[0] is not session or not under_way:
            raise PermissionDenied("no pairing is under way with this client")
        _, exchange, name = self._attempt
        try:
            exchange.verify(proof, name.encode())
        except IdentityError as error:
            self._fail(str(error))
            raise PermissionDenied(str(error)) from None
        assert session.fingerprint is not None
        paired = Paired(session.fingerprint, name, session.peer_addr)
        self._cancel_timer()  # what is written down now has not failed, also if the client leaves
        self._writing = asyncio.get_running_loop().create_task(self._write(paired))
        if not await asyncio.shield(self._writing):
            raise PermissionDenied("the other side cannot write down who this client is")
        return exchange.proof(self._name.encode())

    async def _write(self, paired: Paired) -> bool:
        try:
            await asyncio.to_thread(self._known.record, paired.name, paired.fingerprint)
        except Exception as error:
            self._fail(str(error))
            return False
        if not self._outcome.done():
            self._outcome.set_result(paired)
        return True

    async def _left(self, session: Session) -> None:
        if self._attempt is not None and self._attempt[0] is session and self._writing is None:
            self._fail(
                "the client left in the middle of the pairing: it refused this side, or died"
            )


async def pair(
    address: str | tuple[str, int],
    code: str,
    *,
    identity: Identity | None = None,
    name: str = "",
    addresses: Sequence[str | tuple[str, int]] = (),
    service: str | None = None,
    timeout: float = ATTEMPT_S,
    known_hosts: str | os.PathLike[str] | None = None,
) -> Paired:
    """Pair this machine with the one at ``address``, which shows ``code``; then its key is known.

    It is known for ``address``, for ``addresses`` where the server will have others, and for
    ``service``, the name under which it is discovered. ``identity``: who this machine is, by
    default this user's. ``name``: what the other side is told.

    Raises ``IdentityError`` where the code is wrong or somebody stands in between (nothing is
    known then on either side), ``ConnectionClosed`` where nobody answers.
    """
    code = _digits(code)  # a typing error costs no attempt
    host, port = parse_address(address)
    known = [(host, port), *map(parse_address, addresses)]
    if identity is None:
        identity = await asyncio.to_thread(Identity.self_signed)
    builder = RpcClient.builder().connect((host, port), timeout=timeout)
    connecting = builder.credentials(identity=identity).build()
    client = RpcClient(replace(connecting._config, trust=_AnyKey(known_hosts=known_hosts)))
    await client._open()
    try:
        paired = await exchange_codes(client, code, identity, name=name, timeout=timeout)
        await asyncio.to_thread(_remember, paired.fingerprint, known, service, known_hosts)
    finally:
        await client.close()
    return paired


async def exchange_codes(
    client: RpcClient, code: str, identity: Identity, *, name: str = "", timeout: float = ATTEMPT_S
) -> Paired:
    """The exchange itself, over a connection of ``identity``. Nothing is written down here."""
    server = client._server_key
    digits = _digits(code)
    exchange = CodeExchange(digits, client=identity.fingerprint, server=server, is_client=True)
    own_name = _own_name(name)
    begin = {"message": exchange.message, "name": own_name}
    try:
        answer = await client.request(BEGIN, begin, returns=dict[str, Any], timeout=timeout)
        exchange.agree(answer.get("message"))
        other_name = _shown_name(answer.get("name"))
        own_proof = exchange.proof(own_name.encode())
        proof = await client.request(CONFIRM, own_proof, returns=bytes, timeout=timeout)
    except PermissionDenied as error:
        raise IdentityError(error.message or MISMATCH) from None
    except RpcError as error:
        raise IdentityError(f"the other side does not pair as it should: {error}") from error
    exchange.verify(proof, other_name.encode())
    return Paired(server, other_name, client.server_addr)


def paired_clients(
    known_clients: str | os.PathLike[str] | None = None, *, grants: Iterable[str] = ()
) -> Authorize:
    """For ``.authenticate(...)``: take the clients that were paired with this machine, with these
    ``grants``, and nobody else."""
    known, granted = KnownClients(known_clients), tuple(grants)

    async def authorize(session: Session, credentials: Credentials) -> tuple[str, ...]:
        shown = credentials.fingerprint
        try:
            name = None if shown is None else await asyncio.to_thread(known.name_of, shown)
        except IdentityError as error:  # names a file and a line, for this side only
            logger.error("no paired client can connect: %s", error)
            raise PermissionDenied("this server cannot tell which clients are paired") from None
        if name is None:
            raise PermissionDenied(
                "this client is not paired with this server: echostream identity pair"
            )
        return granted

    return authorize


class _AnyKey(Trust):
    """Whoever answers: the code tells who it is."""

    __slots__ = ()

    def plan(self, host: str, port: int, address: str, *, hint: str | None = None) -> Plan:
        """Nothing is verified in the handshake, and nothing remembered after it."""
        return Plan(
            rule="insecure",
            host=host,
            port=port,
            server_name=host.strip("[]").rstrip("."),
            authorities=None,
            expected=None,
        )


def _remember(
    fingerprint: str,
    addresses: Sequence[tuple[str, int]],
    service: str | None,
    known_hosts: str | os.PathLike[str] | None,
) -> None:
    hosts = KnownHosts(known_hosts)
    for host, port in addresses:
        if hosts.record(host, port, fingerprint).fingerprint != fingerprint:
            hosts.replace(host, port, fingerprint)  # what was known before is less than this
    if service is not None:
        KnownServices.beside(known_hosts).record(service, fingerprint)


def _digits(code: str) -> str:
    digits = "".join(each for each in code if each not in " -\t")
    if len(digits) != DIGITS or not digits.isascii() or not digits.isdigit():
        raise ConfigurationError(f"{code!r} is not a pairing code: it has {DIGITS} digits")
    return digits


def _own_name(name: str) -> str:
    return _shown_name(name or socket.gethostname())


def _shown_name(name: object) -> str:
    """A name from the other side is text for people, and bounded."""
    text = name if isinstance(name, str) else ""
    return "".join(each for each in text[:MAX_NAME] if each.isprintable()).strip() or "unnamed"
