"""Rooms: who is there, what was said last, and a member that does not keep up.

    python examples/rooms.py [WORD]

Three clients join a room of one server. What one says goes to the others, encoded once; who comes
later gets the last messages first.
"""

import asyncio
import sys
from dataclasses import dataclass

from echostream import (
    ClientContext,
    Identity,
    RpcClient,
    RpcError,
    RpcServer,
    Session,
    handler,
    run,
)


@dataclass
class Said:
    who: str
    text: str


@handler("room.join")
async def join(session: Session, who: str) -> int:
    room = session.server_ctx.group("room", history=2, presence=True)
    session.set("who", who)
    room.join(session, info=who)  # it leaves by itself when its connection ends
    return len(room)


@handler("room.say")
async def say(session: Session, text: str) -> int:
    if not text.strip():
        raise RpcError("say something", status=3)
    room = session.server_ctx.group("room")
    return await room.broadcast("room.said", Said(session.get("who"), text), exclude=session)


async def main(word: str) -> int:
    server = RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral())
    async with server.handler(join).handler(say).build() as running:

        async def enter(who: str) -> RpcClient:
            async def said(ctx: ClientContext, message: Said) -> None:
                print(f"{who} hears {message.who}: {message.text}")

            async def presence(ctx: ClientContext, news: dict) -> None:
                if news["change"] == "joined":
                    print(f"{who} sees {news['members'][0]['info']} come in")

            client = await (
                RpcClient.builder()
                .connect(running.address)
                .trust(fingerprint=running.fingerprint)
                .listener("room.*", said)  # any event of the room
                .listener("group.presence", presence)
                .build()
            )
            print(f"{who} is number", await client.request("room.join", who))
            return client

        ada, bob = await enter("Ada"), await enter("Bob")
        try:
            print("heard by", await ada.request("room.say", word))
        except RpcError as error:
            print(f"Ada: {error.message}")
            return 1
        cleo = await enter("Cleo")
        await asyncio.sleep(0.2)  # so that the example ends after the last message
        for client in (ada, bob, cleo):
            await client.close()
        return 0


if __name__ == "__main__":
    sys.exit(run(main(sys.argv[1] if len(sys.argv) > 1 else "hello")))
