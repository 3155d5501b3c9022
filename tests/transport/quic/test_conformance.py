"""Ours against ours, stock aioquic and qh3, in both roles, over a network with faults.

Scenarios have the names of the QUIC interop runner's test cases.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Callable
from typing import Any

import pytest
from foreign_engines import Qh3Acceptor, StockAcceptor, qh3_client, stock_client
from quic_credentials import Credentials
from quic_pair import Fate, Pair, jittery, lossy, our_acceptor, our_client, steady

from echostream.transport.engine import PathChanged, PingAcknowledged, TicketReceived
from echostream.transport.quic import QuicOptions, TicketStore

PAIRINGS = ["ours-ours", "ours-stock", "stock-ours", "ours-qh3", "qh3-ours"]


CLIENTS: dict[str, Callable[..., Any]] = {
    "ours": our_client,
    "stock": stock_client,
    "qh3": qh3_client,
}
SERVERS: dict[str, Callable[..., Any]] = {
    "ours": our_acceptor,
    "stock": StockAcceptor,
    "qh3": Qh3Acceptor,
}


def ends(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes the client and the acceptor of a pairing."""
    client, server = name.split("-")
    if "qh3" in name and importlib.util.find_spec("qh3") is None:
        pytest.skip("qh3 is not installed")
    return CLIENTS[client], SERVERS[server]


def pairing(name: str, credentials: Credentials, **kwargs: Any) -> Pair:
    client, server = ends(name)
    return Pair(client(credentials), server(credentials), **kwargs)


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def exchange(pair: Pair, sizes: list[int], timeout: float = 60.0) -> None:
    """Each size goes to the server and back on a stream of its own, and must arrive whole."""
    client, server = pair.client, pair.server
    assert server is not None
    sent = {}
    for index, size in enumerate(sizes):
        stream_id = client.engine.open_stream(True)
        sent[stream_id] = noise(size, index)
        client.engine.send_stream(stream_id, sent[stream_id], True)
    answered: set[int] = set()

    def answer() -> None:
        for stream_id in (server.finished & set(sent)) - answered:
            answered.add(stream_id)
            server.engine.send_stream(stream_id, bytes(server.streams[stream_id]), True)

    pair.on_step = answer
    assert pair.run(lambda: set(sent) <= client.finished, timeout), "did not finish"
    pair.on_step = None
    for stream_id, data in sent.items():
        assert bytes(client.streams[stream_id]) == data


@pytest.mark.parametrize("name", PAIRINGS)
class TestPairing:
    def test_handshake_transfer_and_the_rest(self, name: str, credentials: Credentials) -> None:
        """handshake, transfer, multiplexing, keyupdate, connection ID change, reset, close."""
        pair = pairing(name, credentials)
        pair.handshake()
        client, server = pair.client, pair.server
        assert client.handshake
        assert server
        assert server.handshake
        assert client.handshake.alpn == server.handshake.alpn == "echostream/1"
        exchange(pair, [300_000])
        exchange(pair, [1000] * 40)
        client.engine.update_key()
        exchange(pair, [3000])
        if not name.endswith("qh3"):  # which refuses an update of its own so soon
            server.engine.update_key()
            exchange(pair, [3000])
        client.engine.change_connection_id()
        exchange(pair, [3000])
        for side, other in ((client, server), (server, client)):
            for index in range(20):
                side.engine.send_datagram(bytes([index]) * 1000)
            assert pair.run(lambda other=other: len(other.datagrams) >= 20, 5)
            assert other.datagrams == [bytes([index]) * 1000 for index in range(20)]
            side.engine.ping(77)
            assert pair.run(lambda side=side: PingAcknowledged(77) in side.events, 5)
        stream_id = client.engine.open_stream(True)
        client.engine.send_stream(stream_id, b"abc", False)
        assert pair.run(lambda: stream_id in server.streams, 5)
        client.engine.reset_stream(stream_id, 0x11)
        server.engine.reset_stream(stream_id, 0x12)
        assert pair.run(lambda: server.resets and client.resets, 5)
        assert server.resets[-1].code == 0x11
        assert client.resets[-1].code == 0x12
        client.engine.close(0x1234, "done")
        assert pair.run(lambda: server.closed and client.closed, 5)
        assert (server.closed.code, server.closed.reason) == (0x1234, "done")
        assert server.closed.application

    @pytest.mark.parametrize("seed", [1, 2])
    def test_transferloss(self, name: str, seed: int, credentials: Credentials) -> None:
        pair = pairing(name, credentials, fate=lossy(0.015, 0.1), seed=seed)
        pair.handshake(30)
        exchange(pair, [300_000, 50_000], 120)

    def test_reordering(self, name: str, credentials: Credentials) -> None:
        pair = pairing(name, credentials, fate=jittery(0.02, 0.015), seed=3)
        pair.handshake()
        exchange(pair, [300_000], 120)

    @pytest.mark.parametrize("seed", [2, 3, 4])
    def test_handshakeloss(self, name: str, seed: int, credentials: Credentials) -> None:
        """30 % each way, as the interop runner drops; the client must get through. Of 120 seeds all
        do to a server of ours and 114 to one of qh3, which does not repeat a lost flight whole."""
        pair = pairing(name, credentials, fate=lossy(0.015, 0.3), seed=seed)
        pair.connect()
        assert pair.run(lambda: pair.client.handshake, 10)
        assert pair.run(lambda: pair.server is not None and pair.server.handshake, 10)

    def test_retry(self, name: str, credentials: Credentials) -> None:
        client, server = ends(name)
        ours = name.endswith("-ours")
        how = {"options": QuicOptions(retry_threshold=0)} if ours else {"retry": True}
        pair = Pair(client(credentials), server(credentials, **how))
        pair.handshake()
        assert pair.client.handshake
        assert 1 <= len(pair.answers) <= 2  # qh3 begins with two datagrams
        exchange(pair, [30_000])

    def test_resumption_and_zerortt(self, name: str, credentials: Credentials) -> None:
        client, server = ends(name)
        acceptor = server(credentials, tickets=TicketStore() if name.endswith("-ours") else {})
        got: list[Any] = []
        handler = {} if name.startswith("ours") else {"session_ticket_handler": got.append}
        pair = Pair(client(credentials, **handler), acceptor)
        pair.handshake()
        exchange(pair, [100])
        got += [event.ticket for event in pair.client.events if isinstance(event, TicketReceived)]
        key = "ticket" if name.startswith("ours") else "session_ticket"
        pair = Pair(client(credentials, **{key: got[0]}), acceptor)
        early: list[bool] = []
        pair.client.engine.connect(pair.server_address, pair.now)
        stream_id = pair.client.engine.open_stream(True)
        pair.client.engine.send_stream(stream_id, b"early request", True)
        assert pair.run(
            lambda: (
                pair.server
                and stream_id in pair.server.finished
                and (early.append(pair.server.handshake is None) or True)
            ),
            5,
        )
        assert early == [True]
        pair.run(None, 1.0)
        for side in (pair.client, pair.server):
            assert side is not None
            assert side.handshake.resumed
            assert side.handshake.early_data
        exchange(pair, [30_000])

    def test_longrtt(self, name: str, credentials: Credentials) -> None:
        pair = pairing(name, credentials, fate=steady(0.375))
        pair.handshake(10)
        exchange(pair, [10_000], 30)

    def test_blackhole(self, name: str, credentials: Credentials) -> None:
        """2 s without a packet in the middle of a transfer."""
        hole = [float("inf")]

        def fate(rng: random.Random, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
            return [] if hole[0] <= pair.now < hole[0] + 2.0 else [(0.015, data)]

        pair = pairing(name, credentials, fate=fate)
        pair.handshake()
        hole[0] = pair.now + 0.05
        exchange(pair, [300_000], 60)

    def test_rebind_port(self, name: str, credentials: Credentials) -> None:
        if name.endswith("qh3"):
            pytest.skip("a qh3 server dies of the fourth rebinding")
        pair = pairing(name, credentials)
        pair.handshake()
        for port in range(50001, 50007):
            pair.client_address = (pair.client_address[0], port)
            exchange(pair, [5000], 20)
        if name.endswith("ours"):
            assert pair.server is not None
            pair.run(None, 1.0)
            changes = [event.address for event in pair.server.of(PathChanged)]
            assert changes[-1] == pair.client_address

    def test_ipv6(self, name: str, credentials: Credentials) -> None:
        pair = pairing(name, credentials)
        pair.client_address = ("2001:db8::1", 50000, 0, 0)
        pair.server_address = ("2001:db8::2", 4433, 0, 0)
        pair.handshake()
        exchange(pair, [20_000])


def corrupting(delay: float, share: float) -> Fate:
    def fate(rng: random.Random, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if rng.random() < share:
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            data = bytes(damaged)
        return [(delay, data)]

    return fate


@pytest.mark.parametrize("name", ["ours-ours", "ours-stock", "stock-ours"])
@pytest.mark.parametrize("seed", [1, 2, 3])
class TestCorruption:
    def test_handshakecorruption(self, name: str, seed: int, credentials: Credentials) -> None:
        pair = pairing(name, credentials, fate=corrupting(0.015, 0.3), seed=seed)
        pair.connect()
        assert pair.run(lambda: pair.client.handshake, 10)

    def test_transfercorruption(self, name: str, seed: int, credentials: Credentials) -> None:
        pair = pairing(name, credentials, fate=corrupting(0.015, 0.02), seed=seed)
        pair.handshake(20)
        exchange(pair, [200_000], 60)


def test_chacha20(credentials: Credentials) -> None:
    options = QuicOptions(ciphers=["CHACHA20_POLY1305_SHA256"])
    pair = Pair(our_client(credentials, options), our_acceptor(credentials))
    pair.handshake()
    assert pair.client.engine._connection.tls.key_schedule.cipher_suite.name == options.ciphers[0]
    exchange(pair, [50_000])


@pytest.mark.parametrize("control", ["westwood", "reno", "cubic"])
def test_all_congestion_controls_transfer(control: str, credentials: Credentials) -> None:
    options = QuicOptions(congestion_control=control)
    pair = Pair(
        our_client(credentials, options),
        our_acceptor(credentials, options),
        fate=lossy(0.015, 0.02),
    )
    pair.handshake()
    exchange(pair, [400_000])


def test_larger_datagrams_carry_larger_payloads(credentials: Credentials) -> None:
    options = QuicOptions(max_datagram_size=16383)
    pair = Pair(our_client(credentials, options), our_acceptor(credentials, options))
    pair.handshake()
    size = pair.client.engine.max_datagram_payload
    assert size > 16300
    assert pair.client.engine.send_datagram(b"x" * size)
    assert not pair.client.engine.send_datagram(b"x" * (size + 1))
    exchange(pair, [300_000])
    assert pair.server is not None
    assert pair.server.datagrams == [b"x" * size]


def test_everything_is_forgotten_after_many_streams(credentials: Credentials) -> None:
    pair = pairing("ours-ours", credentials)
    pair.handshake()
    digest = hashlib.sha256()
    for _ in range(20):
        exchange(pair, [100] * 100)
        digest.update(b"".join(bytes(data) for data in pair.client.streams.values()))
        pair.client.streams.clear()
    client, server = pair.client, pair.server
    assert server is not None
    push = [server.engine.open_stream(False) for _ in range(300)]  # past the limit of 128
    for stream_id in push:
        server.engine.send_stream(stream_id, b"push", True)
    assert pair.run(lambda: set(push) <= client.finished, 20)
    pair.run(None, 1.0)
    for side in (client, server):
        connection = side.engine._connection
        assert not connection._streams
        assert not connection._streams_queue
        assert not connection._unconsumed
        assert side.engine.buffered_total == 0
        assert len(connection._loss._presumed_lost) == 0
        assert sum(len(space.sent_packets) for space in connection._loss.spaces) < 40
