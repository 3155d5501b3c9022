"""Packets that no honest peer sends, made with an honest peer's keys."""

from __future__ import annotations

import os
from typing import Any

from aioquic import tls
from aioquic.buffer import encode_uint_var as varint
from aioquic.quic.crypto import CryptoPair

__all__ = ["ack", "initial", "packet", "reset_stream", "stop_sending", "stream", "varint"]


def packet(engine: Any, payload: bytes) -> bytes:
    """A 1-RTT packet of ``engine`` with these frames."""
    connection = engine._connection
    keys = connection._cryptos[tls.Epoch.ONE_RTT]
    number = connection._packet_number
    connection._packet_number += 1
    header = bytes([0x41 | keys.key_phase << 2]) + connection._peer_cid.cid
    header += (number & 0xFFFF).to_bytes(2, "big")
    return bytes(keys.encrypt_packet(header, payload + bytes(max(0, 4 - len(payload))), number))


def initial(
    payload: bytes, *, number: int = 0, cid: bytes | None = None, size: int = 1200
) -> bytes:
    """A client's Initial with these frames, in a datagram of ``size`` bytes."""
    cid = os.urandom(8) if cid is None else cid
    keys = CryptoPair()
    keys.setup_initial(cid=cid, is_client=True, version=1)
    source = os.urandom(8)
    head = b"\xc1" + (1).to_bytes(4, "big") + bytes([len(cid)]) + cid
    head += bytes([len(source)]) + source + b"\x00"
    room = size - len(head) - 2 - 2 - 16
    payload = payload.ljust(room, b"\x00")
    head += (len(payload) + 2 + 16 | 0x4000).to_bytes(2, "big") + number.to_bytes(2, "big")
    return bytes(keys.encrypt_packet(head, payload, number))


def stream(stream_id: int, offset: int, data: bytes, fin: bool = False) -> bytes:
    return bytes([0x0E | fin]) + varint(stream_id) + varint(offset) + varint(len(data)) + data


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def reset_stream(stream_id: int, size: int) -> bytes:
    return b"\x04" + varint(stream_id) + varint(0) + varint(size)


def stop_sending(stream_id: int) -> bytes:
    return b"\x05" + varint(stream_id) + varint(0)


def ack(largest: int, first_range: int = 0) -> bytes:
    return b"\x02" + varint(largest) + varint(0) + varint(0) + varint(first_range)
