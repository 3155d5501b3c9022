"""Options of the QUIC engine, checked once where they are given."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from echostream.errors import ConfigurationError

__all__ = ["CONNECTION_ID_LENGTH", "WESTWOOD", "QuicOptions"]

CONNECTION_ID_LENGTH = 8
"""Length in bytes of the connection IDs that our engines choose: an endpoint cuts this many
bytes out of a short header (RFC 8999, section 5.2)."""

CIPHERS = ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
WESTWOOD = "westwood"
CONGESTION_CONTROLS = (WESTWOOD, "reno", "cubic")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuicOptions:
    """How an engine behaves. Times in seconds, sizes in bytes, rates per second.

    Raises :class:`~echostream.errors.ConfigurationError` for a value that cannot work.
    """

    idle_timeout: float = 15.0
    """Silence after which the connection is given up (RFC 9000, section 10.1)."""

    handshake_timeout: float = 10.0
    """How long a handshake may take; s2n-quic and msquic use the same limit."""

    keep_alive: float = 5.0
    """A PING is sent after this much silence of the peer; 0 sends none. It must leave time
    for two lost PINGs within ``idle_timeout``."""

    initial_rtt: float = 0.1
    """Round-trip time assumed before the first sample. RFC 9002, section 6.2.2, recommends
    0.333; a third of it repairs a lost first flight sooner."""

    stream_window: int = 1 << 20
    """Bytes that a peer may send on one stream beyond what was consumed. 1 MiB carries
    280 Mbit/s at 30 ms of RTT, and is what one slow reader can make us hold."""

    connection_window: int = 8 << 20
    """The same over all streams: eight streams at full speed, and the bound on what one
    connection can make us hold, besides one ``stream_window`` for each media stream that was
    accepted and is not read."""

    max_streams_bidi: int = 128
    """Bidirectional streams that the peer may have open at a time."""

    max_streams_uni: int = 128
    """Unidirectional streams that the peer may have open at a time."""

    max_stream_gaps: int = 256
    """Holes in what was received of one stream or handshake before the connection is closed
    (RFC 9000, section 21.6). quic-go and quinn allow 1000; each costs a step per frame here."""

    max_datagram_size: int = 1200
    """UDP payload that is sent from the first packet on. 1200 passes everywhere. The engine's
    length fields end at 16383."""

    discover_datagram_size: int = 8952
    """How large packets may become once the path was seen to carry them (RFC 8899). Plain Ethernet
    has room for 1452 over IPv6, and more is tried only where the path takes it within 1 ms: jumbo
    frames have room for 8952. Not above ``max_datagram_size``: do not look."""

    ecn: bool = True
    """Whether packets leave marked, where the path carries marks (RFC 9000, section 13.4), and the
    marks of those that arrive are reported."""

    datagram_queue_length: int = 64
    """DATAGRAM frames that wait for the congestion window; the oldest are dropped."""

    datagram_max_age: float = 0.1
    """A DATAGRAM frame that could not leave for this long is dropped."""

    congestion_control: str = WESTWOOD
    """``"westwood"``: New Reno that keeps its window where a loss is none by congestion;
    ``"reno"`` or ``"cubic"`` as aioquic has them, off the compiled path."""

    ciphers: Sequence[str] = CIPHERS
    """TLS 1.3 cipher suites, best first."""

    early_data: bool = True
    """Whether a server invites 0-RTT data with its tickets."""

    ack_ping_after: int = 32
    """After this many packets of ours in a row that nobody acknowledges (ACKs for a peer that
    only sends), one carries a PING, so that both sides can forget (RFC 9000, section 13.2.4)."""

    key_update_after: int = 1 << 22
    """Packets under one key: half of what AES-GCM allows (RFC 9001, section 6.6)."""

    reset_burst: int = 1000
    """RESET_STREAM and STOP_SENDING frames that a peer may send at once."""

    reset_rate: float = 100.0
    """How fast that allowance grows again."""

    control_burst: int = 1000
    """PINGs, path challenges and frames about connection IDs that a peer may send at once."""

    control_rate: float = 100.0
    """How fast that allowance grows again; what we send raises it too."""

    retry_threshold: int = 64
    """Half-open handshakes, or failed ones at a time, from which on a server asks for a Retry
    (RFC 9000, section 8.1.2); 0 asks always."""

    retry_rate: float = 1000.0
    """Retry packets that a server sends per second, half of them to one address; a tenth of them at
    once."""

    max_half_open: int = 1024
    """Handshakes that a server has open at a time. A client that meets the limit tries again."""

    max_half_open_per_address: int = 256
    """The same for one IPv4 address or one IPv6 /64."""

    max_connections_per_address: int = 1024
    """Connections of one IPv4 address or one IPv6 /64. More are refused."""

    stateless_rate: float = 100.0
    """Answers per second to what belongs to no connection, per kind of answer."""

    qlog_dir: str | os.PathLike[str] | None = None
    """A directory for qlog traces, one file per connection. For debugging: slow."""

    keylog_file: str | os.PathLike[str] | None = None
    """A file that TLS secrets are appended to, in the format of SSLKEYLOGFILE; ``None`` takes that
    variable of the environment, where it is set. Whoever has the file can read the traffic."""

    def __post_init__(self) -> None:
        for name in ("idle_timeout", "handshake_timeout", "initial_rtt", "datagram_max_age"):
            self._check(name, 0.001, 3600.0)
        self._check("keep_alive", 0.0, self.idle_timeout / 3, "a third of idle_timeout")
        for name in ("stream_window", "connection_window"):
            self._check(name, 4096, 1 << 32)
        if self.connection_window < self.stream_window:
            raise ConfigurationError("connection_window must not be less than stream_window")
        for name in ("max_streams_bidi", "max_streams_uni"):
            self._check(name, 0, 1 << 16)
        self._check("max_stream_gaps", 16, 1 << 16)
        self._check("max_datagram_size", 1200, 16383)
        self._check("discover_datagram_size", 0, 16383)
        self._check("datagram_queue_length", 1, 1 << 16)
        self._check("ack_ping_after", 2, 1 << 16)
        self._check("key_update_after", 1, 1 << 22)
        for name in ("reset_burst", "control_burst"):
            self._check(name, 1, 1 << 32)
        for name in ("reset_rate", "control_rate", "retry_rate", "stateless_rate"):
            self._check(name, 0.0, 1e9)
        self._check("retry_threshold", 0, 1 << 32)
        for name in ("max_half_open", "max_half_open_per_address", "max_connections_per_address"):
            self._check(name, 1, 1 << 32)
        if self.congestion_control not in CONGESTION_CONTROLS:
            raise ConfigurationError(
                f"congestion_control must be one of {CONGESTION_CONTROLS}, "
                f"not {self.congestion_control!r}"
            )
        if not self.ciphers or not set(self.ciphers) <= set(CIPHERS):
            raise ConfigurationError(f"ciphers must be some of {CIPHERS}, not {self.ciphers!r}")
        if self.qlog_dir is not None and not os.path.isdir(self.qlog_dir):
            raise ConfigurationError(f"qlog_dir {os.fspath(self.qlog_dir)!r} is no directory")

    def _check(self, name: str, low: float, high: float, why: str = "") -> None:
        value = getattr(self, name)
        kinds = int if isinstance(low, int) else (int, float)
        if (
            not isinstance(value, kinds)
            or isinstance(value, bool)
            or math.isnan(value)
            or not low <= value <= high
        ):
            raise ConfigurationError(f"{name} must be from {low:g} to {why or high}, not {value!r}")
