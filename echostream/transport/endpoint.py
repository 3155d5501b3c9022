"""A UDP socket and the connections on it."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections import deque
from dataclasses import dataclass
from typing import Self

from echostream.codes import Close
from echostream.errors import ConfigurationError
from echostream.transport.addresses import display_address, parse_address, resolve
from echostream.transport.arrival import arrival_age
from echostream.transport.connection import Connection
from echostream.transport.engine import Acceptor, Address, Engine
from echostream.transport.routing import OnConnection, Router
from echostream.transport.sockets import DatagramSocket, datagram_socket

__all__ = ["Endpoint", "EndpointStatistics", "parse_address"]

RECEIVE_BATCH = 128
"""Datagrams per readiness; then the loop gets its turn, so that a flood starves nobody."""

SEND_QUEUE = 1024
"""Datagrams that wait for a full socket buffer. The oldest goes first: QUIC repairs it."""

MOVE_EVERY_S = 1.0
"""A client whose address is gone opens another socket, no more often than this."""

SOCKET_BUFFER = 4 << 20
"""Bytes asked for in each direction; the system may grant fewer."""

# The systems' numbers for what the socket module does not name; where a socket has no such option,
# that is fine. A dual-stack socket has those of both families.
_NEVER_FRAGMENT = {  # RFC 9000, section 14: and what ICMP says of the path is not believed
    "linux": [(socket.IPPROTO_IP, 10, 3), (socket.IPPROTO_IPV6, 23, 3)],  # MTU_DISCOVER: PROBE
    "darwin": [(socket.IPPROTO_IP, 28, 1), (socket.IPPROTO_IPV6, 62, 1)],  # DONTFRAG
    "win32": [(socket.IPPROTO_IP, 14, 1), (socket.IPPROTO_IPV6, 14, 1)],  # DONTFRAGMENT
}
_ADDRESS_GONE = (errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENODEV, errno.EPIPE, errno.ENOTCONN)
_REPORT_ERRORS = [(socket.IPPROTO_IP, 11, 1), (socket.IPPROTO_IPV6, 25, 1)]  # IP_RECVERR


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """Counters since the endpoint was bound. Sizes are UDP payloads in bytes."""

    datagrams_received: int
    bytes_received: int
    datagrams_sent: int
    bytes_sent: int
    connections: int
    accepted: int
    answered: int
    """Datagrams answered without a connection (Retry, Version Negotiation, stateless reset)."""
    ignored: int
    """Datagrams that the acceptor did not want."""
    unroutable: int
    """Datagrams to an unknown connection ID on an endpoint that does not listen."""
    malformed: int
    """Datagrams too short to carry a connection ID."""
    send_queue_dropped: int
    too_large: int
    """Datagrams larger than the interface takes (EMSGSIZE)."""
    unreachable: int
    """Reports that nobody listens at a peer's address."""
    send_errors: int
    receive_errors: int


class _Socket(socket.socket):
    """Closes itself silently: a client's socket outlives the user's interest in it, for the
    closing period, and the loop may end before that."""

    def __del__(self) -> None:
        self.close()


class Endpoint:
    """One non-blocking UDP socket with any number of connections on it.

    It needs ``loop.add_reader``: asyncio's selector loops and uvloop have it. On Windows that is
    ``asyncio.SelectorEventLoop``; the default proactor loop has not.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        acceptor: Acceptor | None = None,
        on_connection: OnConnection | None = None,
        close_when_idle: bool = False,
    ) -> None:
        """Take over ``sock``, a bound UDP socket. ``close_when_idle`` releases it when its last
        connection is finished. Use :meth:`bind` to make the socket too."""
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._io: DatagramSocket = datagram_socket(sock)
        self._address = display_address(sock.getsockname())
        self._family = socket.AddressFamily(sock.family)
        self._close_when_idle = close_when_idle
        self._router = Router(
            self._send,
            loop=self._loop,
            acceptor=acceptor,
            on_connection=on_connection,
            on_idle=self._idle,
            arrival_age=self._arrival_age,
        )
        self._listens = acceptor is not None
        self._moved_at = -MOVE_EVERY_S
        self._batch = 0
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._released = False
        self._idle_waiter: asyncio.Future[None] | None = None
        self._datagrams_received = self._datagrams_sent = 0
        self._send_queue_dropped = self._too_large = self._unreachable = 0
        self._send_errors = self._receive_errors = 0
        # With the address that an ICMP error is about, and only where no stranger can cause one:
        # a pending error makes the next sendto fail, to whomever it goes.
        self._error_queue = (
            sys.platform == "linux" and acceptor is None and _try_options(sock, _REPORT_ERRORS)
        )
        try:
            self._loop.add_reader(sock.fileno(), self._readable)
        except NotImplementedError:
            sock.close()
            raise ConfigurationError(
                f"{type(self._loop).__name__} cannot watch a UDP socket: on Windows run on "
                "asyncio.SelectorEventLoop"
            ) from None

    @classmethod
    async def bind(
        cls,
        address: str | tuple[str, int],
        *,
        acceptor: Acceptor | None = None,
        on_connection: OnConnection | None = None,
        close_when_idle: bool = False,
    ) -> Self:
        """Bind a UDP socket; with ``acceptor`` and ``on_connection`` it listens.

        ``"[::]:port"`` and ``":port"`` take IPv4 too (where the host has no IPv6, ``":port"``
        takes IPv4 only). Port 0 lets the system choose; :attr:`address` tells. Raises
        :class:`ConfigurationError` when the address cannot be had.
        """
        host, port = parse_address(address)
        if not host:
            try:
                return cls(
                    _bound_socket(socket.AF_INET6, ("::", port, 0, 0)),
                    acceptor=acceptor,
                    on_connection=on_connection,
                    close_when_idle=close_when_idle,
                )
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _bind_error(host, port, error) from error
            host = "0.0.0.0"  # noqa: S104 - every interface is what was asked for
        try:
            family, resolved = (await resolve(host, port, passive=True))[0]
            sock = _bound_socket(family, resolved)
        except OSError as error:
            raise _bind_error(host, port, error) from error
        return cls(
            sock,
            acceptor=acceptor,
            on_connection=on_connection,
            close_when_idle=close_when_idle,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where the socket is bound."""
        return self._address

    @property
    def family(self) -> socket.AddressFamily:
        """The socket's family; addresses for :meth:`connect` have its shape."""
        return self._family

    @property
    def connections(self) -> list[Connection]:
        """All that are not finished: open, closing and draining ones."""
        return self._router.connections

    @property
    def closed(self) -> bool:
        """Whether the socket was released."""
        return self._released

    def connect(self, engine: Engine, address: Address) -> Connection:
        """Start a handshake. ``address`` is resolved, in the shape of the socket's family."""
        connection = self._router.connect(engine, address)
        if not self._listens:
            connection.move = self.move
        return connection

    def move(self) -> None:
        """Go on with a new socket, on any address of this host: the one before may be bound to an
        address that is gone. The peers are told. Only for an endpoint that does not listen."""
        if self._released or self._listens:
            return
        any_host = "::" if self._family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
        try:
            sock = _bound_socket(self._family, (any_host, 0))
        except OSError:
            self._send_errors += 1
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._queue.clear()
        sock.setblocking(False)
        self._sock = sock
        self._io = datagram_socket(sock)
        self._address = display_address(sock.getsockname())
        if self._error_queue:
            _try_options(sock, _REPORT_ERRORS)
        self._loop.add_reader(sock.fileno(), self._readable)
        self._moved_at = self._loop.time()
        self._router.moved()

    def statistics(self) -> EndpointStatistics:
        """A snapshot of the counters."""
        router = self._router
        return EndpointStatistics(
            datagrams_received=self._datagrams_received,
            bytes_received=self._io.bytes_received,
            datagrams_sent=self._datagrams_sent,
            bytes_sent=self._io.bytes_sent,
            connections=len(router.connections),
            accepted=router.accepted,
            answered=router.answered,
            ignored=router.ignored,
            unroutable=router.unroutable,
            malformed=router.malformed,
            send_queue_dropped=self._send_queue_dropped,
            too_large=self._too_large,
            unreachable=self._unreachable,
            send_errors=self._send_errors,
            receive_errors=self._receive_errors,
        )

    async def close(
        self, code: int = Close.GOING_AWAY, reason: str = "", *, linger: float = 0.0
    ) -> None:
        """Close every connection and release the socket: its port is free when this returns.

        For ``linger`` seconds at most, the socket stays for the connections' closing periods, in
        which a peer that did not get the close is told again (RFC 9000, section 10.2). Every
        handler has got ``Closed`` when this returns. Idempotent; cancelling releases at once.
        """
        if self._released:
            return
        self._router.stop_listening()
        for connection in self._router.connections:
            connection.close(code, reason)
        try:
            await asyncio.sleep(0)  # the turn in which the handlers learn
            if linger > 0 and self._router.connections:
                self._idle_waiter = self._loop.create_future()
                await asyncio.wait([self._idle_waiter], timeout=linger)
        finally:
            self._release()

    # Receiving

    def _readable(self) -> None:
        batch = self._io.receive(RECEIVE_BATCH)
        self._batch = len(batch)
        if self._io.error:
            self._receive_errors += 1
            self._read_errors()
        if batch:
            self._datagrams_received += len(batch)
            self._router.receive(batch)

    def _read_errors(self) -> None:
        """Take what the network reported about datagrams of ours (Linux: ``man 7 ip``)."""
        if self._error_queue and sys.platform == "linux":
            refused: dict[Address, None] = {}
            while True:
                try:
                    _, ancillary, _, address = self._sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
                except OSError:
                    break
                for _, _, report in ancillary:
                    if int.from_bytes(report[:4], "little") == errno.ECONNREFUSED:
                        refused[address] = None
            for address in refused:
                self._unreachable += 1
                self._router.unreachable(address)
        if not self._released:
            # libuv stops watching a descriptor on POLLERR: begin again.
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _arrival_age(self) -> float:
        """The kernel remembers the last datagram only."""
        return arrival_age(self._sock) if self._batch == 1 else 0.0

    # Sending

    def _send(self, datagrams: list[tuple[bytes, Address]]) -> None:
        if self._released:
            return
        if self._queue:
            self._enqueue(datagrams)
            return
        sent = self._hand_over(datagrams)
        if sent < len(datagrams):
            self._loop.add_writer(self._sock.fileno(), self._writable)
            self._enqueue(datagrams[sent:])

    def _hand_over(self, datagrams: list[tuple[bytes, Address]]) -> int:
        """Returns the index of the first for which the socket's buffer has no room. What cannot be
        sent is counted, never raised: to QUIC it is one more lost datagram."""
        start, end = 0, len(datagrams)
        while True:
            sent = self._io.send(datagrams, start)
            self._datagrams_sent += sent - start
            if sent == end or self._io.error == errno.EAGAIN:
                return sent
            self._send_failed(self._io.error, datagrams[sent])
            start = sent + 1

    def _enqueue(self, datagrams: list[tuple[bytes, Address]]) -> None:
        self._queue.extend(datagrams)
        while len(self._queue) > SEND_QUEUE:
            self._queue.popleft()
            self._send_queue_dropped += 1

    def _writable(self) -> None:
        waiting = list(self._queue)
        self._queue.clear()
        self._queue.extend(waiting[self._hand_over(waiting) :])
        if not self._queue:
            self._loop.remove_writer(self._sock.fileno())

    def _send_failed(self, error: int, datagram: tuple[bytes, Address]) -> None:
        if error == errno.EMSGSIZE:
            self._too_large += 1
            return
        self._send_errors += 1
        if error in _ADDRESS_GONE and self._loop.time() - self._moved_at >= MOVE_EVERY_S:
            self._moved_at = self._loop.time()
            self._loop.call_soon(self.move)
        if error == errno.ECONNREFUSED:
            # That was about an earlier datagram, to whomever. This one was not tried yet.
            self._loop.call_soon(self._pending_errors)
            if self._io.send([datagram]):
                self._datagrams_sent += 1
            else:
                self._send_errors += 1

    def _pending_errors(self) -> None:
        if not self._released:
            self._read_errors()

    # The end

    def _idle(self) -> None:
        if self._idle_waiter is not None and not self._idle_waiter.done():
            self._idle_waiter.set_result(None)
        elif self._close_when_idle:
            self._loop.call_soon(self._release)

    def _release(self) -> None:
        if self._released:
            return
        for connection in self._router.connections:
            connection.abandon()
        self._released = True
        self._queue.clear()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()


def _bound_socket(family: socket.AddressFamily, address: Address) -> socket.socket:
    """No SO_REUSEADDR: for UDP it would let two programs share a port without knowing."""
    sock = _Socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            dual_stack = address[0] == "::"
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        buffers = (socket.SO_RCVBUF, socket.SO_SNDBUF)
        _try_options(sock, [(socket.SOL_SOCKET, option, SOCKET_BUFFER) for option in buffers])
        _try_options(sock, _NEVER_FRAGMENT.get(sys.platform, []))
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _try_options(sock: socket.socket, options: list[tuple[int, int, int]]) -> bool:
    """Whether at least one of them was taken."""
    taken = False
    for level, option, value in options:
        try:
            sock.setsockopt(level, option, value)
            taken = True
        except OSError:
            pass
    return taken


def _bind_error(host: str, port: int, error: OSError) -> ConfigurationError:
    where = f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"
    if error.errno == errno.EADDRINUSE:
        what = "another socket has this UDP port; stop that program, or bind port 0 for a free one"
    elif error.errno == errno.EADDRNOTAVAIL:
        what = "no interface of this machine has that address; '0.0.0.0' or '[::]' takes them all"
    elif error.errno in (errno.EACCES, errno.EPERM):
        what = "this user may not have that port; choose one above 1023"
    elif isinstance(error, socket.gaierror):
        what = "the name does not resolve to an address of this machine"
    else:
        what = "choose another address"
    return ConfigurationError(f"cannot bind UDP {where}: {error.strerror or error}; {what}")
