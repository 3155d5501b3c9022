"""Announces a server on the local network, for as long as it serves."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import secrets

from zeroconf import (  # type: ignore[attr-defined]  # there, and not in its __all__
    DNSService,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from echostream.discovery.interfaces import (
    local_addresses,
    multicast_interfaces,
    open_multicast,
)
from echostream.discovery.service import MAX_NAME_BYTES, SERVICE_TYPE, Announcement
from echostream.errors import DiscoveryError

__all__ = ["Advertiser"]

logger = logging.getLogger("echostream.discovery")

PROBES, PROBE_S = 3, 0.25
"""Questions whether a name is taken, and the time after each (RFC 6762, section 8.1)."""
WATCH_S = 2.0
"""How often this host's addresses are looked at."""
RETRY_S = 5.0
"""After an error, as on a host whose network is not up yet."""
MAX_RENAMES = 15
"""Then a random name is taken: somebody claims every name on purpose (RFC 6762, section 8.1)."""
_WILDCARDS = {"0.0.0.0": (4,), "::": (4, 6)}  # noqa: S104 - compared, not bound


class Advertiser:
    """Announces one server: claims its name, follows this host's addresses, says goodbye.

    ``host`` and ``port`` are where the server is bound; on a wildcard all addresses of this host
    are announced, on any other only that one, and only on its interface. Announcing is an offer:
    its errors are logged and tried again, and the server serves without.
    """

    def __init__(
        self, announcement: Announcement, host: str, port: int, *, fingerprint: str | None = None
    ) -> None:
        self._announcement = announcement
        self._host = host
        self._port = port
        self._id = secrets.token_hex(8)
        self._fingerprint = fingerprint
        self._instance: str | None = None
        self._announced = asyncio.Event()
        self._conflict = asyncio.Event()
        self._renames = 0
        self._complained = False
        self._task: asyncio.Task[None] | None = None

    @property
    def instance(self) -> str | None:
        """The name that was claimed; ``None`` while there is none."""
        return self._instance if self._announced.is_set() else None

    @property
    def id(self) -> str:
        """Of this run."""
        return self._id

    def start(self) -> None:
        """Begin in the background: claiming a name takes most of a second."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait_announced(self) -> str:
        """Wait until the name is claimed and announced; returns it."""
        await self._announced.wait()
        assert self._instance is not None
        return self._instance

    async def close(self) -> None:
        """Say goodbye, so that clients need not find out. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled() and (failed := task.exception()) is not None:
                logger.error("announcing %r failed", self._announcement.name, exc_info=failed)

    async def _run(self) -> None:
        while True:
            try:
                multicast = open_multicast(self._interfaces())
                try:
                    await self._announce(multicast)
                finally:
                    self._announced.clear()
                    await multicast.async_close()  # with the goodbye
            except (OSError, DiscoveryError, ZeroconfError) as exc:
                log = logger.debug if self._complained else logger.warning
                log("%r is not announced: %s", self._announcement.name, exc)
                self._complained = True
            await asyncio.sleep(RETRY_S)

    async def _announce(self, multicast: AsyncZeroconf) -> None:
        """Announce until cancelled."""
        zeroconf = multicast.zeroconf
        await zeroconf.async_wait_for_start()
        while True:
            self._conflict.clear()
            info = await self._claim(zeroconf)
            watch = _ConflictWatch(info, self._conflict)
            zeroconf.async_add_listener(watch, None)
            try:
                await multicast.async_register_service(info, cooperating_responders=True)
                self._announced.set()
                logger.info("announced as %r", self._instance)
                await self._follow(multicast, info)
            finally:
                zeroconf.async_remove_listener(watch)
            self._announced.clear()
            await (await multicast.async_unregister_service(info))
            self._renames += 1

    async def _claim(self, zeroconf: Zeroconf) -> AsyncServiceInfo:
        """A name that nobody else says to have."""
        await asyncio.sleep(random.uniform(0, PROBE_S / 2))
        while True:
            self._instance = instance = self._candidate()
            info = AsyncServiceInfo(
                SERVICE_TYPE,
                f"{instance}.{SERVICE_TYPE}",
                self._port,
                properties=dict(self._announcement.txt(id=self._id, fingerprint=self._fingerprint)),
                server=f"{self._id}.local.",
                parsed_addresses=self._addresses(),
            )
            for _ in range(PROBES):
                if zeroconf.cache.current_entry_with_name_and_alias(info.type, info.name):
                    break
                zeroconf.async_send(zeroconf.generate_service_query(info))
                await asyncio.sleep(PROBE_S)
            else:
                if not zeroconf.cache.current_entry_with_name_and_alias(info.type, info.name):
                    return info
            self._renames += 1

    def _candidate(self) -> str:
        if not self._renames:
            return self._announcement.name
        tail = f"-{self._renames + 1}" if self._renames <= MAX_RENAMES else f"-{self._id}"
        if self._renames > MAX_RENAMES:
            self._id = secrets.token_hex(8)
        head = self._announcement.name.encode()[: MAX_NAME_BYTES - len(tail)]
        return head.decode(errors="ignore") + tail

    async def _follow(self, multicast: AsyncZeroconf, info: AsyncServiceInfo) -> None:
        """Follow this host's addresses, until somebody else has the name."""
        while not self._conflict.is_set():
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._conflict.wait()
            except TimeoutError:
                addresses = self._addresses()
                if addresses == info.parsed_addresses():
                    continue
                if self._interfaces() is None:
                    await multicast.async_update_interfaces(multicast_interfaces())
                info.addresses = [ipaddress.ip_address(each).packed for each in addresses]
                await multicast.async_update_service(info)
                logger.info("announced at %s", ", ".join(addresses))

    def _interfaces(self) -> list[str] | None:
        return None if self._host in _WILDCARDS else [self._host]

    def _addresses(self) -> list[str]:
        """Without interfaces: they mean something on this host only. IPv4 first, as zeroconf
        gives them back."""
        versions = _WILDCARDS.get(self._host)
        if versions is None:
            return [self._host.partition("%")[0]]
        plain = {ip.partition("%")[0] for ips in local_addresses().values() for ip in ips}
        found = [ip for ip in sorted(plain) if (6 if ":" in ip else 4) in versions]
        far = [ip for ip in found if ip != "::1" and not ip.startswith("127.")]
        return sorted(far or found, key=lambda ip: ":" in ip)


class _ConflictWatch(RecordUpdateListener):
    """Notices another server that announces the same name: of two that claimed it at the same
    moment, the one whose host and port are the smaller yields (after RFC 6762, section 8.2)."""

    def __init__(self, info: AsyncServiceInfo, conflict: asyncio.Event) -> None:
        self._key = info.name.lower()
        self._own = ((info.server or "").lower(), info.port)
        self._conflict = conflict

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        for update in records:
            record = update.new
            if isinstance(record, DNSService) and record.name.lower() == self._key:
                other = (record.server.lower(), record.port)
                if not record.is_expired(now) and other > self._own:
                    self._conflict.set()
