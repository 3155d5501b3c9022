"""Opening a connection to a name that has several addresses (RFC 8305, Happy Eyeballs)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import zip_longest

from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed
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
) -> Connection:
    """The first connection to any address of ``host`` whose handshake completes.

    Each attempt has an engine from ``make_engine`` and a socket of its own; those that lose are
    closed. The winner's socket is released when its connection is finished, closing period
    included. No event is lost: the connection keeps them for the handler that is attached next.

    Raises :class:`ConnectionClosed`, saying what was tried, when every attempt failed or
    ``timeout`` seconds passed, and :class:`ConfigurationError` for an address that cannot work.
    """
    if not host:
        raise ConfigurationError(f"':{port}' names no host to connect to: write 'localhost:{port}'")
    if not port:
        raise ConfigurationError(f"port 0 of {host!r} cannot be connected to: give the real port")
    host = _REACHABLE.get(host, host)
    race = _Race(make_engine)
    try:
        async with asyncio.timeout(timeout):
            return await race.run(await _addresses(host, port), stagger)
    except TimeoutError:
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
    family, address = (await _addresses(_REACHABLE.get(host, host), port))[0]
    return (await _endpoint(family)).connect(engine, address)


class _Race:
    """The attempts of one dial."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self.failures: list[str] = []
        self._make_engine = make_engine
        self._tasks: dict[asyncio.Task[Connection], Address] = {}

    async def run(
        self, addresses: list[tuple[socket.AddressFamily, Address]], stagger: float
    ) -> Connection:
        waiting = list(addresses)
        last = ConnectionClosed("")
        while waiting or self._tasks:
            if waiting:
                family, address = waiting.pop(0)
                task = asyncio.ensure_future(_attempt(family, address, self._make_engine))
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
                elif not isinstance(error, (OSError, ConfigurationError)):
                    raise error
        raise ConnectionClosed(
            f"no connection ({'; '.join(self.failures)})",
            code=last.code,
            reason=last.reason,
            by_peer=last.by_peer,
        )

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


async def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Address]]:
    """All addresses, the families taking turns (RFC 8305, section 4)."""
    try:
        found = await resolve(host, port)
    except OSError as error:
        raise ConnectionClosed(f"{host!r} cannot be resolved: {error.strerror or error}") from error
    first = found[0][0]
    preferred = [item for item in found if item[0] == first]
    others = [item for item in found if item[0] != first]
    return [item for pair in zip_longest(preferred, others) for item in pair if item is not None]


def _show(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
