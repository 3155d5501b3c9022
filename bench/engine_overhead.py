"""What the guards cost: the hardened connection and aioquic's own, driven by the same code.

In memory, both ends of one class, one process. The two take turns, so that a change of the
machine's speed meets both; the table shows medians and their ratio.

    python bench/engine_overhead.py [rounds]
"""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echostream.transport.quic.hardened import HardenedConnection
from echostream.transport.quic.options import QuicOptions

CLIENT, SERVER = ("192.0.2.1", 1), ("192.0.2.2", 2)


class Ends:
    """A client and a server of one class, and the time between them."""

    def __init__(self, hardened: bool, credentials: tuple[Any, Any]) -> None:
        self.now = 100.0
        self.hardened = hardened
        common: dict[str, Any] = {"alpn_protocols": ["b"], "max_datagram_frame_size": 65535}
        client = QuicConfiguration(is_client=True, verify_mode=0, **common)
        server = QuicConfiguration(is_client=False, **common)
        server.certificate, server.private_key = credentials
        self.client = self._make(client)
        self.client.connect(SERVER, self.now)
        self.server = self._make(
            server,
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        for _ in range(50):
            self.turn()
        assert self.client._handshake_confirmed

    def _make(self, configuration: QuicConfiguration, **kwargs: Any) -> Any:
        if self.hardened:
            return HardenedConnection(QuicOptions(), configuration=configuration, **kwargs)
        return QuicConnection(configuration=configuration, **kwargs)

    def turn(self) -> int:
        """A millisecond passes, each end sends what it may. Returns the bytes delivered."""
        self.now += 0.001
        delivered = 0
        for sender, receiver, address in (
            (self.client, self.server, CLIENT),
            (self.server, self.client, SERVER),
        ):
            for end in (sender, receiver):
                at = end.get_timer()
                if at is not None and at <= self.now:
                    end.handle_timer(self.now)
            for data, _ in sender.datagrams_to_send(self.now):
                receiver.receive_datagram(data, address, self.now)
            while (event := receiver.next_event()) is not None:
                if isinstance(event, StreamDataReceived):
                    size = len(event.data)
                    delivered += size
                    if self.hardened and size:
                        receiver.delivered(event.stream_id, size)
                        receiver.consume(event.stream_id, size)
                    if receiver is self.server and size == 64:
                        receiver.send_stream_data(event.stream_id, event.data)
                elif isinstance(event, DatagramFrameReceived):
                    delivered += len(event.data)
        return delivered


def echo(ends: Ends, count: int = 300) -> float:
    """Microseconds per 64 bytes there and back on one stream."""
    stream_id = ends.client.get_next_available_stream_id()
    start = time.process_time()
    for _ in range(count):
        ends.client.send_stream_data(stream_id, b"x" * 64)
        for _ in range(3):
            ends.turn()
    ends.client.reset_stream(stream_id, 0)
    return (time.process_time() - start) / count * 1e6


def datagram(ends: Ends, count: int = 300) -> float:
    """Microseconds per DATAGRAM of 200 bytes with its acknowledgement."""
    start = time.process_time()
    for _ in range(count):
        if ends.hardened:
            ends.client._datagrams.put(b"x" * 200)
        else:
            ends.client.send_datagram_frame(b"x" * 200)
        for _ in range(2):
            ends.turn()
    return (time.process_time() - start) / count * 1e6


def bulk(ends: Ends, size: int = 1_000_000) -> float:
    """Microseconds per kilobyte of one stream."""
    stream_id = ends.client.get_next_available_stream_id(is_unidirectional=True)
    start = time.process_time()
    ends.client.send_stream_data(stream_id, bytes(size), True)
    while size > 0:
        size -= ends.turn()
    return (time.process_time() - start) * 1e3


def many_streams(ends: Ends) -> float:
    """Microseconds per echo while 100 other streams are open and idle."""
    idle = []
    for _ in range(100):
        idle.append(ends.client.get_next_available_stream_id())
        ends.client.send_stream_data(idle[-1], b"idle")
    ends.turn()
    result = echo(ends, 100)
    for stream_id in idle:
        ends.client.reset_stream(stream_id, 0)
        ends.server.reset_stream(stream_id, 0)
    for _ in range(100):
        ends.turn()
    return result


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cases: list[Callable[[Ends], float]] = [echo, datagram, bulk, many_streams]
    print(f"{'':14}{'hardened':>10}{'stock':>10}{'ratio':>8}")
    for case in cases:
        ends = [Ends(hardened, (certificate, key)) for hardened in (True, False)]
        times: list[list[float]] = [[], []]
        for _ in range(rounds + 1):
            for which in (0, 1):
                times[which].append(case(ends[which]))
        ours, stock = (statistics.median(t[1:]) for t in times)
        print(f"{case.__name__:14}{ours:10.1f}{stock:10.1f}{ours / stock:8.2f}")


if __name__ == "__main__":
    main()
