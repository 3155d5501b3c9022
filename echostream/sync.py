"""Calls without ``async``, for scripts, notebooks and threads.

::

    from echostream.sync import connect

    with connect("127.0.0.1:5000") as client:
        user = client.request("user.login", "Ada", returns=User)
        for price in client.request_stream("prices.watch", "ACME"):
            ...

A thread of its own runs the event loop of all clients of this module. Every method may be used from
any thread, but not from a coroutine: it blocks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from echostream.builder import ClientBuilder
from echostream.client import Connecting, RpcClient
from echostream.errors import ConfigurationError
from echostream.media.clock import ClockSync
from echostream.rpc.sender import Sendable, StreamSender
from echostream.rpc.session import SessionStatistics

__all__ = ["Client", "Stream", "connect"]

T = TypeVar("T")
_END = object()


class _Loop:
    """The event loop in its thread, begun with the first client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait. An interrupt here cancels it there."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None:
            coroutine.close()
            raise ConfigurationError(
                "echostream.sync blocks, and an event loop runs in this thread: "
                "use RpcClient and await"
            )
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="echostream.sync", daemon=True
                ).start()
            return self._loop


_loop = _Loop()


def connect(
    address: str | tuple[str, int] | ClientBuilder, *, timeout: float = 10.0, **trust: Any
) -> Client:
    """Connect; options as for ``RpcClient.connect``. ``with`` closes the client. Instead of an
    address a ``ClientBuilder`` may be given: its handlers run in the thread of the loop."""
    if isinstance(address, ClientBuilder):
        if trust:
            raise ConfigurationError("the builder says whom to trust: .trust(...)")
        connecting: Connecting = address.build()
    else:
        connecting = RpcClient.connect(address, timeout=timeout, **trust)

    async def wait() -> RpcClient:
        return await connecting

    return Client(_loop.run(wait()))


class Client:
    """A connected client whose methods block. Options are those of ``RpcClient``."""

    def __init__(self, client: RpcClient) -> None:
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def clock(self) -> ClockSync:
        """The other side's clock; see ``RpcClient.clock``."""

        async def started() -> ClockSync:
            return self._client.clock

        return _loop.run(started())

    def request(self, method: str, payload: Any = None, **options: Any) -> Any:
        """Call and wait for the result. ``payload`` may be an iterator: a stream of arguments."""
        if isinstance(payload, Iterator):
            payload = _awaited(payload)
        return _loop.run(self._client.request(method, payload, **options))

    def request_stream(self, method: str, payload: Any = None, **options: Any) -> Iterator[Any]:
        """Call a method that answers with many results. Closing the generator cancels the call."""
        if isinstance(payload, Iterator):
            payload = _awaited(payload)

        async def begin() -> Any:
            return self._client.request_stream(method, payload, **options)

        return _drained(_loop.run(begin()))

    def emit(self, event: str, payload: Any = None, **options: Any) -> None:
        """Tell the other side."""
        _loop.run(self._client.emit(event, payload, **options))

    def create_stream(self, name: str, **options: Any) -> Stream:
        """Open a stream."""

        async def opened() -> StreamSender:
            return await self._client.create_stream(name, **options)

        return Stream(_loop.run(opened()))

    def bind(self, interface: Callable[..., Any]) -> Any:
        """An object with the methods of an interface class, which block here."""
        bound = self._client.bind(interface)
        return _Bound(bound)

    def statistics(self) -> SessionStatistics:
        """A snapshot of the connection's counters."""

        async def snapshot() -> SessionStatistics:
            return self._client.statistics()

        return _loop.run(snapshot())

    def close(self) -> None:
        """Let queued data leave, then close. Idempotent."""
        _loop.run(self._client.close())


class Stream:
    """A sending stream whose methods block. ``with`` ends it, or aborts it on an error."""

    def __init__(self, stream: StreamSender) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        else:
            self.abort()

    def send(self, frame: Sendable) -> None:
        """Send one item."""
        _loop.run(self._stream.send(frame))

    def flush(self) -> None:
        """Drop what is queued anywhere."""
        _loop.run(self._stream.flush())

    def end(self) -> None:
        """End it cleanly."""
        _loop.run(self._stream.end())

    def abort(self) -> None:
        """Give it up."""

        async def abort() -> None:
            self._stream.abort()

        _loop.run(abort())


class _Bound:
    """An interface whose methods block: the bound object's, run on the loop."""

    def __init__(self, bound: Any) -> None:
        self._bound = bound

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._bound, name)

        def call(*args: Any, **options: Any) -> Any:
            async def begin() -> Any:
                found = method(*args, **options)
                return found if hasattr(found, "__anext__") else await found

            result = _loop.run(begin())
            return _drained(result) if hasattr(result, "__anext__") else result

        return call


def _drained(results: Any) -> Iterator[Any]:
    async def following() -> Any:
        return await anext(results, _END)

    try:
        while (item := _loop.run(following())) is not _END:
            yield item
    finally:
        _loop.run(results.aclose())


async def _awaited(items: Iterable[Any]) -> AsyncIterator[Any]:
    """Items of an ordinary iterator, which may block: each is taken in a thread."""
    iterator = iter(items)
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item
