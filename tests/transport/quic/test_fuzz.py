"""Anything may arrive: an engine ends its connection, it never fails."""

from __future__ import annotations

import random

import pytest
from aioquic.buffer import encode_uint_var as varint
from foreign_engines import stock_client
from hostile_packets import crypto, initial, packet
from quic_credentials import Credentials
from quic_pair import CLIENT, SERVER, Pair, our_acceptor, our_pair

FRAME_TYPES = [*range(0x1F), 0x30, 0x31, 0x40, 0x7FFF]


def random_frames(rng: random.Random) -> bytes:
    frames = b""
    for _ in range(rng.randrange(1, 8)):
        frames += varint(rng.choice(FRAME_TYPES))
        for _ in range(rng.randrange(6)):
            size = rng.choice([3, 3, 4, 8, 12, 16, 20, 40, 61])
            frames += varint(rng.randrange(1 << size))
        frames += rng.randbytes(rng.randrange(40))
    return frames[:1100]


@pytest.mark.parametrize("seed", range(150))
def test_random_frames_from_an_authenticated_peer(
    seed: int, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    pair = Pair(stock_client(credentials), our_acceptor(credentials), seed=seed)
    pair.handshake()
    stream_id = pair.server.engine.open_stream(True)
    pair.server.engine.send_stream(stream_id, bytes(5000), True)
    for _ in range(12):
        data = packet(pair.client.engine, random_frames(rng))
        pair.server.engine.feed(data, CLIENT, pair.now)
        pair.server.drain(pair.now)
        pair.server.engine.flush(pair.now)
        pair.server.drain(pair.now)
        timer = pair.server.engine.timer()
        if timer is not None:
            pair.now = max(pair.now, min(timer, pair.now + 0.01))
            pair.server.engine.on_timer(pair.now)
    assert "failed at" not in caplog.text


@pytest.mark.parametrize("seed", range(20))
def test_damaged_handshakes(
    seed: int, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    """Bits flipped, datagrams cut, duplicated and swapped, in both directions."""

    def fate(rng: random.Random, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        damaged = bytearray(data)
        kind = rng.randrange(8)
        if kind == 0:
            for _ in range(rng.randrange(1, 20)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        elif kind == 1:
            del damaged[rng.randrange(len(damaged)) :]
        elif kind == 2:
            damaged += rng.randbytes(100)
        elif kind == 3:
            return []
        return [(rng.uniform(0.001, 0.1), bytes(damaged)) for _ in range(rng.choice([1, 1, 2]))]

    pair = our_pair(credentials, fate=fate, seed=seed)
    pair.connect()
    pair.run(None, 8.0)
    assert "failed" not in caplog.text


@pytest.mark.parametrize("seed", range(40))
def test_random_first_packets(
    seed: int, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    acceptor = our_acceptor(credentials)
    for index in range(5):
        payload = crypto(0, rng.randbytes(rng.randrange(1, 600))) + random_frames(rng)
        data = initial(payload[:1000], cid=bytes([index]) * 8)
        engine = acceptor.accept(data, CLIENT, 1.0)
        for _ in range(3):
            engine.feed(data, CLIENT, 1.0)
            list(iter(engine.next_event, None))
            engine.flush(1.0)
            list(iter(engine.next_event, None))
        acceptor.accept(rng.randbytes(rng.randrange(1500)), CLIENT, 1.0)
    assert "failed at" not in caplog.text


@pytest.mark.parametrize("seed", range(20))
def test_damaged_packets_of_a_connection(
    seed: int, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    pair = our_pair(credentials, seed=seed)
    pair.handshake()
    rng = random.Random(seed)
    for side, source in ((pair.client, SERVER), (pair.server, CLIENT)):
        for _ in range(100):
            size = rng.randrange(1, 200)
            data = bytes([rng.randrange(256)]) + side.engine._connection.host_cid
            side.engine.feed((data + rng.randbytes(size))[:size], source, pair.now)
            side.drain(pair.now)
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, bytes(10_000), True)
    assert pair.run(lambda: stream_id in pair.server.finished, 5.0)
    assert "failed at" not in caplog.text
