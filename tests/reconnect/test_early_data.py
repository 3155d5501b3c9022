"""0-RTT: what leaves with the first packet, and what a replay of it can do."""

from __future__ import annotations

import asyncio
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from rpc_support import outcome, virtual
from test_reconnect import IDENTITY, client, down, server

from echostream import Identity, Session
from echostream.builder import ServerBuilder
from echostream.client import RpcClient
from echostream.errors import IdentityError
from echostream.rpc.context import ClientContext
from echostream.testing import Impairment, QuicNetwork
from echostream.testing.quic_network import SERVER_HOST
from echostream.transport.memory_network import MemoryEndpoint
from echostream.transport.ticket_cache import TicketCache
from echostream.transport.trust import Trust, decide

RTT = 0.1
PATH = Impairment(delay=RTT / 2)
PIN = IDENTITY.fingerprint


class Log:
    """What a server ran, and whether its handshake was complete then."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, bool]] = []

    def serve(self, builder: ServerBuilder | None = None) -> ServerBuilder:
        async def note(session: Session, what: str) -> str:
            gate = session._peer.dispatcher.gate
            self.ran.append((what, gate.confirmed))
            return what

        async def hear(session: Session, what: str) -> None:
            await note(session, what)

        return (builder or server()).handler("note", note).listener("hear", hear)


def now() -> float:
    return asyncio.get_running_loop().time()


async def lose(network: QuicNetwork, connected: RpcClient) -> None:
    """End the connection for the client alone."""
    hole = Impairment(blackhole=True)
    network.impair(connected, up=hole, down=hole)
    connected._peer.close()
    network.impair(connected, up=PATH, down=PATH)
    await down(connected)


@virtual
async def test_the_first_call_of_a_new_and_of_a_resumed_connection() -> None:
    async with QuicNetwork() as network:
        await network.serve(Log().serve())
        start = now()
        connected = await network.connect(client(), up=PATH, down=PATH)
        assert await connected.request("note", "new") == "new"
        assert now() - start <= 2.2 * RTT
        await asyncio.sleep(1.0)  # the ticket comes
        begun: list[float] = []
        dial = connected._dial_resumed

        async def dialled(*args: Any) -> Any:
            begun.append(now())
            return await dial(*args)

        connected._dial_resumed = dialled  # type: ignore[method-assign]
        await lose(network, connected)
        assert await connected.request("note", "resumed", idempotent=True) == "resumed"
        (start,) = begun
        assert now() - start <= 1.2 * RTT


@virtual
async def test_what_is_not_idempotent_waits_for_the_handshake() -> None:
    log = Log()
    async with QuicNetwork() as network:
        await network.serve(log.serve())
        connected = await network.connect(client(), up=PATH, down=PATH)
        await asyncio.sleep(1.0)
        await lose(network, connected)
        await connected.emit("hear", "event")
        await asyncio.gather(
            connected.request("note", "once"),
            connected.request("note", "idempotent", idempotent=True),
        )
        await asyncio.sleep(1.0)
        assert log.ran[0] == ("idempotent", False)
        assert sorted(log.ran[1:]) == [("event", True), ("once", True)]


@virtual
async def test_hooks_come_before_early_calls_unless_asked_for() -> None:
    log = Log()

    async def on_connect(ctx: ClientContext) -> None:
        await ctx.request("note", "hook")

    async with QuicNetwork() as network:
        await network.serve(log.serve())
        builder = client().on_connect(on_connect)
        connected = await network.connect(builder, up=PATH, down=PATH)
        await asyncio.sleep(1.0)
        await lose(network, connected)
        await connected.request("note", "idempotent", idempotent=True)
        assert [what for what, _ in log.ran] == ["hook", "hook", "idempotent"]


class Recorded:
    """The datagrams that a client sends, from now on."""

    def __init__(self, endpoint: MemoryEndpoint) -> None:
        self.datagrams: list[bytes] = []
        carry = endpoint._network.carry

        def recording(datagrams: Any, source: Any) -> None:
            if source[0] != SERVER_HOST:
                self.datagrams.extend(data for data, _ in datagrams)
            carry(datagrams, source)

        endpoint._network.carry = recording  # type: ignore[method-assign]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_replayed_first_flight_runs_nothing(restarted: bool) -> None:
    log = Log()

    @virtual
    async def main() -> None:
        async with QuicNetwork() as network:
            running: Any = await network.serve(log.serve())
            connected = await network.connect(client(), up=PATH, down=PATH)
            await asyncio.sleep(1.0)
            await lose(network, connected)
            recorded = Recorded(network._endpoints[connected])
            await connected.request("note", "early", idempotent=True)
            assert log.ran == [("early", False)]
            await connected.close()
            if restarted:
                await network.kill(running)
                running = await network.serve(log.serve())
            flight = [(data, ("10.9.9.9", 1)) for data in recorded.datagrams]
            for _ in range(3):
                running.endpoint.receive(flight)
                await asyncio.sleep(1.0)
            assert log.ran == [("early", False)]

    main()


@virtual
async def test_early_calls_pass_a_retry() -> None:
    log = Log()
    async with QuicNetwork() as network:
        await network.serve(log.serve(server().quic(retry_threshold=0)))
        connected = await network.connect(client(), up=PATH, down=PATH)
        await asyncio.sleep(1.0)
        await lose(network, connected)
        assert await connected.request("note", "early", idempotent=True) == "early"
        assert log.ran == [("early", False)]


@virtual
async def test_a_server_that_forgot_the_ticket_is_called_after_a_full_handshake() -> None:
    log = Log()
    async with QuicNetwork() as network:
        first = await network.serve(log.serve())
        connected = await network.connect(client().trust(fingerprint=PIN), up=PATH, down=PATH)
        await asyncio.sleep(1.0)
        await network.kill(first)
        await network.serve(log.serve())
        assert await connected.request("note", "late", idempotent=True) == "late"
        assert log.ran == [("late", True)]


@virtual
async def test_an_impostor_gets_no_early_call() -> None:
    """The ticket is another server's: neither its 0-RTT data nor what follows is readable."""
    log = Log()
    async with QuicNetwork() as network:
        first = await network.serve(log.serve())
        connected = await network.connect(client().trust(fingerprint=PIN), up=PATH, down=PATH)
        await asyncio.sleep(1.0)
        await network.kill(first)
        impostor = await network.serve(log.serve(ServerBuilder().identity(Identity.ephemeral())))
        error = await outcome(connected.request("note", "secret", idempotent=True))
        assert isinstance(error, IdentityError)
        await asyncio.sleep(1.0)
        assert log.ran == []
        assert impostor.context.sessions == ()
        assert isinstance(await outcome(connected.emit("hear", "secret")), IdentityError)


def test_another_run_of_the_program_begins_with_the_first_packet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOSTREAM_HOME", str(tmp_path / "home"))
    log = Log()

    @virtual
    async def main() -> None:
        async with QuicNetwork() as network:
            await network.serve(log.serve())
            builder = client(early_data=True)
            connected = await network.connect(builder, up=PATH, down=PATH)
            await asyncio.sleep(1.0)
            await connected.close()
            start = now()
            again = await network.connect(client(early_data=True), up=PATH, down=PATH)
            assert now() == start
            assert await again.request("note", "early", idempotent=True) == "early"
            assert now() - start <= 1.2 * RTT
            assert log.ran == [("early", False)]
            await again.wait_connected()
            await again.request("note", "once")

    main()
    path = TicketCache.default_path()
    assert path.parent == tmp_path / "home"
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


OTHER = "sha256:" + 64 * "0"


def plan(trust: Trust, host: str = "192.168.1.5") -> Any:
    return decide(trust, host, 5000, "192.168.1.5", known=None)


def test_a_ticket_is_used_once_and_only_where_its_server_is_trusted(tmp_path: Path) -> None:
    pinned = plan(Trust(fingerprint=PIN))
    authority = plan(Trust(ca=IDENTITY.certificate_pem))
    for cache in (TicketCache(), TicketCache(tmp_path / "tickets.json")):
        cache.put(pinned, PIN, b"1")
        cache.put(pinned, PIN, b"2")
        taken = cache.take(pinned)
        assert taken is not None
        assert (taken.ticket, taken.fingerprint) == (b"2", PIN)
        assert cache.take(plan(Trust(fingerprint=OTHER))) is None, "changed pin"
        assert cache.take(pinned) is None, "what could not be trusted is gone"
        cache.put(plan(Trust(insecure=True)), PIN, b"3")
        assert cache.take(authority) is None, "trusted by nobody"
        cache.put(authority, PIN, b"4")
        assert cache.take(plan(Trust(ca=Identity.ephemeral().certificate_pem))) is None
        cache.put(authority, PIN, b"5")
        assert cache.take(plan(Trust())) is None, "a first use has nothing to resume"
        cache.put(authority, PIN, b"6")
        assert cache.take(plan(Trust(ca=IDENTITY.certificate_pem), "192.168.1.6")) is None
        found = cache.take(authority)
        assert found is not None
        assert found.ticket == b"6"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_the_file_of_tickets_is_private_bounded_and_replaceable(tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    pinned = plan(Trust(fingerprint=PIN))
    TicketCache(path).put(pinned, PIN, bytes(1000))
    for index in range(300):
        TicketCache(path).put(plan(Trust(fingerprint=PIN), f"192.168.2.{index}"), PIN, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TicketCache(path).take(pinned) is None, "the oldest gave way"
    for broken in (b"", b"[]", b"{", b'{"a": [[1]]}', b'{"a": 5}'):
        path.write_bytes(broken)
        cache = TicketCache(path)
        assert cache.take(pinned) is None
        cache.put(pinned, PIN, b"y")
        assert cache.take(pinned) is not None
    path.chmod(0o666)
    cache = TicketCache(path)
    cache.put(pinned, PIN, b"z")
    assert cache.take(pinned) is None, "what others can write is not used"
