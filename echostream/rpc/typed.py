"""Typed clients without generated code: an interface class, bound to a connection.

::

    class Notes(Protocol):
        async def add(self, text: str) -> Note: ...
        def watch(self, since: int) -> AsyncIterator[Note]: ...

    notes = client.bind(Notes)
    note = await notes.add("x")             # request("notes.add", "x", returns=Note)

A type checker sees the class; at run time each method makes the call that its annotations say.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from echostream.errors import ConfigurationError
from echostream.rpc.registry import check_name, item_type

if TYPE_CHECKING:
    from echostream.rpc.caller import Caller

__all__ = ["bind", "event", "interface_methods", "is_event", "named"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_NAME = "__echostream_name__"
_EVENT = "__echostream_event__"


def named(name: str) -> Callable[[F], F]:
    """Give a method of an interface, or the interface itself, another name on the wire. That of an
    interface is what stands before the dot; empty for none."""

    def attach(target: F) -> F:
        setattr(target, _NAME, name)
        return target

    return attach


def event(method: F) -> F:
    """A method of an interface that emits an event instead of calling."""
    setattr(method, _EVENT, True)
    return method


def is_event(method: Callable[..., Any]) -> bool:
    """Whether a method of an interface was marked with :func:`event`."""
    return getattr(method, _EVENT, False) is True


def interface_methods(cls: Any) -> dict[str, tuple[str, Callable[..., Any]]]:
    """The methods of an interface class: name on the wire and function, by attribute. Raises
    ``ConfigurationError``."""
    if not isinstance(cls, type):
        raise ConfigurationError(f"an interface is a class, got {cls!r}")
    prefix = cls.__dict__.get(_NAME)
    if prefix is None:
        prefix = cls.__name__.lower()
    found: dict[str, tuple[str, Callable[..., Any]]] = {}
    for base in reversed(cls.__mro__):
        for attribute, function in vars(base).items():
            if attribute.startswith("_") or not inspect.isfunction(function):
                continue
            own = getattr(function, _NAME, attribute)
            found[attribute] = (f"{prefix}.{own}" if prefix else own, function)
    if not found:
        raise ConfigurationError(f"{cls.__name__} has no methods to bind")
    return found


def bind(caller: Caller, interface: Callable[..., T]) -> T:
    """An object with the methods of ``interface``, each of which calls the other side. Raises
    ``ConfigurationError`` for a method that no call can be made of."""
    cls: Any = interface
    methods = {
        attribute: _method(caller, cls, attribute, name, function)
        for attribute, (name, function) in interface_methods(cls).items()
    }
    bound = type(f"Bound{cls.__name__}", (), {"__slots__": tuple(methods), "__doc__": cls.__doc__})
    stub: Any = bound()
    for attribute, method in methods.items():
        setattr(stub, attribute, method)
    return cast(T, stub)


def _method(
    caller: Caller, cls: type, attribute: str, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    where = f"{cls.__name__}.{attribute}"
    check_name(name, where)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if len(parameters) > 1 or any(
        p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    ):
        raise ConfigurationError(
            f"{where} must take one payload, or none: put several values into one dataclass"
        )
    try:
        hints = get_type_hints(function)
    except NameError as exc:
        raise ConfigurationError(f"{where}: annotation {exc.name!r} cannot be resolved") from None
    if is_event(function):
        return _with_signature(partial(caller.emit, name), parameters)
    result = hints.get("return", Any)
    items = item_type(result)
    if items is not None and not inspect.iscoroutinefunction(function):
        return _with_signature(partial(caller.request_stream, name, returns=items[0]), parameters)
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{where} must be `async def`, or `def` that returns AsyncIterator[...]"
        )
    returns = None if result is Any else type(None) if result is None else result
    return _with_signature(partial(caller.request, name, returns=returns), parameters)


def _with_signature(
    call: Callable[..., Any], parameters: list[inspect.Parameter]
) -> Callable[..., Any]:
    """``call`` with the payload under its own name too, and its default."""
    if not parameters:
        return call
    (parameter,) = parameters

    def method(*args: Any, **options: Any) -> Any:
        if parameter.name in options and not args:
            args = (options.pop(parameter.name),)
        if not args:
            if parameter.default is parameter.empty:
                raise TypeError(f"missing the argument {parameter.name!r}")
            args = (parameter.default,)
        return call(*args, **options)

    return method
