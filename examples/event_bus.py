"""An event bus: what one client publishes, the server passes on to those who subscribed.

    python examples/event_bus.py

An event is told, not asked: nobody waits for an answer. Events of one name arrive in their order.
"""

import asyncio

from echostream import Identity, RpcClient, RpcServer, Session, handler, listener, run


@handler("bus.subscribe")
async def subscribe(session: Session, topic: str) -> None:
    topics = session.get("topics", set, default=set())
    session.set("topics", topics | {topic})


@listener("bus.publish")
async def publish(session: Session, message: dict[str, str]) -> None:
    topic = message["topic"]
    count = await session.server_ctx.broadcast(
        "bus.message",
        message,
        where=lambda each: topic in each.get("topics", set, default=set()),
    )
    print(f"server: {topic} from {session.id[:4]}… to {count}")


class Subscriber:
    """A client that collects what it hears."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[str] = []
        self.changed = asyncio.Event()

    async def on_message(self, message: dict[str, str]) -> None:
        self.heard.append(f"{message['topic']}: {message['text']}")
        self.changed.set()

    async def wait_heard(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                self.changed.clear()
                await self.changed.wait()

    def connect(self, server: RpcServer):
        return (
            RpcClient.builder()
            .connect(server.address)
            .trust(fingerprint=server.fingerprint)
            .listener("bus.message", self.on_message)  # any coroutine function, under a name
            .build()
        )


async def main() -> None:
    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral())
        .handler(subscribe)
        .listener(publish)
        .build()
    )
    kitchen, garden = Subscriber("kitchen"), Subscriber("garden")
    async with server, kitchen.connect(server) as one, garden.connect(server) as two:
        # A call, not an event: when it returns, the subscription stands.
        await one.request("bus.subscribe", "lights")
        await one.request("bus.subscribe", "music")
        await two.request("bus.subscribe", "music")

        for topic, text in [("lights", "on"), ("music", "play"), ("music", "louder")]:
            await two.emit("bus.publish", {"topic": topic, "text": text})

        await kitchen.wait_heard(3)
        await garden.wait_heard(2)
    for each in (kitchen, garden):
        print(f"{each.name} heard {each.heard}")


if __name__ == "__main__":
    run(main())
