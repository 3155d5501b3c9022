"""What both sides can do over a connection: request, emit, create_stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    InvalidPayload,
    ResourceExhausted,
    RpcError,
)
from echostream.protocol.outbox import QUEUE_HIGH, USUAL
from echostream.rpc.call import Metadata, _current, decode_metadata, encode_metadata
from echostream.rpc.keyed import KEY, add_key, check_key
from echostream.rpc.options import Delivery, check_once, check_options, checked_names
from echostream.rpc.registry import check_name
from echostream.rpc.scheduled import add_at
from echostream.rpc.streamed import CallOptions, ResultStream, StreamedCall, request_with_items
from echostream.rpc.typed import bind

if TYPE_CHECKING:
    from echostream.media.clock import ClockSync
    from echostream.media.codec import Codec
    from echostream.media.frame import AudioFormat
    from echostream.rpc.interceptors import Outgoing
    from echostream.rpc.link import Link
    from echostream.rpc.peer import Peer
    from echostream.rpc.sender import StreamBuilder

__all__ = ["Bare", "Caller"]

T = TypeVar("T")


class Caller:
    """Mixin of ``RpcClient``, ``ClientContext`` and ``Session``; each has a live peer below it.

    Options share one vocabulary: ``timeout`` (s), ``metadata`` (str to str or bytes), ``priority``
    (0 most urgent to 7), ``max_age`` (s: not sent once older), ``delivery``, ``idempotent``.
    """

    _live_peer: Peer | None = None
    _link: Link | None = None
    _outgoing: Outgoing | None = None

    @property
    def _peer(self) -> Peer:
        peer = self._live_peer
        if peer is None:
            raise ConnectionClosed(
                f"{type(self).__name__} is not connected: await the connection first"
            )
        return peer

    @property
    def clock(self) -> ClockSync:
        """The other side's monotonic clock, mapped to this side's, with an error bound.

        The first use starts the exchange of timestamps; a connection whose clock nobody uses
        stays silent. It ends with the connection: the map stays readable, and waiting for it
        raises ``ConnectionClosed``.
        """
        driver = self._peer.clock
        driver.start()
        return driver.sync

    def shared_time_ns(self) -> int:
        """Now on the clock that both sides share: the server's monotonic one, in ns. On a client it
        raises ``Unavailable`` until ``await clock.wait_synchronized()`` went through."""
        return self._peer.dispatcher.schedule.now_ns()

    @overload
    async def request(
        self,
        method: str,
        payload: Any = None,
        *,
        returns: type[T],
        timeout: float | None = None,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        idempotent: bool = False,
        idempotency_key: str | None = None,
        at: int | None = None,
        response_metadata: dict[str, str | bytes] | None = None,
    ) -> T: ...
    @overload
    async def request(
        self,
        method: str,
        payload: Any = None,
        *,
        returns: Any = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        idempotent: bool = False,
        idempotency_key: str | None = None,
        at: int | None = None,
        response_metadata: dict[str, str | bytes] | None = None,
    ) -> Any: ...

    async def request(
        self,
        method: str,
        payload: Any = None,
        *,
        returns: Any = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        idempotent: bool = False,
        idempotency_key: str | None = None,
        at: int | None = None,
        response_metadata: dict[str, str | bytes] | None = None,
    ) -> Any:
        """Call ``method`` on the other side and return its result.

        ``payload`` may be an async iterator, for a handler that takes a stream of arguments: its
        items are sent as the handler takes them, each within ``max_age``, and it is closed in the
        end. What the handler
        sends along with its result is put into ``response_metadata``.

        ``returns`` is the type to decode the result to; without it plain values come back. With
        ``timeout`` the time that remains travels with the call, the handler is cancelled when it
        has passed, and ``DeadlineExceeded`` is raised here. Cancelling this coroutine cancels the
        handler. Waits for its turn while the peer's limit ``calls`` is used up. ``at``: the handler
        runs at that time of the shared clock (:meth:`shared_time_ns`), at once where it has passed,
        and is refused more than 60 s ahead; a ``timeout`` counts from now.

        ``idempotency_key``: a text that names this call alone. However often it is made again with
        that key, by the program or by a client that reconnects, it runs once, and each gets the
        answer of the first (for 5 minutes; docs/reconnect.md says what that rests on).

        Raises the :class:`~echostream.errors.RpcError` that the peer answered, ``ConnectionClosed``
        when the connection ends first, ``InvalidPayload`` for a value that msgpack cannot carry
        or a result that is not a ``returns``, ``ResourceExhausted`` for a payload above a limit.
        """
        if self._outgoing is not None or self._link is not None:
            named: dict[str, Any] = {
                "returns": returns,
                "timeout": timeout,
                "metadata": metadata,
                "priority": priority,
                "max_age": max_age,
                "idempotent": idempotent,
                "at": at,
                "response_metadata": response_metadata,
            }
            if idempotency_key is not None:
                named["idempotency_key"] = idempotency_key
            attempt = self._link.request if self._link is not None else Bare(self._peer).request
            if self._outgoing is None:
                return await attempt(method, payload, **named)
            return await self._outgoing.request(self, attempt, method, payload, named)
        peer = self._live_peer or self._peer
        if method not in checked_names:
            check_once(method, "request")
        if at is not None:
            metadata = add_at(metadata, at)
        if idempotency_key is not None:
            metadata = _with_key(metadata, idempotency_key, payload)
        if timeout is not None or max_age is not None or priority != 3:
            check_options(timeout=timeout, max_age=max_age, priority=priority)
        serving = _current.get()
        if serving is not None:
            timeout, metadata = serving.inherit(timeout, metadata)
        try:
            data = peer.encode(payload)
        except InvalidPayload:
            if not isinstance(payload, AsyncIterable):
                raise
            options = CallOptions(timeout, metadata, priority, idempotent, max_age)
            decode = peer.decode if returns is None else peer.decoder(returns)
            left = await peer.room.wait_turn(method, timeout, max_age, priority)
            return decode(
                await request_with_items(peer, method, payload, options, left, response_metadata)
            )
        decode = peer.decode if returns is None else peer.decoder(returns)
        left = timeout
        expires_at = peer.expiry(max_age)
        if (
            peer.busy
            or peer.outbox.call_bytes > QUEUE_HIGH
            or len(peer.calls) >= peer.call_limit
            or priority > USUAL
            or peer.budget.tight
        ):
            left = await peer.room.wait_turn(method, timeout, max_age, priority)
        loop = peer.loop
        call_id = peer.protocol.start_call(
            method,
            data,
            None if metadata is None else encode_metadata(metadata),
            left,
            -1 if priority == 3 else priority,
            expires_at,
            idempotent,
        )
        future: asyncio.Future[bytes] = loop.create_future()
        peer.calls[call_id] = future
        if response_metadata is not None:
            trailer: list[bytes] = []
            peer.trailers[call_id] = trailer
        peer.written()
        timer = None if left is None else loop.call_later(left, _expire, future, timeout or left)
        if max_age is not None:
            loop.call_at(expires_at, peer.drop_expired)
        try:
            answer = await future
        except RpcError as exc:
            exc.method = exc.method or method
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if call_id in peer.calls:
                peer.cancel_call(call_id)
            if response_metadata is not None:
                peer.trailers.pop(call_id, None)
            del future  # it may hold an exception that holds this frame
        if response_metadata is not None and trailer:
            response_metadata.update(decode_metadata(trailer[0]))
        return decode(answer)

    @overload
    def request_stream(
        self,
        method: str,
        payload: Any = None,
        *,
        returns: type[T],
        timeout: float | None = None,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        idempotent: bool = False,
        at: int | None = None,
    ) -> ResultStream[T]: ...
    @overload
    def request_stream(
        self,
        method: str,
        payload: Any = None,
        *,
        returns: Any = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        idempotent: bool = False,
        at: int | None = None,
    ) -> ResultStream[Any]: ...

    def request_stream(
        self,
        method: str,
        payload: Any = None,
        *,
        returns: Any = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        idempotent: bool = False,
        at: int | None = None,
    ) -> ResultStream[Any]:
        """Call a ``method`` that answers with many results: iterate over them.

        ``payload`` is one value, or an async iterator whose items are sent as the other side takes
        them. ``returns`` is the type of each result; ``timeout`` is for the whole call,
        ``priority`` for its items in both directions. ``max_age``: the call does not begin when it
        has waited longer, and each argument that has is dropped. The call
        begins with the first ``anext``. Leaving it early, in whatever way, cancels the handler;
        ``async with`` waits until that is done here. A reader that is slow slows the handler.

        Iterating raises what :meth:`request` raises; a client that reconnects begins a call again
        that was not run, and one that was interrupted ends with ``ConnectionClosed``.
        """
        check_name(method, "request_stream")
        check_options(timeout=timeout, max_age=max_age, priority=priority)
        if at is not None:
            metadata = add_at(metadata, at)
        link = self._link
        source = self._peer if link is None else link
        decode = source.decoder(Any if returns is None else returns)

        async def attempt(argument: Any, own: Metadata | None) -> StreamedCall:
            serving = _current.get()
            limit, extra = (timeout, own) if serving is None else serving.inherit(timeout, own)
            options = CallOptions(limit, extra, priority, idempotent, max_age)
            if link is None:
                peer = self._peer
                left = await peer.room.wait_turn(method, limit, max_age, priority)
            else:
                peer, left = await link.turn(method, limit, max_age, priority)
            return StreamedCall(peer, method, argument, options, left, receives=True)

        async def begin() -> StreamedCall:
            if self._outgoing is None:
                return await attempt(payload, metadata)
            call: StreamedCall = await self._outgoing.begin(
                self, source.pumps, method, payload, metadata, attempt
            )
            return call

        again = link is not None and not isinstance(payload, AsyncIterable)
        return ResultStream(begin, decode, again=again)

    async def emit(
        self,
        event: str,
        payload: Any = None,
        *,
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        delivery: Delivery = "reliable",
        at: int | None = None,
        ack: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Tell the other side; returns when it is queued, without an answer, or with ``ack`` once
        its listener has run, and raises what came of it: ``MethodNotFound`` where nothing listens,
        ``InternalError`` where the listener failed, ``DeadlineExceeded`` after ``timeout`` s.

        Events of one name arrive in the order of their emits. Waits while the peer does not read
        what was queued before. ``delivery="realtime"`` sends one DATAGRAM: fast, may be lost.
        ``at``: the listener runs at that time of the shared clock, as for ``request``; one for more
        than 60 s ahead is dropped. Later events of this name wait for it.

        Raises ``ConnectionClosed``, ``InvalidPayload`` or ``ResourceExhausted`` as ``request``.
        """
        if self._outgoing is not None or self._link is not None:
            named: dict[str, Any] = {
                "metadata": metadata,
                "priority": priority,
                "max_age": max_age,
                "delivery": delivery,
                "at": at,
                "ack": ack,
                "timeout": timeout,
            }
            attempt = self._link.emit if self._link is not None else Bare(self._peer).emit
            if self._outgoing is None:
                await attempt(event, payload, **named)
            else:
                await self._outgoing.emit(self, attempt, event, payload, named)
            return
        peer = self._live_peer or self._peer
        if event not in checked_names:
            check_once(event, "emit")
        if at is not None:
            metadata = add_at(metadata, at)
        serving = _current.get()
        if serving is not None:
            metadata = serving.trace(metadata)
        if max_age is not None or priority != 3 or delivery != "reliable" or timeout is not None:
            check_options(max_age=max_age, priority=priority, delivery=delivery, timeout=timeout)
        if ack or timeout is not None:
            if delivery != "reliable" or not ack:
                raise ConfigurationError("timeout goes with ack=True, and that is reliable")
            await peer.acks.emit(event, payload, metadata, priority, max_age, timeout)
            return
        data = peer.encode(payload)
        extra = None if metadata is None else encode_metadata(metadata)
        expires_at = peer.expiry(max_age)
        if peer.busy or peer.outbox.event_bytes > QUEUE_HIGH or peer.budget.tight:
            await peer.room.wait_event()
        if delivery == "realtime":
            peer.protocol.emit_datagram(event, data, extra, None if max_age is None else expires_at)
        else:
            peer.protocol.emit(event, data, extra, -1 if priority == 3 else priority, expires_at)
        peer.connection.wake()

    def create_stream(
        self,
        name: str,
        *,
        format: AudioFormat | None = None,
        delivery: Delivery = "reliable",
        metadata: Metadata | None = None,
        priority: int = 3,
        max_age: float | None = None,
        timeout: float | None = 10.0,
        time_sync: bool = False,
        playout_delay: float | None = None,
        codec: str | Codec = "pcm",
        resume: bool = False,
    ) -> StreamBuilder:
        """Open a stream to the stream handler ``name`` of the other side: await the result, or go
        on building it.

        With ``format`` it carries audio (arrays of shape ``(frames, channels)``, ``AudioFrame``),
        without it bytes. ``reliable``: everything arrives in order, and ``send`` waits for a reader
        that is slow. ``realtime``: DATAGRAMs, never late behind a lost packet. ``max_age``
        (realtime): a packet that waited longer in the queue is dropped and counted. ``time_sync``:
        every packet carries its capture time (now, unless it is given), the clocks are
        synchronised, and the receiver's ``recv_aligned`` tells when it is to be heard:
        ``playout_delay`` s (0.1) after its capture. ``codec``: how audio travels; ``"opus"`` (the
        extra ``opus``) takes a tenth of the bytes, or an ``echostream.contrib.opus.Opus`` with
        settings of its own.

        ``resume`` (reliable, with a client that reconnects): the stream goes on over lost
        connections. The other side's handler runs again for each, and goes on with the item after
        the last one that was read; at most 1 MiB that was not read is kept, then ``send`` waits.

        Awaiting raises ``MethodNotFound`` when the other side has no such stream handler,
        ``RpcError`` (FAILED_PRECONDITION) when it does not take the format or has no such codec,
        ``ConfigurationError`` for a wrong option.
        """
        from echostream.rpc.sender import StreamBuilder

        check_name(name, "create_stream")
        check_options(timeout=timeout, max_age=max_age, priority=priority, delivery=delivery)
        builder = StreamBuilder(
            self._peer,
            name,
            format=format,
            delivery=delivery,
            metadata=metadata,
            priority=priority,
            max_age=max_age,
            timeout=timeout,
            time_sync=time_sync,
            playout_delay=playout_delay,
            codec=codec,
            resume=resume,
        )
        if self._outgoing is not None:
            builder.intercept(partial(self._outgoing.open_stream, self, name, metadata))
        return builder

    def bind(self, interface: Callable[..., T]) -> T:
        """An object with the methods of an interface class (a ``Protocol``, say), each of which
        calls the other side: ``client.bind(Notes).add("x")``. A method of ``Notes`` is called
        ``notes.method`` on the wire (see ``echostream.rpc.typed`` for other names, and for events).
        """
        return bind(self, interface)

    def _emit_encoded(
        self,
        event: str,
        data: bytes,
        *,
        metadata: bytes | None = None,
        priority: int = -1,
        max_age: float | None = None,
    ) -> bool:
        """Emit what is encoded already; ``False`` where it would have to wait."""
        peer = self._live_peer
        if peer is None or peer.busy or peer.outbox.event_bytes > QUEUE_HIGH:
            return False
        try:
            peer.protocol.emit(event, data, metadata, priority, peer.expiry(max_age))
        except ResourceExhausted:
            return False
        peer.connection.wake()
        return True


class Bare(Caller):
    """The same connection without what stands around its calls."""

    def __init__(self, peer: Peer) -> None:
        self._live_peer = peer


def _expire(future: asyncio.Future[bytes], timeout: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded(f"no answer within {timeout:g} s"))


def _with_key(metadata: Metadata | None, key: str, payload: Any) -> Metadata:
    check_key(key)
    if isinstance(payload, AsyncIterable):
        raise ConfigurationError("idempotency_key goes with one argument, not with many")
    return metadata if metadata and KEY in metadata else add_key(metadata, key)
