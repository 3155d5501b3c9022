"""Other engines behind our interface: aioquic's own connection, and qh3's.

They are peers for conformance tests, and stock aioquic is what each guard is compared with.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from typing import Any

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import encode_quic_retry, pull_quic_header
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates

from echostream.transport.engine import (
    Closed,
    DatagramReceived,
    HandshakeCompleted,
    PingAcknowledged,
    StopSending,
    StreamData,
    StreamReset,
)

ALPN = ["echostream/1"]


class ForeignEngine:
    """A ``QuicConnection`` of aioquic or of a fork of it."""

    def __init__(self, connection: Any, *, is_client: bool, library: str = "aioquic") -> None:
        self._connection = connection
        self.is_client = is_client
        self._events = importlib.import_module(f"{library}.quic.events")
        self._raised = (
            importlib.import_module("qh3.quic.connection").QuicConnectionError
            if library == "qh3"
            else ()
        )
        self._started = False

    def connect(self, address: Any, now: float) -> None:
        self._started = True
        self._connection.connect(address, now=now)

    def feed(self, data: bytes, address: Any, now: float) -> None:
        self._started = True
        self._connection.receive_datagram(data, address, now=now)

    idle = False

    def flush(self, now: float) -> list[tuple[bytes, Any]]:
        if not self._started:
            return []
        try:
            return list(self._connection.datagrams_to_send(now=now))
        except self._raised:  # a qh3 server that meets the amplification limit
            return []

    def timer(self) -> float | None:
        return self._connection.get_timer() if self._started else None

    def on_timer(self, now: float) -> None:
        self._connection.handle_timer(now=now)

    def next_event(self) -> Any:
        e = self._events
        while (event := self._connection.next_event()) is not None:
            if isinstance(event, e.StreamDataReceived):
                return StreamData(event.stream_id, bytes(event.data), event.end_stream)
            if isinstance(event, e.DatagramFrameReceived):
                return DatagramReceived(bytes(event.data))
            if isinstance(event, e.HandshakeCompleted):
                return HandshakeCompleted(
                    event.alpn_protocol or "",
                    None,
                    event.session_resumed,
                    event.early_data_accepted,
                )
            if isinstance(event, e.StreamReset):
                return StreamReset(event.stream_id, event.error_code)
            if isinstance(event, e.StopSendingReceived):
                return StopSending(event.stream_id, event.error_code)
            if isinstance(event, e.PingAcknowledged):
                return PingAcknowledged(event.uid)
            if isinstance(event, e.ConnectionTerminated):
                return Closed(event.error_code, event.reason_phrase, True, event.frame_type is None)
        return None

    def open_stream(self, bidirectional: bool) -> int:
        stream_id = self._connection.get_next_available_stream_id(
            is_unidirectional=not bidirectional
        )
        self._connection.send_stream_data(stream_id, b"")
        return stream_id

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        self._connection.send_stream_data(stream_id, data, fin)

    def reset_stream(self, stream_id: int, code: int) -> None:
        self._connection.reset_stream(stream_id, code)

    def stop_stream(self, stream_id: int, code: int) -> None:
        self._connection.stop_stream(stream_id, code)

    def consume(self, stream_id: int, count: int) -> None:
        pass

    def send_datagram(self, data: bytes) -> bool:
        self._connection.send_datagram_frame(data)
        return True

    def ping(self, uid: int) -> None:
        self._connection.send_ping(uid)

    def close(self, code: int, reason: str) -> None:
        self._connection.close(error_code=code, reason_phrase=reason)

    def prioritize(self, stream_id: int, urgency: int) -> None:
        pass

    @property
    def window_left(self) -> int:
        return self._connection._loss.congestion_window

    def unsent(self, stream_id: int) -> int:
        return 0

    def limit_queue(self, target: float | None) -> None:
        pass

    def change_connection_id(self) -> None:
        self._connection.change_connection_id()

    def update_key(self) -> None:
        self._connection.request_key_update()


def stock_configuration(credentials: Any, *, is_client: bool, **kwargs: Any) -> QuicConfiguration:
    kwargs = {"idle_timeout": 15.0, "max_datagram_frame_size": 65535, **kwargs}
    configuration = QuicConfiguration(is_client=is_client, alpn_protocols=ALPN, **kwargs)
    if is_client:
        configuration.server_name = "server.test"
        configuration.load_verify_locations(cadata=credentials.authority)
    else:
        configuration.certificate = load_pem_x509_certificates(credentials.certificate)[0]
        configuration.private_key = load_pem_private_key(credentials.key)
    return configuration


def stock_client(credentials: Any, **kwargs: Any) -> ForeignEngine:
    handlers = {k: kwargs.pop(k) for k in ("session_ticket_handler",) if k in kwargs}
    configuration = stock_configuration(credentials, is_client=True, **kwargs)
    return ForeignEngine(QuicConnection(configuration=configuration, **handlers), is_client=True)


class ForeignAcceptor:
    """What aioquic's own server does with a first packet, for it and for its fork. ``tickets``
    is its store."""

    def __init__(self, credentials: Any, *, retry: bool = False, tickets: Any = None) -> None:
        self._credentials = credentials
        self._retry = QuicRetryTokenHandler() if retry else None
        self._tickets = tickets

    def released(self, engine: Any, address: Any) -> None:
        pass

    def engine(self, **kwargs: Any) -> ForeignEngine:
        raise NotImplementedError

    def accept(self, data: bytes, address: Any, now: float) -> Any:
        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        original, retried = header.destination_cid, None
        if self._retry is not None and not header.token:
            source = os.urandom(8)
            token = self._retry.create_token(
                address=address,
                original_destination_connection_id=original,
                retry_source_connection_id=source,
                now=now,
            )
            return encode_quic_retry(
                version=header.version or 0,
                source_cid=source,
                destination_cid=header.source_cid,
                original_destination_cid=original,
                retry_token=token,
            )
        if self._retry is not None:
            original = self._retry.validate_token(
                address=address,
                destination_cid=header.destination_cid,
                token=header.token,
                now=now,
            )
            retried = header.destination_cid
        tickets = self._tickets
        return self.engine(
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
            session_ticket_fetcher=None if tickets is None else tickets.get,
            session_ticket_handler=None
            if tickets is None
            else lambda ticket: tickets.__setitem__(ticket.ticket, ticket),
        )


class StockAcceptor(ForeignAcceptor):
    """An aioquic server."""

    def engine(self, **kwargs: Any) -> ForeignEngine:
        configuration = stock_configuration(self._credentials, is_client=False)
        return ForeignEngine(QuicConnection(configuration=configuration, **kwargs), is_client=False)


def qh3_client(credentials: Any, **kwargs: Any) -> ForeignEngine:
    return ForeignEngine(
        _qh3_connection(credentials, is_client=True, **kwargs), is_client=True, library="qh3"
    )


class Qh3Acceptor(ForeignAcceptor):
    """A qh3 server."""

    def engine(self, **kwargs: Any) -> ForeignEngine:
        connection = _qh3_connection(self._credentials, is_client=False, **kwargs)
        return ForeignEngine(connection, is_client=False, library="qh3")


def _qh3_connection(credentials: Any, *, is_client: bool, **kwargs: Any) -> Any:
    configuration_class = importlib.import_module("qh3.quic.configuration").QuicConfiguration
    connection_class = importlib.import_module("qh3.quic.connection").QuicConnection
    configuration = configuration_class(
        is_client=is_client,
        alpn_protocols=ALPN,
        idle_timeout=15.0,
        max_datagram_frame_size=65535,
        session_ticket=kwargs.pop("session_ticket", None),
    )
    if is_client:
        configuration.server_name = "server.test"
        configuration.load_verify_locations(cadata=credentials.authority)
    else:
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("cert.pem", "key.pem")]
            for path, content in zip(paths, credentials[:2], strict=True):
                with contextlib.closing(open(path, "wb")) as file:
                    file.write(content)
            configuration.load_cert_chain(*paths)
    return connection_class(configuration=configuration, **kwargs)
