"""``AuthPlugin``: a client proves that it knows a secret, before any handler runs."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.errors import ConfigurationError, PermissionDenied, RpcError
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.rpc.context import ClientContext
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed
from echostream.rpc.session import Session

__all__ = ["USER", "AuthPlugin"]

B = TypeVar("B", ServerBuilder, ClientBuilder)
Authorize = Callable[[Session, str], bool]

logger = logging.getLogger("echostream.auth")

USER = "auth.user"
CHALLENGE = "auth.challenge"
TIMEOUT_S = 5.0


class AuthPlugin(ServerPlugin, ClientPlugin):
    """On a server: every client is challenged in ``on_connect`` and closed when its answer is
    wrong; ``session.get("auth.user")`` is who it is. On a client: answers the challenge as
    ``user``.

    ``secret_key`` is one secret for all, or on a server one by user. It never travels: the answer
    is an HMAC-SHA-256 of a challenge that is used once, and of the user's name. Connect with a
    pinned fingerprint or an authority, or somebody in between could pass both on.
    ``authorize(session, name)`` (server) says whether a call, event or stream is allowed.
    """

    name = "auth"

    def __init__(
        self,
        secret_key: str | Mapping[str, str],
        *,
        user: str = "client",
        authorize: Authorize | None = None,
    ) -> None:
        if not secret_key or not isinstance(secret_key, str | Mapping):
            raise ConfigurationError("AuthPlugin wants a secret_key: a str, or a dict by user")
        self._secret = secret_key
        self._user = user
        self._authorize = authorize

    def install(self, builder: B) -> B:
        """Add the challenge, or what answers it."""
        if isinstance(builder, ClientBuilder):
            if not isinstance(self._secret, str):
                raise ConfigurationError("a client has one secret_key, of its user")
            return builder.handler(CHALLENGE, self._answer)
        if self._authorize is not None:
            builder.interceptor(_Authorizer(self._authorize))
        return builder.on_connect(self._challenge)

    async def _answer(self, ctx: ClientContext, challenge: bytes) -> dict[str, Any]:
        assert isinstance(self._secret, str)
        return {"user": self._user, "proof": _proof(self._secret, self._user, challenge)}

    async def _challenge(self, session: Session) -> None:
        challenge = secrets.token_bytes(32)
        try:
            answer = await session.request(CHALLENGE, challenge, returns=dict, timeout=TIMEOUT_S)
        except RpcError as exc:
            answer = {}
            logger.info("%s did not answer the challenge: %s", session.peer_addr, exc)
        user, given = answer.get("user"), answer.get("proof")
        if isinstance(user, str) and isinstance(given, bytes):
            secret = self._secret if isinstance(self._secret, str) else self._secret.get(user)
            # An unknown user costs as much time as a wrong proof.
            expected = _proof(secret or secrets.token_hex(), user, challenge)
            if hmac.compare_digest(given, expected) and secret is not None:
                session.set(USER, user)
                return
        logger.warning("%s was refused: it does not know the secret", session.peer_addr)
        await session.close("authentication failed")


class _Authorizer(Interceptor):
    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        if not self._authorize(call.context, call.name):
            raise PermissionDenied(f"{call.context.get(USER, default='nobody')} may not do this")
        return await proceed()


def _proof(secret: str, user: str, challenge: bytes) -> bytes:
    """The length comes first, so that no user's name can be taken for a part of a challenge."""
    message = len(challenge).to_bytes(2, "big") + challenge + user.encode()
    return hmac.digest(secret.encode(), message, "sha256")
