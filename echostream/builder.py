"""Builders: everything is given before, checked once, and frozen by :meth:`build`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from echostream.discovery.service import Announcement, Service
from echostream.errors import ConfigurationError
from echostream.finding import Search, as_addresses
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.plugin.installer import PluginInstaller, find_plugin
from echostream.protocol.hello import Limits
from echostream.rpc.authentication import Authenticator, Authorize, ClientCredentials
from echostream.rpc.backoff import Reconnect
from echostream.rpc.context import ClientContext
from echostream.rpc.dispatch import Routes
from echostream.rpc.interceptors import Interceptor, Outgoing, overriding
from echostream.rpc.registry import Kind, Registry
from echostream.rpc.retry import RetryPolicy
from echostream.rpc.schema import DESCRIBE, describe
from echostream.rpc.session import Session
from echostream.rpc.typed import interface_methods, is_event
from echostream.transport.addresses import parse_address
from echostream.transport.client_proof import load_authorities
from echostream.transport.identity import Identity
from echostream.transport.quic.options import QuicOptions
from echostream.transport.service_trust import ServiceTrust
from echostream.transport.ticket import SCHEME, Ticket
from echostream.transport.trust import Trust

if TYPE_CHECKING:
    from echostream.client import Connecting
    from echostream.server import RpcServer

__all__ = ["ClientBuilder", "ClientConfig", "Hooks", "ServerBuilder", "ServerConfig"]

T = TypeVar("T")
Hook: TypeAlias = Callable[[Any], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Lifecycle hooks, in the order in which they were added."""

    start: tuple[Hook, ...] = ()
    shutdown: tuple[Hook, ...] = ()
    connect: tuple[Hook, ...] = ()
    disconnect: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server's parsed configuration."""

    address: tuple[str, int]
    identity: Identity | None
    resume: Callable[[Session], Coroutine[Any, Any, int]] | None
    values: dict[str, Any]
    routes: Routes
    hooks: Hooks
    limits: Limits
    quic: QuicOptions
    now_ns: Callable[[], int] | None
    outgoing: Outgoing | None
    plugins: tuple[str, ...]
    announcement: Announcement | None = None
    authenticator: Authenticator | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """A client's parsed configuration. ``others`` are further addresses of the same server."""

    address: tuple[str, int]
    trust: Trust | ServiceTrust
    server_name: str | None
    timeout: float
    reconnect: Reconnect | None
    further: tuple[tuple[str, int], ...]
    values: dict[str, Any]
    routes: Routes
    hooks: Hooks
    limits: Limits
    quic: QuicOptions
    now_ns: Callable[[], int] | None
    outgoing: Outgoing | None
    plugins: tuple[str, ...] = field(default=())
    others: tuple[tuple[str, int], ...] = ()
    search: Search | None = None
    credentials: ClientCredentials = field(default=ClientCredentials())


class _Builder:
    """What both builders share."""

    _context: type
    _other: type
    _plugin_kind: type

    def __init__(self) -> None:
        contexts, others = (self._context,), (self._other,)
        self._handlers = Registry(Kind.HANDLER, contexts, others)
        self._listeners = Registry(Kind.LISTENER, contexts, others)
        self._streams = Registry(Kind.STREAM, contexts, others)
        self._values: dict[str, Any] = {}
        self._hooks: dict[str, list[Hook]] = {f.name: [] for f in fields(Hooks)}
        self._plugins = PluginInstaller(self, self._plugin_kind)
        self._limits = Limits()
        self._quic: dict[str, Any] = {}
        self._now_ns: Callable[[], int] | None = None
        self._interceptors: list[Interceptor] = []
        self._retry: RetryPolicy | None = None
        self._introspection = False
        self._built = False

    def set(self, key: str, value: Any) -> Self:
        """A value for the context: ``context.get(key)``."""
        self._values[key] = value
        return self

    def handler(self, name: Any, function: Callable[..., Any] | None = None) -> Self:
        """Register a request handler: ``.handler(fn)`` or ``.handler("name", fn)``."""
        self._handlers.add(name, function)
        return self

    def listener(self, name: Any, function: Callable[..., Any] | None = None) -> Self:
        """Register an event listener: ``.listener(fn)`` or ``.listener("name", fn)``."""
        self._listeners.add(name, function)
        return self

    def stream_handler(self, name: Any, function: Callable[..., Any] | None = None) -> Self:
        """Register a stream handler: ``.stream_handler(fn)`` or ``.stream_handler("name", fn)``."""
        self._streams.add(name, function)
        return self

    def on_connect(self, function: Hook) -> Self:
        """Run when a connection stands, before any handler. If it raises, it is closed."""
        return self._hook("connect", function)

    def on_disconnect(self, function: Hook) -> Self:
        """Run when a connection has ended."""
        return self._hook("disconnect", function)

    def interceptor(self, interceptor: Interceptor) -> Self:
        """Put something around all calls, events and streams; the first one is outermost."""
        self._interceptors.append(interceptor)
        overriding(self._interceptors, "incoming")
        return self

    def retry(self, policy: RetryPolicy | None = None) -> Self:
        """Try calls again that were made with ``idempotent=True`` and failed for a while."""
        self._retry = RetryPolicy() if policy is None else policy
        return self

    def implement(self, interface: Callable[..., T], implementation: T) -> Self:
        """Register the methods of an object under the names of an interface class: what the other
        side binds with ``bind(interface)``. Those marked as events become listeners."""
        names = interface_methods(interface)
        for attribute, (name, function) in names.items():
            method = getattr(implementation, attribute)
            (self._listeners if is_event(function) else self._handlers).add(name, method)
        return self

    def introspection(self) -> Self:
        """Let the other side ask what this one offers (``echostream call ADDR --list``)."""
        self._introspection = True
        return self

    def limits(self, **limits: int) -> Self:
        """What this side accepts; the names are the fields of ``Limits``."""
        known = [f.name for f in fields(Limits)]
        for name in limits:
            if name not in known:
                raise ConfigurationError(f"unknown limit {name!r}; known: {', '.join(known)}")
        self._limits = Limits(**{n: getattr(self._limits, n) for n in known} | limits)
        return self

    def quic(self, **options: Any) -> Self:
        """Options of the QUIC engine, for example ``idle_timeout=30.0``; see ``QuicOptions``."""
        known = [f.name for f in fields(QuicOptions)]
        for name in options:
            if name not in known:
                raise ConfigurationError(f"unknown QUIC option {name!r}; known: {', '.join(known)}")
        QuicOptions(**self._quic | options)
        self._quic |= options
        return self

    def local_clock(self, now_ns: Callable[[], int]) -> Self:
        """The clock that this side's timestamps are of, instead of the system's monotonic one:
        that of a sound device, for example. It tells ns, never steps back, and is called often."""
        if not callable(now_ns) or not isinstance(now_ns(), int):
            raise ConfigurationError(
                ".local_clock() wants a function that returns whole ns, such as time.monotonic_ns"
            )
        self._now_ns = now_ns
        return self

    def _requiring(self) -> list[str]:
        every = (self._handlers, self._listeners, self._streams)
        return [name for registry in every for name in registry.requiring]

    def _hook(self, name: str, function: Hook) -> Self:
        if not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004
        ):
            shown = getattr(function, "__qualname__", repr(function))
            raise ConfigurationError(f".on_{name}({shown}) wants a function made with `async def`")
        self._hooks[name].append(function)
        return self

    def _install(self, plugin: Any, options: dict[str, Any]) -> Self:
        if isinstance(plugin, str):
            plugin = find_plugin(plugin, options)
        elif options:
            raise ConfigurationError("options go with the name of a plugin, not with a plugin")
        self._plugins.add(plugin)
        return self

    def _common(self) -> dict[str, Any]:
        if self._built:
            raise ConfigurationError("this builder was used already: make a new one")
        self._built = True
        plugins = self._plugins.finish()
        if self._introspection:
            description = describe(Routes(self._handlers, self._listeners, self._streams))

            async def tell() -> dict[str, Any]:
                return description

            self._handlers.add(DESCRIBE, tell)
        inside = overriding(self._interceptors, "incoming")
        outside = overriding(self._interceptors, "outgoing")
        return {
            "values": dict(self._values),
            "routes": Routes(
                *(
                    registry.frozen(self._limits.nesting, self._limits.items, inside)
                    for registry in (self._handlers, self._listeners, self._streams)
                )
            ),
            "outgoing": Outgoing(outside, self._retry) if outside or self._retry else None,
            "hooks": Hooks(**{name: tuple(found) for name, found in self._hooks.items()}),
            "limits": self._limits,
            "quic": QuicOptions(**self._quic),
            "now_ns": self._now_ns,
            "plugins": plugins,
        }


class ServerBuilder(_Builder):
    """Configures a server. Every method returns the builder; :meth:`build` checks it all."""

    _context = Session
    _other = ClientContext
    _plugin_kind = ServerPlugin

    def __init__(self) -> None:
        super().__init__()
        self._address: tuple[str, int] | None = None
        self._identity: Identity | None = None
        self._resume: Callable[[Session], Coroutine[Any, Any, int]] | None = None
        self._announcement: Announcement | None = None
        self._authenticator: Authenticator | None = None

    def bind(self, address: str | tuple[str, int]) -> Self:
        """Where to listen: ``"0.0.0.0:5000"``, ``"[::]:5000"``, ``":0"`` (any free port), or a
        pair."""
        self._address = parse_address(address)
        return self

    def identity(self, identity: Identity) -> Self:
        """Who the server is. Without it: a self-signed identity that is made once and kept."""
        if not isinstance(identity, Identity):
            raise ConfigurationError(
                f".identity() wants an Identity, got {type(identity).__name__}: "
                "Identity.self_signed(), or .tls(certificate, key)"
            )
        self._identity = identity
        return self

    def tls(self, certificate: str | os.PathLike[str], private_key: str | os.PathLike[str]) -> Self:
        """Who the server is, from a certificate chain and a key in PEM files."""
        return self.identity(Identity.from_pem(certificate, private_key))

    def on_resume(self, function: Callable[[Session], Coroutine[Any, Any, int]]) -> Self:
        """Run for a client that reconnects and that this server does not know, because it was
        started anew: the number of the client's last event (``current_call().event_number``, by
        ``session.resume_id``) that an earlier one has handled, 0 for none. What it returns will
        not be delivered again."""
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(".on_resume() wants a function made with `async def`")
        self._resume = function
        return self

    def enable_discovery(self, name: str, *, properties: Mapping[str, str] | None = None) -> Self:
        """Announce the server in the local network: ``RpcClient.discover(name)`` finds it.

        ``properties`` are announced too, for ``where=``: short keys, texts of at most 200 bytes.
        Everybody in the network can read and imitate them."""
        self._announcement = Announcement(name=name, properties=dict(properties or {}))
        return self

    def authenticate(
        self,
        function: Authorize | None = None,
        *,
        ca: str | os.PathLike[str] | bytes | None = None,
        timeout: float = 5.0,
    ) -> Self:
        """Find out who a client is before anything of it is served.

        ``async def function(session, credentials)`` gets what the client said and proved, returns
        what it is granted (names for ``requires=``) and raises ``PermissionDenied`` to refuse it.
        ``ca``: clients must have a certificate of this authority (PEM). ``timeout``: seconds.
        """
        if self._authenticator is not None:
            raise ConfigurationError(".authenticate() was given already; one function decides")
        if function is None and ca is None:
            raise ConfigurationError(".authenticate() wants a function, ca= or both")
        if function is not None and not inspect.iscoroutinefunction(function):
            shown = getattr(function, "__qualname__", repr(function))
            raise ConfigurationError(f".authenticate({shown}) wants a function made with async def")
        self._authenticator = Authenticator(
            authorize=function,
            authorities=() if ca is None else load_authorities(ca),
            timeout=_checked_timeout(timeout),
        )
        return self

    def on_start(self, function: Hook) -> Self:
        """Run with the ``ServerContext`` before the server listens; an error fails the start."""
        return self._hook("start", function)

    def on_shutdown(self, function: Hook) -> Self:
        """Run with the ``ServerContext`` after the last connection was closed."""
        return self._hook("shutdown", function)

    def plugin(self, plugin: ServerPlugin | str, **options: Any) -> Self:
        """Install a plugin: an object, or the name under which an installed package offers one
        (entry point group ``echostream.plugins``), made with ``options``."""
        return self._install(plugin, options)

    def build(self) -> RpcServer:
        """Check everything and make the server. Raises ``ConfigurationError``."""
        from echostream.server import RpcServer

        if self._address is None:
            raise ConfigurationError("the server has no address: add .bind('0.0.0.0:5000')")
        if self._authenticator is None and (names := self._requiring()):
            raise ConfigurationError(
                f"{names[0]!r} requires a grant, and nobody grants any: add .authenticate(...)"
            )
        return RpcServer(
            ServerConfig(
                address=self._address,
                identity=self._identity,
                resume=self._resume,
                announcement=self._announcement,
                authenticator=self._authenticator,
                **self._common(),
            )
        )


class ClientBuilder(_Builder):
    """Configures a client. Every method returns the builder; :meth:`build` checks it all."""

    _context = ClientContext
    _other = Session
    _plugin_kind = ClientPlugin

    def __init__(self) -> None:
        super().__init__()
        self._address: tuple[str, int] | None = None
        self._others: tuple[tuple[str, int], ...] = ()
        self._search: Search | None = None
        self._ticket: Ticket | None = None
        self._credentials: dict[str, Any] = {}
        self._trust: dict[str, Any] = {}
        self._server_name: str | None = None
        self._timeout = 10.0
        self._reconnect: Reconnect | None = None
        self._further: tuple[tuple[str, int], ...] = ()

    def connect(
        self,
        address: str | tuple[str, int] | Ticket,
        *,
        timeout: float = 10.0,
        server_name: str | None = None,
    ) -> Self:
        """Where the server is, how long connecting may take (s), and the name in its certificate
        where that is not the host. A ticket names its addresses and its key as well."""
        if isinstance(address, str) and address.lstrip().startswith(SCHEME):
            address = Ticket.parse(address)
        if isinstance(address, Ticket):
            self._ticket = address
            self.trust(fingerprint=address.fingerprint)
            self._others = address.addresses[1:]
            address = address.addresses[0]
        else:
            self._others, self._ticket = (), None
        host, port = _server(address)
        self._timeout = _checked_timeout(timeout)
        self._address = host, port
        self._search = None
        self._server_name = server_name
        return self

    def discover(
        self,
        name: str,
        *,
        timeout: float = 3.0,
        where: Callable[[Service], bool] | None = None,
        addresses: Sequence[str | tuple[str, int]] = (),
        server_name: str | None = None,
    ) -> Self:
        """Find the server by name instead; see :meth:`RpcClient.discover`."""
        self._timeout = _checked_timeout(timeout)
        self._search = Search(name=name, where=where, addresses=as_addresses(addresses))
        self._address, self._others = (name, 0), ()
        self._server_name = server_name
        return self

    def trust(self, **trust: Any) -> Self:
        """How the server proves who it is: ``fingerprint=``, ``ca=``, ``known_hosts=`` or
        ``insecure=True``; see ``Trust``. Without any: a known host, then the system's
        authorities, and for private addresses trust on first use."""
        known = [f.name for f in fields(Trust)]
        for name in trust:
            if name not in known:
                raise ConfigurationError(
                    f"unknown trust option {name!r}; known: {', '.join(known)}"
                )
        given = self._trust | {name: value for name, value in trust.items() if value is not None}
        pin = given.get("fingerprint")
        if (
            self._ticket is not None
            and pin is not None
            and Trust(fingerprint=pin).fingerprint != self._ticket.fingerprint
        ):
            raise ConfigurationError("fingerprint= and the ticket name different keys")
        Trust(**given)
        self._trust = given
        return self

    def credentials(self, *, token: str | None = None, identity: Identity | None = None) -> Self:
        """Who this client is, for a server with ``.authenticate(...)``: a token that it knows, a
        key that is proved to it, or both. The key is shown to no server that does not ask."""
        given = {"token": token, "identity": identity}
        self._credentials |= {key: value for key, value in given.items() if value is not None}
        ClientCredentials(**self._credentials)
        return self

    def reconnect(
        self,
        *,
        attempts: int | None = None,
        first_backoff: float = 0.1,
        max_backoff: float = 3.0,
        keepalive: float = 5.0,
        early_data: bool = False,
        addresses: Sequence[str | tuple[str, int]] = (),
    ) -> Self:
        """Come back after every loss of the connection; the client object stays the same.

        A call that waits goes on with the next connection; one whose fate is unknown ends with
        ``Unavailable``, an idempotent one is made again. Reliable events are kept, and delivered
        once and in order. ``on_connect`` and ``on_disconnect`` run for each connection:
        subscribe and open streams there.

        ``attempts``: failures in a row after which it gives up, ``None`` never. ``first_backoff``,
        ``max_backoff``: seconds between attempts, doubled each time, of which a random part is
        waited. ``keepalive``: after so many seconds of silence the server is asked for a sign of
        life, after three times as many the connection is given up. ``addresses``: further servers
        that do as well, tried in turn when one leaves or fails.

        A later connection to the same server resumes the session, and idempotent calls leave with
        its first packet (0-RTT), unless there are ``on_connect`` hooks, which come first.
        ``early_data``: they leave so in any case; tickets are kept for the next run of the program
        (in a file of mode 0600), and the first connect returns at once where there is one.
        """
        self._further = tuple(_server(address) for address in addresses)
        self._reconnect = Reconnect(
            attempts=attempts,
            first_backoff=first_backoff,
            max_backoff=max_backoff,
            keepalive=keepalive,
            early_data=early_data,
        )
        return self

    def plugin(self, plugin: ClientPlugin | str, **options: Any) -> Self:
        """Install a plugin: an object, or the name under which an installed package offers one
        (entry point group ``echostream.plugins``), made with ``options``."""
        return self._install(plugin, options)

    def build(self) -> Connecting:
        """Check everything; await the result, or use it with ``async with``, to connect."""
        from echostream.client import Connecting

        if self._address is None:
            raise ConfigurationError(
                "the client has no server: add .connect('127.0.0.1:5000') or .discover('Name')"
            )
        if names := self._requiring():
            raise ConfigurationError(
                f"{names[0]!r} requires a grant: only a server grants any, so only its handlers may"
            )
        credentials = dict(self._credentials)
        if self._ticket is not None and self._ticket.token:
            credentials.setdefault("token", self._ticket.token)
        if self._reconnect is not None:
            every = self._reconnect.keepalive
            self._quic = {"keep_alive": every, "idle_timeout": 3 * every} | self._quic
        return Connecting(
            ClientConfig(
                credentials=ClientCredentials(**credentials),
                address=self._address,
                trust=Trust(**self._trust),
                server_name=self._server_name,
                timeout=self._timeout,
                reconnect=self._reconnect,
                further=self._further,
                others=self._others,
                search=self._search,
                **self._common(),
            )
        )


def _server(address: str | tuple[str, int]) -> tuple[str, int]:
    host, port = parse_address(address)
    if not host or not port:
        raise ConfigurationError(
            f"{address!r} cannot be connected to: give host and port, as in '127.0.0.1:5000'"
        )
    return host, port


def _checked_timeout(timeout: float) -> float:
    if not isinstance(timeout, int | float) or not 0 < timeout <= 3600:
        raise ConfigurationError(f"timeout={timeout!r} must be seconds, above 0 and up to 3600")
    return timeout
