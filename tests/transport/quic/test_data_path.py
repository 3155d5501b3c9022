"""The compiled data path against the plain one: the same packets, calls and times go to both."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aioquic
import pytest
from aioquic import tls
from aioquic.quic.rangeset import RangeSet
from foreign_engines import stock_client
from hostile_packets import packet, reset_stream, stop_sending, stream, varint
from quic_credentials import Credentials
from quic_pair import CLIENT, Pair, lossy, our_acceptor, our_client, our_pair

from echostream.transport.quic import QuicOptions, accelerated, acceptor
from echostream.transport.quic.accelerated import connection_class, sources_digest, typed_class
from echostream.transport.quic.hardened import HardenedConnection
from echostream.transport.quic.recovery import PacketNumberWindow

TYPED = typed_class()

needs_typed = pytest.mark.skipif(TYPED is None, reason="the data path is not compiled")


@pytest.fixture
def fresh_guard() -> Iterator[None]:
    typed_class.cache_clear()
    yield
    typed_class.cache_clear()


@pytest.mark.usefixtures("fresh_guard")
class TestGuard:
    def test_the_installed_aioquic_is_a_tested_one(self) -> None:
        installed = sources_digest(Path(aioquic.__file__).parent)
        assert accelerated.TESTED[aioquic.__version__] == installed

    def test_an_unknown_aioquic_gets_the_plain_class_and_one_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(accelerated, "TESTED", {})
        assert [connection_class(QuicOptions()) for _ in range(3)] == [HardenedConnection] * 3
        assert [record.levelno for record in caplog.records] == [logging.WARNING]

    def test_sources_that_cannot_be_read_are_unknown(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(aioquic, "__file__", str(tmp_path / "__init__.py"))
        assert connection_class(QuicOptions()) is HardenedConnection

    def test_one_changed_byte_is_another_release(self, tmp_path: Path) -> None:
        package = Path(aioquic.__file__).parent
        for name in accelerated.MIRRORED:
            copy = tmp_path / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((package / name).read_bytes())
        before = sources_digest(tmp_path)
        assert before == sources_digest(package)
        for name in accelerated.MIRRORED:
            source = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(source + b"\n")
            assert sources_digest(tmp_path) != before
            (tmp_path / name).write_bytes(source)

    def test_the_environment_turns_it_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ECHOSTREAM_ACCEL", "0")
        assert connection_class(QuicOptions()) is HardenedConnection


@needs_typed
class TestChoice:
    def test_the_usual_connection_is_typed_once_it_is_confirmed(
        self, credentials: Credentials
    ) -> None:
        pair = our_pair(credentials)
        assert not pair.client.engine._connection.typed
        pair.handshake()
        pair.client.engine.send_datagram(b"data")
        assert pair.run(lambda: pair.server.datagrams, 1)
        assert pair.client.engine._connection.typed
        assert pair.server.engine._connection.typed

    def test_other_congestion_control_and_qlog_stay_plain(self, tmp_path: Path) -> None:
        assert connection_class(QuicOptions()) is TYPED
        assert connection_class(QuicOptions(congestion_control="cubic")) is HardenedConnection
        assert connection_class(QuicOptions(qlog_dir=tmp_path)) is HardenedConnection

    def test_chacha20_stays_plain(self, credentials: Credentials) -> None:
        options = QuicOptions(ciphers=["CHACHA20_POLY1305_SHA256"])
        pair = Pair(our_client(credentials, options), our_acceptor(credentials))
        pair.handshake()
        pair.client.engine.send_datagram(b"data")
        assert pair.run(lambda: pair.server.datagrams, 1)
        assert not pair.client.engine._connection.typed
        assert not pair.server.engine._connection.typed

    def test_usual_traffic_never_leaves_the_typed_path(
        self, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = our_pair(credentials)
        pair.handshake()
        connections = [pair.client.engine._connection, pair.server.engine._connection]
        for connection in connections:
            connection._skip_at = 1 << 40
        plain: list[str] = []
        for name in ("receive_datagram", "datagrams_to_send", "get_timer"):
            monkeypatch.setattr(HardenedConnection, name, lambda *_, name=name: plain.append(name))
        for index in range(200):
            stream_id = pair.client.engine.open_stream(False)
            pair.client.engine.send_stream(stream_id, bytes(2000), index % 2 == 0)
            if index % 2:
                pair.client.engine.reset_stream(stream_id, 1)
            pair.client.engine.send_datagram(bytes(100))
            pair.client.engine.ping(index)
            pair.server.engine.send_datagram(bytes(100))
            pair.run(None, 0.1)
        assert plain == []
        assert len(pair.client.datagrams) == len(pair.server.datagrams) == 200


# The differential test


class Twin:
    """A server and the keys of its client, after a handshake and with everything forgotten that
    the handshake left different."""

    def __init__(self, server_class: Any, credentials: Credentials, seed: int) -> None:
        options = QuicOptions(stream_window=20_000, connection_window=60_000, reset_burst=20)
        was = acceptor.connection_class
        acceptor.connection_class = lambda options: server_class
        try:
            pair = Pair(stock_client(credentials), our_acceptor(credentials, options), seed=seed)
            pair.handshake()
        finally:
            acceptor.connection_class = was
        self.client = pair.client.engine._connection
        self.engine = pair.server.engine
        self.server = pair.server.engine._connection
        self.keys = pair.client.engine
        server, loss = self.server, self.server._loss
        loss.restart("reno", server._max_datagram_size)
        loss._cc.bytes_in_flight = 0
        self.space = server._spaces[tls.Epoch.ONE_RTT]
        self.space.sent_packets.clear()
        self.space.ack_eliciting_in_flight = 0
        for span in list(self.space.ack_queue):
            self.space.ack_queue.subtract(span.start, span.stop)
        self.space.ack_at = self.space.loss_time = None
        self.space.largest_acked_packet = 0
        server._packet_number = server._key_since = 100
        server._skip_at = 1 << 40
        loss.largest_sent = 99
        loss.skipped = None
        for name in ("packets_sent", "packets_lost", "eliciting_sent", "unanswered"):
            setattr(loss, name, 0)
        loss._time_of_last_sent_ack_eliciting_packet = 0.0
        loss._prepare_ecn()
        loss.begin_ecn()
        server._controls_earned_by = 0
        server._spin_highest_pn = self.client._packet_number = 100
        server._remote_max_data = 50_000
        server._remote_max_streams_bidi = server._remote_max_streams_uni = 6
        self.events: list[str] = []
        self.payloads: list[bytes] = []

    def receive(self, number: int, payload: bytes, now: float, ecn: int = 0) -> None:
        self.client._packet_number = number
        self.server.datagram_ecn = ecn
        self.server.receive_datagram(packet(self.keys, payload), CLIENT, now)

    def flush(self, now: float) -> None:
        for data, address in self.server.datagrams_to_send(now):
            assert address == CLIENT
            if self.server.ended:
                break
            self.payloads.append(
                self.client._cryptos[tls.Epoch.ONE_RTT].decrypt_packet(
                    data, 9, self.server._packet_number
                )[1]
            )

    def drain(self) -> None:
        while (event := self.server.next_event()) is not None:
            self.events.append(repr(event))
            if type(event).__name__ == "StreamDataReceived" and event.data:
                self.server.delivered(event.stream_id, len(event.data))

    def state(self) -> dict[str, Any]:
        server, loss, space = self.server, self.server._loss, self.space
        timer = server.get_timer()
        return {
            "events": self.events,
            "payloads": self.payloads,
            "closed": repr(server._close_event),
            "state": server._state,
            "timer": timer,
            "pacing": server._pacing_at,
            "acks": list(space.ack_queue),
            "received": (space.largest_received_packet, space.largest_received_time),
            "times": (space.ack_at, space.loss_time, server._close_at, server._loss_at),
            "largest": (space.largest_acked_packet, loss.largest_sent, server._packet_number),
            "sent": [
                (number, p.sent_bytes, p.in_flight, p.is_ack_eliciting, p.sent_time)
                for number, p in space.sent_packets.items()
            ],
            "eliciting": (space.ack_eliciting_in_flight, loss.eliciting_sent, loss.unanswered),
            "sizes": (server._max_datagram_size, server.path_mtu.size, server.path_mtu.due),
            "control": (
                loss._cc.bytes_in_flight,
                loss._cc.congestion_window,
                loss._cc.ssthresh,
            ),
            "rtt": (loss._rtt_latest, loss._rtt_min, loss._rtt_smoothed, loss._rtt_variance),
            "loss": (loss.packet_threshold, loss.late_by, loss._pto_count, loss.packets_lost),
            "late": loss._presumed_lost,
            "pacer": (loss._pacer.packet_time, loss._pacer.bucket_time, loss._pacer.bucket_max),
            "limits": [
                (limit.value, limit.sent, limit.used)
                for limit in (
                    server._local_max_data,
                    server._local_max_streams_bidi,
                    server._local_max_streams_uni,
                )
            ],
            "remote": (server._remote_max_data, server._remote_max_data_used),
            "spin": (server._spin_bit, server._spin_highest_pn),
            "counts": (server.packets_received, server._refused, server._unconsumed),
            "ecn": (loss.ecn_state, loss.ecn_from, loss.ecn_ect0, loss.ecn_ce),
            "marks": (space.ect0, space.ect1, space.ce),
            "waiting": (len(server._datagrams), server._datagrams.dropped, server._datagram_lead),
            "pings": (server._ping_pending, server._probe_pending),
            "streams": {number: self.stream(each) for number, each in server._streams.items()},
            "queue": [each.stream_id for each in server._streams_queue],
        }

    def stream(self, each: Any) -> Any:
        sender, receiver = each.sender, each.receiver
        return (
            (each.is_blocked, each.max_stream_data_local, each.max_stream_data_local_sent),
            each.max_stream_data_remote,
            (receiver.highest_offset, receiver.is_finished, receiver._buffer_start),
            (bytes(receiver._buffer), receiver._final_size, list(receiver._ranges)),
            (sender.highest_offset, sender.is_finished, sender.buffer_is_empty),
            (bytes(sender._buffer), sender._buffer_start, sender._buffer_stop, sender._buffer_fin),
            (list(sender._pending), list(sender._acked), sender._pending_eof, sender.next_offset),
            (sender.reset_pending, receiver.stop_pending),
        )


class Script:
    """What happens, drawn from a seed: frames of the client, calls of the application, time."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.offsets: dict[int, int] = {}
        self.ended: set[int] = set()
        self.number = 101
        self.hostile = seed % 4 == 0
        self.urgent = seed % 3 > 0
        self.counts = seed % 3 > 0
        self.wrong = 0.05 if seed % 3 == 2 else 0.0
        self.ce = 0

    def stream_id(self) -> int:
        kind = self.rng.choice([0, 0, 0, 0, 1, 2, 3])
        return self.rng.randrange(5) * 4 + kind

    def frame(self, sent: int) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            return self.ack(sent)
        if kind < 0.7:
            stream_id = rng.choice([0, 4, 8, 12, 16, 2, 6])
            if stream_id in self.ended and not self.hostile:
                return b"\x01"
            offset = self.offsets.get(stream_id, 0)
            size = rng.choice([0, 1, 5, 100, 400])
            if rng.random() < 0.25:
                offset = max(0, offset + rng.randrange(-300, 600))
            self.offsets[stream_id] = max(self.offsets.get(stream_id, 0), offset + size)
            data = bytes((offset + i) % 251 for i in range(size))
            fin = rng.random() < 0.05 and offset + size == self.offsets[stream_id]
            if fin:
                self.ended.add(stream_id)
            return stream(stream_id, offset, data, fin)
        if kind < 0.78:
            return b"\x31" + varint(20) + rng.randbytes(20)
        if kind < 0.82:
            return b"\x01"
        if kind < 0.85:
            return bytes(rng.randrange(1, 30))
        if kind < 0.88:
            return b"\x10" + varint(rng.randrange(1, 200_000))
        if kind < 0.91:
            return b"\x11" + varint(rng.choice([0, 4, 8, 1])) + varint(rng.randrange(60_000))
        if kind < 0.93:
            return bytes([rng.choice([0x12, 0x13])]) + varint(rng.randrange(20))
        if kind < 0.95:
            return bytes([rng.choice([0x14, 0x16, 0x17])]) + varint(rng.randrange(20))
        if kind < 0.97:
            return stop_sending(rng.choice([0, 4, 8]))
        if kind < 0.985:
            stream_id = rng.choice([0, 4, 8, 2])
            self.ended.add(stream_id)
            return reset_stream(stream_id, self.offsets.get(stream_id, 0))
        if self.hostile:
            return rng.choice(
                [
                    stream(self.stream_id(), rng.randrange(1 << 20), b"x"),
                    varint(rng.randrange(64)) + rng.randbytes(rng.randrange(20)),
                    b"\x02" + varint(sent + 50) + varint(0) + varint(0) + varint(0),
                    reset_stream(self.stream_id(), rng.randrange(1 << 15)),
                ]
            )
        return b"\x1a" + rng.randbytes(8)  # a path challenge: for the plain class

    def ack(self, sent: int) -> bytes:
        """Ranges of what was sent, from the top down."""
        rng = self.rng
        at = sent - 1 - rng.choice([0, 0, 0, 1, 3, 8])
        if at < 100:
            return b"\x01"
        ranges = []
        largest = at
        while at >= 100 and len(ranges) < 4:
            count = min(at - 100, rng.choice([0, 0, 1, 3, 20, 200]))
            ranges.append((at, count))
            at -= count + 2 + rng.randrange(3)
        body = varint(largest) + varint(rng.randrange(3000)) + varint(len(ranges) - 1)
        body += varint(ranges[0][1])
        bottom = largest - ranges[0][1]
        for top, count in ranges[1:]:
            body += varint(bottom - top - 2) + varint(count)
            bottom = top - count
        if not self.counts or rng.random() < self.wrong:
            return b"\x02" + body
        if rng.random() < self.wrong:
            return b"\x03" + body + b"".join(varint(rng.randrange(4)) for _ in range(3))
        if rng.random() < 0.1:
            self.ce = min(self.ce + 1, sent - 100)
        return b"\x03" + body + varint(sent - 100 - self.ce) + varint(0) + varint(self.ce)

    def steps(self, twins: list[Twin]) -> Iterator[Callable[[Twin], object]]:
        rng = self.rng
        now = 2000.0
        for _ in range(120):
            kind = rng.random()
            now += rng.choice([0.0001, 0.001, 0.005, 0.02])
            sent = twins[0].server._packet_number
            if kind < 0.5:
                payload = b"".join(self.frame(sent) for _ in range(rng.randrange(1, 4)))
                number = self.number
                if rng.random() < 0.15:
                    number = max(101, self.number - rng.randrange(1, 40))  # late, or twice
                else:
                    self.number += rng.choice([1, 1, 1, 2, 5])
                mark = rng.choice([0, 0, 0, 1, 2, 3]) if self.counts else 0
                yield lambda twin, n=number, p=payload, t=now, m=mark: twin.receive(n, p, t, m)
                yield Twin.drain
            elif kind < 0.62:
                stream_id, size = self.stream_id(), rng.choice([0, 10, 500, 4000])
                fin = rng.random() < 0.2
                yield lambda twin, i=stream_id, s=size, f=fin: twin.server.send_stream_data(
                    i, bytes(s), f
                )
            elif kind < 0.68:
                data = rng.randbytes(rng.choice([1, 60, 64, 900]))
                yield lambda twin, d=data: twin.server._datagrams.put(d)
            elif kind < 0.7:
                stream_id = self.stream_id()
                yield lambda twin, i=stream_id: twin.engine.reset_stream(i, 5)
            elif kind < 0.72:
                stream_id = self.stream_id()
                yield lambda twin, i=stream_id: twin.engine.stop_stream(i, 6)
            elif kind < 0.75:
                yield lambda twin: twin.server.send_ping(3)
            elif kind < 0.8:
                owed = sorted(twins[0].server._unconsumed.items())
                for stream_id, count in owed:
                    yield lambda twin, i=stream_id, c=count: twin.server.consume(i, c)
            elif kind < 0.83 and self.urgent:
                stream_id, urgency = self.stream_id(), rng.randrange(3)
                yield lambda twin, i=stream_id, u=urgency: twin.engine.prioritize(i, u)
            elif kind < 0.9:
                timer = twins[0].server.get_timer()
                if timer is not None:
                    now = max(now, min(timer, now + 1.0))
                    yield lambda twin, t=now: twin.server.handle_timer(t)
            yield lambda twin, t=now: twin.flush(t)
            yield Twin.drain


@needs_typed
@pytest.mark.parametrize("seed", range(60))
def test_typed_and_plain_agree(seed: int, credentials: Credentials) -> None:
    """Events, plaintexts, acknowledgements, recovery, timers and streams after every step."""
    twins = [Twin(kind, credentials, seed) for kind in (HardenedConnection, TYPED)]
    for index, step in enumerate(Script(seed).steps(twins)):
        raised = []
        for twin in twins:
            try:
                step(twin)
                raised.append(None)
            except (ValueError, RuntimeError) as error:
                raised.append((type(error), str(error)))
        assert raised[0] == raised[1], index
        plain, typed = (twin.state() for twin in twins)
        for name, value in plain.items():
            assert typed[name] == value, (index, name)
        if twins[0].server.ended:
            break
    if not twins[0].server.ended:
        assert twins[1].server.typed


@needs_typed
@pytest.mark.parametrize("seed", range(20))
def test_ranges_and_window_are_those_of_their_twins(seed: int) -> None:
    from echostream._ext.quic_path import NumberWindow, Ranges

    rng = random.Random(seed)
    ranges, plain_ranges = Ranges(), RangeSet()
    window, plain_window = NumberWindow(), PacketNumberWindow()
    newest = 0
    for _ in range(1000):
        start = rng.randrange(80)
        stop = start + rng.randrange(1, 9)
        method = rng.choice(["add", "add", "subtract"])
        for each in (ranges, plain_ranges):
            getattr(each, method)(start, stop)
        if len(ranges) and rng.random() < 0.05:
            assert ranges.bounds() == plain_ranges.bounds()
            assert ranges.shift() == plain_ranges.shift()
        assert list(ranges) == list(plain_ranges)
        assert [n in ranges for n in range(90)] == [n in plain_ranges for n in range(90)]
        newest += rng.choice([0, 1, 1, 2, 7, 300, 2000]) if rng.random() < 0.5 else 1
        late = max(0, newest - rng.randrange(1300))
        for each in (window, plain_window):
            each.add(newest)
            each.add(late)
        probes = [rng.randrange(max(0, newest - 1100), newest + 2) for _ in range(10)]
        assert [n in window for n in probes] == [n in plain_window for n in probes]
    with pytest.raises(ValueError):
        ranges.add(5, 5)
    with pytest.raises(IndexError):
        ranges[len(ranges)]


@needs_typed
def test_nothing_is_left_behind(credentials: Credentials) -> None:
    """Objects alive after many streams, datagrams and losses are as many as after few."""
    pair = our_pair(credentials, fate=lossy(0.005, 0.05))
    pair.handshake()

    def load(count: int) -> int:
        for _ in range(count):
            stream_id = pair.client.engine.open_stream(True)
            pair.client.engine.send_stream(stream_id, bytes(3000), True)
            pair.client.engine.send_datagram(bytes(500))
            pair.run(lambda: stream_id in pair.server.finished, 5)  # noqa: B023
            pair.server.engine.send_stream(stream_id, bytes(300), True)
            pair.run(lambda: stream_id in pair.client.finished, 5)  # noqa: B023
        pair.run(None, 2.0)
        for side in (pair.client, pair.server):
            side.streams.clear()
            side.finished.clear()
            side.events.clear()
            side.datagrams.clear()
        gc.collect()
        return len(gc.get_objects())

    load(30)
    before = load(10)
    assert load(100) - before < 200
