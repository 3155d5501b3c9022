"""Groups of sessions, listeners of patterns, events that are acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from full_size import sized
from rpc_support import WIRE, idle, outcome, session_of, virtual

from echostream import (
    ClientContext,
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    InternalError,
    InvalidPayload,
    MethodNotFound,
    PermissionDenied,
    RpcClient,
    RpcServer,
    Session,
)
from echostream.codes import Close
from echostream.protocol import payload as payloads
from echostream.rpc import group as group_module
from echostream.rpc.call import current_call
from echostream.rpc.group import PRESENCE, Group
from echostream.testing import connected_pair
from echostream.testing.pair import _MemoryClient, _MemoryServer
from echostream.transport.memory import memory_pair


@asynccontextmanager
async def crowd(
    count: int, listener: Callable[..., Any] | None = None, name: str = "**"
) -> AsyncIterator[tuple[RpcServer, list[RpcClient], list[Session]]]:
    """One server with many clients; ``listener(number)`` makes the listener of each."""
    server = _MemoryServer(RpcServer.builder().bind("127.0.0.1:0"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        clients, sessions = [], []
        for number in range(count):
            builder = RpcClient.builder().connect("127.0.0.1:1")
            if listener is not None:
                builder.listener(name, listener(number))
            ours, theirs = memory_pair()
            server.take(theirs)
            client = _MemoryClient(builder, ours)
            await client._open()
            stack.push_async_callback(client.close)
            clients.append(client)
            while len(server.context.sessions) <= number:  # noqa: ASYNC110 - a turn or two
                await asyncio.sleep(0)
            sessions.append(server.context.sessions[-1])
        yield server, clients, sessions


class Heard:
    """What each client heard."""

    def __init__(self, slow: int = -1) -> None:
        self.by: dict[int, list[tuple[str, Any]]] = {}
        self.slow = slow
        self.release = asyncio.Event()

    def listener(self, number: int) -> Callable[..., Any]:
        heard = self.by.setdefault(number, [])

        async def listen(value: Any) -> None:
            if number == self.slow:
                await self.release.wait()
            heard.append((current_call().method, value))

        return listen


@virtual
async def test_join_leave_where_and_exclude() -> None:
    heard = Heard()
    async with crowd(4, heard.listener) as (server, clients, sessions):
        room = server.context.group("room")
        assert server.context.group("room") is room
        for session in sessions[:3]:
            room.join(session)
            room.join(session)
        assert len(room) == 3
        assert sessions[0] in room
        assert sessions[3] not in room
        assert room.members == tuple(sessions[:3])
        assert await room.broadcast("a", 1) == 3
        assert await room.broadcast("b", 2, exclude=sessions[0]) == 2
        assert await room.broadcast("c", 3, exclude=sessions[:2]) == 1
        assert await room.broadcast("d", 4, where=lambda s: s is sessions[1]) == 1
        room.leave(sessions[2])
        room.leave(sessions[2])
        assert await room.broadcast("e", 5) == 2
        await asyncio.sleep(0.1)
        assert {number: sorted(told) for number, told in heard.by.items()} == {
            0: [("a", 1), ("e", 5)],
            1: [("a", 1), ("b", 2), ("d", 4), ("e", 5)],
            2: [("a", 1), ("b", 2), ("c", 3)],
            3: [],
        }
        await clients[0].close()
        await asyncio.sleep(0.1)
        assert len(room) == 1
        assert await room.broadcast("f") == 1
        assert server.context.groups == ("room",)
        room.leave(sessions[1])
        assert server.context.groups == ()
        with pytest.raises(ConnectionClosed):
            room.join(sessions[0])


@virtual
async def test_a_broadcast_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings = []
    encode = payloads.encode
    count = sized(200, 1000)

    def counting(value: Any, **limits: int) -> bytes:
        encodings.append(value)
        return encode(value, **limits)

    async with crowd(count) as (server, clients, sessions):
        room = server.context.group("room")
        for session in sessions:
            room.join(session)
        monkeypatch.setattr(group_module.payloads, "encode", counting)
        before = len(encodings)
        assert await room.broadcast("told", {"n": 1}) == count
        monkeypatch.undo()
        assert len(encodings) - before == 1
        await asyncio.sleep(0.1)
        assert all(c._peer.dispatcher.listeners.unclaimed == 1 for c in clients)


@virtual
async def test_late_joiners_get_what_they_missed() -> None:
    heard = Heard()
    async with crowd(3, heard.listener) as (server, _, sessions):
        recent = server.context.group("recent", history=2)
        values = server.context.group("values", last_values=True)
        for number in range(4):
            await recent.broadcast("recent", number)
            await values.broadcast(f"value.{number % 2}", number)
        recent.join(sessions[0])
        values.join(sessions[1])
        await asyncio.sleep(0.1)
        assert heard.by[0] == [("recent", 2), ("recent", 3)]
        assert sorted(heard.by[1]) == [("value.0", 2), ("value.1", 3)]
        for number in range(2000):
            await values.broadcast(f"more.{number}", number)
        assert len(values._last) == group_module.MAX_LAST_VALUES


@virtual
async def test_presence() -> None:
    heard = Heard()
    async with crowd(3, heard.listener) as (server, clients, sessions):
        room = server.context.group("room", presence=True)
        for number, session in enumerate(sessions):
            room.join(session, info={"number": number})
        await asyncio.sleep(0.1)
        await clients[2].close()
        await asyncio.sleep(0.1)
        ids = [session.id for session in sessions]

        def told(change: str, *numbers: int) -> tuple[str, dict[str, Any]]:
            who = [{"id": ids[number], "info": {"number": number}} for number in numbers]
            return PRESENCE, {"group": "room", "change": change, "members": who}

        assert heard.by[0] == [
            told("present"),
            told("joined", 1),
            told("joined", 2),
            told("left", 2),
        ]
        assert heard.by[1] == [told("present", 0), told("joined", 2), told("left", 2)]


@pytest.mark.parametrize("slow", ["drop_oldest", "drop_newest", "disconnect", "block"])
@virtual
async def test_one_slow_member(slow: str) -> None:
    """Its listener sleeps while far more comes than is kept: memory is bounded, the counters are
    exact, and the others get everything at once."""
    heard = Heard(slow=1)
    count, body = sized(12_000, 100_000), "x" * 500
    async with crowd(3, heard.listener, "told") as (server, _, sessions):
        room = server.context.group("room", slow=slow)
        for session in sessions:
            room.join(session)
        peer = sessions[1]._peer
        sent = 0
        blocked = 0
        held = 0

        async def produce() -> None:
            nonlocal sent
            for number in range(count):
                await room.broadcast("told", [number, body])
                sent += 1
                if number % 50 == 49:
                    await asyncio.sleep(0.001)

        task = asyncio.create_task(produce())
        while not task.done():
            await asyncio.sleep(0.05)
            held = max(held, peer.outbox.event_bytes + peer.connection.engine.buffered_total)
            if slow == "block" and sent == blocked:
                break
            blocked = sent
        statistics = room.statistics()
        assert held < 3 << 20
        others = [[v[0] for _, v in heard.by[number]] for number in (0, 2)]
        if slow == "block":
            assert not task.done()
            assert all(sent <= len(numbers) <= sent + 1 for numbers in others)
            heard.release.set()
            await task
            await asyncio.sleep(1)
            assert [v[0] for _, v in heard.by[1]] == list(range(count))
            assert room.statistics().dropped == 0
            return
        assert others == [list(range(count))] * 2
        if slow == "disconnect":
            assert statistics.disconnected == 1
            assert peer.ended is not None
            assert peer.ended.code == Close.EXCESSIVE_LOAD
            return
        heard.release.set()
        await asyncio.sleep(1)
        got = [v[0] for _, v in heard.by[1]]
        statistics = room.statistics()
        assert statistics.waiting == 0
        assert len(got) + statistics.dropped == count
        assert statistics.dropped > count // 2
        assert statistics.sent == 2 * count + len(got)
        assert got == sorted(got)
        if slow == "drop_oldest":
            assert got[-64:] == list(range(count - 64, count))
        assert idle(sessions[1])


@virtual
async def test_a_slow_member_that_leaves_takes_what_waits_along() -> None:
    heard = Heard(slow=0)
    async with crowd(1, heard.listener, "told") as (server, clients, sessions):
        room = server.context.group("room")
        room.join(sessions[0])
        for number in range(10_000):
            await room.broadcast("told", [number, "x" * 500])
            if number % 50 == 49:
                await asyncio.sleep(0.001)
        assert room.statistics().waiting == 64
        room.leave(sessions[0])
        statistics = room.statistics()
        assert statistics.sent + statistics.dropped == 10_000
        room.join(sessions[0])
        await room.broadcast("told", [0, ""])
        clients[0]._peer.close()
        await asyncio.sleep(0.1)
        assert len(room) == 0


def test_wrong_options() -> None:
    context = RpcServer.builder().bind(":0").build().context
    for wrong in ({"slow": "never"}, {"queue": 0}, {"history": 1, "last_values": True}):
        with pytest.raises(ConfigurationError):
            context.group("room", **wrong)
    with pytest.raises(ConfigurationError, match="unknown option 'slw'"):
        context.group("room", slw="block")
    context.group("room", history=3)._history.append(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="another history"):
        context.group("room", history=4)
    with pytest.raises(ConfigurationError, match="name"):
        context.group("")


def test_groups_that_nobody_is_in_are_forgotten() -> None:
    context = RpcServer.builder().bind(":0").build().context
    for number in range(10_000):
        context.group(f"room.{number}")
    assert len(context._groups) == 1


# Patterns.


@virtual
async def test_patterns() -> None:
    heard: list[tuple[str, str, int]] = []

    def listen(which: str) -> Callable[..., Any]:
        async def listener(value: int) -> None:
            heard.append((which, current_call().method, value))

        return listener

    server = RpcServer.builder()
    patterns = ["user.*", "user.**", "user.ada", "*.left", "**", "user.*.x"]
    for pattern in patterns:
        server.listener(pattern, listen(pattern))
    async with connected_pair(server) as (_, client):
        names = ["user.ada", "user.bob", "user.a.b", "user.a.x", "bob.left", "other", "user."]
        for value, name in enumerate(names):
            await client.emit(name, value)
        await asyncio.sleep(0.1)
        assert {name: which for which, name, _ in heard} == {
            "user.ada": "user.ada",
            "user.bob": "user.*",
            "user.a.b": "user.**",
            "user.a.x": "user.*.x",
            "bob.left": "*.left",
            "other": "**",
            "user.": "**",
        }
        assert len(heard) == len(names)


def test_wrong_patterns() -> None:
    for wrong in ("user*", "a.*b", "***", "a.x**"):
        with pytest.raises(ConfigurationError, match="whole segments"):
            RpcServer.builder().listener(wrong, _nothing)


async def _nothing() -> None:
    """Hears and does nothing."""


# Acknowledgements.


@pytest.mark.parametrize("direction", ["up", "down"])
@virtual
async def test_acknowledged_events(direction: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    done: list[int] = []

    async def works(value: int) -> None:
        await asyncio.sleep(0.5)
        done.append(value)

    async def fails(value: int) -> None:
        raise ZeroDivisionError

    async def refuses(value: int) -> None:
        raise PermissionDenied("no")

    async def hangs(value: int) -> None:
        await asyncio.sleep(3600)

    server, client = RpcServer.builder(), RpcClient.builder()
    serving = server if direction == "up" else client
    for function in (works, fails, refuses, hangs):
        serving.listener(function.__name__, function)
    async with connected_pair(server, client, up=WIRE, down=WIRE) as (started, connected):
        session = await session_of(started)
        side: Any = connected if direction == "up" else session
        await side.emit("works", 1, ack=True)
        assert done == [1]
        for name, value, error in (
            ("fails", 1, InternalError),
            ("refuses", 1, PermissionDenied),
            ("works", "x", InvalidPayload),
            ("nobody", 1, MethodNotFound),
        ):
            result = await outcome(side.emit(name, value, ack=True))
            assert isinstance(result, error), result
            assert result.method == name
        result = await outcome(side.emit("works", 1, ack=True, timeout=0.1))
        assert isinstance(result, DeadlineExceeded)
        for wrong in ({"ack": True, "delivery": "realtime"}, {"timeout": 1.0}):
            with pytest.raises(ConfigurationError):
                await side.emit("works", 1, **wrong)
        task = asyncio.create_task(outcome(side.emit("hangs", 1, ack=True)))
        await asyncio.sleep(1)
        assert len(side._peer.acks) == 1
        side._peer.close()
        assert isinstance(await task, ConnectionClosed)
        assert len(side._peer.acks) == 0


@virtual
async def test_an_event_too_old_is_not_acknowledged() -> None:
    async with connected_pair() as (_, client):
        outbox = client._peer.outbox
        task = asyncio.create_task(outcome(client.emit("x", 1, ack=True, max_age=0.001)))
        outbox.events_held = True
        await asyncio.sleep(1)
        outbox.events_held = False
        client._peer.connection.wake()
        assert isinstance(await task, DeadlineExceeded)
        assert outbox.expired == 1


@virtual
async def test_a_handler_joins_its_caller() -> None:
    async def join(session: Session, room: str) -> int:
        group: Group = session.server_ctx.group(room)
        group.join(session)
        return len(group)

    heard = asyncio.Event()

    async def told(ctx: ClientContext, value: int) -> None:
        heard.set()

    server = RpcServer.builder().handler("join", join)
    async with connected_pair(server, RpcClient.builder().listener("told", told)) as (s, c):
        assert await c.request("join", "room") == 1
        await s.context.group("room").broadcast("told", 1)
        await heard.wait()
