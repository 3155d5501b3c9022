"""Session tickets: as bytes for a client to keep, and a server's store that gives each once."""

from __future__ import annotations

import struct
from collections import OrderedDict
from datetime import UTC, datetime

from aioquic.tls import CipherSuite, SessionTicket

__all__ = ["TicketStore", "decode_ticket", "encode_ticket"]

MAGIC = b"EST1"
_HEADER = struct.Struct(">4sHIQQqHHHH")  # magic, cipher, age_add, from, to, early data, 4 lengths
_EXTENSION = struct.Struct(">HH")


def encode_ticket(ticket: SessionTicket) -> bytes:
    """``ticket`` as bytes. They contain a secret: whoever has them can resume the session."""
    name = (ticket.server_name or "").encode()
    early = -1 if ticket.max_early_data_size is None else ticket.max_early_data_size
    parts = [
        _HEADER.pack(
            MAGIC,
            int(ticket.cipher_suite),
            ticket.age_add,
            int(ticket.not_valid_before.timestamp() * 1_000_000),
            int(ticket.not_valid_after.timestamp() * 1_000_000),
            early,
            len(name),
            len(ticket.resumption_secret),
            len(ticket.ticket),
            len(ticket.other_extensions),
        ),
        name,
        ticket.resumption_secret,
        ticket.ticket,
    ]
    for kind, data in ticket.other_extensions:
        parts += (_EXTENSION.pack(kind, len(data)), data)
    return b"".join(parts)


def decode_ticket(data: bytes) -> SessionTicket | None:
    """The ticket, or ``None`` for anything that :func:`encode_ticket` did not write."""
    try:
        magic, cipher, age_add, start, end, early, *lengths = _HEADER.unpack_from(data)
        if magic != MAGIC:
            return None
        reader = _Reader(data, _HEADER.size)
        ticket = SessionTicket(
            age_add=age_add,
            cipher_suite=CipherSuite(cipher),
            not_valid_before=datetime.fromtimestamp(start / 1_000_000, UTC),
            not_valid_after=datetime.fromtimestamp(end / 1_000_000, UTC),
            server_name=reader.take(lengths[0]).decode(),
            resumption_secret=reader.take(lengths[1]),
            ticket=reader.take(lengths[2]),
            max_early_data_size=None if early < 0 else early,
        )
        for _ in range(lengths[3]):
            kind, size = _EXTENSION.unpack(reader.take(_EXTENSION.size))
            ticket.other_extensions.append((kind, reader.take(size)))
    except (struct.error, ValueError, OverflowError, OSError):
        return None
    return ticket if reader.at_end else None


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    @property
    def at_end(self) -> bool:
        return self._position == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise ValueError("truncated")
        self._position, start = end, self._position
        return self._data[start:end]


class TicketStore:
    """A server's tickets, each good for one use, so that 0-RTT data cannot be replayed here
    (RFC 8446, section 8.1). The oldest give way when it is full; a client whose ticket is not
    known makes a full handshake.

    ``lifetime`` is in seconds of the clock that ``now`` comes from.
    """

    def __init__(self, capacity: int = 100_000, lifetime: float = 86_400.0) -> None:
        if capacity < 1 or lifetime <= 0:
            raise ValueError("capacity and lifetime must be positive")
        self._capacity = capacity
        self._lifetime = lifetime
        self._entries: OrderedDict[bytes, tuple[float, str | None, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, ticket: SessionTicket, alpn: str | None, now: float) -> None:
        """Keep a ticket that was just issued."""
        self._expire(now)
        while len(self._entries) >= self._capacity:
            self._entries.popitem(last=False)
        expiry = now + self._lifetime
        self._entries[ticket.ticket] = (expiry, alpn, encode_ticket(ticket))  # a third of the size

    def take(self, identity: bytes, alpn: str | None, now: float) -> SessionTicket | None:
        """The ticket, once. 0-RTT is bound to the protocol that was spoken when it was issued
        (RFC 8446, section 4.2.10)."""
        self._expire(now)
        entry = self._entries.pop(identity, None)
        if entry is None or entry[1] != alpn:
            return None
        return decode_ticket(entry[2])

    def _expire(self, now: float) -> None:
        while self._entries:
            identity, (expiry, _, _) = next(iter(self._entries.items()))
            if expiry > now:
                return
            del self._entries[identity]
