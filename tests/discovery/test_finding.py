"""Servers are found by name over real multicast on loopback, and only their keys are believed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
from announcing import (
    LOOPBACK,
    WAIT_S,
    Spoofer,
    announced,
    announcement,
    fresh_name,
    record,
    response,
)
from full_size import report, resident_bytes, sized
from rpc_support import outcome, real

from echostream import (
    ConfigurationError,
    DiscoveryError,
    Identity,
    IdentityError,
    RpcClient,
    RpcServer,
    ServerBuilder,
)
from echostream.discovery import Browser, ServiceChange, discover_services
from echostream.discovery.resolver import MAX_INSTANCES
from echostream.discovery.service import Service
from echostream.finding import MAX_CANDIDATES, _Hunt, configured_addresses
from echostream.transport.known_services import KnownServices
from echostream.transport.ticket import Ticket

pytestmark = pytest.mark.usefixtures("multicast")


@asynccontextmanager
async def serving(*builders: ServerBuilder) -> AsyncIterator[tuple[RpcServer, ...]]:
    """Servers that are announced by now."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(builder.build()) for builder in builders]
        for server in servers:
            assert server._advertiser is not None
            await server._advertiser.wait_announced()
        yield tuple(servers)


async def changes(browser: Browser, count: int) -> list[ServiceChange]:
    return [await anext(browser) for _ in range(count)]


@real
async def test_a_server_is_found_by_its_name() -> None:
    name = fresh_name()
    async with serving(announced(name)) as (server,):
        assert server.announced_as == name
        async with RpcClient.discover(name, timeout=WAIT_S) as client:
            assert await client.request("greeting") == "hello"
        client = await RpcClient.discover(name.upper(), timeout=WAIT_S)  # DNS knows no case
        await client.close()
        (known,) = KnownServices().lookup(name)
        assert known.fingerprint == server.fingerprint


@real
async def test_a_client_that_waits_finds_a_server_that_starts_later() -> None:
    name = fresh_name()
    search = asyncio.ensure_future(RpcClient.discover(name, timeout=WAIT_S)._connect())
    async with announced(name).build():
        client = await search
        assert await client.request("greeting") == "hello"
        await client.close()


@real
async def test_the_key_of_a_name_is_remembered_and_another_refused() -> None:
    name = fresh_name()
    async with serving(announced(name)):
        await (await RpcClient.discover(name, timeout=WAIT_S)).close()
    before = KnownServices().lookup(name)
    impostor = Identity.ephemeral()
    async with serving(announced(name, identity=impostor)):
        refused = await outcome(RpcClient.discover(name, timeout=2)._connect())
        assert isinstance(refused, IdentityError)
        assert impostor.fingerprint in str(refused)
        assert f"echostream identity trust '{name}' {impostor.fingerprint}" in str(refused)
        assert KnownServices().lookup(name) == before
        pinned = RpcClient.discover(name, timeout=WAIT_S, fingerprint=impostor.fingerprint)
        await (await pinned).close()
        KnownServices().record(name, impostor.fingerprint)
        await (await RpcClient.discover(name, timeout=WAIT_S)).close()


@real
async def test_the_known_server_is_found_beside_an_impostor() -> None:
    name = fresh_name()
    genuine = Identity.ephemeral()
    KnownServices().record(name, genuine.fingerprint)
    both = announced(name), announced(name, identity=genuine)
    async with serving(*both) as (_, server), RpcClient.discover(name, timeout=WAIT_S) as client:
        assert client.server_addr == server.address


@real
async def test_an_announcement_with_the_right_key_at_the_wrong_address_loses() -> None:
    """It says to have the known key. The server that answers there has not."""
    name = fresh_name()
    genuine = Identity.ephemeral()
    KnownServices().record(name, genuine.fingerprint)
    trap = RpcServer.builder().bind((LOOPBACK, 0)).identity(Identity.ephemeral()).build()
    async with trap:
        stolen = announcement(
            name,
            f"{name.replace(' ', '-')}.local.",
            trap.address[1],
            {"txtvers": "1", "fp": genuine.fingerprint},
            LOOPBACK,
        )
        with Spoofer() as spoofer:
            search = asyncio.ensure_future(outcome(RpcClient.discover(name, timeout=3)._connect()))
            while not search.done():
                spoofer.send(stolen)
                await asyncio.wait((search,), timeout=0.2)
        refused = await search
        assert isinstance(refused, IdentityError)
        assert trap.context.sessions == ()
        assert trap.statistics().sessions == 0


@real
async def test_a_first_use_is_held_to_the_announced_key() -> None:
    name = fresh_name()
    trap = RpcServer.builder().bind((LOOPBACK, 0)).identity(Identity.ephemeral()).build()
    async with trap:
        wrong = announcement(
            name, "trap.local.", trap.address[1], {"fp": "sha256:" + "ab" * 32}, LOOPBACK
        )
        with Spoofer() as spoofer:
            search = asyncio.ensure_future(outcome(RpcClient.discover(name, timeout=2)._connect()))
            while not search.done():
                spoofer.send(wrong)
                await asyncio.wait((search,), timeout=0.2)
        refused = await search
        assert isinstance(refused, IdentityError)
        assert "was announced with" in str(refused)
        assert KnownServices().lookup(name) == ()


@real
async def test_a_spoofed_public_address_is_never_a_first_use() -> None:
    name = fresh_name()
    with Spoofer() as spoofer:
        search = asyncio.ensure_future(outcome(RpcClient.discover(name, timeout=2)._connect()))
        while not search.done():
            spoofer.send(announcement(name, "far.local.", 443, {}, "8.8.8.8"))
            await asyncio.wait((search,), timeout=0.2)
    failed = await search
    assert isinstance(failed, DiscoveryError)
    assert "outside of this network" in str(failed)


@real
async def test_two_servers_of_one_name() -> None:
    name = fresh_name()
    kitchen = announced(name, properties={"room": "kitchen"})
    garden = announced(name, properties={"room": "garden"})
    async with serving(kitchen, garden) as (first, second):
        assert {first.announced_as, second.announced_as} == {name, f"{name}-2"}
        clients = await RpcClient.discover(name, timeout=2, all=True)
        found = {client.server_addr for client in clients}
        for client in clients:
            await client.close()
        assert found == {first.address, second.address}
        assert {each.fingerprint for each in KnownServices().lookup(name)} == {
            first.fingerprint,
            second.fingerprint,
        }
        async with RpcClient.discover(
            name, timeout=WAIT_S, where=lambda service: service.properties.get("room") == "garden"
        ) as client:
            assert client.server_addr == second.address


@real
async def test_the_live_browser() -> None:
    name = fresh_name()
    async with Browser(name, interfaces=[LOOPBACK]) as browser:
        server = announced(name, properties={"room": "attic"}).build()
        async with server:
            (added,) = await changes(browser, 1)
            assert added.kind == "added"
            assert added.service.properties == {"room": "attic"}
            assert added.service.addresses == (LOOPBACK,)
            assert added.service.fingerprint == server.fingerprint
            assert browser.services == (added.service,)
        (removed,) = await changes(browser, 1)  # the goodbye
        assert (removed.kind, removed.service) == ("removed", added.service)
        assert browser.services == ()


@real
async def test_discover_services_is_an_iterator() -> None:
    name = fresh_name()
    async with serving(announced(name)), aclosing(discover_services(name)) as found:
        async for change in found:
            assert (change.kind, change.service.name) == ("added", name)
            break


@real
async def test_an_authority_vouches_for_the_name_that_is_looked_for() -> None:
    name = fresh_name().replace(" ", "-").lower()
    named = Identity.ephemeral("one", names=[name])
    unnamed = Identity.ephemeral("two")
    async with serving(announced(name, identity=named)):
        client = await RpcClient.discover(name, timeout=WAIT_S, ca=named.certificate_pem)
        await client.close()
        other = RpcClient.discover(name, timeout=2, ca=unnamed.certificate_pem)
        assert isinstance(await outcome(other._connect()), IdentityError)
    async with serving(announced(name, identity=unnamed)):
        other = RpcClient.discover(name, timeout=2, ca=unnamed.certificate_pem)
        assert isinstance(await outcome(other._connect()), IdentityError)


@real
async def test_the_error_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    name = fresh_name()
    search = RpcClient.discover(name, timeout=1, addresses=[f"{LOOPBACK}:9"])
    failed = await outcome(search._connect())
    assert isinstance(failed, DiscoveryError)
    for told in (
        name,
        "1 s",
        f"{LOOPBACK}:9",
        "lo",
        "multicast DNS",
        "ECHOSTREAM_SERVICES",
        "ticket",
    ):
        assert told in str(failed)


@real
async def test_without_multicast_addresses_and_tickets_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container: the sockets cannot be opened."""

    def no_multicast(**_: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("echostream.discovery.interfaces.AsyncZeroconf", no_multicast)
    name = fresh_name()
    async with announced(name).build() as server:  # it serves, all the same
        assert server.announced_as is None
        host, port = server.address
        await (await RpcClient.discover(name, timeout=2, addresses=[(host, port)])).close()
        ticket = Ticket((("127.0.0.1", 9), (host, port)), server.fingerprint)
        monkeypatch.setenv("ECHOSTREAM_SERVICES", f"Other=h:1; {name.upper()}={ticket}")
        await (await RpcClient.discover(name, timeout=2)).close()
        async with RpcClient.connect(str(ticket)) as client:
            assert await client.request("greeting") == "hello"
        failed = await outcome(RpcClient.discover("Nothing", timeout=1)._connect())
        assert isinstance(failed, DiscoveryError)
        assert "No such device" in str(failed)


@real
async def test_a_server_where_no_multicast_is_says_so_and_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        started = announced(fresh_name(), host="::1").build()
        await started.start()
    except ConfigurationError:
        pytest.skip("no IPv6 here")
    async with RpcClient.connect(started.address, fingerprint=started.fingerprint) as client:
        assert await client.request("greeting") == "hello"
    await started.shutdown()
    assert "::1 carries no multicast" in caplog.text


@real
async def test_a_search_looks_at_so_many_announcements_and_no_more() -> None:
    """One service that is another one with every packet."""
    config = RpcClient.builder().discover("x", timeout=5).trust(insecure=True).build()._config
    hunt = await _Hunt.begin(config, joining=False)
    for index in range(3 * MAX_CANDIDATES):
        hunt._consider(Service(name="x", instance="x", addresses=("10.0.0.1",), port=index + 1))
    assert len(hunt._waiting) + len(hunt._doubtful) + len(hunt._attempts) <= MAX_CANDIDATES
    await hunt.end()


@real
async def test_a_ticket_is_no_good_for_another_key() -> None:
    async with announced(fresh_name()).build() as server:
        stolen = Ticket((server.address,), "sha256:" + "ab" * 32)
        assert isinstance(await outcome(RpcClient.connect(stolen)._connect()), IdentityError)
        assert server.statistics().sessions == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        (" ; ", []),
        ("A=h:1,g:2;b=x:3", ["h:1", "g:2"]),
        ("a=h:1;A=echostream://x@y:1,z:2", ["h:1", "echostream://x@y:1,z:2"]),
    ],
)
def test_the_environment_variable(
    value: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOSTREAM_SERVICES", value)
    assert configured_addresses("a") == expected


@pytest.mark.parametrize("value", ["a", "=h:1", "a="])
def test_a_variable_that_cannot_be_read(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOSTREAM_SERVICES", value)
    with pytest.raises(ConfigurationError, match="ECHOSTREAM_SERVICES"):
        configured_addresses("a")


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"addresses": "h:1"}, {"addresses": ["h"]}, {"trust": 1}],
)
def test_options_that_cannot_work(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        RpcClient.discover("a", **options)


@real
async def test_a_flood_of_fakes_is_bounded(seed: int) -> None:
    """10^5 of them in full size. The real server, whose key is known, is found all the same."""
    name = fresh_name()
    rng = random.Random(seed)
    count = sized(2_000, 100_000)
    async with serving(announced(name)) as (server,):
        KnownServices().record(name, server.fingerprint)
        async with Browser(name, interfaces=[LOOPBACK]) as browser:
            await changes(browser, 1)
            before = resident_bytes()
            for index in range(count):
                txt = rng.choice(
                    [{"fp": "sha256:" + "ab" * 32}, rng.randbytes(rng.randrange(1, 250)), b"\0"]
                )
                fake = announcement(f"{name}-{index}", f"h{index}.local.", 7, txt, "10.9.9.9")
                browser._one_shot.datagram_received(fake, (LOOPBACK, 5353))
                if index % 50 == 0:
                    browser._refresh(browser._multicast.zeroconf)  # type: ignore[union-attr]
            grown = resident_bytes() - before
            report("mdns_flood", services=count, grown_mb=round(grown / 1e6, 1))
            table = browser._table
            assert browser.ignored >= count - MAX_INSTANCES
            assert len(table.instances) <= MAX_INSTANCES
            assert max(map(len, (table.hosts, table.complete, table.dirty))) <= MAX_INSTANCES
            assert len(browser.services) <= MAX_INSTANCES
            assert len(browser._news) <= MAX_INSTANCES
            assert grown < 48 << 20
        with Spoofer() as spoofer:
            for index in range(500):
                fake = announcement(f"{name}-{index}", f"h{index}.local.", 7, {}, LOOPBACK)
                spoofer.send(fake)
        async with RpcClient.discover(name, timeout=WAIT_S) as client:
            assert client.server_addr == server.address


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        b"\xff" * 2000,
        response(b"\xc0\x0c" + bytes(10)),  # a name that points at itself
        response(record("_echostream._udp.local.", 12, b"\xc0\xff")),
        response(record("_echostream._udp.local.", 12, b"\x3fshort")),
        response(*[record("_echostream._udp.local.", 12, b"\0")] * 50),
    ],
)
@real
async def test_packets_that_are_nothing(packet: bytes, seed: int) -> None:
    name = fresh_name()
    rng = random.Random(seed)
    async with Browser(name, interfaces=[LOOPBACK]) as browser:
        browser._one_shot.datagram_received(packet, (LOOPBACK, 5353))
        for _ in range(200):
            good = bytearray(announcement(name, "h.local.", 7, {"fp": "x"}, "10.0.0.1"))
            for _ in range(rng.randrange(1, 8)):
                good[rng.randrange(len(good))] = rng.randrange(256)
            browser._one_shot.datagram_received(bytes(good), (LOOPBACK, 5353))
        browser._refresh(browser._multicast.zeroconf)  # type: ignore[union-attr]
        for service in browser.services:
            assert service.name.casefold() == name.casefold()


def test_known_services_are_kept_and_mended_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "known_services"
    known = KnownServices(file)
    pins = ["sha256:" + digit * 64 for digit in "abc"]
    known.record("Living Room", pins[0])
    known.record("living room", pins[1])
    known.record("LIVING ROOM", pins[1])
    assert [each.fingerprint for each in known.lookup("living ROOM")] == pins[:2]
    assert file.read_text().startswith(f"Living%20Room {pins[0]} ")
    with pytest.raises(IdentityError, match="just now"):
        known.record("living room", pins[2], first=True)
    assert known.forget("Living Room") == 2
    assert known.forget("Living Room") == 0
    assert known.entries() == []
    file.write_text("# mine\n\nStudio sha256:short\n")
    with pytest.raises(IdentityError, match="line 3"):
        known.lookup("Other")
