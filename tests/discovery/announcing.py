"""For the tests of discovery: names of their own, servers on loopback, hand-made packets."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Mapping
from typing import Any

from echostream import Identity, RpcServer, ServerBuilder
from echostream.discovery.service import SERVICE_TYPE

LOOPBACK = "127.0.0.1"
WAIT_S = 20.0
"""A limit for waits, not an expectation."""


def fresh_name() -> str:
    """Other test runs on this machine hear the same multicast."""
    return f"Test {secrets.token_hex(4)}"


async def greeting() -> str:
    return "hello"


def announced(name: str, **options: Any) -> ServerBuilder:
    """A server on loopback that is announced there."""
    return (
        RpcServer.builder()
        .bind((options.pop("host", LOOPBACK), options.pop("port", 0)))
        .identity(options.pop("identity", None) or Identity.ephemeral())
        .handler("greeting", greeting)
        .enable_discovery(name, **options)
    )


def wire_name(name: str) -> bytes:
    """An instance or host name as DNS labels. The first label of an instance may hold dots."""
    head, tail = (
        (name[: -len(SERVICE_TYPE) - 1], SERVICE_TYPE)
        if name.endswith("." + SERVICE_TYPE)
        else ("", name)
    )
    labels = ([head] if head else []) + [label for label in tail.split(".") if label]
    return b"".join(bytes([len(raw)]) + raw for raw in (e.encode() for e in labels)) + b"\0"


def record(name: str, kind: int, data: bytes, *, ttl: int = 4500, unique: bool = False) -> bytes:
    """One resource record (RFC 1035, section 3.2.1; the top bit of its class: RFC 6762, 10.2)."""
    klass = 0x8001 if unique else 1
    return wire_name(name) + struct.pack("!HHIH", kind, klass, ttl, len(data)) + data


def response(*records: bytes) -> bytes:
    """An mDNS response."""
    return struct.pack("!HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def announcement(
    instance: str, host: str, port: int, txt: Mapping[str, str] | bytes, *addresses: str
) -> bytes:
    """Everything about one service in one packet."""
    full = f"{instance}.{SERVICE_TYPE}"
    if not isinstance(txt, bytes):
        entries = [f"{key}={value}".encode() for key, value in txt.items()]
        txt = b"".join(bytes([len(entry)]) + entry for entry in entries) or b"\0"
    return response(
        record(SERVICE_TYPE, 12, wire_name(full)),
        record(full, 33, struct.pack("!HHH", 0, 0, port) + wire_name(host), unique=True),
        record(full, 16, txt, unique=True),
        *(record(host, 1, socket.inet_aton(address), unique=True) for address in addresses),
    )


class Spoofer:
    """Sends packets to the mDNS group on one interface."""

    def __init__(self, interface: str = LOOPBACK) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((interface, 5353))

    def __enter__(self) -> Spoofer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, packet: bytes) -> None:
        self._socket.sendto(packet, ("224.0.0.251", 5353))
