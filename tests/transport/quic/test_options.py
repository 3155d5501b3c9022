"""Each option is checked, and does what it says."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
from foreign_engines import stock_client
from quic_credentials import Credentials
from quic_pair import Pair, our_acceptor, our_client, our_pair

from echostream.errors import ConfigurationError
from echostream.transport.quic import QuicOptions
from echostream.transport.quic.budget import Budget
from echostream.transport.quic.datagram_queue import DatagramQueue
from echostream.transport.quic.logs import ConnectionLogger, printable


@pytest.mark.parametrize(
    "bad",
    [
        {"idle_timeout": 0},
        {"idle_timeout": float("inf")},
        {"idle_timeout": float("nan")},
        {"handshake_timeout": -1},
        {"keep_alive": 6.0},
        {"stream_window": 100},
        {"stream_window": 1e6},
        {"connection_window": 8192},
        {"max_streams_bidi": -1},
        {"max_streams_uni": True},
        {"max_stream_gaps": 1},
        {"max_datagram_size": 1199},
        {"max_datagram_size": 16384},
        {"datagram_queue_length": 0},
        {"congestion_control": "bbr"},
        {"ciphers": ()},
        {"ciphers": ("AES",)},
        {"key_update_after": 1 << 23},
        {"reset_rate": "fast"},
        {"retry_threshold": -1},
        {"max_half_open": 0},
        {"qlog_dir": "/nonexistent"},
    ],
)
def test_what_cannot_work_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        QuicOptions(**bad)


def test_limits_reach_the_peer(credentials: Credentials) -> None:
    options = QuicOptions(
        stream_window=10_000, connection_window=20_000, max_streams_bidi=7, max_streams_uni=5
    )
    pair = Pair(stock_client(credentials), our_acceptor(credentials, options))
    pair.handshake()
    connection = pair.client.engine._connection
    assert connection._remote_max_data == 20_000
    assert connection._remote_max_stream_data_bidi_remote == 10_000
    assert connection._remote_max_streams_bidi == 7
    assert connection._remote_max_streams_uni == 5
    for _ in range(4):  # twice the window of the connection
        stream_id = pair.client.engine.open_stream(True)
        pair.client.engine.send_stream(stream_id, bytes(10_000), True)
    assert pair.run(lambda: len(pair.server.finished) == 4, 5.0)


@pytest.mark.parametrize("keep_alive", [0.0, 5.0])
def test_keep_alive_and_idle_timeout(keep_alive: float, credentials: Credentials) -> None:
    pair = our_pair(credentials, options=QuicOptions(keep_alive=keep_alive))
    pair.handshake()
    start = pair.now
    pair.run(lambda: pair.client.closed, 60.0)
    if keep_alive:
        assert pair.client.closed is None
        pair.fate = lambda rng, data, up: []
        start = pair.now
        assert pair.run(lambda: pair.client.closed, 25.0)
    assert pair.client.closed.reason == "Idle timeout"
    assert not pair.client.closed.by_peer
    assert 13.0 < pair.now - start < 21.0
    assert not [event for event in pair.client.events if hasattr(event, "uid")]


def test_keylog_and_qlog(tmp_path: Path, credentials: Credentials) -> None:
    keylog = tmp_path / "keys.log"
    options = QuicOptions(keylog_file=keylog, qlog_dir=tmp_path)
    pair = our_pair(credentials, options=options)
    pair.handshake()
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, bytes(50_000), True)
    assert pair.run(lambda: stream_id in pair.server.finished, 5.0)
    pair.client.engine.close(0, "")
    assert pair.run(lambda: pair.server.closed, 1.0)
    assert "CLIENT_TRAFFIC_SECRET_0" in keylog.read_text()
    assert stat.S_IMODE(keylog.stat().st_mode) == 0o600
    traces = sorted(path.name.rpartition("_")[2] for path in tmp_path.glob("*.qlog"))
    assert traces == ["client.qlog", "server.qlog"]
    for path in tmp_path.glob("*.qlog"):
        names = {event["name"] for event in json.loads(path.read_text())["traces"][0]["events"]}
        assert {"transport:packet_sent", "transport:packet_received"} <= names


def test_the_environment_names_a_keylog_too(
    tmp_path: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = tmp_path / "named", tmp_path / "other"
    monkeypatch.setenv("SSLKEYLOGFILE", str(named))
    our_pair(credentials).handshake()
    assert "CLIENT_TRAFFIC_SECRET_0" in named.read_text()
    named.unlink()
    our_pair(credentials, options=QuicOptions(keylog_file=other)).handshake()
    assert "CLIENT_TRAFFIC_SECRET_0" in other.read_text()
    assert not named.exists()
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    our_pair(credentials).handshake()


def test_ping_and_info(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    with pytest.raises(ValueError):
        pair.client.engine.ping(-1)
    info = pair.client.engine.info()
    assert info.smoothed_rtt == pytest.approx(0.03, rel=0.1)
    assert info.min_rtt == pytest.approx(0.03, rel=0.1)
    assert info.packets_lost == info.datagrams_dropped == info.buffered == 0
    assert info.packets_sent >= 3
    assert info.packets_received >= 3
    assert our_client(credentials).info().min_rtt == 0.0


def test_budget() -> None:
    budget = Budget(3, 2.0)
    assert [budget.spend(1.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(2.0) for _ in range(3)] == [True, True, False]
    assert not budget.spend(1.0)  # a clock that steps back earns nothing
    budget.earn(100)
    assert [budget.spend(2.0) for _ in range(4)] == [True, True, True, False]


def test_datagram_queue() -> None:
    queue = DatagramQueue(2, 0.1)
    for data in (b"a", b"b", b"c"):
        queue.put(data)
    assert (queue.head, len(queue), queue.dropped) == (b"b", 2, 1)
    queue.held_back(1.0)
    queue.expire(1.05)
    queue.pop()
    queue.put(b"d")
    queue.held_back(1.06)
    queue.expire(1.1)
    assert (queue.head, len(queue), queue.dropped) == (b"d", 1, 2)
    queue.expire(1.2)
    assert (len(queue), queue.dropped) == (0, 3)


def test_peers_text_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Row 38."""
    assert printable("plain") == "plain"
    assert printable("a\r\nb\x1b[0m") == "a\\r\\nb\\x1b[0m"
    assert len(printable("x" * 10_000)) == 256
    with caplog.at_level(logging.DEBUG, "echostream.quic"):
        ConnectionLogger(b"\x01").warning("reason %s", "evil\nline" * 1000)
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 300
