"""A question from a port of its own, which is answered at once and to this program only.

A responder holds an answer back for a second where it has just given it to everybody (RFC 6762,
section 6), and of programs on one host that share port 5353 only one gets what is sent to that
port. A question from another port has neither trouble (section 6.7).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from zeroconf import DNSIncoming, Zeroconf  # type: ignore[attr-defined]

from echostream.discovery.interfaces import local_addresses

__all__ = ["OneShot"]

_GROUP = ("224.0.0.251", 5353)


class OneShot(asyncio.DatagramProtocol):
    """Sends questions on every interface that has IPv4, and hands the answers to zeroconf."""

    def __init__(self, zeroconf: Zeroconf) -> None:
        self._zeroconf = zeroconf
        self._transports: list[asyncio.DatagramTransport] = []

    async def open(self, interfaces: list[str] | None) -> None:
        """On these addresses, by default on all. An interface that cannot is left out."""
        loop = asyncio.get_running_loop()
        found = [ip for ips in local_addresses().values() for ip in ips]
        for address in found if interfaces is None else interfaces:
            if ":" in address:
                continue
            with suppress(OSError):
                bound = _socket(address)
                transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=bound)
                self._transports.append(transport)

    def ask(self, packets: list[bytes]) -> None:
        """Send them everywhere."""
        for transport in self._transports:
            for packet in packets:
                transport.sendto(packet, _GROUP)

    def close(self) -> None:
        """Listen no more."""
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """An answer, or anything else."""
        message = DNSIncoming(data)
        if message.valid and message.is_response() and not self._zeroconf.done:
            self._zeroconf.record_manager.async_updates_from_response(message)

    def error_received(self, exc: Exception) -> None:
        """The network says no: others may say yes."""


def _socket(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        made.setblocking(False)
        made.bind((address, 0))
    except BaseException:
        made.close()
        raise
    return made
