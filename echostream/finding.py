"""Finds a server by name: what is configured, what the network announces; the key decides.

Where a search looks, all at once: the addresses that the program gave, those that the environment
variable ``ECHOSTREAM_SERVICES`` names, and multicast DNS. The variable holds
``NAME=ADDRESS,ADDRESS;NAME=TICKET``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echostream.discovery.service import Service, check_service_name
from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DiscoveryError,
    EchoStreamError,
    IdentityError,
)
from echostream.transport.addresses import parse_address
from echostream.transport.connection import Connection
from echostream.transport.service_trust import ServiceTrust
from echostream.transport.ticket import SCHEME, Ticket
from echostream.transport.trust import Trust

if TYPE_CHECKING:
    from echostream.builder import ClientConfig
    from echostream.client import RpcClient
    from echostream.discovery.resolver import Browser

__all__ = ["Search", "as_addresses", "configured_addresses", "find", "find_all", "find_one"]

logger = logging.getLogger("echostream.client")

VARIABLE = "ECHOSTREAM_SERVICES"
ATTEMPTS = 8
"""Handshakes that run at once."""
STAGGER_S = 0.1
"""Before the next candidate gets its chance beside those that have not answered."""
MAX_CANDIDATES = 512
"""Announcements that one search looks at: a service that changes with every packet is many."""
MAX_TOLD = 5
"""Failures that an error tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is looked for. ``where`` chooses among announced services; ``addresses`` are tried
    besides: ``"host:port"``, pairs or tickets."""

    name: str
    where: Callable[[Service], bool] | None = None
    addresses: tuple[str | tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_service_name(self.name)
        for address in self.addresses:
            _parsed(address)


async def find(config: ClientConfig) -> RpcClient:
    """The first server of the name that proves its key, connected.

    Raises ``DiscoveryError`` that says what was tried, or ``IdentityError`` where servers answered
    and none had a key to trust.
    """
    client, connection = await find_one(config)
    try:
        await client._open_on(connection)
    except BaseException:
        connection.close()
        raise
    return client


async def find_one(config: ClientConfig) -> tuple[RpcClient, Connection]:
    """The same, when nothing was said on the connection yet."""
    hunt = await _Hunt.begin(config, joining=False)
    try:
        async with asyncio.timeout(config.timeout):
            return await hunt.first()
    except TimeoutError:
        raise hunt.nothing() from None
    finally:
        await hunt.end()


async def find_all(config: ClientConfig) -> list[RpcClient]:
    """Every server of the name that was found within the time and proved its key, connected."""
    hunt = await _Hunt.begin(config, joining=True)
    clients: list[RpcClient] = []
    try:
        try:
            async with asyncio.timeout(config.timeout):
                while True:
                    client, connection = await hunt.first()
                    await client._open_on(connection)
                    clients.append(client)
        except TimeoutError:
            pass
        if not clients:
            raise hunt.nothing()
    except BaseException:
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
        raise
    finally:
        await hunt.end()
    return clients


def configured_addresses(name: str) -> list[str]:
    """What ``ECHOSTREAM_SERVICES`` says about a name. Raises ``ConfigurationError``."""
    found = []
    for part in os.environ.get(VARIABLE, "").split(";"):
        key, equals, value = part.strip().partition("=")
        if not key and not equals:
            continue
        if not key.strip() or not value.strip():
            raise ConfigurationError(
                f"{VARIABLE} must be 'NAME=HOST:PORT,HOST:PORT;NAME=TICKET'; {part!r} is not"
            )
        if key.strip().casefold() == name.casefold():
            is_ticket = value.strip().startswith(SCHEME)
            found += [value.strip()] if is_ticket else [each.strip() for each in value.split(",")]
    return found


class _Hunt:
    """One search that is under way."""

    def __init__(
        self, config: ClientConfig, trust: ServiceTrust, keys: frozenset[str] | None
    ) -> None:
        assert config.search is not None
        self._config = config
        self._search = config.search
        self._trust = trust
        self._keys = keys
        self._waiting: deque[RpcClient] = deque()
        self._doubtful: deque[RpcClient] = deque()
        self._attempts: dict[asyncio.Task[Connection], RpcClient] = {}
        self._seen: set[str] = set()
        self._browser: Browser | None = None
        self._news = asyncio.Event()
        self._browsing: asyncio.Task[None]
        self._browser_error: DiscoveryError | None = None
        self._failures: list[str] = []
        self._refused: IdentityError | None = None

    @classmethod
    async def begin(cls, config: ClientConfig, *, joining: bool) -> _Hunt:
        assert config.search is not None
        assert isinstance(config.trust, Trust)
        trust = ServiceTrust(trust=config.trust, service=config.search.name)
        keys = await asyncio.to_thread(trust.known_keys)
        hunt = cls(config, replace(trust, joining=joining and keys is None), keys)
        for address in [*config.search.addresses, *configured_addresses(config.search.name)]:
            hunt._add(_with_address(config, address))
        hunt._browsing = asyncio.get_running_loop().create_task(hunt._browse())
        return hunt

    async def first(self) -> tuple[RpcClient, Connection]:
        """The next candidate that proves its key, not greeted yet. Waits for ever, but raises
        ``TimeoutError`` when no more can come."""
        while True:
            done = [task for task in self._attempts if task.done()]
            for task in done:
                client = self._attempts.pop(task)
                error = task.exception()
                if error is None:
                    return client, task.result()
                self._note(client, error)
            if (candidate := self._next()) is not None:
                self._attempts[asyncio.ensure_future(candidate._reach())] = candidate
            waits: set[asyncio.Future[Any]] = {*self._attempts}
            if not self._browsing.done():
                waits.add(self._browsing)
            else:
                self._browsing.result()
                if not self._attempts and not self._waiting and not self._doubtful:
                    raise TimeoutError  # nothing can come any more
            self._news.clear()
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait(
                    {news, *waits},
                    timeout=STAGGER_S if self._waiting or self._doubtful else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                news.cancel()

    async def end(self) -> None:
        """Stop looking; close what answered too late."""
        tasks = list(self._attempts)
        self._attempts.clear()
        self._browsing.cancel()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Connection):
                result.close()
        await asyncio.wait((self._browsing,))

    def nothing(self) -> EchoStreamError:
        """The error of a search that has ended without a server."""
        for task, client in self._attempts.items():
            if not task.done():
                self._failures.append(f"{_shown(client)}: no answer")
        name, seconds = self._search.name, self._config.timeout
        failed = "; ".join(self._failures[:MAX_TOLD])
        if len(self._failures) > MAX_TOLD:
            failed += f"; and {len(self._failures) - MAX_TOLD} more"
        if self._refused is not None:
            return IdentityError(f"no server of the name {name!r} could be trusted. {failed}")
        return DiscoveryError(
            f"no server of the name {name!r} was found within {seconds:g} s. "
            + self._told(failed)
            + f"Multicast does not pass into containers, VLANs and guest networks. An address "
            f"always works: RpcClient.connect('HOST:PORT'), {VARIABLE}='{name}=HOST:PORT', or a "
            "ticket, which `echostream identity ticket` prints on the server's side"
        )

    def _told(self, failed: str) -> str:
        from echostream.discovery.interfaces import described

        tried = f"Tried and failed: {failed}. " if failed else ""
        if self._browser_error is not None:
            return f"{tried}Not asked for in the network: {self._browser_error}. "
        seen = () if self._browser is None else self._browser.others
        others = ", ".join(repr(each) for each in sorted(seen)[:MAX_TOLD])
        asked = f"Asked by multicast DNS for _echostream._udp.local on {described()}"
        return f"{tried}{asked}; found there: {others or 'nothing'}. "

    async def _browse(self) -> None:
        from echostream.discovery.resolver import Browser

        try:
            async with Browser(self._search.name) as browser:
                self._browser = browser
                async for change in browser:
                    if change.kind != "removed":
                        self._consider(change.service)
        except DiscoveryError as exc:
            self._browser_error = exc

    def _consider(self, service: Service) -> None:
        where = self._search.where
        seen = f"{service.id}{service.addresses}{service.port}{service.fingerprint}"
        if seen in self._seen or len(self._seen) >= MAX_CANDIDATES:
            return
        if where is not None and not where(service):
            return
        self._seen.add(seen)
        hint = service.fingerprint
        pin = self._trust.trust.fingerprint
        if pin is not None and hint not in (None, pin):
            error = IdentityError(f"it announces the key {hint}, but fingerprint= asks for {pin}")
            self._refuse(f"{service.instance!r} at {service.addresses[0]}:{service.port}", error)
            return
        addresses = self._trust.usable(service.addresses, self._keys)
        if not addresses:
            self._failures.append(
                f"{service.instance!r} announces addresses outside of this network only, and "
                "its key is not known"
            )
            return
        hosts = [(address, service.port) for address in addresses]
        trust = replace(self._trust, hint=hint)
        self._add(
            replace(
                self._config,
                address=hosts[0],
                others=tuple(hosts[1:]),
                trust=trust,
                server_name=self._config.server_name
                or (self._search.name if trust.trust.ca is not None else None),
            ),
            # It may have a new key, for which a known one vouches: the handshake tells.
            doubtful=self._keys is not None and hint not in self._keys,
        )

    def _add(self, config: ClientConfig, *, doubtful: bool = False) -> None:
        from echostream.client import RpcClient

        queue = self._doubtful if doubtful else self._waiting
        queue.append(RpcClient(replace(config, search=None)))
        self._news.set()

    def _next(self) -> RpcClient | None:
        """Who may be tried now. The doubtful ones leave room for the others."""
        if self._waiting and len(self._attempts) < ATTEMPTS:
            return self._waiting.popleft()
        if self._doubtful and len(self._attempts) < ATTEMPTS // 2:
            return self._doubtful.popleft()
        return None

    def _note(self, client: RpcClient, error: BaseException) -> None:
        if isinstance(error, IdentityError):
            self._refuse(_shown(client), error)
        elif isinstance(error, (ConnectionClosed, ConfigurationError, OSError)):
            self._failures.append(f"{_shown(client)}: {error}")
        else:
            raise error

    def _refuse(self, where: str, error: IdentityError) -> None:
        self._refused = self._refused or error
        self._failures.append(f"{where}: {error}")
        logger.info("passed over %s: %s", where, error)


def _shown(client: RpcClient) -> str:
    host, port = client._config.address
    return f"{host}:{port}"


def _parsed(address: str | tuple[str, int]) -> Ticket | tuple[str, int]:
    if isinstance(address, str) and address.startswith(SCHEME):
        return Ticket.parse(address)
    return parse_address(address)


def _with_address(config: ClientConfig, address: str | tuple[str, int]) -> ClientConfig:
    """Trusted as an address is: what was announced has no part in it."""
    parsed = _parsed(address)
    if isinstance(parsed, Ticket):
        trust = Trust(fingerprint=parsed.fingerprint)
        first, *others = parsed.addresses
        credentials = config.credentials
        if parsed.token and credentials.token is None:
            credentials = replace(credentials, token=parsed.token)
        return replace(
            config, address=first, others=tuple(others), trust=trust, credentials=credentials
        )
    return replace(config, address=parsed)


def as_addresses(addresses: Sequence[str | tuple[str, int]]) -> tuple[str | tuple[str, int], ...]:
    """Several addresses. Raises ``ConfigurationError`` where one was given in their place."""
    if isinstance(addresses, str):
        raise ConfigurationError(f"addresses= takes several: addresses=[{addresses!r}]")
    return tuple(addresses)
