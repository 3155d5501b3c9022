"""A client that stays, whatever becomes of its server.

The server is stopped in the middle of the work and started again on the same port. The client is
one object all the time: it subscribes anew on each connection, its readings all arrive, once and in
order, and a call that was made in the gap is answered by the next server. What makes it *once* is
that the servers note the number of each event with what it brought: an acknowledgement can be lost
together with the connection, and the client then sends the event again.

    python examples/reconnect.py
"""

from __future__ import annotations

import asyncio

from echostream import ClientContext, Identity, RpcClient, RpcServer, Session, run
from echostream.rpc.call import current_call

IDENTITY = Identity.ephemeral()  # both servers are the same one for the client, which pins it
READINGS = 300


class Station:
    """What both servers write to, as they would to a database."""

    def __init__(self) -> None:
        self.readings: list[int] = []
        self.last_number: dict[str | None, int] = {}
        self.complete = asyncio.Event()

    def server(self, port: int) -> RpcServer:
        async def subscribe(session: Session, topic: str) -> None:
            print("server: a client wants", topic)

        async def reading(session: Session, value: int) -> None:
            self.readings.append(value)
            self.last_number[session.resume_id] = current_call().event_number
            if len(self.readings) == READINGS:
                self.complete.set()

        async def last_handled(session: Session) -> int:  # of a client that comes back
            return self.last_number.get(session.resume_id, 0)

        async def average() -> float:
            return sum(self.readings) / max(len(self.readings), 1)

        return (
            RpcServer.builder()
            .bind(("127.0.0.1", port))
            .identity(IDENTITY)
            .handler("subscribe", subscribe)
            .handler("average", average)
            .listener("reading", reading)
            .on_resume(last_handled)
            .build()
        )


async def main() -> None:
    station = Station()
    first = station.server(0)
    await first.start()
    address = first.address

    async def on_connect(ctx: ClientContext) -> None:  # for each connection, before anything else
        await ctx.request("subscribe", "alarms")

    async def on_disconnect(ctx: ClientContext) -> None:
        print("client: the connection is gone")

    client = await (
        RpcClient.builder()
        .connect(address)
        .trust(fingerprint=IDENTITY.fingerprint)
        .reconnect(keepalive=1.0, max_backoff=0.5)
        .on_connect(on_connect)
        .on_disconnect(on_disconnect)
        .build()
    )

    async def measure() -> None:
        for value in range(READINGS):
            await client.emit("reading", value)  # goes on in the gap, up to a bound
            await asyncio.sleep(0.005)

    measuring = asyncio.create_task(measure())
    await asyncio.sleep(0.5)
    await first.shutdown()
    waiting = asyncio.create_task(client.request("average", returns=float, timeout=10.0))
    async with station.server(address[1]):
        assert await waiting >= 0
        print("client: the next server answered")
        await measuring
        await station.complete.wait()
        in_order = station.readings == list(range(READINGS))
        print("server:", len(station.readings), "readings, once and in order:", in_order)
        print("client:", client.link_statistics().connections, "connections")
        await client.close()


if __name__ == "__main__":
    run(main())
