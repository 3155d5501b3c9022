"""The listening side: what to do with a datagram that belongs to no connection."""

from __future__ import annotations

import functools
import ipaddress
import os
from collections import Counter
from collections.abc import Sequence

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.connection import TRANSPORT_CLOSE_FRAME_CAPACITY, QuicNetworkPath
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.tls import SessionTicket

from echostream.transport.engine import Address, Engine
from echostream.transport.quic.accelerated import connection_class
from echostream.transport.quic.budget import Budget
from echostream.transport.quic.credentials import load_credentials, quic_configuration
from echostream.transport.quic.engine import QuicEngine
from echostream.transport.quic.options import CONNECTION_ID_LENGTH, QuicOptions
from echostream.transport.quic.reset_token import (
    SMALLEST_RESET,
    reset_datagram,
    reset_token,
    static_key_from,
)
from echostream.transport.quic.tickets import TicketStore

__all__ = ["QuicAcceptor"]

LONG_HEADER, FIXED_BIT, PACKET_TYPE = 0x80, 0x40, 0x30
"""Bits of a packet's first byte (RFC 9000, section 17)."""

VERSION_1 = b"\0\0\0\1"
"""The only version that is spoken here; its Initial packets have the type 0."""

SMALLEST_INITIAL = 1200
"""Bytes of a datagram that may open a connection (RFC 9000, section 14.1)."""

SHORTEST_CLIENT_ID = 8
"""Bytes of the connection ID that a client may invent (RFC 9000, section 7.2)."""


FAILURE_RATE = 10.0
"""Handshakes per second that may fail before a Retry is asked for. Forged first packets are over
before they count as half-open, and making a connection takes a hundred times what dropping does."""

RETRY_SHARE = 0.5
"""Of the Retry packets, what one address may cause: the others' are for others."""

RETRY_ORIGINS = 4096
"""Addresses for which that is counted; with more of them the count begins anew."""


class QuicAcceptor:
    """Makes the engines of a server; see :class:`echostream.transport.engine.Acceptor`.

    ``certificate_chain_pem`` begins with the server's own certificate. ``tickets`` lets clients
    resume and send 0-RTT; ``None`` makes every handshake a full one. With
    ``request_client_certificate`` clients are asked for one: the engine checks that the client
    has its key, and whose it is must be decided on
    :class:`~echostream.transport.engine.HandshakeCompleted` before anything is served; such a
    server gives out no tickets, because a resumed session has no certificate.
    ``static_key`` makes the stateless reset tokens; without it they derive from the private key,
    so that they are still good after a restart.

    Raises :class:`~echostream.errors.ConfigurationError`.
    """

    def __init__(
        self,
        options: QuicOptions,
        certificate_chain_pem: bytes,
        private_key_pem: bytes,
        *,
        alpn: Sequence[str] = ("echostream/1",),
        tickets: TicketStore | None = None,
        request_client_certificate: bool = False,
        static_key: bytes | None = None,
    ) -> None:
        self._options = options
        self._configuration = quic_configuration(options, is_client=False, alpn=alpn)
        load_credentials(self._configuration, certificate_chain_pem, private_key_pem)
        self._static_key = static_key or static_key_from(private_key_pem)
        self._tickets = None if request_client_certificate else tickets
        self._request_client_certificate = request_client_certificate
        self._retry_tokens = QuicRetryTokenHandler()
        self._half_open: dict[Engine, str] = {}
        self._half_open_from: Counter[str] = Counter()
        self._connections_from: Counter[str] = Counter()
        self._origin: dict[Engine, str] = {}
        self._negotiations, self._refusals, self._resets = (
            Budget(options.stateless_rate, options.stateless_rate) for _ in range(3)
        )
        self._retries = Budget(max(1.0, options.retry_rate / 10), options.retry_rate)
        self._retries_to: dict[str, Budget] = {}
        self._trust = Budget(options.retry_threshold, FAILURE_RATE)

    @property
    def half_open(self) -> int:
        """Handshakes that have begun and not ended."""
        return len(self._half_open)

    def accept(self, data: bytes, address: Address, now: float) -> QuicEngine | bytes | None:
        """A new engine to feed ``data`` to, the one datagram to answer with, or ``None``."""
        if len(data) <= SMALLEST_RESET:
            return None
        if not data[0] & LONG_HEADER:
            return self._stateless_reset(data, now)
        if len(data) < SMALLEST_INITIAL or self._hopeless(data, address, now):
            return None
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_LENGTH)
        except ValueError:
            return None
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return None  # or two servers would answer each other for ever
        if header.version not in self._configuration.supported_versions:
            return self._version_negotiation(header, now)
        if (
            header.packet_type is not QuicPacketType.INITIAL
            or len(header.destination_cid) < SHORTEST_CLIENT_ID
        ):
            return None
        return self._open(header, address, now)

    def released(self, engine: Engine, address: Address) -> None:
        """The endpoint forgot this engine."""
        self._settled(engine)
        origin = self._origin.pop(engine, None)
        if origin is not None:
            _decrease(self._connections_from, origin)

    # Private

    def _hopeless(self, data: bytes, address: Address, now: float) -> bool:
        """Whether nobody would be answered, as a look at a few bytes tells: a flood is over here
        for a tenth of what reading the header takes."""
        if data[1:5] != VERSION_1:
            return not self._negotiations.has(now)
        if data[0] & (FIXED_BIT | PACKET_TYPE) != FIXED_BIT:
            return True
        source = 6 + data[5]
        return (
            data[source + 1 + data[source]] == 0  # no token
            and self._wants_retry(now)
            and not self._may_retry(address, now)
        )

    def _wants_retry(self, now: float) -> bool:
        return len(self._half_open) >= self._options.retry_threshold or not self._trust.has(now)

    def _may_retry(self, address: Address, now: float) -> bool:
        share = self._retries_to.get(_origin(address[0]))
        return self._retries.has(now) and (share is None or share.has(now))

    def _open(self, header: QuicHeader, address: Address, now: float) -> QuicEngine | bytes | None:
        options = self._options
        original = header.destination_cid
        retried: bytes | None = None
        if header.token:
            try:
                original = self._retry_tokens.validate_token(
                    address=address,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=now,
                )
            except ValueError:
                # The client will not take a second Retry (RFC 9000, section 8.1.3).
                return self._refusal(header, QuicErrorCode.INVALID_TOKEN, now)
            retried = header.destination_cid
        elif self._wants_retry(now):
            return self._retry(header, address, now)
        else:
            self._trust.spend(now)
        origin = _origin(address[0])
        if (
            len(self._half_open) >= options.max_half_open
            or self._half_open_from[origin] >= options.max_half_open_per_address
        ):
            return None  # an honest client repeats its Initial
        if self._connections_from[origin] >= options.max_connections_per_address:
            return self._refusal(header, QuicErrorCode.CONNECTION_REFUSED, now)
        engine = self._engine(original, retried, address, now)
        self._origin[engine] = origin
        self._connections_from[origin] += 1
        self._half_open[engine] = origin
        self._half_open_from[origin] += 1
        return engine

    def _engine(
        self, original: bytes, retried: bytes | None, address: Address, now: float
    ) -> QuicEngine:
        tickets = self._tickets

        def take(identity: bytes) -> SessionTicket | None:
            assert tickets is not None
            return tickets.take(identity, connection.tls.alpn_negotiated, now)

        def add(ticket: SessionTicket) -> None:
            assert tickets is not None
            tickets.add(ticket, connection.tls.alpn_negotiated, now)

        connection = connection_class(self._options)(
            self._options,
            configuration=self._configuration,
            static_key=self._static_key,
            request_client_certificate=self._request_client_certificate,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
            session_ticket_fetcher=take if tickets is not None else None,
            session_ticket_handler=add if tickets is not None else None,
        )
        if retried is not None:
            # The token proved the address (RFC 9000, section 8.1.2).
            connection._network_paths = [QuicNetworkPath(address, is_validated=True)]
        return QuicEngine(connection, self._options, on_settled=self._settled)

    def _settled(self, engine: Engine) -> None:
        origin = self._half_open.pop(engine, None)
        if origin is not None:
            _decrease(self._half_open_from, origin)
            if isinstance(engine, QuicEngine) and engine.connected:
                self._trust.earn(1.0)

    def _version_negotiation(self, header: QuicHeader, now: float) -> bytes | None:
        if not self._negotiations.spend(now):
            return None
        return encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=self._configuration.supported_versions,
        )

    def _retry(self, header: QuicHeader, address: Address, now: float) -> bytes | None:
        if not self._may_retry(address, now):
            return None  # an honest client repeats its Initial
        origin = _origin(address[0])
        share = self._retries_to.get(origin)
        if share is None:
            if len(self._retries_to) >= RETRY_ORIGINS:
                self._retries_to.clear()
            rate = self._options.retry_rate * RETRY_SHARE
            share = self._retries_to[origin] = Budget(max(1.0, rate / 10), rate)
        self._retries.spend(now)
        share.spend(now)
        source_cid = os.urandom(CONNECTION_ID_LENGTH)
        assert header.version is not None
        return encode_quic_retry(
            version=header.version,
            source_cid=source_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=self._retry_tokens.create_token(
                address=address,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=source_cid,
                now=now,
            ),
        )

    def _refusal(self, header: QuicHeader, code: QuicErrorCode, now: float) -> bytes | None:
        """CONNECTION_CLOSE in an Initial packet, under the keys that the client's own connection
        ID makes (RFC 9001, section 5.2)."""
        if not self._refusals.spend(now):
            return None
        assert header.version is not None
        keys = CryptoPair()
        keys.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
        builder = QuicPacketBuilder(
            host_cid=header.destination_cid,
            peer_cid=header.source_cid,
            is_client=False,
            max_datagram_size=SMALLEST_INITIAL,
            version=header.version,
        )
        builder.start_packet(QuicPacketType.INITIAL, keys)
        frame = builder.start_frame(
            QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY
        )
        frame.push_uint_var(code)
        frame.push_uint_var(QuicFrameType.PADDING)
        frame.push_uint_var(0)
        return builder.flush()[0][0]

    def _stateless_reset(self, data: bytes, now: float) -> bytes | None:
        if not data[0] & FIXED_BIT or not self._resets.spend(now):
            return None
        connection_id = data[1 : 1 + CONNECTION_ID_LENGTH]
        return reset_datagram(reset_token(self._static_key, connection_id), len(data))


@functools.lru_cache(4096)
def _origin(host: str) -> str:
    """Whom limits per address count: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(ip) >> 64 << 64))
    return str(ip)


def _decrease(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
