"""What a server does with datagrams that belong to no connection."""

from __future__ import annotations

import os
from typing import Any

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from foreign_engines import StockAcceptor, stock_client
from hostile_packets import crypto, initial
from quic_credentials import Credentials, make_credentials
from quic_pair import CLIENT, SERVER, Pair, our_acceptor, our_client, our_pair, steady

from echostream.errors import ConfigurationError
from echostream.transport.engine import PathChanged
from echostream.transport.quic import QuicAcceptor, QuicEngine, QuicOptions, client_engine
from echostream.transport.quic.acceptor import RETRY_ORIGINS


def first_flight(credentials: Credentials) -> bytes:
    client = our_client(credentials)
    client.connect(SERVER, 1.0)
    return client.flush(1.0)[0][0]


def packet_type(data: bytes) -> QuicPacketType:
    return pull_quic_header(Buffer(data=data), host_cid_length=8).packet_type


def test_version_negotiation_is_gated_and_limited(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, QuicOptions(stateless_rate=5))
    data = bytearray(first_flight(credentials))
    data[1:5] = b"\x1a\x2a\x3a\x4a"
    answer = acceptor.accept(bytes(data), CLIENT, 1.0)
    assert isinstance(answer, bytes)
    assert packet_type(answer) is QuicPacketType.VERSION_NEGOTIATION
    assert acceptor.accept(bytes(data[:1199]), CLIENT, 1.0) is None
    assert acceptor.accept(answer.ljust(1200, b"\0"), CLIENT, 1.0) is None  # no loop
    answers = [acceptor.accept(bytes(data), CLIENT, 1.0) for _ in range(20)]
    assert sum(a is not None for a in answers) == 4
    assert acceptor.accept(bytes(data), CLIENT, 2.0) is not None


def test_what_is_no_first_packet_is_ignored(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials)
    data = first_flight(credentials)
    assert acceptor.accept(b"", CLIENT, 1.0) is None
    assert acceptor.accept(data[:1199], CLIENT, 1.0) is None
    short_id = initial(crypto(0, b"\x01"), cid=b"1234567")
    assert acceptor.accept(short_id, CLIENT, 1.0) is None
    handshake = bytes([data[0] | 0x20]) + data[1:]
    assert acceptor.accept(handshake, CLIENT, 1.0) is None
    assert acceptor.half_open == 0


def test_retry_is_asked_for_under_load_only(credentials: Credentials) -> None:
    """Row 4: from 64 half-open handshakes on, and not below."""
    acceptor = our_acceptor(credentials)
    engines = []
    for _ in range(64):
        engine = acceptor.accept(first_flight(credentials), CLIENT, 1.0)
        assert isinstance(engine, QuicEngine)
        engines.append(engine)
    answer = acceptor.accept(first_flight(credentials), CLIENT, 1.0)
    assert isinstance(answer, bytes)
    assert packet_type(answer) is QuicPacketType.RETRY
    acceptor.released(engines[0], CLIENT)
    assert isinstance(acceptor.accept(first_flight(credentials), CLIENT, 2.0), QuicEngine)


def test_handshakes_that_succeed_bring_no_retry(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, QuicOptions(retry_threshold=3))
    for _ in range(10):
        pair = Pair(our_client(credentials), acceptor)
        pair.handshake()
        assert pair.answers == []


@pytest.mark.parametrize("client", ["ours", "stock"])
def test_handshake_through_retry(client: str, credentials: Credentials) -> None:
    engine: Any = (our_client if client == "ours" else stock_client)(credentials)
    pair = Pair(engine, our_acceptor(credentials, QuicOptions(retry_threshold=0)))
    pair.handshake()
    assert pair.client.handshake
    assert [packet_type(a) for a in pair.answers] == [QuicPacketType.RETRY]
    assert pair.acceptor.half_open == 0


def test_a_token_from_elsewhere_is_refused(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, QuicOptions(retry_threshold=0))
    client = our_client(credentials)
    client.connect(SERVER, 1.0)
    retry = acceptor.accept(client.flush(1.0)[0][0], CLIENT, 1.0)
    assert isinstance(retry, bytes)
    client.feed(retry, SERVER, 1.0)
    (data, _), *_ = client.flush(1.0)
    elsewhere = acceptor.accept(data, ("192.0.2.77", 50000), 1.1)
    assert isinstance(elsewhere, bytes)
    client.feed(elsewhere, SERVER, 1.1)
    events = iter(client.next_event, None)
    assert [e.code for e in events if hasattr(e, "by_peer")] == [0xB]  # INVALID_TOKEN
    assert isinstance(acceptor.accept(data, CLIENT, 31.2), bytes)  # too old
    assert isinstance(acceptor.accept(data, CLIENT, 1.1), QuicEngine)


def test_half_open_handshakes_are_capped(credentials: Credentials) -> None:
    options = QuicOptions(retry_threshold=1000, max_half_open=20, max_half_open_per_address=5)
    acceptor = our_acceptor(credentials, options)
    data = first_flight(credentials)
    engines: list[Any] = [acceptor.accept(data, CLIENT, 1.0) for _ in range(10)]
    assert sum(e is not None for e in engines) == 5
    networks = [(f"2001:db8:0:{i}::{i}", 1, 0, 0) for i in range(10)]
    engines += [acceptor.accept(data, address, 1.0) for address in networks]
    assert acceptor.accept(data, ("2001:db8:0:1::99", 1, 0, 0), 1.0) is not None
    many = [acceptor.accept(data, (f"203.0.113.{i}", 1), 1.0) for i in range(10)]
    assert acceptor.half_open == 20
    assert many.count(None) == 6
    for engine in [*engines, *many]:
        if engine is not None:
            acceptor.released(engine, CLIENT)
    assert acceptor.half_open == 1


def test_connections_of_one_address_are_capped(credentials: Credentials) -> None:
    options = QuicOptions(max_connections_per_address=2)
    acceptor = our_acceptor(credentials, options)
    for expected in (None, None, 0x2):
        pair = Pair(our_client(credentials), acceptor)
        pair.connect()
        pair.run(None, 1.0)
        closed = pair.client.closed
        assert (closed.code if closed else None) == expected


def test_a_handshake_takes_ten_seconds_at_most(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.fate = lambda rng, data, up: [(0.015, data)] if up and pair.server is None else []
    pair.connect()
    start = pair.now
    pair.run(lambda: pair.client.closed, 20.0)
    assert pair.now - start == pytest.approx(10.0, abs=0.01)
    pair.run(lambda: pair.server.closed, 1.0)
    assert pair.server.closed.reason == pair.client.closed.reason == "handshake timeout"
    assert pair.acceptor.half_open == 0


def test_noise_does_not_stay_half_open(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials)
    data = first_flight(credentials)
    data = data[:100] + os.urandom(100) + data[200:]
    engine = acceptor.accept(data, CLIENT, 1.0)
    engine.feed(data, CLIENT, 1.0)
    list(iter(engine.next_event, None))
    assert engine.flush(1.0) == []
    assert engine.timer() is None
    assert acceptor.half_open == 0


def test_retries_are_limited_and_smaller_than_what_they_answer(credentials: Credentials) -> None:
    options = QuicOptions(retry_threshold=0, retry_rate=500)
    acceptor = our_acceptor(credentials, options)
    data = first_flight(credentials)

    def answers(now: float) -> list[bytes]:
        found = (acceptor.accept(data, (f"203.0.113.{i % 250}", i), now) for i in range(300))
        return [answer for answer in found if isinstance(answer, bytes)]

    first = answers(1.0)
    assert len(first) == 50
    assert all(packet_type(answer) is QuicPacketType.RETRY for answer in first)
    assert max(map(len, first)) < len(data)
    assert len(answers(1.0)) == 0
    assert len(answers(1.05)) == 25
    assert len(answers(100.0)) == 50  # no more than at once
    pair = Pair(our_client(credentials), acceptor, start=100.0)  # it asks again
    pair.handshake()
    assert pair.client.handshake


def test_one_address_takes_no_more_than_its_share_of_the_retries(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, QuicOptions(retry_threshold=0, retry_rate=500))
    data = first_flight(credentials)

    def answered(host: str, now: float) -> int:
        return sum(acceptor.accept(data, (host, i), now) is not None for i in range(300))

    assert answered("203.0.113.9", 1.0) == 25
    assert answered("198.51.100.1", 1.0) == 25
    assert answered("192.0.2.1", 1.0) == 0  # they are used up
    assert [answered(f"2001:db8::{i}", 2.0) for i in (1, 2)] == [25, 0]  # one /64


def test_a_share_is_forgotten_when_there_are_too_many(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, QuicOptions(retry_threshold=0, retry_rate=1e9))
    data = first_flight(credentials)
    for number in range(2 * RETRY_ORIGINS):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert acceptor.accept(data, (host, 1), 1.0) is not None
        assert len(acceptor._retries_to) <= RETRY_ORIGINS


@pytest.mark.parametrize("kind", ["undecipherable", "senseless"])
def test_forged_first_packets_bring_the_retry_too(kind: str, credentials: Credentials) -> None:
    """They are over before they count as half-open, and cost a connection each. Anybody can make
    the keys of a first packet."""
    acceptor = our_acceptor(credentials)
    good = first_flight(credentials)

    def forged(count: int, now: float) -> list[Any]:
        outcomes = []
        for _ in range(count):
            data = initial(b"\x1f")  # a frame of no known type
            if kind == "undecipherable":
                data = good[:100] + os.urandom(100) + good[200:]
            answer = acceptor.accept(data, CLIENT, now)
            outcomes.append(answer)
            if isinstance(answer, QuicEngine):
                answer.feed(data, CLIENT, now)
                answer.flush(now)
                list(iter(answer.next_event, None))
        return outcomes

    outcomes = forged(200, 1.0)
    assert sum(isinstance(answer, QuicEngine) for answer in outcomes) == 64
    assert sum(isinstance(answer, bytes) for answer in outcomes) == 50  # one address's share
    assert acceptor.half_open == 0
    assert isinstance(acceptor.accept(good, CLIENT, 1.05), bytes)
    assert sum(isinstance(answer, QuicEngine) for answer in forged(200, 2.0)) == 10
    assert isinstance(acceptor.accept(good, CLIENT, 60.0), QuicEngine)


@pytest.mark.parametrize("seed", range(5))
def test_amplificationlimit(seed: int, credentials: Credentials) -> None:
    """Row 5: at most three times what came from an address that is not validated, whatever is
    lost, also when the handshake fails."""
    pair = our_pair(credentials, seed=seed)
    sent = [0]
    pair.fate = lambda rng, data, up: (
        [(0.015, data)] if not up or sent.append(len(data)) or len(sent) <= 2 + seed else []
    )
    pair.connect()
    while pair.client.closed is None and pair.now < 1020:
        pair.run(None, 0.1)
        if pair.server is not None:
            path = pair.server.engine._connection._network_paths[0]
            if path.is_validated:
                break
            assert pair.server.sent <= 3 * pair.server.received


def test_a_close_keeps_within_the_amplification_limit(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.fate = lambda rng, data, up: [(0.015, data)] if up and pair.server is None else []
    pair.connect()
    pair.run(None, 5.0)
    path = pair.server.engine._connection._network_paths[0]
    path.bytes_sent = 3 * path.bytes_received
    before = pair.server.sent
    pair.server.engine.close(1, "enough")
    pair.run(None, 0.1)
    assert pair.server.sent == before
    assert pair.server.closed.code == 1


def test_migration_keeps_within_the_amplification_limit(credentials: Credentials) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, b"GET", False)
    pair.run(lambda: pair.server.streams, 1.0)
    pair.server.engine.send_stream(stream_id, bytes(2_000_000), True)
    pair.run(None, 0.2)
    pair.client_address = ("192.0.2.99", 1)  # from here nothing comes back
    pair.client.engine.ping(1)
    path = None
    for _ in range(50):
        pair.run(None, 0.01)
        path = pair.server.engine._connection._network_paths[0]
        if not path.is_validated:
            assert path.bytes_sent <= 3 * path.bytes_received
    assert pair.run(lambda: stream_id in pair.client.finished, 30)
    assert pair.server.of(PathChanged)[-1].address == ("192.0.2.99", 1)


class TestStatelessReset:
    def test_stock_waits_for_the_idle_timeout(self, credentials: Credentials) -> None:
        pair = Pair(stock_client(credentials), our_acceptor(credentials))
        self.crash(pair)
        assert not pair.run(lambda: pair.client.closed, 5.0)

    def test_ours_knows_at_once(self, credentials: Credentials) -> None:
        """Row 16: the server comes back with the same key and knows nobody."""
        pair = our_pair(credentials)
        start = self.crash(pair)
        assert pair.run(lambda: pair.client.closed, 5.0)
        assert pair.now - start < 0.05
        assert pair.client.closed.reason == "stateless reset"
        assert pair.client.closed.by_peer
        assert pair.client.engine.timer() is None

    def test_after_a_connection_id_change(self, credentials: Credentials) -> None:
        pair = our_pair(credentials)
        pair.handshake()
        pair.client.engine.change_connection_id()
        self.crash(pair)
        assert pair.run(lambda: pair.client.closed, 1.0)

    def crash(self, pair: Pair) -> float:
        if pair.client.handshake is None:
            pair.handshake()
        credentials = self.credentials_of(pair)
        pair.server = None
        pair.acceptor = QuicAcceptor(QuicOptions(), *credentials)
        pair.client.engine.ping(1)
        return pair.now

    @staticmethod
    def credentials_of(pair: Pair) -> tuple[bytes, bytes]:
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        configuration = pair.acceptor._configuration
        return (
            configuration.certificate.public_bytes(Encoding.PEM),
            configuration.private_key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
        )

    def test_a_forged_one_is_ignored(self, credentials: Credentials) -> None:
        pair = our_pair(credentials)
        pair.handshake()
        pair.send(b"\x41" + os.urandom(40), to_server=False, address=CLIENT)
        pair.run(None, 0.1)
        assert pair.client.closed is None

    def test_it_is_smaller_than_what_it_answers_and_limited(self, credentials: Credentials) -> None:
        acceptor = our_acceptor(credentials)
        for size in (10, 21, 22, 43, 44, 100, 1200):
            answer = acceptor.accept(b"\x41" + os.urandom(size - 1), CLIENT, 1.0)
            if size <= 21:
                assert answer is None
            else:
                assert isinstance(answer, bytes)
                assert 21 <= len(answer) < size
        answers = [acceptor.accept(b"\x41" + bytes(50), CLIENT, 1.0) for _ in range(300)]
        assert sum(a is not None for a in answers) <= 100


class TestIdentity:
    def test_another_authority_is_refused(self, credentials: Credentials) -> None:
        pair = Pair(our_client(make_credentials()), our_acceptor(credentials))
        pair.connect()
        assert pair.run(lambda: pair.client.closed, 2.0)
        assert pair.client.handshake is None
        assert pair.run(lambda: pair.server.closed, 2.0)

    def test_another_name_is_refused(self, credentials: Credentials) -> None:
        engine = client_engine(
            QuicOptions(), server_name="other.test", ca_data=credentials.authority
        )
        pair = Pair(engine, our_acceptor(credentials))
        pair.connect()
        assert pair.run(lambda: pair.client.closed, 2.0)

    def test_without_authorities_those_of_the_system_decide(self, credentials: Credentials) -> None:
        pair = Pair(
            client_engine(QuicOptions(), server_name="server.test"), our_acceptor(credentials)
        )
        pair.connect()
        assert pair.run(lambda: pair.client.closed, 2.0)
        assert pair.client.closed.code == 0x12A  # bad_certificate

    @pytest.mark.parametrize("kind", ["stock", "ours"])
    def test_the_cheap_key_share_comes_first(self, kind: str, credentials: Credentials) -> None:
        client: Any = (our_client if kind == "ours" else stock_client)(credentials)
        pair = Pair(client, our_acceptor(credentials))
        pair.handshake()
        tls = pair.server.engine._connection.tls
        assert (tls._x25519_private_key is not None) == (kind == "ours")

    def test_an_address_is_a_name_too(self, credentials: Credentials) -> None:
        engine = client_engine(
            QuicOptions(), server_name="127.0.0.1", ca_data=credentials.authority
        )
        pair = Pair(engine, our_acceptor(credentials))
        pair.handshake()
        assert pair.client.handshake

    def test_without_verification_the_certificate_is_reported(
        self, credentials: Credentials
    ) -> None:
        engine = client_engine(QuicOptions(), server_name="whoever", verify=False)
        pair = Pair(engine, our_acceptor(credentials))
        pair.handshake()
        from cryptography import x509

        der = pair.client.handshake.certificate
        assert x509.load_der_x509_certificate(der) == x509.load_pem_x509_certificate(
            credentials.certificate
        )
        assert pair.server.handshake.certificate is None

    def test_a_client_shows_a_certificate_when_asked(self, credentials: Credentials) -> None:
        other = make_credentials("client.test")
        for keys in ({}, {"certificate_chain_pem": other[0], "private_key_pem": other[1]}):
            pair = Pair(
                our_client(credentials, **keys),
                our_acceptor(credentials, request_client_certificate=True),
            )
            pair.handshake()
            assert (pair.server.handshake.certificate is None) == (not keys)

    def test_no_common_protocol(self, credentials: Credentials) -> None:
        pair = Pair(our_client(credentials, alpn=["echostream/2"]), our_acceptor(credentials))
        pair.connect()
        assert pair.run(lambda: pair.client.closed, 2.0)
        assert pair.client.closed.code == 0x178

    def test_files_with_crlf_and_blank_lines_are_read(self, credentials: Credentials) -> None:
        both = credentials.certificate + b"\n\n" + credentials.authority + b"\n"
        acceptor = QuicAcceptor(
            QuicOptions(), both.replace(b"\n", b"\r\n"), credentials.key.replace(b"\n", b"\r\n")
        )
        assert len(acceptor._configuration.certificate_chain) == 1

    def test_what_does_not_fit_is_refused(self, credentials: Credentials) -> None:
        for certificate, key in (
            (b"nonsense", credentials.key),
            (credentials.certificate, b"nonsense"),
            (credentials.certificate, make_credentials().key),
        ):
            with pytest.raises(ConfigurationError):
                QuicAcceptor(QuicOptions(), certificate, key)
        with pytest.raises(ConfigurationError):
            client_engine(QuicOptions(), server_name="x", ca_data=b"nonsense")
        with pytest.raises(ConfigurationError):
            client_engine(QuicOptions(), server_name="x", alpn=())


def test_stock_answers_more_than_ours(credentials: Credentials) -> None:
    """Stock's server keeps a connection for noise that it can never decrypt."""
    data = first_flight(credentials)
    data = data[:100] + os.urandom(100) + data[200:]
    engine = StockAcceptor(credentials).accept(data, CLIENT, 1.0)
    engine.feed(data, CLIENT, 1.0)
    assert engine.timer() == pytest.approx(16.0)


def test_closing_before_the_handshake(credentials: Credentials) -> None:
    engine = our_client(credentials)
    engine.close(3, "never mind")
    events = list(iter(engine.next_event, None))
    assert events[-1] == (3, "never mind", False, True)
    assert engine.flush(1.0) == []
    assert engine.timer() is None
    pair = our_pair(credentials, fate=steady(0.015))
    pair.connect()
    pair.client.engine.close(3, "never mind")
    assert pair.run(lambda: pair.client.closed, 1.0)
