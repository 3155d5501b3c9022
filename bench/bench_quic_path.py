"""Time of a QUIC server per message, in memory: aioquic, the hardened class, the compiled one.

python -m bench.bench_quic_path [rounds [messages]]

The peer is always aioquic's own connection, and only the server's calls are timed: receive,
events, answers, send, timer. The classes take turns within each round, and the median message of a
round stands for it; shown are the median of the rounds with the smallest and the largest, and the
median of the ratios within a round.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from bench.harness.certificate import make_certificate
from echostream.transport.quic.accelerated import connection_class
from echostream.transport.quic.credentials import load_credentials, quic_configuration
from echostream.transport.quic.hardened import HardenedConnection
from echostream.transport.quic.options import QuicOptions

CLIENT = ("192.0.2.1", 50000)
SERVER = ("198.51.100.1", 4433)
BULK = 100_000  # bytes
STEP = 0.002  # seconds of virtual time between messages: past the delay of an acknowledgement


class Link:
    """A client of aioquic's and a server of the kind that is measured, past the handshake."""

    def __init__(self, kind: str, certificate: tuple[bytes, bytes]) -> None:
        self.now = 1000.0
        self.spent = 0
        self.credits = kind != "stock"
        options = QuicOptions(idle_timeout=3600.0)
        configuration = quic_configuration(options, is_client=False, alpn=["echostream/1"])
        load_credentials(configuration, *certificate)
        self.client = QuicConnection(
            configuration=QuicConfiguration(
                alpn_protocols=["echostream/1"],
                verify_mode=0,
                max_datagram_frame_size=65536,
                idle_timeout=3600.0,
            )
        )
        original = self.client.original_destination_connection_id
        self.server: Any
        if kind == "stock":
            self.server = QuicConnection(
                configuration=configuration, original_destination_connection_id=original
            )
            self.send_datagram = self.server.send_datagram_frame
        else:
            made = HardenedConnection if kind == "hardened" else connection_class(options)
            self.server = made(
                options, configuration=configuration, original_destination_connection_id=original
            )
            self.send_datagram = self.server._datagrams.put
        self.client.connect(SERVER, self.now)
        for _ in range(6):
            self.turn()
            self.now += 0.05
        self.spent = 0

    def to_server(self) -> None:
        for data, _ in self.client.datagrams_to_send(self.now):
            begin = time.perf_counter_ns()
            self.server.receive_datagram(data, CLIENT, self.now)
            self.spent += time.perf_counter_ns() - begin

    def to_client(self) -> None:
        begin = time.perf_counter_ns()
        datagrams = self.server.datagrams_to_send(self.now)
        self.server.get_timer()
        self.spent += time.perf_counter_ns() - begin
        for data, _ in datagrams:
            self.client.receive_datagram(data, SERVER, self.now)
        while self.client.next_event() is not None:
            pass
        self.client.get_timer()

    def read(self, echo: bool = False) -> None:
        """The server's application: what comes on a stream is used up, and may go back."""
        server = self.server
        begin = time.perf_counter_ns()
        while (event := server.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                if event.data and self.credits:
                    server.delivered(event.stream_id, len(event.data))
                    server.consume(event.stream_id, len(event.data))
                if echo:
                    server.send_stream_data(event.stream_id, event.data, event.end_stream)
        self.spent += time.perf_counter_ns() - begin

    def turn(self, echo: bool = False) -> None:
        """One way there, an answer, and the server's acknowledgement where it is late."""
        self.to_server()
        self.read(echo)
        self.to_client()
        self.now += STEP
        self.to_client()


def datagram_in(link: Link) -> Iterator[None]:
    while True:
        link.client.send_datagram_frame(bytes(100))
        link.turn()
        yield


def datagram_out(link: Link) -> Iterator[None]:
    while True:
        begin = time.perf_counter_ns()
        link.send_datagram(bytes(100))
        link.spent += time.perf_counter_ns() - begin
        link.to_client()
        link.now += STEP
        link.to_server()
        yield


def echo(link: Link) -> Iterator[None]:
    stream_id = link.client.get_next_available_stream_id()
    while True:
        link.client.send_stream_data(stream_id, bytes(64))
        link.turn(echo=True)
        yield


def echo_among_idle(link: Link) -> Iterator[None]:
    for _ in range(100):
        link.client.send_stream_data(link.client.get_next_available_stream_id(), b"idle")
        link.turn()
    yield from echo(link)


def stream_per_request(link: Link) -> Iterator[None]:
    while True:
        stream_id = link.client.get_next_available_stream_id()
        link.client.send_stream_data(stream_id, bytes(64), end_stream=True)
        link.turn(echo=True)
        yield


def bulk_in(link: Link) -> Iterator[None]:
    stream_id = link.client.get_next_available_stream_id()
    while True:
        link.client.send_stream_data(stream_id, bytes(BULK))
        expected = link.server._local_max_data.used + BULK
        while link.server._local_max_data.used < expected:
            link.to_server()
            link.read()
            link.now += STEP
            link.to_client()
        yield


def bulk_out(link: Link) -> Iterator[None]:
    while True:
        server = link.server
        stream_id = server.get_next_available_stream_id(is_unidirectional=True)
        begin = time.perf_counter_ns()
        server.send_stream_data(stream_id, bytes(BULK), True)
        link.spent += time.perf_counter_ns() - begin
        while not server._streams[stream_id].sender.is_finished:
            link.to_client()
            link.to_server()
            link.now += STEP
        link.to_client()
        yield


SCENARIOS: dict[str, Callable[[Link], Iterator[None]]] = {
    "DATAGRAM in, ACK out": datagram_in,
    "DATAGRAM out, ACK in": datagram_out,
    "echo of 64 bytes": echo,
    "the same, 100 idle streams": echo_among_idle,
    "stream opened, echoed, closed": stream_per_request,
    "100 kB of a stream in": bulk_in,
    "100 kB of a stream out": bulk_out,
}
KINDS = ("stock", "hardened", "compiled")


def main(rounds: int, messages: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = make_certificate(Path(directory))
        certificate = files.chain.read_bytes(), files.key.read_bytes()
    print(f"{'us per message':32}", *(f"{kind:>22}" for kind in KINDS), f"{'stock/compiled':>15}")
    for title, scenario in SCENARIOS.items():
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind in KINDS:
                link = Link(kind, certificate)
                spent = []
                for _ in itertools.islice(scenario(link), messages // 10 + messages):
                    spent.append(link.spent / 1000)
                    link.spent = 0
                times[kind].append(statistics.median(spent[messages // 10 :]))
        cells = [f"{statistics.median(t):8.1f} [{min(t):.1f}-{max(t):.1f}]" for t in times.values()]
        ratios = [a / b for a, b in zip(times["stock"], times["compiled"], strict=True)]
        print(
            f"{title:32}", *(f"{cell:>22}" for cell in cells), f"{statistics.median(ratios):15.1f}"
        )


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    main(*(given + [5, 300][len(given) :]))
