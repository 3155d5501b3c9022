"""Calls in both directions, typed payloads, and what errors look like.

    python examples/simple_rpc.py [NAME]

Server and client run in one process here, so that the example is one file; nothing else would
change if they were on two machines.
"""

import sys
from dataclasses import dataclass

from echostream import (
    ClientContext,
    DeadlineExceeded,
    Identity,
    InvalidPayload,
    RpcClient,
    RpcError,
    RpcServer,
    Session,
    handler,
    run,
)
from echostream.codes import Status


@dataclass
class User:
    name: str
    visits: int


# The decorator only gives the function a name on the wire; it can still be called as it is.
@handler("user.login")
async def login(session: Session, name: str) -> User:
    if not name.isalpha():
        # An RpcError reaches the caller as it is. Any other exception becomes INTERNAL, without its
        # text, and is logged here.
        raise RpcError(f"{name!r} is not a name", status=Status.NOT_FOUND)
    # A server may call its client. Here it asks something before it answers.
    language = await session.request("user.language", returns=str, timeout=2.0)
    print(f"server: {name} at {session.peer_addr[0]} speaks {language}")
    visits = session.server_ctx.get("visits", dict)
    visits[name] = visits.get(name, 0) + 1
    return User(name, visits[name])


@handler("user.rename")
async def rename(user: User) -> User:
    return User(user.name.upper(), user.visits)


@handler("user.language")
async def language(ctx: ClientContext) -> str:
    return ctx.get("language")


async def main(name: str) -> int:
    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")  # any free port
        .identity(Identity.ephemeral())  # a real server leaves this out: it keeps one in a file
        .set("visits", {})
        .handler(login)
        .handler(rename)
        .build()
    )
    async with server:
        client = await (
            RpcClient.builder()
            .connect(server.address)
            .trust(fingerprint=server.fingerprint)  # the client knows whom it talks to
            .set("language", "English")
            .handler(language)
            .build()
        )
        async with client:
            return await calls(client, name)


async def calls(client: RpcClient, name: str) -> int:
    try:
        user = await client.request("user.login", name, returns=User, timeout=2.0)
    except RpcError as error:
        print(f"client: {error.status.name}: {error.message}")
        return 1
    print(f"client: logged in: {user}")

    # Without `returns`, plain values come back: dict, list, str, int...
    print("client: plain:", await client.request("user.rename", user))

    # The server checks payloads against the handler's annotation and names the field.
    try:
        await client.request("user.rename", {"name": "Ada", "visits": "many"})
    except InvalidPayload as error:
        print(f"client: refused: {error.message}")

    # A deadline travels with the call: on both sides, all work for it ends.
    try:
        await client.request("user.login", name, timeout=1e-6)
    except DeadlineExceeded:
        print("client: too late")
    return 0


if __name__ == "__main__":
    sys.exit(run(main(sys.argv[1] if len(sys.argv) > 1 else "Ada")))
