"""Bad input to every public call: the named error at the call, and what to do about it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from rpc_support import outcome, quic_pair, real, server_builder, virtual

from echostream import (
    AudioFormat,
    ClientContext,
    ConfigurationError,
    ConnectionClosed,
    Identity,
    IdentityError,
    InvalidPayload,
    MethodNotFound,
    ResourceExhausted,
    RpcClient,
    RpcServer,
    Session,
    StreamReceiver,
    handler,
    listener,
    stream_handler,
)
from echostream.testing import connected_pair


async def good(value: int) -> int:
    return value


async def hook(argument: Any) -> None: ...


def sync(value: int) -> int:
    return value


def generator(value: int) -> Iterator[int]:
    yield value


async def two(session: Session, first: int, second: int) -> None: ...


async def many(*values: int) -> None: ...


async def keyword(*, value: int) -> None: ...


async def other_side(ctx: ClientContext, value: int) -> None: ...


async def odd(value: threading_like) -> None: ...  # type: ignore[name-defined]  # noqa: F821


async def unbuildable(value: RpcServer) -> None: ...


async def int_keys(value: dict[int, str]) -> None: ...


async def no_stream(session: Session) -> None: ...


@handler("declared")
async def declared(value: int) -> int:
    return value


@listener("declared")
async def heard(value: int) -> None: ...


@stream_handler("declared")
async def taken(stream: StreamReceiver) -> None: ...


def server() -> Any:
    return RpcServer.builder()


def client() -> Any:
    return RpcClient.builder()


BUILDING: list[tuple[str, Callable[[], Any], str]] = [
    ("undeclared", lambda: server().handler(good), "decorate it with @handler"),
    ("not a function", lambda: server().handler(5), "a name and a function; got int"),
    ("no function", lambda: server().handler("x", 5), "async def"),
    ("an empty name", lambda: server().handler("", good), "1 to 255 bytes"),
    ("a long name", lambda: server().listener("x" * 256, good), "1 to 255 bytes"),
    ("a name of bytes", lambda: server().handler(b"x", good), "wants a name"),
    ("a surrogate", lambda: server().handler("\ud800", good), "not valid text"),
    ("a decorator without a name", lambda: handler(good), "wants a name"),  # type: ignore[arg-type]
    ("a decorated number", lambda: handler("x")(5), "wants a function"),  # type: ignore[type-var]
    ("twice", lambda: server().handler("x", good).handler("x", good), "registered already"),
    ("declared twice", lambda: server().handler(declared).handler(declared), "another name"),
    ("sync", lambda: server().handler("x", sync), "async def"),
    ("sync listener", lambda: server().listener("x", sync), "async def"),
    ("generator", lambda: server().handler("x", generator), "async def"),
    ("two payloads", lambda: server().handler("x", two), "one dataclass or dict"),
    ("varargs", lambda: server().handler("x", many), r"\*args"),
    ("keyword only", lambda: server().handler("x", keyword), "needs a default"),
    ("the other side's context", lambda: server().handler("x", other_side), "here it is Session"),
    ("an annotation that is nowhere", lambda: server().handler("x", odd), "module level"),
    ("a class that is no payload", lambda: server().handler("x", unbuildable), "payload's type"),
    ("keys that are not str", lambda: server().handler("x", int_keys), "keys of a dict are str"),
    ("wrong kind", lambda: server().handler(heard), r"register it with \.listener"),
    ("wrong kind of listener", lambda: server().listener(taken), r"\.stream_handler"),
    ("a stream handler without one", lambda: server().stream_handler("x", no_stream), "stream"),
    ("a builtin", lambda: server().handler("x", print), "async def"),
    ("a class", lambda: server().handler("x", Session), "async def"),
    ("a sync partial", lambda: server().handler("x", functools.partial(sync, 1)), "async def"),
    ("a sync hook", lambda: server().on_connect(sync), "async def"),
    ("a hook that is none", lambda: client().on_disconnect(5), "async def"),
    ("an unknown limit", lambda: server().limits(speed=5), "unknown limit 'speed'; known: "),
    ("a limit too low", lambda: server().limits(calls=0), "whole number from 1"),
    ("a limit of text", lambda: client().limits(message_size="1"), "whole number from 4096"),
    ("a limit of bool", lambda: client().limits(calls=True), "whole number"),
    ("an unknown QUIC option", lambda: server().quic(mtu=5), "unknown QUIC option 'mtu'; known"),
    ("a wrong QUIC option", lambda: server().quic(idle_timeout=-1), "idle_timeout must be from"),
    ("an address without a port", lambda: server().bind("localhost"), "has no port"),
    ("a port that is none", lambda: server().bind("localhost:http"), "is not a port"),
    ("a port out of range", lambda: server().bind("localhost:70000"), "out of range"),
    ("bare IPv6", lambda: server().bind("::1:5000"), "brackets"),
    ("an address of a number", lambda: server().bind(5000), "is not an address"),
    ("no address", lambda: server().build(), r"add \.bind"),
    ("no server", lambda: client().build(), r"add \.connect"),
    ("no host", lambda: client().connect(":5000"), "give host and port"),
    ("port zero", lambda: client().connect("localhost:0"), "give host and port"),
    ("a wrong timeout", lambda: client().connect("localhost:1", timeout=0), "timeout=0 must be"),
    ("a timeout of text", lambda: client().connect("localhost:1", timeout="1"), "timeout='1'"),
    ("an identity of text", lambda: server().identity("me"), "wants an Identity, got str"),
    ("an unknown trust", lambda: client().trust(finger="x"), "unknown trust option 'finger'"),
    ("a wrong fingerprint", lambda: client().trust(fingerprint="x"), "is not a fingerprint"),
    ("two kinds of trust", lambda: client().trust(insecure=True, ca=b""), "contradict each other"),
    ("connect's trust", lambda: RpcClient.connect("localhost:1", pin="x"), "unknown trust option"),
    ("a used server builder", lambda: _twice(server().bind(":0")), "used already"),
    ("a used client builder", lambda: _twice(client().connect("h:1")), "used already"),
    ("a format", lambda: AudioFormat(1, 2), "sample_rate"),
]


def _twice(builder: Any) -> None:
    builder.build()
    builder.build()


@pytest.mark.parametrize(
    ("make", "match"), [row[1:] for row in BUILDING], ids=[r[0] for r in BUILDING]
)
def test_what_cannot_be_built(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_what_can_be_built() -> None:
    """The table above fails for its reasons, not for all."""
    builder = server().bind(":0").handler("x", good).handler(declared).listener(heard)
    builder.stream_handler(taken).on_connect(hook).limits(calls=1).quic(idle_timeout=20.0).build()
    client().handler("x", other_side).connect("localhost:1", timeout=1).trust(insecure=True).build()


def test_a_file_that_is_no_certificate(tmp_path: Any) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nothing")
    with pytest.raises(IdentityError, match="no private key in PEM"):
        server().tls(garbage, garbage)
    with pytest.raises(IdentityError, match="cannot read"):
        server().tls(tmp_path / "missing.pem", garbage)


Act = Callable[[RpcClient], Awaitable[Any]]
CALLING: list[tuple[str, Act, type[Exception], str]] = [
    ("method", lambda c: c.request("nope"), MethodNotFound, "no handler 'nope'"),
    ("empty method", lambda c: c.request(""), ConfigurationError, "1 to 255 bytes"),
    ("method of a number", lambda c: c.request(5), ConfigurationError, "wants a name"),  # type: ignore[call-overload]
    ("payload", lambda c: c.request("x", object()), InvalidPayload, "cannot be sent"),
    ("keys", lambda c: c.request("x", {1: 2}), InvalidPayload, "."),
    ("large payload", lambda c: c.request("x", bytes(5 << 20)), ResourceExhausted, "message_size"),
    ("timeout", lambda c: c.request("x", 1, timeout=-1), ConfigurationError, "timeout=-1"),
    ("no timeout", lambda c: c.request("x", 1, timeout=0), ConfigurationError, "timeout=0"),
    ("text timeout", lambda c: c.request("x", 1, timeout="1"), ConfigurationError, "timeout='1'"),  # type: ignore[call-overload]
    ("nan", lambda c: c.request("x", 1, timeout=float("nan")), ConfigurationError, "timeout=nan"),
    ("max_age", lambda c: c.request("x", 1, max_age=0), ConfigurationError, "max_age=0"),
    ("priority", lambda c: c.request("x", 1, priority=8), ConfigurationError, "priority=8"),
    ("bool", lambda c: c.request("x", 1, priority=True), ConfigurationError, "priority=True"),
    ("metadata", lambda c: c.request("x", 1, metadata={"a": 1}), InvalidPayload, "maps to int"),  # type: ignore[call-overload]
    ("metadata of text", lambda c: c.request("x", 1, metadata="a"), InvalidPayload, "got str"),  # type: ignore[call-overload]
    (
        "large metadata",
        lambda c: c.request("x", 1, metadata={"a": "x" * 20_000}),
        InvalidPayload,
        "limit is 16384",
    ),
    ("returns", lambda c: c.request("x", 1, returns=str), InvalidPayload, "Expected `str`"),
    ("no type", lambda c: c.request("x", 1, returns=RpcServer), ConfigurationError, "payload's"),
    ("event", lambda c: c.emit(""), ConfigurationError, "1 to 255 bytes"),
    ("event payload", lambda c: c.emit("x", object()), InvalidPayload, "cannot be sent"),
    ("delivery", lambda c: c.emit("x", delivery="udp"), ConfigurationError, "'reliable' or"),  # type: ignore[arg-type]
    ("event age", lambda c: c.emit("x", max_age="1"), ConfigurationError, "max_age='1'"),  # type: ignore[arg-type]
    ("event metadata", lambda c: c.emit("x", metadata={1: "a"}), InvalidPayload, "maps str"),  # type: ignore[dict-item]
    ("stream", lambda c: c.create_stream("nope").build(), MethodNotFound, "no stream handler"),
    ("stream name", lambda c: _now(lambda: c.create_stream("")), ConfigurationError, "1 to 255"),
    (
        "stream delivery",
        lambda c: _now(lambda: c.create_stream("s", delivery="fast")),  # type: ignore[arg-type]
        ConfigurationError,
        "delivery='fast'",
    ),
    (
        "stream format",
        lambda c: _now(lambda: c.create_stream("s", format=48_000)),  # type: ignore[arg-type]
        ConfigurationError,
        "must be an AudioFormat",
    ),
    (
        "stream age",
        lambda c: _now(lambda: c.create_stream("s", max_age=1)),
        ConfigurationError,
        "delivery='realtime'",
    ),
    (
        "stream metadata",
        lambda c: _now(lambda: c.create_stream("s", metadata={"a": None})),  # type: ignore[dict-item]
        InvalidPayload,
        "NoneType",
    ),
    (
        "stream timeout",
        lambda c: _now(lambda: c.create_stream("s", timeout=0)),
        ConfigurationError,
        "timeout=0",
    ),
]


async def _now(act: Callable[[], Any]) -> Any:
    return act()


@pytest.mark.parametrize(
    ("act", "kind", "match"), [row[1:] for row in CALLING], ids=[row[0] for row in CALLING]
)
@virtual
async def test_what_cannot_be_called(act: Act, kind: type[Exception], match: str) -> None:
    async with connected_pair(server().handler("x", good)) as (_, connected):
        with pytest.raises(kind, match=match) as caught:
            await act(connected)
        assert type(caught.value) is kind
        assert await connected.request("x", 1) == 1  # nothing was harmed


@virtual
async def test_before_and_after_its_time() -> None:
    for unconnected in (
        ClientContext(),
        RpcClient(client().connect("localhost:1").build()._config),
    ):
        for act in (
            lambda u: u.request("x"),
            lambda u: u.emit("x"),
            lambda u: _now(lambda: u.create_stream("x")),
            lambda u: _now(lambda: u.server_addr),
        ):
            with pytest.raises(ConnectionClosed, match="await the connection first"):
                await act(unconnected)
    stopped = server().bind("127.0.0.1:0").build()
    for attribute in ("address", "fingerprint"):
        with pytest.raises(ConfigurationError, match="before"):
            getattr(stopped, attribute)
    await stopped.shutdown()
    for drain in (-1, "1", float("nan")):
        with pytest.raises(ConfigurationError, match="drain="):
            await stopped.shutdown(drain)
    async with connected_pair(server()) as (running, connected):
        with pytest.raises(ConfigurationError, match="build another one"):
            await running.start()
        await connected.close()
        for act in (connected.request("x"), connected.emit("x")):
            with pytest.raises(ConnectionClosed, match="closed by this side"):
                await act
        await connected.wait_closed()


@real
async def test_a_port_in_use_and_nobody_there() -> None:
    ran: list[str] = []

    async def on_shutdown(ctx: Any) -> None:
        ran.append("shutdown")

    async with quic_pair(server_builder()) as (running, _):
        other = RpcServer.builder().bind(running.address).identity(Identity.ephemeral())
        with pytest.raises(ConfigurationError, match="another socket has this UDP port"):
            await other.on_shutdown(on_shutdown).build().start()
        assert ran == ["shutdown"]
        address = running.address
    began = asyncio.get_running_loop().time()
    failed = await outcome(RpcClient.connect(address, timeout=1, insecure=True)._connect())
    assert isinstance(failed, ConnectionClosed)
    assert str(address[1]) in str(failed)
    assert asyncio.get_running_loop().time() - began < 5
    failed = await outcome(RpcClient.connect("no-such-host.invalid:1", timeout=5)._connect())
    assert isinstance(failed, ConnectionClosed)
    assert "cannot be resolved" in str(failed)


@real
async def test_a_client_is_connected_once() -> None:
    async with server_builder().build() as running:
        connecting = RpcClient.connect(running.address, fingerprint=running.fingerprint)
        async with connecting:
            with pytest.raises(ConfigurationError, match="build another one"):
                await connecting
