"""For the tests of sessions, calls, streams and servers: loops that must stay silent, a peer that
keeps no rules, and pairs with settings."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from echostream import Identity, RpcClient, RpcServer, ServerBuilder, Session
from echostream.protocol import frames
from echostream.protocol.frames import FrameParser, encode_frame
from echostream.protocol.hello import Hello, Limits
from echostream.testing import run_virtual
from echostream.testing.pair import _MemoryServer
from echostream.transport import engine as en
from echostream.transport.connection import Connection
from echostream.transport.impairment import Impairment
from echostream.transport.memory import MemoryLink, memory_pair

Test = Callable[..., Coroutine[Any, Any, None]]

WIRE = Impairment(delay=0.01)


def virtual(test: Test) -> Callable[..., None]:
    """Run a test on virtual time. The loop has nothing to complain about, also not afterwards."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(_silently(test(*args, **kwargs)), limit=3600.0)

    return run


def real(test: Test, *, seconds: float = 60) -> Callable[..., None]:
    """Run a test on a real loop; one that hangs fails."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(seconds):
                await test(*args, **kwargs)

        asyncio.run(_silently(limited()))

    return run


async def _silently(main: Coroutine[Any, Any, None]) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    await main
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def turns(count: int = 10) -> None:
    """Let the loop run ``count`` turns: for what must *not* happen."""
    for _ in range(count):
        await asyncio.sleep(0)


async def outcome(awaitable: Awaitable[Any]) -> Any:
    """What came of it: the result, or the exception."""
    try:
        return await awaitable
    except Exception as exc:
        return exc


def server_builder() -> ServerBuilder:
    """A server on loopback with a throw-away identity."""
    return RpcServer.builder().bind("127.0.0.1:0").identity(Identity.ephemeral())


@asynccontextmanager
async def quic_pair(
    server: ServerBuilder, client: Any = None
) -> AsyncIterator[tuple[RpcServer, RpcClient]]:
    """A server and a client over QUIC on loopback."""
    async with server.build() as started:
        builder = client or RpcClient.builder()
        builder.connect(started.address).trust(fingerprint=started.fingerprint)
        async with builder.build() as connected:
            yield started, connected


class Frame(NamedTuple):
    """One frame that a raw peer got."""

    type: int
    id: int
    flags: int
    name: str | None
    number: int
    payload: bytes
    stream_id: int
    time_us: int


class RawClient:
    """A client that sends what it is told to. It reads frames and keeps them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.engine = connection.engine
        self.frames: list[Frame] = []
        self.resets: list[tuple[int, int]] = []
        self.stops: list[tuple[int, int]] = []
        self.consuming = True
        self._parsers: dict[int, FrameParser] = {}
        self._news = asyncio.Event()
        connection.attach(self)

    def engine_event(self, event: en.EngineEvent) -> None:
        if isinstance(event, en.StreamData):
            parser = self._parsers.setdefault(event.stream_id, FrameParser(1 << 30))
            parser.feed(event.data)
            if self.consuming:
                self.engine.consume(event.stream_id, len(event.data))
            while parser.next():
                found = Frame(
                    parser.type,
                    parser.id,
                    parser.flags,
                    parser.name,
                    parser.number,
                    parser.payload_bytes(),
                    event.stream_id,
                    parser.time_us,
                )
                self.frames.append(found)
        elif isinstance(event, en.StreamReset):
            self.resets.append((event.stream_id, event.code))
        elif isinstance(event, en.StopSending):
            self.stops.append((event.stream_id, event.code))
        self._news.set()

    idle = True

    def before_flush(self, now: float) -> None:
        """Nothing is queued here."""

    def send(self, data: bytes, stream_id: int | None = None, *, fin: bool = False) -> int:
        """Write bytes to a stream, a new one where none is named."""
        if stream_id is None:
            stream_id = self.engine.open_stream(False)
        self.engine.send_stream(stream_id, data, fin)
        self.connection.wake()
        return stream_id

    def datagram(self, data: bytes) -> None:
        """Send one DATAGRAM."""
        assert self.engine.send_datagram(data)
        self.connection.wake()

    def greet(self, limits: Limits | None = None) -> int:
        """Send HELLO; returns the control stream."""
        hello = Hello(limits=limits or Limits()).encode()
        return self.send(encode_frame(frames.HELLO, 1, hello))

    def of(self, kind: int) -> list[Frame]:
        """The frames of one type so far."""
        return [frame for frame in self.frames if frame.type == kind]

    async def expect(self, kind: int, count: int = 1) -> list[Frame]:
        """Wait for the first ``count`` frames of a type."""
        while len(found := self.of(kind)) < count:
            self._news.clear()
            await self._news.wait()
        return found

    async def closed(self) -> en.Closed:
        """Wait for the end."""
        return await self.connection.wait_closed()


@asynccontextmanager
async def raw_client(
    server: ServerBuilder, *, link: MemoryLink | None = None, greet: bool = True
) -> AsyncIterator[tuple[RpcServer, RawClient]]:
    """A server through memory, and a client that keeps no rules."""
    if server._address is None:
        server.bind("127.0.0.1:0")
    started = _MemoryServer(server)
    async with started:
        ours, theirs = memory_pair(link=link)
        started.take(theirs)
        raw = RawClient(ours)
        await ours.wait_connected()
        if greet:
            raw.greet()
            await raw.expect(frames.HELLO)
        yield started, raw
        ours.close()


async def session_of(server: RpcServer) -> Session:
    """The one session of a server, once it is there."""
    while not server.context.sessions:  # noqa: ASYNC110 - a few turns
        await asyncio.sleep(0.001)
    (session,) = server.context.sessions
    return session


def idle(session: Any) -> bool:
    """Whether nothing is pending, running or open on one side of a connection."""
    peer = session._live_peer
    dispatcher = peer.dispatcher
    return not (
        peer.calls
        or peer.trailers
        or peer.pumps
        or len(peer.acks)
        or peer.outbox.acked
        or peer.protocol.flows
        or peer.senders
        or peer.receivers
        or peer.room.wanted
        or dispatcher.tasks
        or dispatcher.handlers._waiting
        or dispatcher.handlers._timers
        or dispatcher.handlers._silenced
        or dispatcher.listeners._queues
        or not peer.outbox.idle
    )
