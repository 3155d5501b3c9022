"""Decorators attach data; a registry binds names to functions and their types, once.

A function's first parameter is the context when its annotation says so (``Session`` on a server,
``ClientContext`` on a client) or when it has one parameter more than it needs; then comes no
payload or one. The payload's annotation is enforced on what arrives.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from echostream.errors import ConfigurationError
from echostream.media.frame import AudioFormat
from echostream.protocol import payload as payloads
from echostream.rpc.interceptors import Interceptor, intercepted
from echostream.rpc.serving import served_call

__all__ = ["Kind", "Registry", "Route", "declared_name", "handler", "listener", "stream_handler"]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__echostream_declaration__"
MAX_NAME_BYTES = 255


class Kind(Enum):
    """The three patterns."""

    HANDLER = "handler"
    LISTENER = "listener"
    STREAM = "stream_handler"


_KIND_WORDS = {Kind.HANDLER: "call", Kind.LISTENER: "event", Kind.STREAM: "stream"}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a decorator attaches."""

    kind: Kind
    name: str
    formats: tuple[AudioFormat, ...] = ()
    requires: frozenset[str] = frozenset()


def handler(name: str, *, requires: str | Iterable[str] = ()) -> Callable[[F], F]:
    """Declare a request handler. The function stays an ordinary coroutine function.

    ``requires``: what the caller must have been granted by the server's ``.authenticate(...)``;
    without it the call is answered with ``PermissionDenied``, and the function does not run."""
    wanted = check_grants(requires, "requires=")
    return _declare(Declaration(Kind.HANDLER, check_name(name, "handler"), requires=wanted))


def listener(name: str, *, requires: str | Iterable[str] = ()) -> Callable[[F], F]:
    """Declare a listener of an event. Events of one name are handled one after the other.

    ``requires`` is as for a handler; an event without it is dropped."""
    wanted = check_grants(requires, "requires=")
    return _declare(Declaration(Kind.LISTENER, check_name(name, "listener"), requires=wanted))


def stream_handler(
    name: str, *, formats: Iterable[AudioFormat] = (), requires: str | Iterable[str] = ()
) -> Callable[[F], F]:
    """Declare the receiver of a stream. ``formats``: what it takes; empty means anything.

    ``requires`` is as for a handler; a stream without it is refused."""
    checked = check_name(name, "stream_handler"), tuple(formats)
    return _declare(Declaration(Kind.STREAM, *checked, check_grants(requires, "requires=")))


def check_grants(grants: object, what: str) -> frozenset[str]:
    """Names of what a peer may do: one, or several. Raises ``ConfigurationError``."""
    names = [grants] if isinstance(grants, str) else grants
    if not isinstance(names, Iterable) or isinstance(names, bytes):
        raise ConfigurationError(f"{what} wants a name or several, got {type(grants).__name__}")
    found = frozenset(names)
    if not all(isinstance(name, str) and name for name in found):
        raise ConfigurationError(f"{what} wants names, got {grants!r}")
    return found


def _declare(declaration: Declaration) -> Callable[[F], F]:
    def attach(function: F) -> F:
        if not callable(function):
            raise ConfigurationError(
                f"@{declaration.kind.value}({declaration.name!r}) wants a function, "
                f"got {type(function).__name__}"
            )
        setattr(function, _MARK, declaration)
        return function

    return attach


def check_name(name: object, what: str) -> str:
    """A name that the wire carries: 1 to 255 bytes of UTF-8. Raises ``ConfigurationError``."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"{what} wants a name, for example {what}('user.login'), got {type(name).__name__}"
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise ConfigurationError(f"{what} name {name!r} is not valid text: {exc.reason}") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise ConfigurationError(
            f"{what} name must be 1 to {MAX_NAME_BYTES} bytes long, this one has {size}"
        )
    return name


def declared_name(function: Callable[..., Any], kind: Kind) -> Declaration:
    """What the decorator said. Raises ``ConfigurationError`` when there is none of this kind."""
    declaration = getattr(function, _MARK, None)
    shown = getattr(function, "__qualname__", repr(function))
    if declaration is None:
        raise ConfigurationError(
            f"{shown} is not declared: decorate it with @{kind.value}('name') "
            f"or register it as .{kind.value}('name', {shown})"
        )
    if declaration.kind is not kind:
        raise ConfigurationError(
            f"{shown} is declared as @{declaration.kind.value}, not as @{kind.value}: "
            f"register it with .{declaration.kind.value}({shown})"
        )
    assert isinstance(declaration, Declaration)
    return declaration


@dataclass(frozen=True, slots=True)
class Route:
    """A bound function. ``call(context, argument)`` makes its coroutine; ``decode`` turns a payload
    into the argument (``None`` for a stream handler, or a function without a payload)."""

    name: str
    function: Callable[..., Any]
    call: Callable[[Any, Any], Coroutine[Any, Any, Any]]
    decode: Callable[[bytes], Any] | None
    formats: tuple[AudioFormat, ...] = ()
    annotation: Any = None
    takes_items: bool = False
    """The argument is an iterator over items, and ``annotation`` is that of one."""
    yields: bool = False
    """The result is many items."""
    result: Any = None
    """The annotation of the result, of one item where it is many."""
    streaming: bool = False
    """Either of the two."""
    requires: frozenset[str] = frozenset()


class Registry:
    """The routes of one kind on one side."""

    def __init__(self, kind: Kind, context_types: tuple[type, ...], other_side: tuple[type, ...]):
        self._kind = kind
        self._context_types = context_types
        self._other_side = other_side
        self._routes: dict[str, Route] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []

    def add(self, name_or_function: Any, function: Callable[..., Any] | None = None) -> None:
        """Register ``add(fn)`` (decorated) or ``add("name", fn)``."""
        what = self._kind.value
        formats: tuple[AudioFormat, ...] = ()
        requires: frozenset[str] = frozenset()
        if function is None:
            if not callable(name_or_function):
                raise ConfigurationError(
                    f".{what}() wants a decorated function, or a name and a function; "
                    f"got {type(name_or_function).__name__}"
                )
            declaration = declared_name(name_or_function, self._kind)
            name, function, formats = declaration.name, name_or_function, declaration.formats
            requires = declaration.requires
        else:
            name = check_name(name_or_function, what)
            attached = getattr(function, _MARK, None)
            if isinstance(attached, Declaration) and attached.kind is self._kind:
                formats, requires = attached.formats, attached.requires
        if self._kind is Kind.LISTENER and any(
            "*" in part and part not in ("*", "**") for part in name.split(".")
        ):
            raise ConfigurationError(
                f"listener {name!r}: * and ** stand for whole segments, as in 'user.*'"
            )
        if name in self._routes:
            raise ConfigurationError(
                f"a {what} for {name!r} is registered already "
                f"({_shown(self._routes[name].function)}): give this one another name"
            )
        self._routes[name] = replace(self._bind(name, function, formats), requires=requires)

    def frozen(
        self, max_depth: int, max_items: int, interceptors: Sequence[Interceptor] = ()
    ) -> Registry:
        """A copy that what is added later does not change, with these limits on payloads, inside
        these interceptors."""
        copy = Registry(self._kind, self._context_types, self._other_side)
        for name, route in self._routes.items():
            if route.decode is not None:
                decode = payloads.decoder(
                    route.annotation, max_depth=max_depth, max_items=max_items
                )
                route = replace(route, decode=decode)
            if interceptors:
                route = intercepted(route, _KIND_WORDS[self._kind], interceptors)
            copy._routes[name] = route
        if self._kind is Kind.LISTENER:
            names = sorted((n for n in copy._routes if "*" in n), key=_specificity)
            copy._patterns = [(_pattern(name), copy._routes[name]) for name in names]
        return copy

    def get(self, name: str) -> Route | None:
        """The route of this name."""
        return self._routes.get(name)

    def match(self, name: str) -> Route | None:
        """The listener of an event: that of its name, else of the most specific pattern, which is
        the one with the most text before its first ``*``, then the one with the fewest ``**``."""
        route = self._routes.get(name)
        if route is not None or not self._patterns:
            return route
        for pattern, found in self._patterns:
            if pattern.fullmatch(name):
                return found
        return None

    @property
    def requiring(self) -> list[str]:
        """The names of those that not everybody may use."""
        return [name for name, route in self._routes.items() if route.requires]

    def suggestion(self, name: str) -> str:
        """A hint for a name that is not there; empty when none is near."""
        near = difflib.get_close_matches(name[:64], self._routes, n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def __iter__(self) -> Iterator[str]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def _bind(
        self, name: str, function: Callable[..., Any], formats: tuple[AudioFormat, ...]
    ) -> Route:
        where = f"{self._kind.value} {name!r} ({_shown(function)})"
        yields = inspect.isasyncgenfunction(_plain(function))
        if yields and self._kind is not Kind.HANDLER:
            raise ConfigurationError(
                f"{where} is an async generator: only request handlers answer with many results"
            )
        if not yields and not inspect.iscoroutinefunction(_plain(function)):
            raise ConfigurationError(f"{where} must be declared with `async def`")
        parameters = _parameters(function, where)
        hints = _hints(function, where)
        wants_context = False
        if parameters:
            first = hints.get(parameters[0].name)
            if isinstance(first, type) and issubclass(first, self._other_side):
                raise ConfigurationError(
                    f"{where} takes a {first.__name__}, which exists on the other side only: "
                    f"here it is {self._context_types[0].__name__}"
                )
            wants_context = (
                isinstance(first, type) and issubclass(first, self._context_types)
            ) or (len(parameters) == 2 and first is None)
        rest = parameters[1:] if wants_context else parameters
        if self._kind is Kind.STREAM and len(rest) != 1:
            raise ConfigurationError(
                f"{where} must take the stream: "
                "async def f(session: Session, stream: StreamReceiver)"
            )
        if len(rest) > 1:
            extra = ", ".join(p.name for p in rest[1:])
            raise ConfigurationError(
                f"{where} takes more than one payload parameter ({extra}): "
                "put them into one dataclass or dict"
            )
        decode = None
        annotation = hints.get(rest[0].name, Any) if rest else None
        item = item_type(annotation) if self._kind is Kind.HANDLER else None
        if item is not None:
            annotation = item[0]
        if rest and self._kind is not Kind.STREAM:
            try:
                decode = payloads.decoder(annotation)
            except ConfigurationError as exc:
                raise ConfigurationError(f"{where}: {exc}") from None
        call = _caller(function, wants_context, bool(rest))
        result = hints.get("return", Any)
        if yields:
            result = (item_type(result) or (Any,))[0]
        if yields or item is not None:
            call = served_call(call, yields)
        return Route(
            name,
            function,
            call,
            decode,
            formats,
            annotation,
            takes_items=item is not None,
            yields=yields,
            result=result,
            streaming=yields or item is not None,
        )


def _pattern(name: str) -> re.Pattern[str]:
    """``*`` is one segment between dots, ``**`` one or more."""
    parts = [
        ".+" if part == "**" else "[^.]+" if part == "*" else re.escape(part)
        for part in name.split(".")
    ]
    return re.compile(r"\.".join(parts), re.DOTALL)


def _specificity(name: str) -> tuple[int, int, str]:
    return -name.index("*"), name.count("**"), name


def item_type(annotation: Any) -> tuple[Any] | None:
    """Of an annotation ``AsyncIterator[T]`` (or ``AsyncIterable``, ``AsyncGenerator``), ``T``."""
    origin = typing.get_origin(annotation) or annotation
    if origin not in (AsyncIterator, AsyncIterable, AsyncGenerator):
        return None
    return ((*typing.get_args(annotation), Any)[0],)


def _caller(
    function: Callable[..., Any], context: bool, argument: bool
) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
    if context and argument:
        return function
    if context:
        return lambda ctx, _argument: function(ctx)
    if argument:
        return lambda _ctx, value: function(value)
    return lambda _ctx, _argument: function()


def _plain(function: Any) -> Any:
    """What inspect can judge: the ``__call__`` of an object, else the function itself."""
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return getattr(function, "__call__", function)  # noqa: B004


def _parameters(function: Callable[..., Any], where: str) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{where}: its parameters cannot be read: {exc}") from None
    out = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(f"{where} must not take *args or **kwargs")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise ConfigurationError(f"{where}: keyword-only {parameter.name} needs a default")
            continue
        out.append(parameter)
    return out


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else _plain(function)
    inner = inspect.unwrap(getattr(target, "__func__", target))
    names: dict[str, Any] = {}
    if inspect.isfunction(inner) and inner.__closure__:
        names = {
            name: cell.cell_contents
            for name, cell in zip(inner.__code__.co_freevars, inner.__closure__, strict=True)
            if _filled(cell)
        }
    try:
        return typing.get_type_hints(inner, localns=names or None)
    except NameError as exc:
        raise ConfigurationError(
            f"{where}: annotation {exc.name!r} cannot be resolved: define it at module level, "
            "or leave `from __future__ import annotations` out of that module"
        ) from None


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _shown(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', type(function).__module__)}.{name}"
