"""``AuthPlugin``: a client proves that it knows a secret, before anything of it is served."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.errors import ConfigurationError, PermissionDenied
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.rpc.authentication import Credentials
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed
from echostream.rpc.registry import check_grants
from echostream.rpc.session import Session
from echostream.transport.identity import Identity

__all__ = ["USER", "AuthPlugin"]

B = TypeVar("B", ServerBuilder, ClientBuilder)
Authorize = Callable[[Session, str], bool]

USER = "auth.user"


class AuthPlugin(ServerPlugin, ClientPlugin):
    """``.authenticate()`` with a secret that both sides know. On a server: a client whose proof is
    wrong is refused, its ``connect`` raises ``IdentityError``; of one that is taken
    ``session.get("auth.user")`` is who it is. On a client: proves the secret as ``user``.

    ``secret_key`` is one secret for all, or on a server one by user; long and random. It never
    travels: a key is derived from it and the user's name (:meth:`Identity.derived`), which signs
    the server's challenge. ``grants`` (server) is what handlers may ``require`` of a client: the
    same for all, or by user. ``authorize(session, name)`` (server) says whether a call, event or
    stream is allowed, where that is known only when it comes.
    """

    name = "auth"

    def __init__(
        self,
        secret_key: str | Mapping[str, str],
        *,
        user: str = "client",
        grants: str | Iterable[str] | Mapping[str, str | Iterable[str]] = (),
        authorize: Authorize | None = None,
    ) -> None:
        if not secret_key or not isinstance(secret_key, str | Mapping):
            raise ConfigurationError("AuthPlugin wants a secret_key: a str, or a dict by user")
        self._secret = secret_key
        self._user = user
        by_user = grants if isinstance(grants, Mapping) else {}
        self._by_user = {name: check_grants(given, "grants=") for name, given in by_user.items()}
        self._for_all = check_grants(() if isinstance(grants, Mapping) else grants, "grants=")
        self._authorize = authorize

    def install(self, builder: B) -> B:
        """Ask for the proof, or give it."""
        if isinstance(builder, ClientBuilder):
            if not isinstance(self._secret, str):
                raise ConfigurationError("a client has one secret_key, of its user")
            identity = Identity.derived(self._secret, self._user)
            return builder.credentials(token=self._user, identity=identity)
        if self._authorize is not None:
            builder.interceptor(_Authorizer(self._authorize))
        return builder.authenticate(self._authenticate)

    async def _authenticate(self, session: Session, credentials: Credentials) -> frozenset[str]:
        """The token is the user's name; the proof was verified, so the key tells the rest."""
        user = credentials.token
        if user is None or credentials.fingerprint is None:
            raise PermissionDenied("this server wants a proof: AuthPlugin(secret_key, user=...)")
        secret = self._secret if isinstance(self._secret, str) else self._secret.get(user)
        # An unknown user costs as much time as a wrong secret.
        tried = secret or secrets.token_hex()
        expected = await asyncio.to_thread(Identity.derived, tried, user)
        if secret is None or credentials.fingerprint != expected.fingerprint:
            raise PermissionDenied("authentication failed")
        session.set(USER, user)
        return self._by_user.get(user, self._for_all)


class _Authorizer(Interceptor):
    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        if not self._authorize(call.context, call.name):
            raise PermissionDenied(f"{call.context.get(USER, default='nobody')} may not do this")
        return await proceed()
