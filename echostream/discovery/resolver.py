"""Watches which servers the local network announces. What it holds is bounded."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Self

from zeroconf import (  # type: ignore[attr-defined]  # there, and not in its __all__
    BadTypeInNameException,
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSService,
    DNSText,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import (
    _CLASS_IN,
    _FLAGS_QR_QUERY,
    _TYPE_A,
    _TYPE_AAAA,
    _TYPE_PTR,
    _TYPE_SRV,
    _TYPE_TXT,
)

from echostream.discovery.interfaces import local_addresses, open_multicast
from echostream.discovery.one_shot import OneShot
from echostream.discovery.service import MAX_NAME_BYTES, SERVICE_TYPE, Service, service_from

__all__ = ["Browser", "ServiceChange", "discover_services"]

MAX_INSTANCES = 256
"""Announced instances that are looked at; further ones are counted."""
MAX_OTHERS = 8
QUERY_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Pauses before each question; then the last one for ever (RFC 6762, section 5.2)."""
ASK_MORE_S = 0.15
"""How long the rest about an instance may take to come by itself, before it is asked for."""
MAX_ASKED = 16
"""Instances that are asked about in one packet."""

Kind = Literal["added", "updated", "removed"]


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """What happened to a service. ``service`` is how it is now; of a removed one, how it was."""

    kind: Kind
    service: Service


async def discover_services(
    name: str | None = None, *, interfaces: list[str] | None = None
) -> AsyncIterator[ServiceChange]:
    """Every server that is announced on the local network, then each change, without end.

    ``name``: only servers that are to be found under it. ``interfaces``: the addresses of the
    interfaces to listen on, by default all. Raises ``DiscoveryError`` where multicast DNS cannot
    be used. Leave it with ``break`` and the sockets are closed when the iterator is collected;
    with :func:`contextlib.aclosing` at once.
    """
    async with Browser(name, interfaces=interfaces) as browser:
        async for change in browser:
            yield change


class Browser:
    """A live table of announced services: ``async with``, then ``async for`` over the changes.

    Changes of one service that were not read in time are joined, so that nothing piles up.
    """

    def __init__(self, name: str | None = None, *, interfaces: list[str] | None = None) -> None:
        self._name = None if name is None else name.casefold()
        self._interfaces = interfaces
        self._multicast: AsyncZeroconf | None = None
        self._table = _Table(name)
        self._services: dict[str, Service] = {}
        self._told: dict[str, Service] = {}
        self._news: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def services(self) -> tuple[Service, ...]:
        """Those that are announced now."""
        return tuple(self._services.values())

    @property
    def ignored(self) -> int:
        """Announcements beyond ``MAX_INSTANCES``."""
        return self._table.ignored

    @property
    def others(self) -> tuple[str, ...]:
        """Some instances that were seen and are not of the name that is looked for."""
        return tuple(self._table.others)

    async def __aenter__(self) -> Self:
        self._multicast = multicast = open_multicast(self._interfaces)
        await multicast.zeroconf.async_wait_for_start()
        question = DNSQuestion(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN)
        multicast.zeroconf.async_add_listener(self._table, [question])
        self._one_shot = OneShot(multicast.zeroconf)
        await self._one_shot.open(self._interfaces)
        asking = self._ask(multicast.zeroconf, self._one_shot)
        self._task = asyncio.get_running_loop().create_task(asking)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._multicast is not None
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._one_shot.close()
        self._multicast.zeroconf.async_remove_listener(self._table)
        await self._multicast.async_close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServiceChange:
        assert self._multicast is not None
        while True:
            self._refresh(self._multicast.zeroconf)
            while self._news:
                key = next(iter(self._news))
                del self._news[key]
                change = self._change(key)
                if change is not None:
                    return change
            self._table.changed.clear()
            await self._table.changed.wait()

    def _change(self, key: str) -> ServiceChange | None:
        now, before = self._services.get(key), self._told.get(key)
        if now is None:
            self._told.pop(key, None)
            return None if before is None else ServiceChange("removed", before)
        if now == before:
            return None
        self._told[key] = now
        return ServiceChange("added" if before is None else "updated", now)

    def _refresh(self, zeroconf: Zeroconf) -> None:
        """Read anew what changed in the cache."""
        table = self._table
        dirty, table.dirty = table.dirty, {}
        own: set[str] = set()
        if dirty:
            own = {ip.partition("%")[0] for ips in local_addresses().values() for ip in ips}
        for key in dirty:
            instance = table.instances.get(key)
            service = None if instance is None else self._read(zeroconf, instance, own)
            if service is None:
                self._services.pop(key, None)
            else:
                self._services[key] = service
            self._news[key] = None

    def _read(self, zeroconf: Zeroconf, instance: str, own: set[str]) -> Service | None:
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, f"{instance}.{SERVICE_TYPE}")
        except BadTypeInNameException:
            return None
        complete = info.load_from_cache(zeroconf)
        key = instance.lower()
        if info.server:
            self._table.hosts[key] = info.server.lower()
        if not complete:
            return None
        self._table.complete.add(key)
        service = service_from(
            instance, info.port or 0, info.parsed_scoped_addresses(), info.properties, own
        )
        if service is None or self._name not in (None, service.name.casefold()):
            return None
        return service

    async def _ask(self, zeroconf: Zeroconf, one_shot: OneShot) -> None:
        """Ask who is there, again and again, and for what is missing about those who are."""
        table = self._table
        pauses = iter(QUERY_S)
        while True:
            await asyncio.sleep(next(pauses, QUERY_S[-1]))
            everybody = (SERVICE_TYPE, (_TYPE_PTR,))
            one_shot.ask(_questions(everybody, id=secrets.randbits(15) + 1).packets())
            zeroconf.async_send(_questions(everybody))
            await asyncio.sleep(ASK_MORE_S)
            self._refresh(zeroconf)
            missing = [key for key in table.instances if key not in table.complete]
            for key in missing[:MAX_ASKED]:
                table.instances[key] = table.instances.pop(key)  # the others next time
                name = f"{table.instances[key]}.{SERVICE_TYPE}"
                wanted: list[tuple[str, tuple[int, ...]]] = [(name, (_TYPE_SRV, _TYPE_TXT))]
                if key in table.hosts:
                    wanted.append((table.hosts[key], (_TYPE_A, _TYPE_AAAA)))
                zeroconf.async_send(_questions(*wanted))
            if self._news:
                table.changed.set()


def _questions(*wanted: tuple[str, tuple[int, ...]], id: int = 0) -> DNSOutgoing:
    """A query: names, and the types of record that are asked for. One for the group has id 0."""
    out = DNSOutgoing(_FLAGS_QR_QUERY, multicast=not id, id_=id)
    for name, kinds in wanted:
        for kind in kinds:
            out.add_question(DNSQuestion(name, kind, _CLASS_IN))
    return out


class _Table(RecordUpdateListener):
    """The instances that were announced, by their name in lower case, and which of them have to
    be read anew. Called for every record that arrives, so it does as little as it can."""

    def __init__(self, name: str | None) -> None:
        self._beginning = (name or "").encode()[:40].decode(errors="ignore").casefold()
        self.instances: dict[str, str] = {}
        self.hosts: dict[str, str] = {}
        self.complete: set[str] = set()
        self.dirty: dict[str, None] = {}
        self.changed = asyncio.Event()
        self.others: dict[str, None] = {}
        self.ignored = 0

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        for update in records:
            record = update.new
            if isinstance(record, DNSPointer):
                if record.name.lower() == SERVICE_TYPE:
                    self._pointer(record.alias, record.is_expired(now))
            elif update.old is not None and not record.is_expired(now):
                continue  # refreshed
            elif isinstance(record, DNSService | DNSText):
                key = _instance(record.name).lower()
                if key in self.instances:
                    self.dirty[key] = None
            elif isinstance(record, DNSAddress):
                host = record.name.lower()
                self.dirty.update((key, None) for key, at in self.hosts.items() if at == host)

    def async_update_records_complete(self) -> None:
        if self.dirty:
            self.changed.set()

    def _pointer(self, alias: str, expired: bool) -> None:
        instance = _instance(alias)
        key = instance.lower()
        if expired:
            if self.instances.pop(key, None) is not None:
                self.hosts.pop(key, None)
                self.complete.discard(key)
                self.dirty[key] = None
        elif key in self.instances or not self._fits(instance):
            if key not in self.instances and instance and len(self.others) < MAX_OTHERS:
                self.others[instance[:MAX_NAME_BYTES]] = None
        elif len(self.instances) >= MAX_INSTANCES:
            self.ignored += 1
        else:
            self.instances[key] = instance
            self.dirty[key] = None

    def _fits(self, instance: str) -> bool:
        """One that was renamed still begins with the name that is looked for."""
        size = len(instance.encode(errors="replace"))
        return 0 < size <= MAX_NAME_BYTES and instance.casefold().startswith(self._beginning)


def _instance(full_name: str) -> str:
    """``AudioService`` of ``AudioService._echostream._udp.local.``; empty for another type."""
    suffix = "." + SERVICE_TYPE
    return full_name[: -len(suffix)] if full_name.lower().endswith(suffix) else ""
