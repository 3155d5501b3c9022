"""Path-MTU discovery on a connection: the packets of its search, and what follows from them."""

from __future__ import annotations

from aioquic import tls
from aioquic.quic.connection import NetworkAddress, QuicConnectionState
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder

from echostream.transport.quic.options import QuicOptions
from echostream.transport.quic.path_mtu import ETHERNET, PathMtu
from echostream.transport.quic.writer import ApplicationWriter

__all__ = ["PathProber"]

LARGE_TAKES = 0.001
"""Seconds that one packet may hold up those behind it, where packets larger than Ethernet's are
tried."""


class PathProber(ApplicationWriter):
    """aioquic's packets have one size for ever. Here they grow to what the path carries, found by
    probes of PING and PADDING (RFC 9000, section 14.4), and shrink when it carries less."""

    def _prepare_prober(self, options: QuicOptions) -> None:
        self.path_mtu = PathMtu(options.max_datagram_size, options.discover_datagram_size)

    @property
    def path_search_at(self) -> float | None:
        """When to call :meth:`search_path_mtu`, or ``None``."""
        return self.path_mtu.search_at if self._handshake_confirmed else None

    def search_path_mtu(self, now: float) -> None:
        """Try larger packets, beginning with the next flush."""
        self.path_mtu.search(now, self._loss.congestion_window, fast=self._is_fast())
        self._loss.plain_delivery = True

    def _is_fast(self) -> bool:
        """Whether the path takes the largest packet within :data:`LARGE_TAKES` at the rate that the
        congestion window stands for."""
        loss = self._loss
        return (
            loss._rtt_initialized
            and self.path_mtu.limit * loss._rtt_min <= loss.congestion_window * LARGE_TAKES
        )

    def _path_mtu_unknown(self) -> None:
        """The path is another one, or may be."""
        self.path_mtu.restart()
        self._follow_path_mtu()

    def _peer_takes(self, size: int) -> None:
        """The peer's ``max_udp_payload_size`` (RFC 9000, section 18.2)."""
        self.path_mtu = PathMtu(min(self._max_datagram_size, size), min(self.path_mtu.limit, size))
        self._loss.path_mtu = self.path_mtu
        self._follow_path_mtu()

    def _follow_path_mtu(self) -> None:
        if self._max_datagram_size != self.path_mtu.size:
            self._max_datagram_size = self.path_mtu.size
            self._loss.use_datagram_size(self.path_mtu.size)

    def _size_probe(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """The datagram that is to be sent in search of the path MTU, if one is."""
        path = self._network_paths[0]
        if not path.is_validated:
            if self.path_mtu.size > self.path_mtu.base:
                self._path_mtu_unknown()
            return []
        size = self.path_mtu.due
        loss = self._loss
        if not size or self._state is not QuicConnectionState.CONNECTED:
            return []
        if size > loss.congestion_window - loss.bytes_in_flight:
            if size > ETHERNET:
                self.path_mtu.postpone()
            return []
        assert self._version is not None
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            quic_logger=self._quic_logger,
            spin_bit=self._spin_bit,
            version=self._version,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        frame = builder.start_frame(QuicFrameType.PING, handler=self._on_size_probe_delivery)
        frame.push_bytes(bytes(builder.remaining_buffer_space))  # PADDING
        loss.size_probe = self._packet_number
        self.path_mtu.in_flight = True
        loss._pacer.update_after_send(now=now)
        return self._flush_builder(
            builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now
        )

    def _on_size_probe_delivery(self, delivery: QuicDeliveryState) -> None:
        self.path_mtu.settled(delivery is QuicDeliveryState.ACKED, fast=self._is_fast())
        self._follow_path_mtu()
