"""Guards against what a peer sends. ``stock`` shows the hazard, ``ours`` that it is gone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from foreign_engines import StockAcceptor, stock_client
from hostile_packets import ack, crypto, initial, packet, reset_stream, stop_sending, stream, varint
from quic_credentials import Credentials
from quic_pair import CLIENT, Pair, our_acceptor, our_client

from echostream.codes import Close
from echostream.transport.quic import QuicOptions

WINDOW = 1 << 20


def attacked(server: str, credentials: Credentials, options: QuicOptions | None = None) -> Pair:
    """A stock client that is connected to a stock server or to ours."""
    acceptor: Any = StockAcceptor(credentials)
    if server == "ours":
        acceptor = our_acceptor(credentials, options)
    pair = Pair(stock_client(credentials, max_data=1 << 30), acceptor)
    pair.handshake()
    return pair


def attack(pair: Pair, *payloads: bytes) -> None:
    """Each payload in a packet of the client's, with the network running for a moment after."""
    for payload in payloads:
        if pair.client.closed:
            return
        data = packet(pair.client.engine, payload)
        pair.send(data, to_server=True)
        pair.run(None, 0.04)


def held(engine: Any) -> int:
    """Bytes that the receiving parts of all streams hold."""
    return sum(len(s.receiver._buffer) for s in engine._connection._streams.values())


def closed_with(pair: Pair) -> int | None:
    """The code of the CONNECTION_CLOSE that the client got."""
    event = pair.client.engine._connection._close_event
    return None if event is None else event.error_code


@pytest.mark.parametrize("server", ["stock", "ours"])
class TestAttacks:
    def test_sparse_offsets_do_not_open_the_window(
        self, server: str, credentials: Credentials
    ) -> None:
        """Row 3: one byte at the end of the window, eight times."""
        pair = attacked(server, credentials)
        pair.client.engine.open_stream(True)
        limit = WINDOW
        for _ in range(8):
            attack(pair, stream(0, limit - 1, b"x"))
            limit = pair.server.engine._connection._streams[0].max_stream_data_local
        grown = held(pair.server.engine)
        if server == "stock":
            assert grown >= 128 << 20
        else:
            assert grown <= WINDOW
            assert limit == WINDOW

    def test_a_reader_that_does_not_read_stops_the_sender(
        self, server: str, credentials: Credentials
    ) -> None:
        pair = attacked(server, credentials)
        pair.server.consumes = False
        pair.client.engine.send_stream(pair.client.engine.open_stream(True), bytes(3 << 20), True)
        pair.run(None, 20.0)
        received = len(pair.server.streams[0])
        if server == "stock":
            assert received == 3 << 20
            return
        assert received == WINDOW
        pair.server.engine.consume(0, WINDOW)
        pair.server.consumes = True
        assert pair.run(lambda: 0 in pair.server.finished, 20.0)

    def test_gaps_are_counted(self, server: str, credentials: Credentials) -> None:
        """Row 3: a packet full of single bytes with holes between them, again and again."""
        pair = attacked(server, credentials)
        for block in range(4):
            frames = [stream(0, 2 * (80 * block + i) + 1, b"x") for i in range(80)]
            attack(pair, b"".join(frames))
        if server == "stock":
            assert len(pair.server.engine._connection._streams[0].receiver._ranges) == 320
        else:
            assert closed_with(pair) == Close.EXCESSIVE_LOAD

    def test_acknowledging_what_was_not_sent(self, server: str, credentials: Credentials) -> None:
        """Row 30, CVE-2025-4821."""
        pair = attacked(server, credentials)
        attack(pair, ack(1_000_000))
        assert closed_with(pair) == (None if server == "stock" else 0xA)

    def test_acknowledging_blindly(self, server: str, credentials: Credentials) -> None:
        """Row 30, CVE-2025-4820: ranges over everything up to the highest number."""
        pair = attacked(server, credentials)
        connection = pair.server.engine._connection
        connection._skip_at = connection._packet_number
        pair.server.engine.ping(1)
        pair.run(None, 0.1)
        pair.server.engine.ping(2)
        pair.run(None, 0.1)
        newest = connection._packet_number - 1
        attack(pair, ack(newest, newest))
        assert closed_with(pair) == (None if server == "stock" else 0xA)

    def test_rapid_reset(self, server: str, credentials: Credentials) -> None:
        """Row 25, CVE-2023-44487: streams opened and reset, credit comes back each time."""
        pair = attacked(server, credentials)
        stream_id = 0
        for _ in range(60):
            frames = []
            for _ in range(64):
                pair.client.engine.open_stream(True)
                frames.append(stream(stream_id, 0, b"") + reset_stream(stream_id, 0))
                frames.append(stop_sending(stream_id))
                stream_id += 4
            for start in range(0, len(frames), 80):
                pair.send(
                    packet(pair.client.engine, b"".join(frames[start : start + 80])), to_server=True
                )
            pair.run(None, 0.08)
            if pair.client.closed or closed_with(pair) is not None:
                break
        opened = pair.server.engine._connection._local_max_streams_bidi.used
        if server == "stock":
            assert opened == 3840
        else:
            assert opened <= 1200
            assert closed_with(pair) == Close.EXCESSIVE_LOAD

    @pytest.mark.parametrize("frame", [b"\x01", b"\x1a12345678", b"\x19\x00"])
    def test_control_frame_flood(self, frame: bytes, server: str, credentials: Credentials) -> None:
        """Row 26, CVE-2023-49295: PING, PATH_CHALLENGE, RETIRE_CONNECTION_ID."""
        pair = attacked(server, credentials)
        pair.client.engine.change_connection_id()
        pair.run(None, 0.1)
        count = 1000 // len(frame)
        attack(pair, *[frame * count] * (3000 // count + 1))
        assert closed_with(pair) == (None if server == "stock" else Close.EXCESSIVE_LOAD)

    def test_a_datagram_that_was_late_is_taken(self, server: str, credentials: Credentials) -> None:
        """Row 13: aioquic throws away what is more than 128 packet numbers late."""
        pair = attacked(server, credentials)
        late = packet(pair.client.engine, b"\x31\x04late")
        attack(pair, *[b"\x01"] * 2)
        for _ in range(200):
            pair.send(packet(pair.client.engine, b"\x31\x04next"), to_server=True)
        pair.run(None, 0.1)
        pair.send(late, to_server=True)
        pair.send(late, to_server=True)
        pair.run(None, 0.1)
        assert pair.server.datagrams.count(b"late") == (0 if server == "stock" else 1)
        assert pair.server.datagrams.count(b"next") == 200

    def test_peers_text_is_escaped_and_short(self, server: str, credentials: Credentials) -> None:
        """Row 38."""
        pair = attacked(server, credentials)
        text = ("\x1b[31m\r\nFAKE LINE\n" * 40).encode()
        attack(pair, b"\x1d\x00" + varint(len(text)) + text)
        pair.run(lambda: pair.server.closed, 2.0)
        reason = pair.server.closed.reason
        if server == "stock":
            assert "\n" in reason
        else:
            assert reason.isprintable()
            assert len(reason) <= 256

    def test_idle_timeout_zero_of_the_peer_means_none(
        self, server: str, credentials: Credentials
    ) -> None:
        acceptor: Any = our_acceptor if server == "ours" else StockAcceptor
        pair = Pair(stock_client(credentials, idle_timeout=0), acceptor(credentials))
        pair.connect()
        pair.run(None, 0.2)
        connection = pair.server.engine._connection
        expected = pytest.approx(15.0) if server == "ours" else 0.0
        remote = connection._remote_max_idle_timeout
        assert (connection._idle_timeout() if remote is None else remote) == expected


@pytest.mark.parametrize("server", ["stock", "ours"])
class TestHalfOpen:
    """Row 4: what one spoofable Initial can make a server hold."""

    def held_after(self, server: str, credentials: Credentials, offsets: list[int]) -> int:
        acceptor: Any = (our_acceptor if server == "ours" else StockAcceptor)(credentials)
        cid = b"12345678"
        engine = None
        for number, offset in enumerate(offsets):
            data = initial(crypto(offset, b"\x01" + b"\xff" * 999), number=number, cid=cid)
            engine = engine or acceptor.accept(data, CLIENT, 1.0)
            engine.feed(data, CLIENT, 1.0)
        connection = engine._connection
        streams = connection._crypto_streams.values()
        return sum(len(s.receiver._buffer) for s in streams) + len(connection.tls._receive_buffer)

    def test_a_gap(self, server: str, credentials: Credentials) -> None:
        held = self.held_after(server, credentials, [0, 500_000])
        assert held >= 500_000 if server == "stock" else held <= 1 << 16

    def test_without_a_gap(self, server: str, credentials: Credentials) -> None:
        held = self.held_after(server, credentials, [1000 * i for i in range(200)])
        assert held >= 200_000 if server == "stock" else held <= 1 << 16

    def test_crypto_gaps_are_counted(self, server: str, credentials: Credentials) -> None:
        acceptor: Any = (our_acceptor if server == "ours" else StockAcceptor)(credentials)
        engine = None
        for block in range(4):
            payload = b"".join(crypto(2 * (100 * block + i) + 1, b"x") for i in range(100))
            data = initial(payload, number=block, cid=b"12345678")
            engine = engine or acceptor.accept(data, CLIENT, 1.0)
            engine.feed(data, CLIENT, 1.0)
        event = engine._connection._close_event
        assert event is None if server == "stock" else event is not None


def test_credit_of_a_reset_stream_comes_back(credentials: Credentials) -> None:
    """RFC 9000, section 4.5: the final size was counted, and nobody will ever consume it."""
    pair = attacked("ours", credentials)
    connection = pair.server.engine._connection
    limit = connection._local_max_data
    for index in range(20):
        attack(pair, stream(4 * index, 500_000, b"x"), reset_stream(4 * index, 600_000))
        assert limit.value - limit.used == QuicOptions().connection_window
    assert closed_with(pair) is None


def test_consuming_more_than_was_delivered_is_refused(credentials: Credentials) -> None:
    pair = attacked("ours", credentials)
    pair.server.consumes = False
    pair.client.engine.send_stream(pair.client.engine.open_stream(True), b"abc", False)
    pair.run(None, 0.1)
    pair.server.engine.consume(0, 2)
    with pytest.raises(ValueError):
        pair.server.engine.consume(0, 2)
    with pytest.raises(ValueError):
        pair.server.engine.consume(4, 1)


def test_what_was_stopped_is_dropped_and_its_credit_returned(credentials: Credentials) -> None:
    pair = attacked("ours", credentials)
    pair.server.consumes = False
    pair.client.engine.send_stream(pair.client.engine.open_stream(True), bytes(500_000), False)
    pair.run(lambda: pair.server.streams, 1.0)
    got = len(pair.server.streams[0])
    pair.server.engine.stop_stream(0, 3)
    pair.server.engine.stop_stream(0, 3)
    assert pair.run(lambda: pair.server.resets, 2.0)
    assert len(pair.server.streams[0]) == got
    pair.server.engine.consume(0, got)
    limit = pair.server.engine._connection._local_max_data
    assert limit.value - limit.used == QuicOptions().connection_window


def test_a_defect_ends_one_connection_only(
    credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair(our_client(credentials), our_acceptor(credentials))
    pair.handshake()

    def defect(*args: object, **kwargs: object) -> None:
        raise AssertionError("a defect")

    pair.server.engine._connection._spend_control = defect
    pair.client.engine.ping(1)
    assert pair.run(lambda: pair.server.closed, 1.0)
    assert pair.server.closed.code == 1
    assert "a defect" in caplog.text


@pytest.mark.parametrize("server", ["ours", "stock"])
def test_data_that_overtakes_the_handshake_is_kept(server: str, credentials: Credentials) -> None:
    """RFC 9001, section 5.7. Dropped, it would be sent again, by a smaller congestion window."""
    first = True

    def fate(rng: random.Random, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        nonlocal first
        late = to_server and not first and data[0] & 0x80  # the client's Finished
        first = first and not to_server
        return [(0.025 if late else 0.015, data)]

    acceptor: Any = (our_acceptor if server == "ours" else StockAcceptor)(credentials)
    pair = Pair(our_client(credentials), acceptor, fate=fate)
    pair.connect()
    assert pair.run(lambda: pair.client.handshake, 1.0)
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, bytes(5000), True)
    assert pair.run(lambda: pair.server and stream_id in pair.server.finished, 5.0)
    pair.run(None, 1.0)
    lost = pair.client.engine.info().packets_lost
    assert lost == 0 if server == "ours" else lost > 0


def test_what_may_overtake_the_handshake_is_bounded(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials)
    data = initial(crypto(0, b"\x01" + b"\xff" * 999), number=0, cid=b"12345678")
    engine = acceptor.accept(data, CLIENT, 1.0)
    engine.feed(data, CLIENT, 1.0)
    for _ in range(200):
        engine.feed(b"\x40" + b"12345678" + bytes(1191), CLIENT, 1.0)
    assert sum(len(packet) for packet, *_ in engine._connection._early) <= 1 << 16
