"""Contexts: where an application keeps what outlives one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from echostream.protocol import payload as payloads
from echostream.rpc.call import Metadata, encode_metadata
from echostream.rpc.caller import Caller
from echostream.rpc.group import Group, group_of
from echostream.rpc.options import check_options
from echostream.rpc.registry import check_name
from echostream.rpc.scheduled import add_at

if TYPE_CHECKING:
    from echostream.rpc.interceptors import Outgoing
    from echostream.rpc.session import Session

__all__ = ["ClientContext", "ServerContext", "Store"]

T = TypeVar("T")
D = TypeVar("D")
_MISSING: Any = object()


class Store:
    """Values by key, with a type check on the way out."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = dict(values or {})

    def set(self, key: str, value: Any) -> None:
        """Keep ``value`` under ``key``."""
        self._values[key] = value

    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, type: type[T]) -> T: ...
    @overload
    def get(self, key: str, type: type[T], default: D) -> T | D: ...
    @overload
    def get(self, key: str, *, default: D) -> Any | D: ...

    def get(self, key: str, type: type | None = None, default: Any = _MISSING) -> Any:
        """The value under ``key``. Raises ``KeyError`` when it is missing and no default is given,
        ``TypeError`` when it is not an instance of ``type``."""
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                known = ", ".join(sorted(self._values)) or "nothing"
                raise KeyError(f"{key!r} is not set here (set: {known})")
            return default
        if type is not None and not isinstance(value, type):
            raise TypeError(f"{key!r} holds {value.__class__.__name__}, asked for {type.__name__}")
        return value


class ServerContext(Store):
    """Facts of one server: shared values and the connected sessions."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values)
        self._sessions: dict[str, Session] = {}
        self._groups: dict[str, Group] = {}
        self._outgoing: Outgoing | None = None
        self.serving = False
        """Whether the server takes connections: from its start until it begins to stop."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions that are connected now."""
        return tuple(self._sessions.values())

    def group(self, name: str, **options: Any) -> Group:
        """The group of this name; the first use makes it, with ``options`` as of ``GroupOptions``:
        ``slow``, ``backlog``, ``queue``, ``history``, ``last_values``, ``presence``."""
        return group_of(self._groups, name, options, self)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that have members, or remember something."""
        return tuple(name for name, group in self._groups.items() if not group.idle)

    def _forget(self, session: Session) -> None:
        """A session has ended: it is in no group any more."""
        for group in tuple(self._groups.values()):
            group.leave(session)

    async def broadcast(
        self,
        event: str,
        payload: Any = None,
        *,
        where: Callable[[Session], bool] | None = None,
        metadata: Metadata | None = None,
        max_age: float | None = None,
        at: int | None = None,
    ) -> int:
        """Emit to every session (for which ``where`` holds); returns to how many.

        The payload is encoded once. A session that is closing, or whose peer does not read, is left
        out and not waited for. ``at``: all listeners run at that time of this server's clock.
        Interceptors see it once."""
        check_name(event, "broadcast")
        check_options(max_age=max_age)
        attempt = partial(self._broadcast, event, where, max_age, at)
        if self._outgoing is None:
            return await attempt(payload, metadata)
        return await self._outgoing.broadcast(self, attempt, event, payload, metadata)

    async def _broadcast(
        self,
        event: str,
        where: Callable[[Session], bool] | None,
        max_age: float | None,
        at: int | None,
        payload: Any,
        metadata: Metadata | None,
    ) -> int:
        encoded = payloads.encode(payload)
        extra = encode_metadata(metadata if at is None else add_at(metadata, at))
        count = 0
        for session in self.sessions:
            if (
                (where is None or where(session))
                and not session._peer.sending.refuses
                and session._emit_encoded(event, encoded, metadata=extra, max_age=max_age)
            ):
                count += 1
        return count


class ClientContext(Store, Caller):
    """Facts of one client, and its way to the server. Handlers on a client get this."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values)

    @property
    def server_addr(self) -> tuple[str, int]:
        """Host and port of the server that the client is connected to."""
        return self._peer.peer_addr
