"""Who the client is: told in HELLO, verified before any hook or handler runs.

A client says it with a token, with a signature of its key, or with both. The server's function
decides what it may do; see :class:`Authenticator`. The order on a server: TLS, HELLO, the proof,
the function, WELCOME to the client, ``on_connect``, handlers.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed, IdentityError, RpcError
from echostream.rpc.peer import Peer
from echostream.rpc.registry import check_grants
from echostream.rpc.session import Session
from echostream.transport.client_proof import Authorities, prove, verify_chain, verify_proof
from echostream.transport.identity import Identity

__all__ = [
    "Authenticator",
    "Authorize",
    "ClientCredentials",
    "Credentials",
    "admit",
    "introduce",
    "new_challenge",
]

logger = logging.getLogger("echostream.rpc")

MAX_TOKEN = 8192


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client said and proved about who it is. Nothing of it is there for a client that said
    nothing."""

    token: str | None = field(default=None, repr=False)
    """What it says to have got from you. Compare it with :meth:`has_token`."""
    fingerprint: str | None = None
    """Of the key that it has proved to have. Anybody can make a key: compare it with known ones."""
    names: tuple[str, ...] = ()
    """In its certificate, where an authority that you named has issued it."""

    def has_token(self, token: str) -> bool:
        """Whether it has this token. Takes as long for a near miss as for any other."""
        return hmac.compare_digest((self.token or "").encode(), token.encode()) and bool(token)


Authorize: TypeAlias = Callable[
    [Session, Credentials], Coroutine[Any, Any, str | Iterable[str] | None]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticator:
    """How a server finds out who its clients are.

    ``authorize`` gets the session and the :class:`Credentials`; it returns what the client is
    granted (names that handlers ``require``; ``None`` for nothing of it), and raises
    ``PermissionDenied`` to refuse the client. ``authorities``: the client must have a certificate
    that one of these issued. ``timeout``: seconds for all of it.
    """

    authorize: Authorize | None = None
    authorities: Authorities = ()
    timeout: float = 5.0

    def verified(
        self, auth: Mapping[str, Any] | None, server: str, challenge: bytes
    ) -> Credentials:
        """What is true of what a client said. ``IdentityError`` where something is not."""
        auth = {} if auth is None else auth
        scheme, token = auth.get("scheme"), auth.get("token")
        if token is not None and not (isinstance(token, str) and len(token) <= MAX_TOKEN):
            raise IdentityError("the client's token is not a text, or too long")
        if scheme == "certificate":
            chain = auth.get("chain")
            shown = verify_proof(chain, auth.get("signature"), server, challenge)
            names = verify_chain(chain, self.authorities) if self.authorities else ()
            return Credentials(token, shown, names)
        if self.authorities:
            raise IdentityError(
                "a client certificate is wanted: .credentials(identity=Identity.from_pem(...))"
            )
        if scheme not in (None, "bearer"):
            raise IdentityError("the client's scheme of authentication is not known here")
        return Credentials(token)


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What a client tells a server about itself."""

    token: str | None = field(default=None, repr=False)
    identity: Identity | None = None

    def __post_init__(self) -> None:
        if self.token is not None and not (
            isinstance(self.token, str) and 0 < len(self.token) <= MAX_TOKEN
        ):
            raise ConfigurationError(f"token= must be a text of 1 to {MAX_TOKEN} characters")
        if self.identity is not None and not isinstance(self.identity, Identity):
            raise ConfigurationError(
                f"identity= wants an Identity, got {type(self.identity).__name__}"
            )


async def introduce(peer: Peer, credentials: ClientCredentials, server: str) -> None:
    """The client's side: exchange HELLO, and wait to be taken where the server asks who we are.

    ``server`` is the fingerprint that the server proved to have. The identity is shown only to
    servers that ask. Raises ``IdentityError`` where the server refuses us.
    """
    auth: dict[str, Any] | None = None
    if credentials.token is not None:
        auth = {"scheme": "bearer", "token": credentials.token}
    try:
        if credentials.identity is not None:
            await peer.wait_greeted()  # the server speaks first: the challenge is in its HELLO
            challenge = peer.protocol.peer.challenge
            if challenge is not None:
                proof = await asyncio.to_thread(prove, credentials.identity, server, challenge)
                auth = {**(auth or {}), **proof}
        peer.greet(auth=auth)
        await peer.wait_greeted()
        if peer.protocol.peer.challenge is not None:
            await peer.wait_welcome()
    except ConnectionClosed as exc:
        if exc.code == Close.AUTHENTICATION_FAILED:
            raise IdentityError(
                f"the server refused this client: {exc.reason or 'it gave no reason'}. What a "
                "client says about itself is given with token= and identity="
            ) from exc
        raise


def new_challenge() -> bytes:
    """What the clients of one connection have to sign."""
    return secrets.token_bytes(32)


async def admit(
    peer: Peer, session: Session, authenticator: Authenticator, server: str, challenge: bytes
) -> bool:
    """The server's side, after HELLO: take the client, or close. Nothing of the program but
    ``authorize`` runs before."""
    try:
        async with asyncio.timeout(authenticator.timeout):
            auth = peer.protocol.peer.auth
            credentials = await asyncio.to_thread(authenticator.verified, auth, server, challenge)
            session._credentials = credentials
            granted: Any = None
            if authenticator.authorize is not None:
                granted = await authenticator.authorize(session, credentials)
            peer.grants = frozenset() if granted is None else check_grants(granted, "authenticate")
    except IdentityError as exc:
        reason = str(exc)
    except RpcError as exc:
        reason = exc.message or "the client may not connect"
    except TimeoutError:
        reason = f"not decided within {authenticator.timeout:g} s"
    except ConnectionClosed:
        return False
    except Exception:
        logger.exception("authenticating %s failed", peer.peer_addr)
        reason = "the server could not decide"
    else:
        if peer.ended is None:
            peer.protocol.welcome()
            peer.connection.wake()
            return True
        return False
    logger.warning("client %s is refused: %.256r", peer.peer_addr, reason)
    peer.close(Close.AUTHENTICATION_FAILED, reason)
    return False
