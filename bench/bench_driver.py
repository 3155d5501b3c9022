"""What batches of datagrams save: the same sockets with one system call per datagram, with
recvmmsg and sendmmsg, and with the kernel cutting and joining trains as well.

``python -m bench.bench_driver``: in one process, over loopback, the kinds in turns; median of the
rounds, in microseconds of CPU per datagram, sending and receiving apart.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time
from collections.abc import Callable

from echostream._ext.udp_batch import BatchSocket
from echostream.transport.sockets import DatagramSocket, PlainSocket

KINDS: dict[str, Callable[[socket.socket], DatagramSocket]] = {
    "one by one": PlainSocket,
    "batches": lambda s: BatchSocket(s.fileno(), s.family, join=False, cut=False),
    "batches, cut": lambda s: BatchSocket(s.fileno(), s.family, join=False),
    "batches, cut and joined": lambda s: BatchSocket(s.fileno(), s.family),
}
LOADS = {
    "one of 100 B": (1, 100, 1),
    "8 of 100 B": (8, 100, 1),
    "16 of 1200 B": (16, 1200, 1),
    "64 of 1200 B": (64, 1200, 1),
    "32 of 200 B, each to another": (32, 200, 32),
}
REPEAT = 50


class Pair:
    """A sending socket, and some that receive."""

    def __init__(self, kind: str, receivers: int) -> None:
        self._socks = [
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(receivers + 1)
        ]
        for sock in self._socks:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.sender, *self.receivers = (KINDS[kind](sock) for sock in self._socks)
        self.addresses = [sock.getsockname() for sock in self._socks[1:]]

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def measure(kind: str, count: int, size: int, receivers: int) -> tuple[float, float]:
    """CPU microseconds per datagram: to send, to receive."""
    pair = Pair(kind, receivers)
    datagrams = [(bytes(size), pair.addresses[n % receivers]) for n in range(count)]
    sending = receiving = 0
    clock = time.thread_time_ns
    for _ in range(REPEAT):
        begun = clock()
        sent = pair.sender.send(datagrams)
        between = clock()
        received = sum(len(receiver.receive(128)) for receiver in pair.receivers)
        receiving += clock() - between
        sending += between - begun
        assert sent == received == count, (kind, sent, received)
    pair.close()
    return sending / REPEAT / count / 1e3, receiving / REPEAT / count / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_driver", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("| us per datagram, to send / to receive |" + "".join(f" {kind} |" for kind in KINDS))
    print("|---|" + "--:|" * len(KINDS))
    for name, load in LOADS.items():
        seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind in KINDS:
                seen[kind].append(measure(kind, *load))
        cells = (
            " / ".join(f"{statistics.median(side):.2f}" for side in zip(*pairs, strict=True))
            for pairs in seen.values()
        )
        print(f"| {name} |" + "".join(f" {cell} |" for cell in cells))


if __name__ == "__main__":
    main()
