"""Opening a connection to a name that has several addresses (RFC 8305, Happy Eyeballs)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from itertools import zip_longest

from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed, IdentityError
from echostream.transport.addresses import resolve
from echostream.transport.connection import Connection
from echostream.transport.endpoint import Endpoint
from echostream.transport.engine import Address, Engine

__all__ = ["dial", "dial_first"]

STAGGER = 0.25
"""Seconds before the next address gets its chance (RFC 8305, section 5)."""

_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""What a server's wildcard address means to a client on the same machine."""


async def dial(
    host: str,
    port: int,
    make_engine: Callable[[], Engine],
    *,
    timeout: float = 10.0,
    stagger: float = STAGGER,
    others: Sequence[tuple[str, int]] = (),
    check: Callable[[bytes | None], object] | None = None,
) -> Connection:
    """The first connection to any address of ``host`` whose handshake completes.

    ``others`` are further hosts and ports of the same server; they take part. ``check`` is called
    with the certificate (DER) of each server that answers; where it raises
    :class:`~echostream.errors.IdentityError`, that server is left at once and the others go on.
    Each attempt has an engine from ``make_engine`` and a socket of its own; those that lose are
    closed. The winner's socket is released when its connection is finished, closing period
    included. No event is lost: the connection keeps them for the handler that is attached next.

    Raises :class:`ConnectionClosed`, saying what was tried, when every attempt failed or
    ``timeout`` seconds passed, :class:`~echostream.errors.IdentityError` when an attempt failed
    for that, and :class:`ConfigurationError` for an address that cannot work.
    """
    if not host:
        raise ConfigurationError(f"':{port}' names no host to connect to: write 'localhost:{port}'")
    if not port:
        raise ConfigurationError(f"port 0 of {host!r} cannot be connected to: give the real port")
    race = _Race(make_engine, check)
    try:
        async with asyncio.timeout(timeout):
            return await race.run(await _addresses([(host, port), *others]), stagger)
    except TimeoutError:
        if race.refused is not None:
            raise race.refused from None
        tried = [*race.failures, *(f"{_show(address)}: no answer" for address in race.running())]
        what = "; ".join(tried) or "the name was still being looked up"
        raise ConnectionClosed(
            f"no connection to {host!r} port {port} within {timeout:g} s ({what})",
            code=Close.TIMEOUT,
        ) from None
    finally:
        await race.cancel()


async def dial_first(host: str, port: int, engine: Engine) -> Connection:
    """A connection to the first address of ``host``, whose handshake has only begun: what is
    written to it in this turn of the loop leaves with the first packet. Its socket is released with
    it."""
    family, address = (await _addresses([(host, port)]))[0]
    return (await _endpoint(family)).connect(engine, address)


class _Race:
    """The attempts of one dial."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        check: Callable[[bytes | None], object] | None,
    ) -> None:
        self.failures: list[str] = []
        self.refused: IdentityError | None = None
        self._make_engine = make_engine
        self._check = check
        self._tasks: dict[asyncio.Task[Connection], Address] = {}

    async def run(
        self, addresses: list[tuple[socket.AddressFamily, Address]], stagger: float
    ) -> Connection:
        waiting = list(addresses)
        last = ConnectionClosed("")
        while waiting or self._tasks:
            if waiting:
                family, address = waiting.pop(0)
                task = asyncio.ensure_future(self._attempt(family, address))
                self._tasks[task] = address
            done, _ = await asyncio.wait(
                self._tasks,
                timeout=stagger if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    address = self._tasks.pop(task)
                    return task.result()
                self.failures.append(f"{_show(self._tasks.pop(task))}: {error}")
                if isinstance(error, ConnectionClosed):
                    last = error
                elif isinstance(error, IdentityError):
                    self.refused = self.refused or error
                elif not isinstance(error, (OSError, ConfigurationError)):
                    raise error
        if self.refused is not None:
            raise self.refused
        raise ConnectionClosed(
            f"no connection ({'; '.join(self.failures)})",
            code=last.code,
            reason=last.reason,
            by_peer=last.by_peer,
        )

    async def _attempt(self, family: socket.AddressFamily, address: Address) -> Connection:
        connection = await _attempt(family, address, self._make_engine)
        if self._check is not None:
            completed = await connection.wait_connected()
            try:
                self._check(completed.certificate)
            except BaseException as exc:
                refused = isinstance(exc, IdentityError)
                connection.close(Close.IDENTITY_REFUSED if refused else Close.OK)
                raise
        return connection

    def running(self) -> list[Address]:
        """The addresses that have neither answered nor failed."""
        return list(self._tasks.values())

    async def cancel(self) -> None:
        """Close every attempt that is not the winner, also one that completed just now."""
        tasks = list(self._tasks)
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Connection):
                result.close()


async def _attempt(
    family: socket.AddressFamily, address: Address, make_engine: Callable[[], Engine]
) -> Connection:
    endpoint = await _endpoint(family)
    try:
        connection = endpoint.connect(make_engine(), address)
        refused = asyncio.Event()
        connection.on_unreachable = refused.set
        waits = [
            asyncio.ensure_future(connection.wait_connected()),
            asyncio.ensure_future(refused.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not waits[0].done():
                raise ConnectionRefusedError("refused, nothing listens on that port")
            waits[0].result()
        finally:
            for wait in waits:
                wait.cancel()
        connection.on_unreachable = None
    except BaseException:
        await endpoint.close(Close.OK)
        raise
    return connection


async def _endpoint(family: socket.AddressFamily) -> Endpoint:
    any_host = "[::]" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - sends only
    return await Endpoint.bind(f"{any_host}:0", close_when_idle=True)


async def _addresses(
    hosts: Sequence[tuple[str, int]],
) -> list[tuple[socket.AddressFamily, Address]]:
    """All addresses of all hosts, the families taking turns (RFC 8305, section 4)."""
    found: dict[Address, socket.AddressFamily] = {}
    failed: ConnectionClosed | None = None
    for host, port in hosts:
        try:
            resolved = await resolve(_REACHABLE.get(host, host), port)
        except OSError as error:
            failed = failed or ConnectionClosed(
                f"{host!r} cannot be resolved: {error.strerror or error}"
            )
            continue
        for family, address in resolved:
            found.setdefault(address, family)
    if not found:
        assert failed is not None
        raise failed
    first = next(iter(found.values()))
    preferred = [(family, address) for address, family in found.items() if family == first]
    others = [(family, address) for address, family in found.items() if family != first]
    return [item for pair in zip_longest(preferred, others) for item in pair if item is not None]


def _show(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
