"""What the protocol needs below it: QUIC streams and datagrams.

The engine interface of the transport floor has these methods; a test may pass any object that does.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Carrier"]


class Carrier(Protocol):
    """QUIC streams and DATAGRAMs of one connection (RFC 9000, section 2; RFC 9221)."""

    @property
    def is_client(self) -> bool:
        """Whether this end opened the connection."""

    @property
    def max_datagram_payload(self) -> int:
        """Largest DATAGRAM payload; 0 when the peer takes none."""

    @property
    def window_left(self) -> int:
        """Bytes that congestion control lets leave now."""

    def open_stream(self, bidirectional: bool, urgency: int | None = None) -> int:
        """Reserve the next stream of ours; 0 is the most urgent."""

    def prioritize(self, stream_id: int, urgency: int) -> None:
        """Give a stream another urgency."""

    def send_stream(self, stream_id: int, data: bytes | bytearray | memoryview, fin: bool) -> None:
        """Append to a stream."""

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Abort our sending part."""

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to abort its sending part."""

    def consume(self, stream_id: int, count: int) -> None:
        """Give ``count`` bytes of credit back to the peer."""

    def lend(self, stream_id: int, count: int) -> None:
        """Give credit for other streams, ahead of :meth:`consume` on this one."""

    def send_datagram(self, data: bytes, deadline: float | None = None) -> bool:
        """Queue one DATAGRAM; dropped where it has not left by ``deadline``."""

    def buffered(self, stream_id: int) -> int:
        """Bytes that wait for acknowledgement."""

    def unsent(self, stream_id: int) -> int:
        """Those of them that were never sent."""
