"""Explicit congestion notification: RFC 9000, section 13.4, and RFC 9002, section 7.1."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from foreign_engines import Qh3Acceptor, StockAcceptor, qh3_client, stock_client
from quic_credentials import Credentials
from quic_pair import Pair, our_acceptor, our_client, our_pair

from echostream import RpcClient, Session, handler
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.testing import Impairment, QuicNetwork, run_virtual
from echostream.transport.engine import CeAddress, Ect0Address, Ect1Address, unmarked
from echostream.transport.quic import QuicOptions
from echostream.transport.quic.hardened import HardenedConnection

SIZE = 30_000
Scene = Callable[[RpcClient, Session, QuicNetwork], Awaitable[None]]


@handler("echo")
async def echo(value: bytes) -> bytes:
    return value


def over(path: Impairment, scene: Scene, **options: Any) -> None:
    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            server = await network.serve(ServerBuilder().handler(echo).quic(**options))
            client = await network.connect(ClientBuilder().quic(**options), up=path, down=path)
            await client.request("echo", b"")  # the server has taken it
            (session,) = server.context.sessions
            await scene(client, session, network)

    run_virtual(main(), limit=600)


async def calls(client: RpcClient, count: int = 20) -> float:
    clock = asyncio.get_running_loop().time
    start = clock()
    for _ in range(count):
        assert len(await client.request("echo", bytes(SIZE))) == SIZE
    return clock() - start


def test_a_path_that_carries_marks_is_found_capable_and_costs_nothing() -> None:
    took = []

    async def scene(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        took.append(await calls(client))
        for end in (client, session):
            found = end.statistics()
            assert (found.ecn_ce, found.ecn_ce_received, found.packets_lost) == (0, 0, 0)
        took.append({client.statistics().ecn, session.statistics().ecn})

    over(Impairment(delay=0.01), scene)
    over(Impairment(delay=0.01), scene, ecn=False)
    assert took[1::2] == [{"capable"}, {"off"}]
    assert took[0] == pytest.approx(took[2], rel=0.02)


def test_acknowledgements_with_counts_stay_on_the_compiled_path(
    data_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if data_path == "plain":
        pytest.skip("about the compiled path")

    async def scene(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        await calls(client, 5)
        plain: list[int] = []
        receive = HardenedConnection.receive_datagram

        def watched(self: Any, *args: Any) -> None:
            plain.append(1)
            receive(self, *args)

        for end in (client, session):
            end._peer.connection.engine._connection._skip_at = 1 << 40
        monkeypatch.setattr(HardenedConnection, "receive_datagram", watched)
        before = client.statistics().packets_received
        await calls(client)
        assert client.statistics().packets_received > before + 100
        assert plain == []
        assert client.statistics().ecn == session.statistics().ecn == "capable"

    over(Impairment(delay=0.01), scene)


def test_congestion_that_is_marked_slows_down_as_a_loss_does_and_loses_nothing() -> None:
    took = []

    async def scene(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        took.append(await calls(client, 40))

    async def marked(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        await scene(client, session, network)
        found, seen = client.statistics(), session.statistics()
        assert found.ecn == seen.ecn == "capable"
        assert 0 < found.ecn_ce <= seen.ecn_ce_received == network.statistics(client)[0].marked
        assert found.packets_lost == seen.packets_lost == 0

    over(Impairment(delay=0.01), scene)
    over(Impairment(delay=0.01, ce=0.03), marked)
    assert took[0] * 2 < took[1]


def test_congestion_is_met_once_per_round_trip() -> None:
    """Every packet is marked, and the window is halved once for all that were on their way."""

    async def scene(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        await calls(client, 5)
        loss = client._peer.connection.engine._connection._loss
        windows = [loss.congestion_window]
        weigh = loss._congestion_experienced

        def watched(*args: Any) -> None:
            weigh(*args)
            if loss.congestion_window != windows[-1]:
                windows.append(loss.congestion_window)

        loss._congestion_experienced = watched
        network.impair(client, up=Impairment(delay=0.05, ce=1.0), down=Impairment(delay=0.05))
        assert windows[0] > 8 * 1200
        clock = asyncio.get_running_loop().time
        start = clock()
        await calls(client, 1)
        trips = (clock() - start) / 0.1
        halved = sum(after < before for before, after in itertools.pairwise(windows))
        assert 1 <= halved <= trips + 1
        assert client.statistics().ecn_ce > halved

    over(Impairment(delay=0.01), scene)


@pytest.mark.parametrize("ecn", ["cleared", "dropped"])
def test_a_path_that_does_not_carry_marks_is_used_without(ecn: str) -> None:
    async def scene(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        took = await calls(client)
        assert took < (0.6 if ecn == "cleared" else 2.0)  # 20 round trips of 20 ms, and a bit
        for end in (client, session):
            found = end.statistics()
            assert (found.ecn, found.ecn_ce, found.ecn_ce_received) == ("failed", 0, 0)
            assert found.packets_lost <= (0 if ecn == "cleared" else 40)
        lost = network.statistics(client)[0].lost
        await calls(client)
        assert network.statistics(client)[0].lost == lost

    over(Impairment(delay=0.01, ecn=ecn), scene)


def test_another_path_is_looked_at_anew() -> None:
    async def scene(client: RpcClient, session: Session, network: QuicNetwork) -> None:
        await calls(client, 3)
        assert session.statistics().ecn == "failed"
        network.impair(client, up=Impairment(delay=0.01), down=Impairment(delay=0.01))
        network.move(client)
        await calls(client, 3)
        assert session.statistics().ecn == "capable"

    over(Impairment(delay=0.01, ecn="cleared"), scene)


def test_marks_that_change_on_the_way_are_not_believed(credentials: Credentials) -> None:
    """ECT(0) that arrives as ECT(1)."""
    pair = our_pair(credentials)
    pair.handshake()
    feed = pair.server.engine.feed
    pair.server.engine.feed = lambda data, address, now: feed(data, Ect1Address(address), now)
    pair.client.engine.ping(1)
    pair.run(None, 1)
    assert pair.client.engine.info().ecn == "failed"


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ((5, 0, 0), "capable"),
        ((4, 0, 1), "capable"),
        ((4, 0, 0), "failed"),  # less than were acknowledged
        ((5, 1, 0), "failed"),
        ((99, 0, 0), "failed"),  # more than were sent
        (None, "failed"),
    ],
)
def test_counts_are_weighed(counts: Any, state: str, credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    loss = pair.client.engine._connection._loss
    loss._prepare_ecn()
    loss.begin_ecn()
    loss.largest_sent += 5
    window = loss.congestion_window
    loss._weigh_ecn(counts, 5, pair.now, pair.now)
    assert loss.ecn_state == state
    assert (loss.congestion_window < window) is (counts == (4, 0, 1))


@pytest.mark.parametrize("peer", ["stock", "qh3"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_peer_that_knows_nothing_of_it_is_not_disturbed(
    peer: str, role: str, credentials: Credentials
) -> None:
    """aioquic and qh3 read no marks and report none, and take the counts that we report."""
    if peer == "qh3":
        pytest.importorskip("qh3")
    if role == "server":
        foreign_client = stock_client if peer == "stock" else qh3_client
        pair = Pair(foreign_client(credentials), our_acceptor(credentials))
    else:
        foreign_acceptor = StockAcceptor if peer == "stock" else Qh3Acceptor
        pair = Pair(our_client(credentials), foreign_acceptor(credentials))
    pair.handshake()
    ours, other = pair.server, pair.client
    if role == "client":
        ours, other = other, ours
    assert ours is not None
    assert other is not None
    feed = ours.engine.feed
    ours.engine.feed = lambda data, address, now: feed(data, CeAddress(address), now)
    for _ in range(20):
        for side, end in ((ours, other), (other, ours)):
            stream_id = side.engine.open_stream(False)
            side.engine.send_stream(stream_id, bytes(3000), True)
            assert pair.run(lambda e=end, s=stream_id: s in e.finished, 5)
    info = ours.engine.info()
    assert info.ecn == "failed"
    assert info.ecn_ce_received >= 60
    assert ours.closed is None
    assert other.closed is None


def test_an_address_with_a_mark_is_that_address() -> None:
    plain = ("192.0.2.1", 1)
    for kind in (Ect0Address, Ect1Address, CeAddress):
        marked = kind(plain)
        assert marked == plain
        assert hash(marked) == hash(plain)
        assert type(unmarked(marked)) is tuple  # type: ignore[arg-type]
    assert unmarked(plain) is plain


def test_the_option_turns_reports_off_too(credentials: Credentials) -> None:
    pair = our_pair(credentials, options=QuicOptions(ecn=False))
    pair.handshake()
    feed = pair.server.engine.feed
    pair.server.engine.feed = lambda data, address, now: feed(data, CeAddress(address), now)
    pair.client.engine.ping(1)
    pair.run(None, 1)
    assert pair.server.engine.info().ecn_ce_received == 0
    assert pair.server.engine.info().ecn == pair.client.engine.info().ecn == "off"
