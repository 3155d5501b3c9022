"""The plugins that come along, on a server and on a client."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rpc_support import quic_pair, real, server_builder, session_of, virtual

from echostream import (
    ConfigurationError,
    Identity,
    IdentityError,
    PermissionDenied,
    ResourceExhausted,
    RpcClient,
    RpcError,
    RpcServer,
    ServerBuilder,
    ServerPlugin,
    Session,
    StreamReceiver,
    StreamReset,
    handler,
)
from echostream.contrib import (
    AuthPlugin,
    JsonFormatter,
    LoggingPlugin,
    MetricsPlugin,
    RateLimitPlugin,
    Span,
    TracingPlugin,
)
from echostream.contrib.admin import AdminServer
from echostream.rpc.call import current_call
from echostream.testing import connected_pair


async def add(values: list[int]) -> int:
    return sum(values)


async def fails() -> None:
    raise PermissionDenied("no")


async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


def served() -> ServerBuilder:
    return RpcServer.builder().handler("add", add).handler("fails", fails).handler("count", count)


# Authentication.


@virtual
async def test_who_knows_the_secret_comes_in() -> None:
    server = served().plugin(AuthPlugin({"ada": "s1", "bob": "s2"}))
    client = RpcClient.builder().plugin(AuthPlugin("s1", user="ada"))
    async with connected_pair(server, client) as (started, connected):
        assert await connected.request("add", [1]) == 1
        assert (await session_of(started)).get("auth.user") == "ada"


@real
async def test_the_secret_is_proved_to_the_server_that_was_verified() -> None:
    client = RpcClient.builder().plugin(AuthPlugin("s", user="ada"))
    async with quic_pair(server_builder().plugin(AuthPlugin("s")), client) as (started, _):
        session = await session_of(started)
        assert session.get("auth.user") == "ada"
        assert session.fingerprint == Identity.derived("s", "ada").fingerprint


@pytest.mark.parametrize(
    "client",
    [
        RpcClient.builder,
        lambda: RpcClient.builder().plugin(AuthPlugin("s2", user="ada")),
        lambda: RpcClient.builder().plugin(AuthPlugin("s1", user="eve")),
        lambda: RpcClient.builder().plugin(AuthPlugin("s1", user="\0" * 5000)),
        lambda: RpcClient.builder().credentials(token="ada"),
        lambda: RpcClient.builder().credentials(token="ada", identity=Identity.ephemeral()),
        lambda: RpcClient.builder().credentials(identity=Identity.derived("s1", "ada")),
    ],
)
@virtual
async def test_who_does_not_stays_out(client: Any) -> None:
    ran: list[str] = []

    async def connects(session: Session) -> None:
        ran.append("on_connect")

    server = served().plugin(AuthPlugin({"ada": "s1"})).on_connect(connects)
    with pytest.raises(IdentityError, match=r"wants a proof|authentication failed"):
        async with connected_pair(server, client()):
            raise AssertionError("it came in")
    assert ran == []


@pytest.mark.parametrize("grants", [["secrets"], {"ada": "secrets", "bob": ["secrets", "more"]}])
@virtual
async def test_grants_are_those_that_handlers_require(grants: Any) -> None:
    @handler("open", requires="secrets")
    async def opened(session: Session) -> list[str]:
        return sorted(session.grants)

    def pair(user: str) -> Any:
        server = served().handler(opened).plugin(AuthPlugin("s", grants=grants))
        return connected_pair(server, RpcClient.builder().plugin(AuthPlugin("s", user=user)))

    async with pair("ada") as (_, connected):
        assert await connected.request("open") == ["secrets"]
    async with pair("eve") as (_, connected):
        if isinstance(grants, dict):
            with pytest.raises(PermissionDenied, match="requires secrets"):
                await connected.request("open")
        else:
            assert await connected.request("open") == ["secrets"]


def test_one_function_authenticates() -> None:
    async def authenticate(session: Session, credentials: Any) -> None:
        """Takes everybody."""

    with pytest.raises(ConfigurationError, match="one function"):
        served().authenticate(authenticate).plugin(AuthPlugin("s"))


@virtual
async def test_who_may_do_what() -> None:
    plugin = AuthPlugin("s", authorize=lambda session, name: name == "add")
    client = RpcClient.builder().plugin(AuthPlugin("s", user="ada"))
    async with connected_pair(served().plugin(plugin), client) as (_, connected):
        assert await connected.request("add", [1]) == 1
        with pytest.raises(PermissionDenied, match="ada may not"):
            await connected.request("fails")


def test_wrong_secrets() -> None:
    with pytest.raises(ConfigurationError, match="secret_key"):
        AuthPlugin("")
    with pytest.raises(ConfigurationError, match="one secret_key"):
        RpcClient.builder().plugin(AuthPlugin({"a": "b"}))
    with pytest.raises(ConfigurationError, match="grants="):
        AuthPlugin("s", grants=[5])  # type: ignore[list-item]


# Logging.


@virtual
async def test_a_record_for_each() -> None:
    records: list[logging.LogRecord] = []
    logger = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    plugin = LoggingPlugin(logger=logger)
    async with connected_pair(
        served().plugin(plugin), RpcClient.builder().plugin(LoggingPlugin(logger=logger))
    ) as (_, client):
        await client.request("add", [1])
        with pytest.raises(PermissionDenied):
            await client.request("fails")
    facts = [
        (f["direction"], f["kind"], f["name"], f["status"], record.levelname)
        for record in records
        for f in [record.echostream]  # type: ignore[attr-defined]
    ]
    assert facts == [
        ("in", "call", "add", "OK", "INFO"),
        ("out", "call", "add", "OK", "INFO"),
        ("in", "call", "fails", "PERMISSION_DENIED", "WARNING"),
        ("out", "call", "fails", "PERMISSION_DENIED", "WARNING"),
    ]
    line = json.loads(JsonFormatter().format(records[0]))
    assert line["name"] == "add"
    assert line["message"].startswith("in call add: OK in ")
    assert line["peer"].startswith("memory-client:")


# Metrics.


async def fetch(address: tuple[str, int], request: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request.encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@real
async def test_metrics_for_prometheus() -> None:
    plugin, mine = MetricsPlugin(port=0), MetricsPlugin(port=0)
    server = server_builder().handler("add", add).handler("fails", fails).plugin(plugin)
    async with quic_pair(server, RpcClient.builder().plugin(mine)) as (started, client):
        for _ in range(3):
            await client.request("add", [1])
        with pytest.raises(PermissionDenied):
            await client.request("fails")
        status, text = await fetch(plugin.address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 200
        label = 'rpc_system_name="echostream",rpc_method="add",rpc_response_status_code="OK"'
        assert f"rpc_server_call_duration_seconds_count{{{label}}} 3" in text
        assert 'rpc_response_status_code="PERMISSION_DENIED"' in text
        assert "echostream_connections 1\n" in text
        assert re.search(r"^echostream_packets_lost_total \d+$", text, re.MULTILINE)
        assert f"rpc_client_call_duration_seconds_count{{{label}}} 3" in mine.text()
        buckets = [int(m) for m in re.findall(r'_bucket\{[^}]*"add"[^}]*\} (\d+)', text)]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 3
        for path, expected in (("/healthz", 200), ("/readyz", 200), ("/other", 404)):
            assert (await fetch(plugin.address, f"GET {path} HTTP/1.1\r\n\r\n"))[0] == expected
        assert await fetch(plugin.address, "HEAD /metrics HTTP/1.1\r\n\r\n") == (200, "")
        assert (await fetch(plugin.address, "POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await fetch(plugin.address, "nonsense\r\n\r\n"))[0] == 405
        started.context.serving = False
        assert (await fetch(plugin.address, "GET /readyz HTTP/1.1\r\n\r\n"))[0] == 503
    with pytest.raises(ConfigurationError, match="no listener"):
        _ = plugin.address
    with pytest.raises(ConfigurationError, match="no listener"):
        _ = mine.address


@real
async def test_the_admin_port_is_bounded() -> None:
    admin = AdminServer({"/": lambda: (200, "text/plain", "x")})
    await admin.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*admin.address)
    writer.write(b"x" * 100_000)
    assert await reader.read() == b""  # not a request: closed
    writer.close()
    idle = [await asyncio.open_connection(*admin.address) for _ in range(40)]
    gone = [asyncio.create_task(reader.read()) for reader, _ in idle]
    done, _ = await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
    assert done  # beyond 32 at once
    await admin.stop()
    await asyncio.wait(gone)
    for _, writer in idle:
        writer.close()
    clash = AdminServer({})
    await clash.start("127.0.0.1", 0)
    with pytest.raises(ConfigurationError, match="cannot listen"):
        await MetricsPlugin(port=clash.address[1])._start()
    await clash.stop()


@virtual
async def test_names_without_end_are_counted_together() -> None:
    from echostream.contrib.metrics import MAX_SERIES

    plugin = MetricsPlugin()
    async with connected_pair(None, RpcClient.builder().plugin(plugin)) as (_, client):
        for number in range(MAX_SERIES + 50):
            with pytest.raises(RpcError):
                await client.request(f"no.{number}")
        assert len(plugin._series) == MAX_SERIES + 1
    assert 'rpc_method="_other"' in plugin.text()
    with pytest.raises(ConfigurationError, match="port"):
        MetricsPlugin(port=70_000)


# Rates.


@virtual
async def test_rates_are_by_peer_and_name() -> None:
    now = [0.0]
    heard: list[int] = []

    async def told(session: Session, value: int) -> None:
        heard.append(value)

    async def media(session: Session, stream: StreamReceiver) -> None:
        async for _ in stream:
            pass

    plugin = RateLimitPlugin(10, burst=5, methods={"add": 2}, clock=lambda: now[0])
    server = served().listener("told", told).stream_handler("media", media).plugin(plugin)
    async with connected_pair(server) as (_, client):
        for _ in range(2):
            await client.request("add", [1])
        with pytest.raises(ResourceExhausted, match="rate=2 of add") as caught:
            await client.request("add", [1])
        assert caught.value.details == {"limit": "rate=2 of add", "retry_after": 0.5}
        for number in range(10):
            await client.emit("told", number)
        await asyncio.sleep(0.1)
        assert heard == [0, 1, 2]
        assert plugin.dropped_events == 7
        stream = await client.create_stream("media")
        with pytest.raises(StreamReset):
            for _ in range(10):
                await stream.send(b"x")
                await asyncio.sleep(0.01)
        now[0] += 0.5
        await client.request("add", [1])
        assert plugin.refused == 2
    for wrong in (0, -1, "x"):
        with pytest.raises(ConfigurationError):
            RateLimitPlugin(wrong)  # type: ignore[arg-type]


# Traces.


@virtual
async def test_spans_are_joined_across_both_sides() -> None:
    spans: list[Span] = []

    async def outer(session: Session) -> None:
        assert current_call().metadata["traceparent"]
        await session.request("inner")

    async def inner() -> None:
        raise PermissionDenied("no")

    server = served().handler("outer", outer).plugin(TracingPlugin(spans.append))
    client = RpcClient.builder().handler("inner", inner).plugin(TracingPlugin(spans.append))
    async with connected_pair(server, client) as (_, connected):
        with pytest.raises(PermissionDenied):
            await connected.request("outer")
        inner_server, inner_client, outer_server, outer_client = spans
        assert len({span.trace_id for span in spans}) == 1
        assert outer_client.parent_id == ""
        assert outer_server.parent_id == outer_client.span_id
        assert inner_client.parent_id == outer_server.span_id
        assert inner_server.parent_id == inner_client.span_id
        assert [span.kind for span in spans] == ["server", "client", "server", "client"]
        assert inner_server.attributes["error.type"] == "PermissionDenied"
        assert inner_server.status == "PERMISSION_DENIED"
        assert all(span.start_ns <= span.end_ns for span in spans)
        spans.clear()
        parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"  # not sampled
        await connected.request("add", [1], metadata={"traceparent": parent})
        assert spans == []


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}-01-more",
        f"00-{'A' * 32}-{'b' * 16}-01",
    ],
)
@virtual
async def test_a_malformed_trace_is_begun_anew(header: str) -> None:
    spans: list[Span] = []
    async with connected_pair(served().plugin(TracingPlugin(spans.append))) as (_, client):
        await client.request("add", [1], metadata={"traceparent": header})
        assert spans[0].parent_id == ""


# How plugins are put together.


class Base(ServerPlugin):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def install(self, builder: ServerBuilder) -> ServerBuilder:
        self.log.append(type(self).__name__)
        return builder


class First(Base):
    name = "first"


class Second(Base):
    name = "second"
    requires = ("first",)


class Third(Base):
    requires = ("second", "first")


def test_what_is_required_is_installed_first() -> None:
    log: list[str] = []
    builder = RpcServer.builder().bind(":0")
    builder.plugin(Third(log)).plugin(Second(log))
    assert log == []
    server = builder.plugin(First(log)).build()
    assert log == ["First", "Second", "Third"]
    assert server._config.plugins == ("first", "second", "Third")


def test_what_is_required_has_to_be_there() -> None:
    builder = RpcServer.builder().bind(":0").plugin(Second([]))
    with pytest.raises(ConfigurationError, match="'second' requires 'first'"):
        builder.build()
    with pytest.raises(ConfigurationError, match="installed already"):
        RpcServer.builder().plugin(Second([])).plugin(Second([]))


def test_a_clash_names_the_plugin() -> None:
    class Clash(ServerPlugin):
        name = "clash"

        def install(self, builder: ServerBuilder) -> ServerBuilder:
            return builder.handler("add", add)

    with pytest.raises(ConfigurationError, match=r"plugin 'clash': a handler for 'add' is"):
        served().plugin(Clash())


def test_plugins_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "made_up-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[echostream.plugins]\nlimiter = echostream.contrib.rate_limit:RateLimitPlugin\n"
        "broken = no_such_module:X\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    server = served().bind(":0").plugin("limiter", rate=5).build()
    assert server._config.plugins == ("rate_limit",)
    for name, options, said in (
        ("limiter", {"rte": 5}, "cannot be made"),
        ("broken", {}, "cannot be made"),
        ("limitr", {}, "no package offers"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            RpcServer.builder().plugin(name, **options)
    with pytest.raises(ConfigurationError, match="options go with the name"):
        RpcServer.builder().plugin(RateLimitPlugin(5), rate=5)
