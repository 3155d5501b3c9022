"""Interceptors: what stands around calls, events and streams, on either side.

They are bound when a side is built. Where there is none, nothing is looked at for a call that comes
in, and one attribute for one that goes out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from echostream.errors import ConfigurationError
from echostream.rpc.call import Metadata, current_call
from echostream.rpc.serving import ServedItems

if TYPE_CHECKING:
    from echostream.rpc.registry import Route
    from echostream.rpc.retry import RetryPolicy

__all__ = ["Interceptor", "Invocation", "Outgoing", "Proceed", "intercepted"]

Proceed: TypeAlias = Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class Invocation:
    """One call, event or stream, as its interceptors see it.

    ``payload`` may be replaced before ``proceed``: the value, the iterator of arguments, for an
    incoming stream its ``StreamReceiver``. ``metadata`` may be changed where it goes out.
    ``context``: the ``Session``, ``RpcClient`` or ``ClientContext``; for a broadcast the
    ``ServerContext``. ``response_metadata``: what
    goes to the caller along with the answer; outgoing, what came (after ``proceed``).
    """

    kind: Literal["call", "event", "stream"]
    name: str
    payload: Any
    metadata: dict[str, str | bytes]
    context: Any
    response_metadata: dict[str, str | bytes] = field(default_factory=dict)
    streaming: bool = False
    """A call whose arguments or results are many; ``proceed`` ends with the call."""


class Interceptor:
    """Override one method or both. Whatever ``proceed`` raises may be handled, and what it returns
    may be replaced; not to call it answers without the handler, and raising ``RpcError`` refuses.
    ``proceed`` runs what is inside once; called again it runs it again."""

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        """Around a handler, listener or stream handler of this side."""
        return await proceed()

    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        """Around a call, an event or the opening of a stream that this side makes."""
        return await proceed()


def overriding(interceptors: Sequence[Interceptor], method: str) -> tuple[Interceptor, ...]:
    """Those that do something there. Raises ``ConfigurationError`` for what is no interceptor."""
    for each in interceptors:
        if not isinstance(each, Interceptor):
            raise ConfigurationError(
                f".interceptor() wants an Interceptor, got {type(each).__name__}"
            )
    base = getattr(Interceptor, method)
    return tuple(each for each in interceptors if getattr(type(each), method) is not base)


def intercepted(route: Route, kind: Any, interceptors: Sequence[Interceptor]) -> Route:
    """A route whose function runs inside the interceptors, the first of them outermost."""
    inner = route.call

    async def call(context: Any, argument: Any) -> Any:
        served = isinstance(argument, ServedItems)
        current = current_call()
        invocation = Invocation(
            kind,
            route.name,
            argument.argument if served else argument,
            dict(current.metadata),
            context,
            current.response_metadata,
            served,
        )

        async def innermost() -> Any:
            if served:
                argument.argument = invocation.payload
                return await inner(context, argument)
            return await inner(context, invocation.payload)

        proceed: Proceed = innermost
        for each in reversed(interceptors):
            proceed = partial(each.incoming, invocation, proceed)
        return await proceed()

    return replace(route, call=call)


class Outgoing:
    """What stands around all that one side sends: interceptors, and retries inside of them."""

    def __init__(self, interceptors: Sequence[Interceptor], retry: RetryPolicy | None) -> None:
        self._interceptors = interceptors
        self._retry = retry

    async def request(
        self,
        context: Any,
        attempt: Callable[..., Awaitable[Any]],
        name: str,
        payload: Any,
        options: dict[str, Any],
    ) -> Any:
        """A unary call, or one with many arguments. ``attempt`` makes it."""
        retry = self._retry
        invocation = self._invocation("call", context, name, payload, options)
        wanted = options["response_metadata"]

        async def once(left: float | None = options["timeout"]) -> Any:
            return await attempt(
                name,
                invocation.payload,
                **options
                | {
                    "timeout": left,
                    "metadata": invocation.metadata or None,
                    "response_metadata": invocation.response_metadata,
                },
            )

        innermost: Proceed = once
        if retry is not None and not hasattr(payload, "__aiter__"):
            idempotent = options["idempotent"]
            innermost = partial(retry.run, once, options["timeout"], idempotent=idempotent)
        try:
            return await self._around(invocation, innermost)
        finally:
            if wanted is not None:
                wanted.update(invocation.response_metadata)

    async def emit(
        self,
        context: Any,
        attempt: Callable[..., Awaitable[None]],
        name: str,
        payload: Any,
        options: dict[str, Any],
    ) -> None:
        """An event."""
        invocation = self._invocation("event", context, name, payload, options)

        async def once() -> None:
            await attempt(
                name, invocation.payload, **options | {"metadata": invocation.metadata or None}
            )

        await self._around(invocation, once)

    async def broadcast(
        self,
        context: Any,
        attempt: Callable[[Any, Metadata | None], Awaitable[int]],
        name: str,
        payload: Any,
        metadata: Metadata | None,
    ) -> int:
        """An event for many: once around all of them. Returns to how many ``attempt`` gave it; none
        where an interceptor kept it back."""
        invocation = Invocation("event", name, payload, dict(metadata or {}), context)
        count = 0

        async def once() -> int:
            nonlocal count
            count = await attempt(invocation.payload, invocation.metadata or None)
            return count

        await self._around(invocation, once)
        return count

    async def open_stream(
        self,
        context: Any,
        name: str,
        metadata: Metadata | None,
        attempt: Callable[[dict[str, str | bytes]], Awaitable[Any]],
    ) -> Any:
        """A media stream: around its opening."""
        invocation = Invocation("stream", name, None, dict(metadata or {}), context)
        return await self._around(invocation, lambda: attempt(invocation.metadata))

    async def begin(
        self,
        context: Any,
        tasks: set[asyncio.Task[Any]],
        name: str,
        payload: Any,
        metadata: Metadata | None,
        attempt: Callable[[Any, Metadata], Awaitable[Any]],
    ) -> Any:
        """A call with many results: the interceptors stand around it until it ends. Returns what
        ``attempt`` returned, once it did; the rest goes on in one of ``tasks``."""
        invocation = Invocation("call", name, payload, dict(metadata or {}), context, {}, True)
        begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def once() -> None:
            call = await attempt(invocation.payload, invocation.metadata)
            if begun.cancelled():
                call.cancel()
                return
            begun.set_result(call)
            await asyncio.wait((call.answer,))
            if not call.answer.cancelled():
                call.result()

        async def whole() -> None:
            try:
                await self._around(invocation, once)
            except BaseException as exc:
                if not begun.done() and not isinstance(exc, asyncio.CancelledError):
                    begun.set_exception(exc)
                elif isinstance(exc, asyncio.CancelledError):
                    raise
            if not begun.done():
                begun.set_exception(
                    ConfigurationError("an interceptor cannot answer a call with many results")
                )

        task = asyncio.ensure_future(whole())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            return await begun
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _invocation(
        self, kind: Any, context: Any, name: str, payload: Any, options: dict[str, Any]
    ) -> Invocation:
        return Invocation(kind, name, payload, dict(options["metadata"] or {}), context)

    def _around(self, invocation: Invocation, innermost: Proceed) -> Awaitable[Any]:
        proceed = innermost
        for each in reversed(self._interceptors):
            proceed = partial(each.outgoing, invocation, proceed)
        return proceed()
