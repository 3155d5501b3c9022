"""Authentication as a plugin on both sides: nothing is served before a client has proved itself.

    python examples/auth_plugin.py [SECRET]

The server challenges each connection; the client answers with an HMAC of the challenge under the
shared secret, which therefore never travels. Give another secret to see a client refused.
"""

import hmac
import secrets
import sys

from echostream import (
    ClientContext,
    ClientPlugin,
    ConnectionClosed,
    Identity,
    PermissionDenied,
    RpcClient,
    RpcError,
    RpcServer,
    ServerPlugin,
    Session,
    handler,
    run,
)

SECRET = "my-secret"


def proof(secret: str, user: str, challenge: bytes) -> bytes:
    """Only who has the secret can make it. The user's name is in it, so that nobody can take an
    answer of one user for another; a challenge is used once, so that none can be replayed."""
    message = len(challenge).to_bytes(2, "big") + challenge + user.encode()
    return hmac.digest(secret.encode(), message, "sha256")


class AuthServer(ServerPlugin):
    """Asks every client on connecting. If ``on_connect`` raises, the connection is closed; no
    handler of the program runs before it has returned."""

    name = "auth"

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def install(self, builder):
        return (
            builder.on_connect(self.authenticate)
            .on_disconnect(self.left)
            .handler("auth.whoami", self.whoami)
        )

    async def authenticate(self, session: Session) -> None:
        challenge = secrets.token_bytes(32)
        answer = await session.request("auth.challenge", challenge, returns=dict, timeout=2.0)
        user, given = answer.get("user"), answer.get("proof")
        valid = isinstance(user, str) and isinstance(given, bytes)
        # compare_digest takes as long for a near miss as for any other: `==` would tell how much
        # of a forged proof was right.
        if not valid or not hmac.compare_digest(given, proof(self._secret, user, challenge)):
            print("server: refused")
            await session.close("authentication failed")
            return
        session.set("user", user)
        print(f"server: {user} is authenticated")

    async def left(self, session: Session) -> None:
        if user := session.get("user", default=None):
            print(f"server: {user} left")

    async def whoami(self, session: Session) -> str:
        return session.get("user", str)


class AuthClient(ClientPlugin):
    """Answers the challenge. It goes to whom the client trusts: connect with a fingerprint or a CA,
    or somebody in between could pass challenge and answer on."""

    name = "auth"

    def __init__(self, user: str, secret: str) -> None:
        self._user, self._secret = user, secret

    def install(self, builder):
        return (
            builder.set("auth.user", self._user)
            .set("auth.secret", self._secret)
            .handler("auth.challenge", answer_challenge)
        )


async def answer_challenge(ctx: ClientContext, challenge: bytes) -> dict:
    user, secret = ctx.get("auth.user", str), ctx.get("auth.secret", str)
    return {"user": user, "proof": proof(secret, user, challenge)}


@handler("vault.open")
async def open_vault(session: Session, key: str) -> str:
    if session.get("user") != "alice":
        raise PermissionDenied("only alice may open it")
    return f"{key} opened"


async def visit(server: RpcServer, user: str, secret: str) -> bool:
    try:
        async with (
            RpcClient.builder()
            .connect(server.address)
            .trust(fingerprint=server.fingerprint)
            .plugin(AuthClient(user, secret))
            .build()
        ) as client:
            print(f"{user}: I am", await client.request("auth.whoami"))
            print(f"{user}:", await client.request("vault.open", "the vault"))
    except RpcError as error:
        print(f"{user}: {error.status.name}: {error.message}")
    except ConnectionClosed as error:
        print(f"{user}: {error.reason}")
        return False
    return True


async def main(secret: str) -> int:
    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral())
        .plugin(AuthServer(SECRET))
        .handler(open_vault)
        .build()
    )
    async with server:
        welcome = await visit(server, "alice", secret)
        await visit(server, "bob", SECRET)
    return 0 if welcome else 1


if __name__ == "__main__":
    sys.exit(run(main(sys.argv[1] if len(sys.argv) > 1 else SECRET)))
