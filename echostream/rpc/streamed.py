"""Streaming calls from the side that makes them: items out, items back, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    InvalidPayload,
    RpcError,
    Unavailable,
)
from echostream.rpc.call import Metadata, decode_metadata, encode_metadata
from echostream.rpc.items import ItemEnds

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["CallOptions", "ResultStream", "StreamedCall", "request_with_items"]

T = TypeVar("T")


class CallOptions(NamedTuple):
    """The options of one streaming call. ``max_age`` is for each of its arguments."""

    timeout: float | None = None
    metadata: Metadata | None = None
    priority: int = 3
    idempotent: bool = False
    max_age: float | None = None


class StreamedCall:
    """A streaming call that was sent. Whoever made it calls :meth:`cancel` in the end."""

    def __init__(
        self,
        peer: Peer,
        method: str,
        payload: Any,
        options: CallOptions,
        left: float | None,
        *,
        receives: bool,
    ) -> None:
        items = payload if isinstance(payload, AsyncIterable) else None
        data = b"" if items is not None else peer.encode(payload)
        loop = peer.loop
        self._peer = peer
        self._method = method
        self._flow = peer.protocol.open_call(
            method,
            data,
            encode_metadata(options.metadata),
            left,
            -1 if options.priority == 3 else options.priority,
            options.idempotent,
            sends=items is not None,
            receives=receives,
        )
        self._ends = ItemEnds(peer, self._flow)
        self.answer: asyncio.Future[bytes] = loop.create_future()
        peer.calls[self._flow.call_id] = self.answer
        self._trailer: list[bytes] = []
        peer.trailers[self._flow.call_id] = self._trailer
        self._timer = None
        if left is not None:
            self._timer = loop.call_later(left, self._expire, options.timeout or left)
        self._pump: asyncio.Task[None] | None = None
        if items is not None:
            self._pump = loop.create_task(self._send(items, options.max_age))
            peer.pumps.add(self._pump)
            self._pump.add_done_callback(peer.pumps.discard)
        self.answer.add_done_callback(self._answered)
        peer.connection.wake()

    async def next(self) -> bytes | None:
        """The next item of the result; ``None`` after the last, or once cancelled. Raises what the
        answer is."""
        flow = self._flow
        while not flow.waiting:
            if self.answer.done():
                if not self.answer.cancelled():
                    self.result()
                return None
            await self._ends.changed()
        return self._ends.take()

    def result(self) -> bytes:
        """The answer that has come, or the exception."""
        error = self.answer.exception()
        if error is None:
            return self.answer.result()
        if isinstance(error, RpcError):
            error = copy(error)
            error.method = error.method or self._method
        raise error

    def metadata(self) -> Metadata:
        """What the other side sent along with its answer."""
        return decode_metadata(self._trailer[0] if self._trailer else None)

    def cancel(self) -> None:
        """Nobody waits for this call any more. Idempotent."""
        self._flow.clear()
        if not self.answer.done():
            self.answer.cancel()

    async def wait_stopped(self) -> None:
        """Wait until the iterator of arguments is closed."""
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait((self._pump,))

    def _expire(self, timeout: float) -> None:
        self._flow.clear()
        if not self.answer.done():
            self.answer.set_exception(DeadlineExceeded(f"no end within {timeout:g} s"))

    def _answered(self, answer: asyncio.Future[bytes]) -> None:
        if not answer.cancelled():
            answer.exception()  # retrieved: the reader may have gone
        self._peer.trailers.pop(self._flow.call_id, None)
        if self._timer is not None:
            self._timer.cancel()
        if self._flow.call_id in self._peer.calls:
            self._peer.cancel_call(self._flow.call_id)
        if self._pump is not None:
            self._pump.cancel()
        self._ends.wake()

    async def _send(self, items: AsyncIterable[Any], max_age: float | None) -> None:
        """Send what the program iterates over, as the other side takes it."""
        iterator = aiter(items)
        try:
            async for item in iterator:
                if not await self._ends.write(item, max_age):
                    return
            if self._peer.ended is None:
                self._peer.protocol.end_items(self._flow)
                self._peer.connection.wake()
        except asyncio.CancelledError:
            if not self.answer.done():
                self.answer.set_exception(
                    RuntimeError("the iterator of arguments was cancelled from inside")
                )
            raise
        except Exception as exc:
            if not self.answer.done():
                self.answer.set_exception(exc)
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()


async def request_with_items(
    peer: Peer,
    method: str,
    items: AsyncIterable[Any],
    options: CallOptions,
    left: float | None,
    metadata_out: dict[str, Any] | None,
) -> bytes:
    """A call with a stream of arguments and one result."""
    call = StreamedCall(peer, method, items, options, left, receives=False)
    try:
        await asyncio.wait((call.answer,))
        result = call.result()
        if metadata_out is not None:
            metadata_out.update(call.metadata())
        return result
    except (ConnectionClosed, Unavailable) as error:
        error.unserved = False  # not as it was: some of its arguments may be gone
        raise
    finally:
        call.cancel()
        await call.wait_stopped()


class ResultStream(Generic[T], AsyncIterator[T]):
    """The results of ``request_stream``, one after the other: for ``async for``.

    The call begins with the first item that is asked for. It ends with the last one, with an error,
    with a cancellation of whoever waits here, with :meth:`aclose` or the end of ``async with``, and
    when nothing refers to this object any more; each reaches the handler at once. With ``again``
    one that was certainly not run begins again.
    """

    def __init__(
        self,
        begin: Callable[[], Any],
        decode: Callable[[bytes], T],
        *,
        again: bool = False,
    ) -> None:
        self._begin: Callable[[], Any] | None = begin
        self._again = begin if again else None
        self._decode = decode
        self._call: StreamedCall | None = None
        self._ended: StreamedCall | None = None
        self._reading = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> ResultStream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> ResultStream[T]:
        return self

    async def __anext__(self) -> T:
        if self._begin is not None:
            begin, self._begin = self._begin, None
            self._loop = asyncio.get_running_loop()
            self._call = await begin()
        call = self._call
        if call is None:
            raise StopAsyncIteration
        if self._reading:
            raise ConfigurationError("two tasks read the results of one call: give each its own")
        self._reading = True
        try:
            payload = await call.next()
            self._again = None
            if payload is not None:
                return self._decode(payload)
        except (ConnectionClosed, Unavailable) as error:
            self._finish(call)
            if not error.unserved or self._again is None:
                raise
            self._begin = self._again
        except InvalidPayload:
            await self.aclose()
            raise
        except BaseException:
            self._finish(call)
            raise
        finally:
            self._reading = False
        if self._begin is not None:
            return await anext(self)
        self._finish(call)
        raise StopAsyncIteration

    @property
    def metadata(self) -> Metadata:
        """What the handler sent along, known after the last item."""
        return {} if self._ended is None else self._ended.metadata()

    async def aclose(self) -> None:
        """End the call, also before its last item. Idempotent."""
        self._begin = self._again = None
        call = self._call
        if call is not None:
            self._finish(call)
            await call.wait_stopped()

    def _finish(self, call: StreamedCall) -> None:
        self._call, self._ended = None, call
        call.cancel()

    def __del__(self) -> None:
        call = self._call
        if call is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call.cancel)
