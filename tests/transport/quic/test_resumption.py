"""Session tickets, 0-RTT, and what a replay can do."""

from __future__ import annotations

from typing import Any

import pytest
from foreign_engines import StockAcceptor, stock_client
from quic_credentials import Credentials
from quic_pair import CLIENT, Pair, our_acceptor, our_client

from echostream.transport.engine import DatagramReceived, HandshakeCompleted, StreamData
from echostream.transport.quic import QuicAcceptor, QuicOptions, TicketStore
from echostream.transport.quic.tickets import decode_ticket, encode_ticket

ALWAYS_RETRY = QuicOptions(retry_threshold=0)


def ticket_from(acceptor: QuicAcceptor, credentials: Credentials, **kwargs: Any) -> bytes:
    pair = Pair(our_client(credentials, **kwargs), acceptor)
    pair.handshake()
    tickets = [event.ticket for event in pair.client.events if hasattr(event, "ticket")]
    assert len(tickets) == 1
    return tickets[0]


def resumed(acceptor: Any, ticket: bytes, credentials: Credentials) -> Pair:
    pair = Pair(our_client(credentials, ticket=ticket), acceptor)
    stream_id = pair.client.engine.open_stream(True)
    pair.client.engine.send_stream(stream_id, b"early request", True)
    pair.client.engine.connect(pair.server_address, pair.now)
    assert pair.client.engine.send_datagram(b"early datagram")
    pair.run(lambda: pair.client.handshake and pair.server and pair.server.handshake, 10)
    pair.run(None, 0.5)
    return pair


def test_resumption_and_zerortt(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, tickets=TicketStore())
    pair = resumed(acceptor, ticket_from(acceptor, credentials), credentials)
    for side in (pair.client, pair.server):
        assert side.handshake.resumed
        assert side.handshake.early_data
        assert side.handshake.certificate is None
    kinds = [type(event) for event in pair.server.events]
    assert kinds.index(StreamData) < kinds.index(HandshakeCompleted)
    assert kinds.index(DatagramReceived) < kinds.index(HandshakeCompleted)
    assert bytes(pair.server.streams[0]) == b"early request"
    assert pair.server.datagrams == [b"early datagram"]


def test_a_ticket_is_good_once(credentials: Credentials) -> None:
    """Row 21: the first flight again, at the same server, brings nothing to the application."""
    acceptor = our_acceptor(credentials, tickets=TicketStore())
    ticket = ticket_from(acceptor, credentials)
    flights: list[bytes] = []
    pair = Pair(our_client(credentials, ticket=ticket), acceptor)
    pair.client.engine.send_stream(pair.client.engine.open_stream(True), b"early", True)
    pair.fate = lambda rng, data, up: (up and flights.append(data)) or [(0.015, data)]
    pair.connect()
    first = list(flights)
    pair.run(None, 1.0)
    assert bytes(pair.server.streams[0]) == b"early"
    replay = acceptor.accept(first[0], CLIENT, pair.now)
    for data in first:
        replay.feed(data, CLIENT, pair.now)
    assert not [e for e in iter(replay.next_event, None) if isinstance(e, StreamData)]
    again = resumed(acceptor, ticket, credentials)
    assert not again.client.handshake.resumed
    assert bytes(again.server.streams[0]) == b"early request"  # late, but not lost


def test_stock_takes_a_replay(credentials: Credentials) -> None:
    """With the store that aioquic's examples use."""
    tickets: dict[bytes, Any] = {}
    acceptor = StockAcceptor(credentials, tickets=tickets)
    ticket = ticket_from(acceptor, credentials)  # type: ignore[arg-type]
    for _ in range(2):
        pair = resumed(acceptor, ticket, credentials)
        assert pair.client.handshake.early_data


def test_zerortt_survives_a_retry(credentials: Credentials) -> None:
    """Row 22: at once, and nothing stays counted as in flight."""
    store = TicketStore()
    ticket = ticket_from(our_acceptor(credentials, tickets=store), credentials)
    pair = resumed(our_acceptor(credentials, ALWAYS_RETRY, tickets=store), ticket, credentials)
    assert len(pair.answers) == 1
    assert pair.client.handshake.early_data
    assert bytes(pair.server.streams[0]) == b"early request"
    assert pair.client.engine.info().bytes_in_flight == 0


def test_stock_loses_zerortt_behind_a_retry(credentials: Credentials) -> None:
    tickets: dict[bytes, Any] = {}
    got: list[Any] = []
    pair = Pair(
        stock_client(credentials, session_ticket_handler=got.append),
        StockAcceptor(credentials, tickets=tickets),
    )
    pair.handshake()
    client = stock_client(credentials, session_ticket=got[0])
    pair = Pair(client, StockAcceptor(credentials, retry=True, tickets=tickets))
    client.connect(pair.server_address, pair.now)
    client.send_stream(client.open_stream(True), b"early request", True)
    pair.run(None, 10.0)
    assert pair.client.handshake
    assert pair.server is not None
    assert not pair.server.streams
    assert client._connection._loss.bytes_in_flight > 0


def test_a_server_need_not_invite_early_data(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, QuicOptions(early_data=False), tickets=TicketStore())
    ticket = ticket_from(acceptor, credentials)
    pair = Pair(our_client(credentials, ticket=ticket), acceptor)
    pair.handshake()
    assert pair.client.handshake.resumed
    assert not pair.client.handshake.early_data


def test_early_data_is_bound_to_the_protocol(credentials: Credentials) -> None:
    acceptor = our_acceptor(credentials, tickets=TicketStore(), alpn=["a", "b"])
    ticket = ticket_from(acceptor, credentials, alpn=["a"])
    pair = Pair(our_client(credentials, ticket=ticket, alpn=["b"]), acceptor)
    pair.handshake()
    assert pair.client.handshake.alpn == "b"
    assert not pair.client.handshake.resumed


def test_a_server_without_a_store_gives_no_ticket(credentials: Credentials) -> None:
    for kwargs in ({}, {"tickets": TicketStore(), "request_client_certificate": True}):
        pair = Pair(our_client(credentials), our_acceptor(credentials, **kwargs))
        pair.handshake()
        assert pair.client.handshake
        assert not [event for event in pair.client.events if hasattr(event, "ticket")]


def test_tickets_survive_encoding(credentials: Credentials) -> None:
    data = ticket_from(our_acceptor(credentials, tickets=TicketStore()), credentials)
    ticket = decode_ticket(data)
    assert ticket is not None
    assert encode_ticket(ticket) == data
    for size in range(len(data)):
        assert decode_ticket(data[:size]) is None
    assert decode_ticket(data + b"x") is None
    assert decode_ticket(b"XXXX" + data[4:]) is None
    pair = Pair(our_client(credentials, ticket=data[:-1]), our_acceptor(credentials))
    pair.handshake()
    assert pair.client.handshake


def test_the_store_is_bounded(credentials: Credentials) -> None:
    data = ticket_from(our_acceptor(credentials, tickets=TicketStore()), credentials)
    store = TicketStore(capacity=3, lifetime=10.0)
    for index in range(5):
        ticket = decode_ticket(data)
        assert ticket is not None
        ticket.ticket = bytes([index])
        store.add(ticket, "a", now=index)
    assert len(store) == 3
    assert store.take(b"\x01", "a", 5.0) is None
    assert store.take(b"\x02", "a", 5.0) is not None
    assert store.take(b"\x02", "a", 5.0) is None
    assert store.take(b"\x03", "a", 13.0) is None
    assert store.take(b"\x04", "b", 13.0) is None
    assert len(store) == 0
    with pytest.raises(ValueError):
        TicketStore(capacity=0)
