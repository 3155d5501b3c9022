"""When a datagram came in, as the kernel saw it: the time until a busy program read it is known."""

from __future__ import annotations

import socket
import struct
import sys
import time

__all__ = ["arrival_age"]

LIMIT_S = 1.0
"""Beyond this the wall clock was set in between: the kernel's stamps are of that clock."""

if sys.platform == "linux":
    from fcntl import ioctl

    _SIOCGSTAMPNS = 0x8907
    _TIMESPEC = struct.Struct("@ll")
    _EMPTY = bytes(_TIMESPEC.size)

    def arrival_age(sock: socket.socket) -> float:
        """Seconds since the datagram that was read last came in; 0 where nobody knows, as for the
        first one: the kernel begins to look when it is asked (Linux: ``man 7 socket``)."""
        try:
            seconds, ns = _TIMESPEC.unpack(ioctl(sock.fileno(), _SIOCGSTAMPNS, _EMPTY))
        except OSError:
            return 0.0
        age = (time.time_ns() - seconds * 1_000_000_000 - ns) / 1e9
        return age if 0.0 < age < LIMIT_S else 0.0

else:

    def arrival_age(sock: socket.socket) -> float:
        """Nobody knows."""
        return 0.0
