"""Authentication as a plugin on both sides: nothing is served before a client has shown who it is.

    python examples/auth_plugin.py [SECRET]

The client shows a token: its name and an end of validity, under an HMAC that only who has the
secret can make. The secret itself never travels. Give another one to see a client refused. For
keys instead of tokens see docs/trust.md.
"""

import hmac
import sys
import time

from echostream import (
    ClientPlugin,
    Identity,
    IdentityError,
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
GRANTS = {"alice": {"vault"}}


def make_token(secret: str, user: str, lifetime: float = 60.0) -> str:
    claim = f"{user}:{int(time.time() + lifetime)}"
    return f"{claim}:{hmac.digest(secret.encode(), claim.encode(), 'sha256').hex()}"


def read_token(secret: str, token: str) -> str:
    """The user's name, or PermissionDenied."""
    claim, _, given = token.rpartition(":")
    user, _, end = claim.rpartition(":")
    right = hmac.digest(secret.encode(), claim.encode(), "sha256").hex()
    # compare_digest takes as long for a near miss as for any other: `==` would tell how much of a
    # forged token was right.
    if not hmac.compare_digest(given.encode(), right.encode()) or time.time() > int(end):
        raise PermissionDenied("authentication failed")
    return user


class AuthServer(ServerPlugin):
    """Asks every client on connecting. For one that is refused not even ``on_connect`` runs."""

    name = "auth"

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def install(self, builder):
        return (
            builder.authenticate(self.authenticate)
            .on_disconnect(self.left)
            .handler("auth.whoami", self.whoami)
        )

    async def authenticate(self, session: Session, credentials) -> set:
        try:
            user = read_token(self._secret, credentials.token or "")
        except PermissionDenied:
            print("server: refused")
            raise
        session.set("user", user)
        print(f"server: {user} is authenticated")
        return GRANTS.get(user, set())

    async def left(self, session: Session) -> None:
        print("server:", session.get("user"), "left")

    async def whoami(self, session: Session) -> str:
        return session.get("user", str)


class AuthClient(ClientPlugin):
    """Shows the token. It goes to whom the client trusts: connect with a fingerprint or a CA, or
    somebody in between could use it."""

    name = "auth"

    def __init__(self, user: str, secret: str) -> None:
        self._user, self._secret = user, secret

    def install(self, builder):
        return builder.credentials(token=make_token(self._secret, self._user))


@handler("vault.open", requires="vault")
async def open_vault(key: str) -> str:
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
    except IdentityError as error:
        print(f"{user}: {error}")
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
