"""``Group``: sessions of one server that are told things together.

One payload is encoded once, whatever the number of members. What becomes of a member that does not
read fast enough is the group's ``slow`` policy; it never delays the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed, ResourceExhausted
from echostream.protocol import payload as payloads
from echostream.rpc.call import Metadata, encode_metadata
from echostream.rpc.options import check_options
from echostream.rpc.registry import check_name
from echostream.rpc.scheduled import add_at

if TYPE_CHECKING:
    from echostream.rpc.context import ServerContext
    from echostream.rpc.session import Session

__all__ = ["PRESENCE", "Group", "GroupOptions", "GroupStatistics", "Slow"]

Slow = Literal["block", "drop_oldest", "drop_newest", "disconnect"]
SLOW = ("block", "drop_oldest", "drop_newest", "disconnect")
MAX_LAST_VALUES = 1024

PRESENCE = "group.presence"
"""The event that tells of members: ``{"group", "change", "members": [{"id", "info"}]}``, where the
change is ``"present"`` (to who joins: who is there), ``"joined"`` or ``"left"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """How a group treats its members.

    ``slow``: when more than ``backlog`` bytes of events wait for a member, its next ones are
    *drop_newest* dropped; *drop_oldest* kept, the last ``queue`` of them; *block* waited for by
    whoever broadcasts (the others have got them); *disconnect* its connection is closed.
    ``history``: a session that joins is sent the last so many events; ``last_values``: the last
    event of each name (of 1024 names). ``presence``: members are told who joins and leaves.
    """

    slow: Slow = "drop_oldest"
    backlog: int = 64 * 1024
    queue: int = 64
    history: int = 0
    last_values: bool = False
    presence: bool = False

    def __post_init__(self) -> None:
        if self.slow not in SLOW:
            raise ConfigurationError(f"slow={self.slow!r} must be one of {', '.join(SLOW)}")
        for name, low in (("backlog", 1024), ("queue", 1), ("history", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= 1 << 20:
                raise ConfigurationError(f"{name}={value!r} must be {low} to {1 << 20}")
        if self.history and self.last_values:
            raise ConfigurationError("history and last_values: a group has one or the other")


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """``broadcasts`` of this group, events ``sent`` to members, ``dropped`` because a member was
    slow, ``waiting`` for one that is, and members ``disconnected`` for it."""

    members: int
    broadcasts: int
    sent: int
    dropped: int
    waiting: int
    disconnected: int


class _Event(NamedTuple):
    name: str
    data: bytes
    metadata: bytes | None
    priority: int
    max_age: float | None


class _Member:
    """One session: its presence, and what waits for it."""

    __slots__ = ("info", "pump", "queue", "session")

    def __init__(self, session: Session, info: Any) -> None:
        self.session = session
        self.info = info
        self.queue: deque[_Event] = deque()
        self.pump: asyncio.Task[None] | None = None

    def behind(self, backlog: int) -> bool:
        peer = self.session._peer
        return self.pump is not None or peer.outbox.event_bytes > backlog or peer.sending.refuses

    def send(self, event: _Event) -> bool:
        """Queue it in the session; ``False`` where it can take nothing now."""
        return self.session._emit_encoded(
            event.name,
            event.data,
            metadata=event.metadata,
            priority=event.priority,
            max_age=event.max_age,
        )


class Group:
    """Some sessions of a server; made by ``ServerContext.group``. One that ends its connection
    leaves."""

    def __init__(self, name: str, options: GroupOptions, context: ServerContext) -> None:
        self.name = check_name(name, "group")
        self._context = context
        self.options = options
        self._members: dict[str, _Member] = {}
        self._history: deque[_Event] = deque(maxlen=options.history)
        self._last: dict[str, _Event] = {}
        self._broadcasts = self._sent = self._dropped = self._disconnected = 0

    def __repr__(self) -> str:
        return f"<Group {self.name!r} members={len(self._members)}>"

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, session: Session) -> bool:
        return session.id in self._members

    @property
    def members(self) -> tuple[Session, ...]:
        """Who is in it, in the order of joining."""
        return tuple(member.session for member in self._members.values())

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with this object: no member, and nothing remembered."""
        return not (self._members or self._history or self._last)

    def join(self, session: Session, info: Any = None) -> None:
        """Take a session in; it is sent what late joiners get. Idempotent. ``info`` is told to the
        others where the group has presence. Raises ``ConnectionClosed`` for one that is gone."""
        session._peer.check_open()
        if session.id in self._members:
            return
        member = _Member(session, info)
        if self.options.presence:
            self._offer(member, self._presence("present", *self._members.values()))
            self._tell(self._presence("joined", member), self._members.values())
        self._members[session.id] = member
        for event in (*self._history, *self._last.values()):
            self._offer(member, event)

    def leave(self, session: Session) -> None:
        """Let a session go; what waits for it here is dropped. Idempotent."""
        member = self._members.pop(session.id, None)
        if member is None:
            return
        if member.pump is not None:
            member.pump.cancel()
        self._dropped += len(member.queue)
        member.queue.clear()
        if self.options.presence:
            self._tell(self._presence("left", member), self._members.values())

    async def broadcast(
        self,
        event: str,
        payload: Any = None,
        *,
        where: Callable[[Session], bool] | None = None,
        exclude: Session | Collection[Session] = (),
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        at: int | None = None,
    ) -> int:
        """Emit to every member for which ``where`` holds and which is not in ``exclude``; returns
        to how many it went, or will go when they read. Waits only where ``slow="block"``.

        The payload is encoded once. ``at``: all listeners run at that time of the server's clock.
        Interceptors see it once.
        """
        check_name(event, "broadcast")
        check_options(max_age=max_age, priority=priority)
        attempt = partial(self._broadcast, event, where, exclude, priority, max_age, at)
        outgoing = self._context._outgoing
        if outgoing is None:
            return await attempt(payload, metadata)
        return await outgoing.broadcast(self._context, attempt, event, payload, metadata)

    async def _broadcast(
        self,
        event: str,
        where: Callable[[Session], bool] | None,
        exclude: Session | Collection[Session],
        priority: int,
        max_age: float | None,
        at: int | None,
        payload: Any,
        metadata: Metadata | None,
    ) -> int:
        told = _event(event, payload, metadata if at is None else add_at(metadata, at))
        told = told._replace(priority=-1 if priority == 3 else priority, max_age=max_age)
        self._broadcasts += 1
        if self.options.history:
            self._history.append(told)
        if self.options.last_values:
            self._last.pop(event, None)
            self._last[event] = told
            if len(self._last) > MAX_LAST_VALUES:
                del self._last[next(iter(self._last))]
        out = set(exclude) if isinstance(exclude, Collection) else {exclude}
        members = [
            member
            for member in self._members.values()
            if member.session not in out and (where is None or where(member.session))
        ]
        count, late = self._tell(told, members)
        if late:
            results = await asyncio.gather(*(self._wait_for(member, told) for member in late))
            count += sum(results)
        return count

    def statistics(self) -> GroupStatistics:
        """A snapshot of the counters."""
        return GroupStatistics(
            len(self._members),
            self._broadcasts,
            self._sent,
            self._dropped,
            sum(len(member.queue) for member in self._members.values()),
            self._disconnected,
        )

    def _presence(self, change: str, *members: _Member) -> _Event:
        who = [{"id": member.session.id, "info": member.info} for member in members]
        return _event(PRESENCE, {"group": self.name, "change": change, "members": who})

    def _tell(self, event: _Event, members: Collection[_Member]) -> tuple[int, list[_Member]]:
        """To how many it goes, and who has to be waited for."""
        count, late = 0, []
        for member in tuple(members):
            if self._offer(member, event):
                count += 1
            elif self.options.slow == "block" and member.session._peer.ended is None:
                late.append(member)
        return count, late

    def _offer(self, member: _Member, event: _Event) -> bool:
        """Give it to one member, as the policy says."""
        options = self.options
        if not member.behind(options.backlog) and member.send(event):
            self._sent += 1
            return True
        peer = member.session._peer
        if peer.ended is not None or options.slow == "block":
            return False
        if options.slow == "disconnect":
            self._disconnected += 1
            peer.close(Close.EXCESSIVE_LOAD, f"too slow for group {self.name}")
            self.leave(member.session)
            return False
        if options.slow == "drop_newest":
            self._dropped += 1
            return False
        if len(member.queue) >= options.queue:
            member.queue.popleft()
            self._dropped += 1
        member.queue.append(event)
        if member.pump is None:
            member.pump = peer.loop.create_task(self._catch_up(member))
            peer.pumps.add(member.pump)
            member.pump.add_done_callback(peer.pumps.discard)
        return True

    async def _catch_up(self, member: _Member) -> None:
        """Send what is kept for a slow member, as it reads."""
        peer = member.session._peer
        try:
            while member.queue:
                await peer.room.wait_event(self.options.backlog)
                if member.queue:
                    member.send(member.queue.popleft())
                    self._sent += 1
        except ConnectionClosed:
            pass  # it leaves with its session
        finally:
            member.pump = None

    async def _wait_for(self, member: _Member, event: _Event) -> bool:
        try:
            await member.session._peer.room.wait_event(self.options.backlog)
            sent = member.session.id in self._members and member.send(event)
        except (ConnectionClosed, ResourceExhausted):
            return False
        self._sent += sent
        return sent


def _event(name: str, payload: Any, metadata: Metadata | None = None) -> _Event:
    return _Event(name, payloads.encode(payload), encode_metadata(metadata), -1, None)


def group_of(
    groups: dict[str, Group], name: str, given: dict[str, Any], context: ServerContext
) -> Group:
    """The group of this name, made where it is not there. Raises ``ConfigurationError`` where it is
    there with other options."""
    group = groups.get(name)
    if group is None:
        for unused in [n for n, g in groups.items() if g.idle]:
            del groups[unused]
        known = [f.name for f in fields(GroupOptions)]
        for option in given:
            if option not in known:
                raise ConfigurationError(
                    f"unknown option {option!r} of a group; known: {', '.join(known)}"
                )
        group = groups[name] = Group(name, GroupOptions(**given), context)
        return group
    for option, value in given.items():
        if getattr(group.options, option, None) != value:
            raise ConfigurationError(f"group {name!r} is there already, with another {option}")
    return group
