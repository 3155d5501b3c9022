"""How an endpoint reads and writes its UDP socket: in batches on Linux, one by one elsewhere.

Both classes have the same calls. An end is no exception: ``error`` has the ``errno`` with which the
last call ended early, so that what was read before it is not lost.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol

from echostream.transport.engine import Address, CeAddress, Ect0Address, Ect1Address

__all__ = ["DatagramSocket", "PlainSocket", "datagram_socket"]

_MAX_DATAGRAM = 65535


class DatagramSocket(Protocol):
    """A bound, non-blocking UDP socket, as the endpoint needs it."""

    @property
    def error(self) -> int:
        """The ``errno`` that ended the last call, 0 where none did."""

    @property
    def bytes_received(self) -> int:
        """Payloads that :meth:`receive` has returned."""

    @property
    def bytes_sent(self) -> int:
        """Payloads that the kernel has taken."""

    def receive(self, limit: int) -> list[tuple[bytes, Address]]:
        """The datagrams that wait; where there are more than ``limit``, about that many."""

    def send(self, datagrams: list[tuple[bytes, Address]], start: int = 0) -> int:
        """Hand over ``datagrams`` from index ``start`` on; returns the index of the first that the
        kernel did not take, with :attr:`error` saying why, or how many there are."""


def datagram_socket(sock: socket.socket) -> DatagramSocket:
    """What reads and writes ``sock`` fastest here. ``ECHOSTREAM_BATCH=0`` in the environment turns
    batches off."""
    if os.environ.get("ECHOSTREAM_BATCH") != "0" and sock.family in (
        socket.AF_INET,
        socket.AF_INET6,
    ):
        try:
            from echostream._ext.udp_batch import BatchSocket
        except ImportError:  # another system, or nothing was compiled
            pass
        else:
            marks = Ect1Address, Ect0Address, CeAddress
            return BatchSocket(sock.fileno(), sock.family, marks=marks)
    return PlainSocket(sock)


class PlainSocket:
    """One system call for each datagram: works everywhere."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.error = 0
        self.bytes_received = 0
        self.bytes_sent = 0

    def receive(self, limit: int) -> list[tuple[bytes, Address]]:
        """See :class:`DatagramSocket`."""
        recvfrom = self._sock.recvfrom
        taken: list[tuple[bytes, Address]] = []
        self.error = 0
        try:
            while len(taken) < limit:
                datagram = recvfrom(_MAX_DATAGRAM)
                self.bytes_received += len(datagram[0])
                taken.append(datagram)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.error = error.errno or errno.EIO
        return taken

    def send(self, datagrams: list[tuple[bytes, Address]], start: int = 0) -> int:
        """See :class:`DatagramSocket`."""
        sendto = self._sock.sendto
        self.error = 0
        for index in range(start, len(datagrams)):
            data, address = datagrams[index]
            try:
                self.bytes_sent += sendto(data, address)
            except (BlockingIOError, InterruptedError):
                self.error = errno.EAGAIN
                return index
            except OSError as error:
                self.error = error.errno or errno.EIO
                return index
        return len(datagrams)
