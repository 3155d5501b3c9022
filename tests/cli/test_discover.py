"""``echostream discover``, and tickets on the command line."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Result

from echostream import Identity, RpcServer
from echostream.transport.known_services import KnownServices
from echostream.transport.ticket import Ticket

Cli = Callable[..., Result]
PIN = "sha256:" + "ab" * 32


@pytest.fixture
def announced() -> Iterator[RpcServer]:
    """A server on loopback in a thread of its own, announced by now."""
    name = f"Test {secrets.token_hex(4)}"
    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral())
        .enable_discovery(name, properties={"room": "attic"})
        .build()
    )
    ready = threading.Event()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server:
            assert server._advertiser is not None
            async with asyncio.timeout(20):
                await server._advertiser.wait_announced()
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_what_is_announced_is_listed(cli: Cli, announced: RpcServer) -> None:
    name = announced.announced_as
    assert name is not None
    shown = cli("discover", name, "--timeout", "1")
    assert shown.status == 0
    for told in (
        name,
        announced.fingerprint[:16],
        "room=attic",
        f"127.0.0.1:{announced.address[1]}",
    ):
        assert told in shown.out
    assert "not verified" in shown.out
    (facts,) = json.loads(cli("discover", name, "--timeout", "1", "--json").out)
    assert facts["name"] == facts["instance"] == name
    assert facts["fingerprint"] == announced.fingerprint
    assert facts["addresses"] == ["127.0.0.1"]
    assert facts["properties"] == {"room": "attic"}


def test_nothing_is_exit_status_1(cli: Cli) -> None:
    name = f"Test {secrets.token_hex(4)}"
    shown = cli("discover", name, "--timeout", "0.2")
    assert (shown.status, "nothing announced" in shown.out) == (1, True)
    assert json.loads(cli("discover", name, "--timeout", "0.2", "--json").out) == []
    cli("discover", "--timeout", "0").complains(2, "--timeout")


def test_a_ticket_is_printed(cli: Cli) -> None:
    shown = cli("identity", "ticket", "Studio.example:5000", "[::1]:6000", "--name", "my studio")
    kept = Identity.self_signed()
    ticket = Ticket.parse(shown.out)
    assert ticket.addresses == (("studio.example", 5000), ("::1", 6000))
    assert (ticket.fingerprint, ticket.name) == (kept.fingerprint, "my studio")
    facts = json.loads(cli("identity", "ticket", "10.0.0.1:5000", "--json").out)
    assert facts == {
        "ticket": str(Ticket((("10.0.0.1", 5000),), kept.fingerprint)),
        "addresses": ["10.0.0.1:5000"],
        "fingerprint": kept.fingerprint,
    }
    assert Ticket.parse(cli("identity", "ticket", ":5000").out).addresses[0][1] == 5000


def test_a_ticket_that_cannot_be(cli: Cli) -> None:
    cli("identity", "ticket", "host").complains(2, "no port")
    cli("identity", "ticket", "host:0").complains(2, "port")
    cli("identity", "ticket", "host:1", "--name", "x" * 600).complains(2, "name")


def test_a_ticket_as_a_qr_code(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("segno")
    picture = tmp_path / "ticket.png"
    shown = cli("identity", "ticket", "10.0.0.1:5000", "--qr", "--png", str(picture))
    assert len(shown.out.splitlines()) > 20
    assert picture.read_bytes().startswith(b"\x89PNG")
    cli("identity", "ticket", "10.0.0.1:5000", "--png", "x.jpg").complains(2, ".png")
    cli("identity", "ticket", "10.0.0.1:5000", "--qr", "--json").complains(2, "--qr")


def test_a_name_may_get_a_key_and_lose_it(cli: Cli) -> None:
    assert cli("identity", "trust", "living room", PIN).status == 0
    assert [each.fingerprint for each in KnownServices().lookup("Living Room")] == [PIN]
    listed = json.loads(cli("identity", "known-hosts", "--json").out)
    assert [(each["address"], each["fingerprint"]) for each in listed] == [("living room", PIN)]
    assert cli("identity", "forget", "Living Room").status == 0
    assert KnownServices().entries() == []
    cli("identity", "trust", "living room", "sha256:short").complains(2, "fingerprint")
