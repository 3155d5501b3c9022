"""Path-MTU discovery: the search by itself, and connections over paths with holes."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from aioquic.quic.packet import QuicTransportParameters
from foreign_engines import stock_client
from hypothesis import given
from hypothesis import strategies as st
from quic_credentials import Credentials
from quic_pair import Fate, Pair, lossy, our_acceptor, our_client, our_pair

from echostream.transport.quic import QuicOptions, hardened
from echostream.transport.quic.accelerated import typed_class
from echostream.transport.quic.path_mtu import (
    COOL_DOWN,
    ETHERNET,
    FIRST_RETRY,
    MAX_PROBES,
    RAISE_AFTER,
    STEP,
    PathMtu,
)

BASE, LIMIT = 1200, 1452
OVERHEAD = 30
"""Bytes of a packet that are not the payload of its DATAGRAM frame."""


class Hole:
    """A path of ``delay`` s each way that swallows datagrams above ``mtu``; what was offered."""

    def __init__(self, mtu: int = 65535, loss: float = 0.0, delay: float = 0.015) -> None:
        self.mtu = mtu
        self.loss = loss
        self.delay = delay
        self.sizes: list[int] = []

    def __call__(
        self, rng: random.Random, data: bytes, to_server: bool
    ) -> list[tuple[float, bytes]]:
        self.sizes.append(len(data))
        if len(data) > self.mtu or (self.loss and rng.random() < self.loss):
            return []
        return [(self.delay, data)]


def connected(credentials: Credentials, path: Fate, **options: Any) -> Pair:
    pair = our_pair(credentials, options=QuicOptions(**options), fate=path)
    pair.handshake()
    return pair


def sizes(pair: Pair) -> tuple[int, int]:
    """The datagram size that each side uses."""
    assert pair.server is not None
    client, server = (
        side.engine.max_datagram_payload + OVERHEAD for side in (pair.client, pair.server)
    )
    return client, server


def transfer(pair: Pair, size: int, timeout: float, *, begin: Any = None) -> None:
    """Send ``size`` bytes to the server on a stream, calling ``begin`` in the middle."""
    assert pair.server is not None
    data = random.Random(size).randbytes(size)
    stream_id = pair.client.engine.open_stream(False)
    pair.client.engine.send_stream(stream_id, data, True)
    if begin is not None:
        streams = pair.server.streams
        assert pair.run(lambda: len(streams.get(stream_id, b"")) > size // 4, timeout)
        begin()
    assert pair.run(lambda: stream_id in pair.server.finished, timeout)
    got = hashlib.sha256(pair.server.streams[stream_id]).digest()
    assert got == hashlib.sha256(data).digest()


# --- the search ---


@given(
    base=st.integers(1200, 1400),
    limit=st.integers(0, 16383),
    mtu=st.integers(1200, 17000),
    window=st.sampled_from([2800, 12_000, 100_000]),
    fast=st.booleans(),
)
def test_the_search_comes_within_a_step_of_what_the_path_carries(
    base: int, limit: int, mtu: int, window: int, fast: bool
) -> None:
    """Above Ethernet's size it is the limit, or nothing."""
    mtu = max(base, mtu)
    search = PathMtu(base, limit)
    assert (search.search_at is None) == (limit <= base)
    if search.search_at is None:
        assert not search.due
        return
    search.search(10.0, window, fast=fast)
    probes = 0
    while (size := search.due) != 0:
        search.in_flight = True
        assert not search.due
        assert search.size < size <= limit
        assert fast or size <= ETHERNET
        search.settled(size <= mtu, fast=fast)
        probes += 1
    assert search.size <= mtu
    assert search.size >= min(mtu, limit, ETHERNET) - STEP
    if window >= ETHERNET:
        assert (search.size == limit) == (limit <= mtu and (fast or limit <= ETHERNET))
    assert probes <= 1 + MAX_PROBES * (1 + (limit - base).bit_length())
    waits = FIRST_RETRY if search.size == ETHERNET < limit and not fast else RAISE_AFTER
    assert search.search_at == (None if search.size == limit else 10.0 + waits)


def test_one_lost_probe_says_nothing() -> None:
    search = PathMtu(BASE, LIMIT)
    search.search(0.0, 12_000, fast=False)
    for arrived in (False, False, True):
        assert search.due == LIMIT
        search.in_flight = True
        search.settled(arrived, fast=False)
    assert (search.size, search.due) == (LIMIT, 0)


def test_a_probe_of_an_earlier_path_says_nothing() -> None:
    search = PathMtu(BASE, LIMIT)
    search.search(0.0, 12_000, fast=False)
    search.in_flight = True
    search.restart()
    search.search(1.0, 12_000, fast=False)
    assert not search.due
    search.settled(True, fast=False)
    assert (search.size, search.due) == (BASE, LIMIT)


def test_a_black_hole_is_told_from_losses() -> None:
    search = PathMtu(BASE, LIMIT)
    search.search(0.0, 12_000, fast=False)
    search.in_flight = True
    search.settled(True, fast=False)
    for _ in range(100):
        assert not search.passed_over(5.0)
        assert not search.passed_over(5.0)
        search.passed()
    assert [search.passed_over(7.0) for _ in range(3)] == [False, False, True]
    assert (search.size, search.due, search.search_at) == (BASE, 0, 7.0 + COOL_DOWN)


# --- on a connection ---


def test_packets_grow_to_what_the_path_carries(credentials: Credentials, data_path: str) -> None:
    path = Hole()
    pair = connected(credentials, path)
    assert max(path.sizes) == LIMIT
    assert sizes(pair) == (LIMIT, LIMIT)
    room = LIMIT - OVERHEAD
    assert pair.client.engine.max_datagram_payload == room
    assert pair.client.engine.send_datagram(bytes(room))
    assert not pair.client.engine.send_datagram(bytes(room + 1))
    transfer(pair, 300_000, 5)
    assert pair.server is not None
    assert [len(data) for data in pair.server.datagrams] == [room]
    assert path.sizes.count(LIMIT) > 150
    for side in (pair.client, pair.server):
        assert side.engine.info().packets_lost == 0
        assert side.engine._connection._loss._cc._max_datagram_size == LIMIT
        if data_path == "compiled":
            assert side.engine._connection.typed


def test_a_hole_is_found_and_the_search_costs_no_window(credentials: Credentials) -> None:
    path = Hole(1300)
    pair = our_pair(credentials, fate=path)
    pair.handshake()
    before = pair.client.engine.info().congestion_window
    pair.run(None, 10.0)
    client, server = sizes(pair)
    assert 1300 - STEP <= client <= 1300
    assert 1300 - STEP <= server <= 1300
    info = pair.client.engine.info()
    assert (info.packets_lost, info.bytes_in_flight) == (0, 0)
    assert info.congestion_window >= before
    transfer(pair, 300_000, 5)
    assert pair.client.engine.info().packets_lost == 0


def test_the_search_goes_on_beside_a_transfer(credentials: Credentials) -> None:
    pair = our_pair(credentials, fate=Hole(1400))
    pair.connect()
    pair.run(lambda: pair.client.handshake, 5)
    transfer(pair, 1_000_000, 10)
    assert pair.client.engine.info().packets_lost == 0
    assert 1400 - STEP <= sizes(pair)[0] <= 1400


def test_nothing_is_tried_where_nothing_is_to_be_found(credentials: Credentials) -> None:
    for options in (
        {"discover_datagram_size": 0},
        {"max_datagram_size": LIMIT, "discover_datagram_size": LIMIT},
    ):
        path = Hole()
        pair = connected(credentials, path, **options)
        transfer(pair, 100_000, 5)
        assert max(path.sizes) == options.get("max_datagram_size", BASE)
        assert pair.client.engine._connection.path_search_at is None


@pytest.mark.parametrize(
    ("mtu", "delay", "found"),
    [(9000, 0.0002, 8952), (8000, 0.0002, LIMIT), (9000, 0.015, LIMIT)],
    ids=["jumbo", "less", "slow"],
)
def test_jumbo_frames_are_used_on_a_path_that_is_fast(
    credentials: Credentials, mtu: int, delay: float, found: int
) -> None:
    path = Hole(mtu, delay=delay)
    pair = connected(credentials, path)
    pair.run(None, 20.0)
    assert sizes(pair) == (found, found)
    assert pair.client.engine.info().packets_lost == 0
    transfer(pair, 3_000_000, 10)
    assert sizes(pair) == (found, found)


def test_a_probe_for_which_there_is_no_room_is_given_up(credentials: Credentials) -> None:
    """Else every flush would be a slow one, for as long as the connection is busy."""
    pair = connected(credentials, Hole(LIMIT, delay=0.0002))
    pair.run(None, 20.0)
    connection = pair.client.engine._connection
    stream_id = pair.client.engine.open_stream(False)
    pair.client.engine.send_stream(stream_id, bytes(1_000_000), False)
    pair.run(lambda: connection._loss.bytes_in_flight > 10_000, 1.0)
    connection.search_path_mtu(pair.now)
    assert connection.path_mtu.due > LIMIT
    assert pair.run(lambda: not connection.path_mtu.due, 0.01)
    assert sizes(pair)[0] == LIMIT
    assert connection.path_search_at is not None


def test_a_stream_survives_a_path_that_shrinks(credentials: Credentials) -> None:
    path = Hole()
    pair = connected(credentials, path)

    def shrink() -> None:
        path.mtu = 1250

    start = pair.now
    transfer(pair, 1_000_000, 10, begin=shrink)
    assert sizes(pair)[0] == BASE
    assert pair.now - start <= 5.0
    offered = len(path.sizes)
    transfer(pair, 300_000, 10)
    assert max(path.sizes[offered:]) <= BASE  # not again before long
    path.mtu = 65535
    pair.run(lambda: sizes(pair)[0] == LIMIT, COOL_DOWN + 10)
    assert sizes(pair)[0] == LIMIT


def test_small_packets_do_not_hide_that_large_ones_vanish(credentials: Credentials) -> None:
    """Everything small arrives, so that no probe timeout ever tells."""
    path = Hole()
    pair = connected(credentials, path)
    path.mtu = 1250
    client = pair.client.engine
    while sizes(pair)[0] > BASE:
        for size in (1400, 100, 100, 100, 100):
            client.send_datagram(bytes(size))
            pair.run(None, 0.02)
        assert len(path.sizes) < 1000
    assert pair.server is not None
    pair.server.datagrams.clear()
    assert not client.send_datagram(bytes(1400))
    assert client.send_datagram(bytes(BASE - OVERHEAD))
    pair.run(None, 1)
    assert len(pair.server.datagrams) == 1


@pytest.mark.parametrize("seed", range(5))
def test_random_losses_are_no_black_hole(seed: int, credentials: Credentials) -> None:
    pair = our_pair(credentials, fate=Hole(loss=0.05), seed=seed)
    pair.handshake()
    pair.run(None, 10)
    assert sizes(pair)[0] == LIMIT
    transfer(pair, 1_000_000, 60)
    assert pair.client.engine.info().packets_lost > 20
    assert sizes(pair)[0] == LIMIT


def test_a_silence_of_the_path_ends_with_small_packets(credentials: Credentials) -> None:
    """A path that carries nothing for 3 s may be another one afterwards."""
    path = Hole()
    pair = connected(credentials, path)

    def silence() -> None:
        path.mtu = 0
        pair.run(None, 3.0)
        path.mtu = 1250

    transfer(pair, 500_000, 10, begin=silence)
    assert sizes(pair)[0] == BASE


def test_an_address_that_is_not_proved_gets_base_packets(credentials: Credentials) -> None:
    path = Hole()
    pair = connected(credentials, path)
    assert pair.server is not None
    stream_id = pair.server.engine.open_stream(False)
    pair.server.engine.send_stream(stream_id, bytes(400_000), True)
    pair.run(None, 0.05)
    pair.client_address = ("203.0.113.9", 4000)
    pair.client.engine.ping(1)
    unproved: list[int] = []
    connection = pair.server.engine._connection

    def look() -> None:
        if not connection._network_paths[0].is_validated:
            unproved.append(connection._max_datagram_size)

    pair.on_step = look
    assert pair.run(lambda: stream_id in pair.client.finished, 10)
    pair.run(None, 1)
    assert unproved
    assert set(unproved[1:]) <= {BASE}  # the first look comes before the flush
    assert sizes(pair)[1] == LIMIT


def test_the_limit_of_the_peer_is_kept(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that takes 1350 bytes gets no more, in probes neither."""
    pull = hardened.pull_quic_transport_parameters

    def limited(buffer: Any) -> QuicTransportParameters:
        parameters = pull(buffer)
        parameters.max_udp_payload_size = 1350
        return parameters

    monkeypatch.setattr(hardened, "pull_quic_transport_parameters", limited)
    path = Hole()
    pair = connected(credentials, path)
    transfer(pair, 100_000, 5)
    assert sizes(pair) == (1350, 1350)
    assert max(path.sizes) == 1350


def test_stock_aioquic_answers_the_probes(credentials: Credentials) -> None:
    pair = Pair(stock_client(credentials), our_acceptor(credentials), fate=Hole(1400))
    pair.handshake()
    pair.run(None, 5)
    assert pair.server is not None
    assert 1400 - STEP <= pair.server.engine.max_datagram_payload + OVERHEAD <= 1400


def test_probes_stay_inside_the_congestion_window(credentials: Credentials) -> None:
    pair = our_pair(credentials, fate=lossy(0.015, 0.0))
    pair.connect()
    client = pair.client.engine._connection

    def check() -> None:
        if client.path_mtu.in_flight:
            assert client._loss.bytes_in_flight <= client._loss.congestion_window

    def starve() -> None:
        client._loss._cc.congestion_window = 1300
        check()

    pair.on_step = starve
    pair.run(lambda: pair.client.handshake, 5)
    pair.run(None, 1)
    assert sizes(pair)[0] == 1300
    pair.on_step = check
    client._loss._cc.congestion_window = 12_000
    transfer(pair, 50_000, 5)
    assert sizes(pair)[0] >= LIMIT - STEP


@pytest.mark.skipif(typed_class() is None, reason="the data path is not compiled")
def test_the_compiled_path_is_left_for_probes_only(
    credentials: Credentials, data_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if data_path == "plain":
        pytest.skip("about the compiled path")
    path = Hole(1300)
    pair = Pair(our_client(credentials), our_acceptor(credentials), fate=path)
    pair.handshake()
    pair.run(None, 10)
    probed = [size for size in path.sizes if size > 1300]
    assert len(probed) >= 2 * MAX_PROBES
    for side in (pair.client, pair.server):
        assert side is not None
        side.engine._connection._skip_at = 1 << 40
    plain: list[float] = []
    monkeypatch.setattr(
        hardened.HardenedConnection, "datagrams_to_send", lambda *_: plain.append(1) or []
    )
    transfer(pair, 200_000, 5)
    pair.client.engine.send_datagram(b"data")
    pair.run(None, 1)
    assert plain == []
