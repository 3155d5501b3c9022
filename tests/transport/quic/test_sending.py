"""Guards on what leaves. ``stock`` shows the hazard, ``ours`` that it is gone."""

from __future__ import annotations

from typing import Any

import pytest
from foreign_engines import StockAcceptor, stock_client
from quic_credentials import Credentials
from quic_pair import Fate, Pair, jittery, our_acceptor, our_client, our_pair, steady

from echostream.transport.engine import PathChanged, StopSending
from echostream.transport.quic import QuicOptions
from echostream.transport.quic.recovery import PACING_TICK, PacketNumberWindow, TickPacer


def pair_of(kind: str, credentials: Credentials, **kwargs: Any) -> Pair:
    if kind == "stock":
        return Pair(stock_client(credentials), StockAcceptor(credentials), **kwargs)
    return our_pair(credentials, **kwargs)


@pytest.mark.parametrize("kind", ["stock", "ours"])
class TestBoth:
    def test_an_oversized_datagram_does_not_block_the_rest(
        self, kind: str, credentials: Credentials
    ) -> None:
        """Row 31."""
        pair = pair_of(kind, credentials)
        pair.handshake()
        taken = pair.client.engine.send_datagram(bytes(1500))
        pair.client.engine.send_datagram(b"after")
        pair.run(None, 5.0)
        assert pair.server.datagrams == ([] if kind == "stock" else [b"after"])
        assert taken == (kind == "stock")

    def test_the_datagram_queue_is_bounded(self, kind: str, credentials: Credentials) -> None:
        """Row 31."""
        pair = pair_of(kind, credentials)
        pair.handshake()
        for index in range(1000):
            pair.client.engine.send_datagram(index.to_bytes(2, "big") * 400)
        pair.run(None, 5.0)
        arrived = [int.from_bytes(data[:2], "big") for data in pair.server.datagrams]
        if kind == "stock":
            assert len(arrived) == 1000
        else:
            assert arrived == list(range(936, 1000))
            assert pair.client.engine.info().datagrams_dropped == 936

    def test_datagrams_do_not_starve_streams(self, kind: str, credentials: Credentials) -> None:
        """A datagram is always waiting, and a stream wants to send 100 kB."""
        pair = pair_of(kind, credentials)
        pair.handshake()
        stream_id = pair.client.engine.open_stream(True)
        pair.client.engine.send_stream(stream_id, bytes(100_000), True)

        def flood() -> None:
            queued = pair.client.engine._connection
            queued._loss._cc.congestion_window = 12_000  # ten packets in a round trip
            waiting = queued._datagrams_pending if kind == "stock" else queued._datagrams
            while len(waiting) < 60:
                pair.client.engine.send_datagram(bytes(1100))

        pair.on_step = flood
        flood()
        done = pair.run(lambda: stream_id in pair.server.finished, 1.0)
        assert done == (kind == "ours")
        assert len(pair.server.datagrams) > 80

    def test_receiving_only_does_not_leak(self, kind: str, credentials: Credentials) -> None:
        """A listener that only acknowledges: what it sent is never acknowledged itself."""
        pair = pair_of(kind, credentials, fate=steady(0.005))
        pair.handshake()
        for _ in range(500):
            pair.server.engine.send_datagram(b"audio")
            pair.run(None, 0.02)
        tracked = sum(len(s.sent_packets) for s in pair.client.engine._connection._loss.spaces)
        assert len(pair.client.datagrams) == 500
        assert tracked >= 500 if kind == "stock" else tracked <= 40

    def test_a_long_close_reason(self, kind: str, credentials: Credentials) -> None:
        pair = pair_of(kind, credentials)
        pair.handshake()
        pair.client.engine.close(5, "é" * 2000)
        if kind == "stock":
            from aioquic.quic.packet_builder import QuicPacketBuilderStop

            with pytest.raises(QuicPacketBuilderStop):
                pair.client.engine.flush(pair.now)
        else:
            assert pair.run(lambda: pair.server.closed, 1.0)
            assert pair.server.closed.reason == "é" * 128
            assert pair.server.closed.code == 5

    def test_a_close_is_known_at_once(self, kind: str, credentials: Credentials) -> None:
        """Row 15: not three probe timeouts later."""
        pair = pair_of(kind, credentials)
        pair.handshake()
        start = pair.now
        pair.client.engine.close(5, "bye")
        assert pair.run(lambda: pair.server.closed and pair.client.closed, 5.0)
        waited = pair.server.closed_at - start
        assert waited > 0.1 if kind == "stock" else waited < 0.016
        if kind == "ours":
            assert pair.client.closed_at == start
            assert not pair.client.closed.by_peer
            assert pair.server.closed.by_peer

    def test_a_lost_close_is_repeated(self, kind: str, credentials: Credentials) -> None:
        """RFC 9000, section 10.2.1."""
        drop = [False]
        pair = pair_of(kind, credentials)
        pair.fate = lambda rng, data, up: [] if up and drop[0] else [(0.015, data)]
        pair.handshake()
        drop[0] = True
        pair.client.engine.close(5, "bye")
        pair.run(None, 0.001)
        drop[0] = False
        pair.server.engine.ping(1)
        closed = pair.run(lambda: pair.server.closed, 1.0)
        assert closed == (kind == "ours")

    def test_keys_are_updated(self, kind: str, credentials: Credentials) -> None:
        """Row 39: by count of packets; 100 here."""
        pair = pair_of(kind, credentials)
        if kind == "ours":
            pair = our_pair(credentials, options=QuicOptions(key_update_after=100))
        pair.handshake()
        connection = pair.server.engine._connection
        phases = set()
        pair.on_step = lambda: phases.add(connection._cryptos[_one_rtt()].key_phase)
        stream_id = pair.client.engine.open_stream(True)
        pair.client.engine.send_stream(stream_id, bytes(range(256)) * 4000, True)
        assert pair.run(lambda: stream_id in pair.server.finished, 20)
        assert bytes(pair.server.streams[stream_id]) == bytes(range(256)) * 4000
        assert phases == ({0} if kind == "stock" else {0, 1})

    def test_a_stream_beyond_the_limit_is_not_reset_too_soon(
        self, kind: str, credentials: Credentials
    ) -> None:
        """RFC 9000, section 4.6: RESET_STREAM would open it."""
        pair = pair_of(kind, credentials)
        pair.handshake()
        streams = [pair.client.engine.open_stream(True) for _ in range(129)]
        pair.client.engine.reset_stream(streams[-1], 1)
        pair.run(None, 1.0)
        assert bool(pair.client.closed) == (kind == "stock")


def _one_rtt() -> Any:
    from aioquic import tls

    return tls.Epoch.ONE_RTT


def test_datagrams_expire(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    client = pair.client.engine
    client._connection._loss._cc.bytes_in_flight = 1 << 30  # no room at all
    client.send_datagram(b"old")
    client.flush(pair.now)
    client.flush(pair.now + 0.05)
    assert client.info().datagrams_dropped == 0
    client.send_datagram(b"new")
    client.flush(pair.now + 0.101)
    assert client.info().datagrams_dropped == 1
    assert client._connection._datagrams.head == b"new"


def test_no_datagram_for_a_peer_that_takes_none(credentials: Credentials) -> None:
    """Stock aioquic sends it, and the peer closes."""
    pair = Pair(our_client(credentials), our_acceptor(credentials))
    assert pair.client.engine.max_datagram_payload == 0
    assert not pair.client.engine.send_datagram(b"x")
    stock = Pair(stock_client(credentials, max_datagram_frame_size=None), our_acceptor(credentials))
    stock.handshake()
    assert not stock.server.engine.send_datagram(b"x")


def test_bulk_does_not_delay_datagrams(credentials: Credentials) -> None:
    """Row 32: while 5 MB of bulk are queued, every datagram leaves with the next packet."""
    pair = our_pair(credentials)
    pair.handshake()
    client = pair.client.engine
    client.send_stream(client.open_stream(True), bytes(5_000_000), True)
    pair.run(None, 0.3)
    delays = []
    for index in range(20):
        sent = pair.now
        client.send_datagram(bytes([index]))
        assert pair.run(lambda index=index: len(pair.server.datagrams) > index, 1.0)
        delays.append(pair.now - sent)
    assert max(delays) <= 0.015 + 0.030
    assert client.info().datagrams_dropped == 0


STEADY, JITTER = steady(0.015), jittery(0.015, 0.015)


def transfer_time(credentials: Credentials, fate: Fate, seed: int) -> float:
    pair = our_pair(credentials, fate=fate, seed=seed)
    pair.handshake()
    start = pair.now
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, bytes(1_500_000), True)
    assert pair.run(lambda: stream_id in pair.server.finished, 10)
    return pair.now - start


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_jitter_does_not_ruin_the_throughput(seed: int, credentials: Credentials) -> None:
    """Row 13: 1.5 MB over 15 ms each way, with and without +-15 ms of jitter, no loss."""
    times = [transfer_time(credentials, fate, seed) for fate in (STEADY, JITTER)]
    assert times[1] <= 2 * times[0]


def test_stock_is_ruined_by_jitter(credentials: Credentials) -> None:
    pair = pair_of("stock", credentials, fate=jittery(0.015, 0.015))
    pair.handshake()
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, bytes(1_500_000), True)
    assert not pair.run(lambda: stream_id in pair.server.finished, 5)


def test_reordering_tolerance_is_learned_and_bounded(credentials: Credentials) -> None:
    pair = our_pair(credentials, fate=jittery(0.015, 0.015))
    pair.handshake()
    loss = pair.client.engine._connection._loss
    assert loss.packet_threshold == 3
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, bytes(1_500_000), True)
    assert pair.run(lambda: stream_id in pair.server.finished, 10)
    assert 10 < loss.packet_threshold <= 1024
    assert loss.late_by > 0


def test_the_pacer_follows_a_ticking_clock() -> None:
    """100 MB/s with timers of 1 ms: stock's bucket of 16 packets gives a fifth of it."""
    from aioquic.quic.recovery import QuicPacketPacer

    sent = {}
    for pacer_class in (QuicPacketPacer, TickPacer):
        pacer = pacer_class(max_datagram_size=1200)
        pacer.update_rate(congestion_window=1_000_000, smoothed_rtt=0.01)
        packets = 0
        for tick in range(1000):
            now = 100 + tick * PACING_TICK
            while pacer.next_send_time(now) is None:
                pacer.update_after_send(now)
                packets += 1
        sent[pacer_class] = packets * 1200
    assert sent[QuicPacketPacer] < 25_000_000
    assert 100_000_000 < sent[TickPacer] < 135_000_000


@pytest.mark.parametrize("host", ["192.0.2.1", "192.0.2.2"])
def test_another_address_is_another_path(host: str, credentials: Credentials) -> None:
    """RFC 9000, section 9.4: another port of the same address is not."""
    pair = our_pair(credentials)
    pair.handshake()
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, b"GET", True)
    pair.run(lambda: pair.server.streams, 1.0)
    pair.server.engine.send_stream(stream_id, bytes(500_000), True)
    assert pair.run(lambda: stream_id in pair.client.finished, 5.0)
    window = pair.server.engine.info().congestion_window
    assert window > 100_000
    pair.client_address = (host, 50001)
    pair.client.engine.ping(1)
    pair.run(None, 0.5)
    (change,) = pair.server.of(PathChanged)
    assert change.address == pair.client_address
    now = pair.server.engine.info().congestion_window
    assert now >= window if host == "192.0.2.1" else now < 20_000


def test_forged_packets_are_counted(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9001, section 6.6, with a limit of 5."""
    monkeypatch.setattr("echostream.transport.quic.hardened.INTEGRITY_LIMIT", 5)
    pair = our_pair(credentials)
    pair.handshake()
    forged = b"\x41" + pair.server.engine._connection.host_cid + bytes(30)
    for _ in range(4):
        pair.send(forged, to_server=True)
    pair.run(None, 0.1)
    assert pair.server.closed is None
    pair.send(forged, to_server=True)
    pair.run(None, 0.1)
    assert pair.server.closed.code == 0xF


def test_a_key_that_cannot_be_updated_is_not_overused(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9001, section 6.6, with a limit of 60: nothing is acknowledged, so no update."""
    monkeypatch.setattr("echostream.transport.quic.hardened.CONFIDENTIALITY_LIMIT", 60)
    pair = our_pair(credentials, options=QuicOptions(key_update_after=50))
    pair.handshake()
    pair.fate = lambda rng, data, up: [] if up else [(0.015, data)]
    connection = pair.client.engine._connection
    connection._key_since = connection._packet_number
    for uid in range(70):
        pair.client.engine.ping(uid)
        pair.run(None, 0.01)
    assert pair.client.closed is not None
    assert pair.client.closed.code == 0xF


def test_packet_number_window() -> None:
    window = PacketNumberWindow()
    for number in (5, 3, 2000, 1500):
        assert number not in window
        window.add(number)
        assert number in window
    assert 1999 not in window
    assert 976 in window  # below the window: taken for received
    assert 977 not in window
    window.add(10**9)
    assert 10**9 - 1 not in window
    assert 1999 in window


def test_after_a_stop_what_is_sent_is_dropped(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    client, server = pair.client.engine, pair.server.engine
    stream_id = client.open_stream(True)
    client.send_stream(stream_id, bytes(300_000), False)
    assert client.buffered(stream_id) == client.buffered_total == 300_000
    pair.run(lambda: pair.server.streams, 1.0)
    server.stop_stream(stream_id, 9)
    assert pair.run(lambda: pair.client.of(StopSending), 1.0)
    assert client.buffered(stream_id) == 0
    client.send_stream(stream_id, b"more", False)  # the peer's doing: no error
    assert pair.run(lambda: pair.server.resets, 1.0)


def test_sending_after_the_end_is_the_callers_fault(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    client = pair.client.engine
    ended, aborted = client.open_stream(True), client.open_stream(False)
    client.send_stream(ended, memoryview(b"abc"), True)
    client.reset_stream(aborted, 1)
    client.reset_stream(aborted, 1)
    for stream_id in (ended, aborted, 400, 1):
        with pytest.raises(ValueError):
            client.send_stream(stream_id, b"x", False)
    with pytest.raises(ValueError):
        client.connect(("192.0.2.1", 1), 0.0)
    client.close(0, "")
    client.send_stream(ended, b"x", False)
    assert not client.send_datagram(b"x")


def test_streams_past_the_limit_wait(credentials: Credentials) -> None:
    options = QuicOptions(max_streams_bidi=3, max_streams_uni=2)
    pair = our_pair(credentials, options=options)
    client = pair.client.engine
    streams = [client.open_stream(True) for _ in range(20)]
    streams += [client.open_stream(False) for _ in range(20)]
    for stream_id in streams:
        client.send_stream(stream_id, b"early", True)
    pair.handshake()
    for _ in range(100):
        for stream_id in pair.server.finished:
            if not stream_id & 2 and stream_id in pair.server.engine._connection._streams:
                pair.server.engine.reset_stream(stream_id, 0)
        pair.run(None, 0.1)
    assert pair.server.finished == set(streams)


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_timeouts_of_a_handshake_send_two_datagrams(kind: str, credentials: Credentials) -> None:
    """Row 11. RFC 9002, section 6.2.4 allows it, and timeouts double: few fit into ten seconds."""
    sent: list[float] = []
    pair = pair_of(kind, credentials)
    pair.fate = lambda rng, data, up: sent.append(pair.now) or []
    pair.connect()
    pair.run(None, 3.5)
    times = sorted(set(sent))
    each = [sent.count(at) for at in times]
    assert len(times) == 5
    assert each == ([1] * 5 if kind == "stock" else [1, 2, 2, 2, 2])
