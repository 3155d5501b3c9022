"""Hooks, plugins, contexts, events, and how connections and servers end."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest
from rpc_support import (
    WIRE,
    idle,
    outcome,
    quic_pair,
    raw_client,
    real,
    server_builder,
    session_of,
    turns,
    virtual,
)

from echostream import (
    ClientBuilder,
    ClientContext,
    ClientPlugin,
    ConfigurationError,
    ConnectionClosed,
    ResourceExhausted,
    RpcClient,
    RpcServer,
    ServerBuilder,
    ServerContext,
    ServerPlugin,
    Session,
    StreamReceiver,
    Unavailable,
)
from echostream.codes import Close
from echostream.protocol import frames
from echostream.protocol.events import StreamOpened
from echostream.protocol.frames import encode_frame
from echostream.protocol.payload import encode
from echostream.testing import connected_pair
from echostream.testing.pair import _MemoryServer
from echostream.transport.impairment import Impairment


class Log(list[str]):
    """Hooks that write down that they ran."""

    def hook(self, name: str, wait: float = 0.0) -> Any:
        async def run(argument: Any) -> None:
            self.append(f"{name}({type(argument).__name__})")
            if wait:
                await asyncio.sleep(wait)
                self.append(f"{name} done")

        return run

    def failing(self, name: str, error: BaseException) -> Any:
        async def run(argument: Any) -> None:
            self.append(name)
            raise error

        return run


async def echo(value: Any) -> Any:
    return value


@virtual
async def test_the_order_of_hooks() -> None:
    log = Log()
    server = RpcServer.builder().handler("echo", echo)
    client = RpcClient.builder()
    for name in ("on_start", "on_shutdown", "on_connect", "on_disconnect"):
        for number in (1, 2):
            getattr(server, name)(log.hook(f"server {name} {number}"))
            if name in ("on_connect", "on_disconnect"):
                getattr(client, name)(log.hook(f"client {name} {number}"))
    async with connected_pair(server, client) as (_, connected):
        await connected.request("echo")
    on_server = [line for line in log if line.startswith("server")]
    assert on_server == [
        f"server on_{name} {number}({kind})"
        for name, kind in (
            ("start", "ServerContext"),
            ("connect", "Session"),
            ("disconnect", "Session"),
            ("shutdown", "ServerContext"),
        )
        for number in (1, 2)
    ]
    assert [line for line in log if line.startswith("client")] == [
        f"client on_{name} {number}(ClientContext)"
        for name in ("connect", "disconnect")
        for number in (1, 2)
    ]


@virtual
async def test_nothing_is_served_before_on_connect_is_through() -> None:
    log = Log()
    served: list[Any] = []

    async def note(value: int) -> None:
        served.append(value)

    async def call(value: int) -> int:
        served.append("call")
        return value

    async def read(stream: StreamReceiver) -> None:
        served.append("stream")
        served.append(await stream.recv())

    server = RpcServer.builder().on_connect(log.hook("connect", 5.0)).handler("call", call)
    server.listener("note", note).stream_handler("read", read)
    async with connected_pair(server, up=WIRE, down=WIRE) as (_, client):
        for index in range(3000):
            await client.emit("note", index)
        stream = asyncio.create_task(_one_item(client))
        call_ = asyncio.create_task(client.request("call", 5))
        late = asyncio.create_task(outcome(client.request("call", 5, timeout=1)))
        await asyncio.sleep(4)
        assert served == []
        assert type(await late).__name__ == "DeadlineExceeded"
        assert await call_ == 5
        await stream
        await asyncio.sleep(1)
        assert [each for each in served if isinstance(each, int)] == list(range(3000))
        assert served.count("call") == 1
        assert b"item" in served


async def _one_item(client: RpcClient) -> None:
    async with await client.create_stream("read") as stream:
        await stream.send(b"item")


@virtual
async def test_a_hook_may_call_the_other_side() -> None:
    got = []

    async def ask(session: Session) -> None:
        got.append(await session.request("echo", 1))
        session.set("user", "ann")

    async def whoami(session: Session) -> str:
        return session.get("user", str)

    async def first(ctx: ClientContext) -> None:
        got.append(await ctx.request("whoami"))

    server = RpcServer.builder().on_connect(ask).handler("whoami", whoami)
    client = RpcClient.builder().handler("echo", echo)
    async with connected_pair(server, client) as (_, connected):
        assert await connected.request("whoami") == "ann"
    client = RpcClient.builder().on_connect(first)
    async with connected_pair(RpcServer.builder().handler("whoami", echo), client):
        pass
    assert got == [1, None]


@pytest.mark.parametrize("error", [ValueError("secret"), asyncio.CancelledError()], ids=repr)
@virtual
async def test_on_connect_that_fails_refuses_the_session(error: BaseException, caplog: Any) -> None:
    log = Log()
    server = RpcServer.builder().on_connect(log.failing("connect", error)).handler("echo", echo)
    server.on_disconnect(log.hook("disconnect"))
    with caplog.at_level(logging.CRITICAL):
        async with connected_pair(server) as (started, client):
            failed = await outcome(client.request("echo"))
            assert isinstance(failed, ConnectionClosed)
            assert failed.code == Close.INTERNAL_ERROR
            assert "secret" not in str(failed)
            await turns()
            assert started.context.sessions == ()
    assert log == ["connect", "disconnect(Session)"]


@virtual
async def test_on_connect_of_a_client_that_fails() -> None:
    log = Log()
    client = RpcClient.builder().on_connect(log.failing("connect", ValueError("mine")))
    client.on_disconnect(log.hook("disconnect"))
    with pytest.raises(ValueError, match="mine"):
        async with connected_pair(None, client):
            pass
    assert log == ["connect", "disconnect(ClientContext)"]


@virtual
async def test_a_connection_that_ends_cancels_its_on_connect() -> None:
    log = Log()
    server = RpcServer.builder().on_connect(log.hook("slow", 100.0))
    server.on_disconnect(log.hook("disconnect"))
    async with connected_pair(server) as (started, client):
        await session_of(started)
        await client.close()
        await turns()
        assert log == ["slow(Session)", "disconnect(Session)"]

    async def close(session: Session) -> None:
        await session.close()

    waiting = RpcClient.builder().on_connect(log.hook("client", 100.0))
    with pytest.raises(ConnectionClosed):
        async with connected_pair(RpcServer.builder().on_connect(close), waiting):
            pass


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError()], ids=repr)
@virtual
async def test_other_hooks_that_fail_stop_nothing(error: BaseException, caplog: Any) -> None:
    log = Log()
    server = RpcServer.builder()
    for name in ("on_disconnect", "on_shutdown"):
        getattr(server, name)(log.failing(name, error))
        getattr(server, name)(log.hook(f"{name} 2"))
    with caplog.at_level(logging.CRITICAL):
        async with connected_pair(server):
            pass
    assert log == [
        "on_disconnect",
        "on_disconnect 2(Session)",
        "on_shutdown",
        "on_shutdown 2(ServerContext)",
    ]


@virtual
async def test_on_start_that_fails() -> None:
    log = Log()
    builder = RpcServer.builder().on_start(log.failing("start", ValueError("no database")))
    server = _MemoryServer(builder.bind("127.0.0.1:0"))
    with pytest.raises(ValueError, match="no database"):
        await server.start()


@virtual
async def test_a_hook_that_never_returns_does_not_hold_up_shutdown(caplog: Any) -> None:
    async def stuck(session: Session) -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with connected_pair(RpcServer.builder().on_disconnect(stuck)):
        began = loop.time()
    assert loop.time() - began < 15


class Both(ServerPlugin, ClientPlugin):
    name = "both"

    def __init__(self, log: Log) -> None:
        self.log = log

    def install(self, builder: Any) -> Any:
        return (
            builder.set("plugin", 1)
            .handler("plugin.echo", echo)
            .on_connect(self.log.hook("plugin"))
        )


@virtual
async def test_plugins_on_both_sides() -> None:
    log = Log()
    server, client = RpcServer.builder().plugin(Both(log)), RpcClient.builder().plugin(Both(log))
    async with connected_pair(server, client) as (started, connected):
        assert started.context.get("plugin", int) == 1
        assert connected.context.get("plugin") == 1
        assert await connected.request("plugin.echo", 5) == 5
        assert await (await session_of(started)).request("plugin.echo", 6) == 6
    assert sorted(log) == ["plugin(ClientContext)", "plugin(Session)"]


def test_plugins_that_are_wrong() -> None:
    class Nothing(ServerPlugin):
        def install(self, builder: ServerBuilder) -> ServerBuilder:
            return None  # type: ignore[return-value]

    class Other(ClientPlugin):
        def install(self, builder: ClientBuilder) -> ClientBuilder:
            return RpcClient.builder()

    with pytest.raises(ConfigurationError, match="must return the builder"):
        RpcServer.builder().plugin(Nothing())
    with pytest.raises(ConfigurationError, match="must return the builder"):
        RpcClient.builder().plugin(Other())
    with pytest.raises(ConfigurationError, match="'both' is installed already"):
        RpcServer.builder().plugin(Both(Log())).plugin(Both(Log()))
    with pytest.raises(ConfigurationError, match="wants a ServerPlugin, got Other"):
        RpcServer.builder().plugin(Other())  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [ServerContext, ClientContext, lambda: Session(ServerContext())])
def test_stores(make: Any) -> None:
    store = make()
    store.set("n", 1)
    store.set("none", None)
    assert store.get("n") == 1
    assert store.get("n", int) == 1
    assert store.get("n", type=int, default=5) == 1
    assert store.get("none", default=5) is None
    assert store.get("missing", default=None) is None
    assert store.get("missing", int, default=5) == 5
    with pytest.raises(KeyError, match="'missing' is not set"):
        store.get("missing")
    with pytest.raises(KeyError):
        store.get("missing", int)
    for wrong in ({"type": str}, {"type": str, "default": "x"}):
        with pytest.raises(TypeError, match="holds int, asked for str"):
            store.get("n", **wrong)


@virtual
async def test_broadcast() -> None:
    async with connected_pair(RpcServer.builder()) as (server, client):
        session = await session_of(server)
        assert isinstance(server, _MemoryServer)
        got: list[Any] = []

        async def note(value: int) -> None:
            got.append(value)

        client._live_peer.dispatcher.listeners._routes.add("note", note)  # type: ignore[union-attr]
        assert await server.context.broadcast("note", 1) == 1
        assert await server.context.broadcast("note", 2, where=lambda s: s is not session) == 0
        assert await server.context.broadcast("note", 3, where=lambda s: s is session) == 1
        await turns()
        assert got == [1, 3]
        for arguments in ({"event": ""}, {"event": "x", "max_age": -1}):
            with pytest.raises(ConfigurationError):
                await server.context.broadcast(**arguments)


# Events.


@virtual
async def test_listeners_that_fail_stop_nothing(caplog: Any) -> None:
    got: list[int] = []

    async def note(value: int) -> None:
        got.append(value)
        if value % 3 == 0:
            raise ValueError
        if value % 3 == 1:
            raise asyncio.CancelledError

    async with connected_pair(RpcServer.builder().listener("note", note)) as (server, client):
        with caplog.at_level(logging.CRITICAL):
            for index in range(3000):
                await client.emit("note", index)
            await client.emit("note", "not an int")
            await client.emit("nobody", 1)
            await turns(4000)
        assert got == list(range(3000))
        session = await session_of(server)
        assert session.statistics().events_handled == 3000
        assert session.statistics().events_unclaimed == 1
        assert session._live_peer.dispatcher.listeners._unhandled == 0  # type: ignore[union-attr]


@virtual
async def test_events_of_one_name_keep_their_order_large_and_small(seed: int) -> None:
    got: dict[str, list[int]] = {}

    def collect(name: str) -> Any:
        async def note(value: list[Any]) -> None:
            got.setdefault(name, []).append(value[0])

        return note

    builder = RpcServer.builder()
    for name in "abcd":
        builder.listener(name, collect(name))
    rough = Impairment(delay=0.02, jitter=0.03, loss=0.1)
    async with connected_pair(builder, up=rough, down=rough, seed=seed) as (_, client):
        for index in range(400):
            size = 30_000 if index % 7 == 0 else 10
            await client.emit("abcd"[index % 4], [index, bytes(size)])
            if index % 5 == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(10)
    assert got == {name: list(range(start, 400, 4)) for start, name in enumerate("abcd")}


@pytest.mark.parametrize("size", [10, 20_000])
@virtual
async def test_a_sleeping_listener_holds_up_its_emitter_and_no_call(size: int) -> None:
    gate = asyncio.Event()
    got = 0

    async def note(value: bytes) -> None:
        nonlocal got
        await gate.wait()
        got += 1

    builder = RpcServer.builder().listener("note", note).handler("echo", echo)
    async with connected_pair(builder) as (server, client):
        session = await session_of(server)
        emitted = 0

        async def emit() -> None:
            nonlocal emitted
            for _ in range(70_000 if size == 10 else 600):
                await client.emit("note", bytes(size))
                emitted += 1

        emitting = asyncio.create_task(emit())
        for value in range(20):
            await asyncio.sleep(1)
            assert await client.request("echo", value, timeout=1) == value
        held = emitted
        await asyncio.sleep(60)
        assert emitted == held
        assert held * size < 8 << 20
        listeners = session._live_peer.dispatcher.listeners  # type: ignore[union-attr]
        assert listeners._unhandled <= 1030
        assert listeners._unhandled_bytes <= (1 << 20) + 100_000
        gate.set()
        await asyncio.sleep(1)
        assert emitted > held
        emitting.cancel()
        await turns()


@virtual
async def test_realtime_events() -> None:
    got: list[int] = []

    async def note(value: int) -> None:
        got.append(value)

    async with connected_pair(RpcServer.builder().listener("note", note)) as (_, client):
        await client.emit("note", 1, delivery="realtime", max_age=1)
        with pytest.raises(ResourceExhausted, match="delivery='reliable'"):
            await client.emit("note", bytes(2000), delivery="realtime")
        await turns()
        assert got == [1]


@virtual
async def test_an_event_that_is_too_old_is_not_sent() -> None:
    got: list[int] = []

    async def note(value: bytes) -> None:
        got.append(value[0])

    up = Impairment(rate=100_000)
    async with connected_pair(RpcServer.builder().listener("note", note), up=up) as (_, client):
        for _ in range(30):
            await client.emit("note", bytes(15_000))
        for _ in range(5):
            await client.emit("note", b"\x01", max_age=0.5)
        await client.emit("note", b"\x02")
        await asyncio.sleep(30)
        assert got == [0] * 30 + [2]
        assert client.statistics().expired == 5


# Ends.


async def _pending(client: RpcClient) -> dict[str, asyncio.Task[Any]]:
    """One task for every kind of wait that a connection can end."""
    stream = await client.create_stream("hold")
    peer = client._live_peer
    assert peer is not None

    async def push() -> None:
        while True:
            await stream.send(bytes(100_000))

    async def emit() -> None:
        while True:
            await client.emit("hold", bytes(10_000))

    waits = {
        "call": client.request("hold"),
        "send": push(),
        "emit": emit(),
        "slot": _many_calls(client),
        "open": client.create_stream("never").build(),
        "write": peer.room.wait_stream(stream.stream_id, -1),
    }
    tasks = {name: asyncio.create_task(outcome(wait), name=name) for name, wait in waits.items()}
    tasks["closed"] = asyncio.create_task(client.wait_closed())
    await asyncio.sleep(1)
    assert [name for name, task in tasks.items() if task.done()] == []
    return tasks


async def _many_calls(client: RpcClient) -> Any:
    results = await asyncio.gather(*(outcome(client.request("hold")) for _ in range(50)))
    assert {type(result) for result in results} == {ConnectionClosed}
    return results[-1]


def holding() -> Any:
    async def hold(_value: Any = None) -> None:
        await asyncio.Event().wait()

    builder = RpcServer.builder().handler("hold", hold).listener("hold", hold)
    return builder.stream_handler("hold", hold).limits(calls=20)


@pytest.mark.parametrize("end", ["client", "server", "violation", "shutdown", "on our own stack"])
@virtual
async def test_every_wait_ends_by_name_at_once(end: str) -> None:
    loop = asyncio.get_running_loop()
    async with connected_pair(holding(), up=WIRE, down=WIRE) as (server, client):
        # a stream that is never answered: the server forgets STREAM_OPEN
        session = await session_of(server)
        peer = session._peer
        opened = peer.dispatcher.stream_handlers.opened
        peer._on[StreamOpened] = lambda event: None if event.name == "never" else opened(event)
        tasks = await _pending(client)
        began = loop.time()
        if end == "client":
            client._live_peer.close(0x99, "enough")  # type: ignore[union-attr]
        elif end == "server":
            closing = asyncio.create_task(session.close("enough"))
            await closing
        elif end == "violation":
            engine = peer.connection.engine
            engine.send_stream(engine.open_stream(False), b"\0\0\0\0", True)
            peer.connection.wake()
        elif end == "shutdown":
            stopping = asyncio.create_task(server.shutdown(drain=0))
        else:
            client._live_peer.connection.abandon()  # type: ignore[union-attr]
        results = await asyncio.wait_for(asyncio.gather(*tasks.values()), 1)
        assert loop.time() - began < 0.5
        del results[-1]
        assert [type(result) for result in results] == [ConnectionClosed] * 6
        assert len({id(result) for result in results}) == 6
        await asyncio.sleep(6)  # listeners may go on with what had come
        assert idle(client)
        assert server.context.sessions == ()
        assert peer.dispatcher.tasks == 0
        if end == "shutdown":
            await stopping


@virtual
async def test_a_server_that_shuts_down_lets_calls_finish_and_refuses_new_ones() -> None:
    async def slow(value: int) -> int:
        await asyncio.sleep(2)
        return value

    log = Log()
    builder = RpcServer.builder().handler("slow", slow).on_disconnect(log.hook("disconnect"))
    async with connected_pair(builder, up=WIRE, down=WIRE) as (server, client):
        running = asyncio.create_task(client.request("slow", 1))
        await asyncio.sleep(0.5)
        stopping = asyncio.create_task(server.shutdown(drain=5))
        again = asyncio.create_task(server.shutdown(drain=0))
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="shutting down"):
            await client.request("slow", 2)
        with pytest.raises(Unavailable):
            await client.create_stream("any")
        assert await running == 1
        await asyncio.gather(stopping, again)
        await client.wait_closed()
        assert log == ["disconnect(Session)"]
        with pytest.raises(ConnectionClosed):
            await client.request("slow", 3)


@pytest.mark.parametrize("drain", [0, 1])
@virtual
async def test_a_drain_has_an_end(drain: float) -> None:
    loop = asyncio.get_running_loop()
    async with connected_pair(holding()) as (server, client):
        call = asyncio.create_task(outcome(client.request("hold")))
        await asyncio.sleep(0.1)
        began = loop.time()
        await server.shutdown(drain=drain)
        assert loop.time() - began == pytest.approx(drain, abs=0.1)
        error = await call
        assert isinstance(error, ConnectionClosed)
        assert error.code == Close.GOING_AWAY


@real
async def test_sessions_are_freed() -> None:
    kept: list[Any] = []

    async def keep(session: Session) -> None:
        kept.append(weakref.ref(session))
        kept.append(weakref.ref(session._peer))

    builder = server_builder().on_connect(keep).handler("echo", echo)
    async with builder.build() as server:
        for _ in range(3):
            async with RpcClient.connect(server.address, fingerprint=server.fingerprint) as client:
                await client.request("echo", 1)
        while any(ref() is not None for ref in kept):  # until their closing periods are over
            gc.collect()
            await asyncio.sleep(0.01)
        assert len(kept) == 6


@virtual
async def test_a_request_that_comes_after_goaway_is_answered() -> None:
    async with raw_client(holding().handler("echo", echo)) as (server, raw):
        lane = raw.send(encode_frame(frames.REQUEST, 0, encode(1), frames.END, "hold"))
        await turns(20)
        stopping = asyncio.create_task(server.shutdown(drain=1))
        (goaway,) = await raw.expect(frames.GOAWAY)
        assert (goaway.id, goaway.number) == (1, Close.GOING_AWAY)
        raw.send(encode_frame(frames.REQUEST, 2, encode(1), frames.END, "echo"), lane)
        (error,) = await raw.expect(frames.ERROR)
        assert (error.id, error.number, error.time_us) == (2, 14, 0)
        await stopping


@real
async def test_a_client_may_come_while_others_leave() -> None:
    async with quic_pair(server_builder().handler("echo", echo)) as (server, first):
        assert await first.request("echo", 1) == 1
        assert isinstance(await outcome(server.start()), ConfigurationError)
        again = await RpcClient.connect(server.address, fingerprint=server.fingerprint)
        assert await again.request("echo", 2) == 2
        await again.close()
        await again.close()
        assert await first.request("echo", 3) == 3
