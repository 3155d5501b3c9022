"""What both sides can do over a connection: request, emit, create_stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from echostream.errors import (
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    ResourceExhausted,
    RpcError,
)
from echostream.protocol.outbox import QUEUE_HIGH
from echostream.rpc.call import Metadata, encode_metadata
from echostream.rpc.registry import check_name
from echostream.rpc.scheduled import add_at

if TYPE_CHECKING:
    from echostream.media.clock import ClockSync
    from echostream.media.codec import Codec
    from echostream.media.frame import AudioFormat
    from echostream.rpc.link import Link
    from echostream.rpc.peer import Peer
    from echostream.rpc.sender import StreamBuilder

__all__ = ["Caller", "Delivery"]

Delivery = Literal["reliable", "realtime"]
T = TypeVar("T")


class Caller:
    """Mixin of ``RpcClient``, ``ClientContext`` and ``Session``; each has a live peer below it.

    Options share one vocabulary: ``timeout`` (s), ``metadata`` (str to str or bytes), ``priority``
    (0 most urgent to 7), ``max_age`` (s: not sent once older), ``delivery``, ``idempotent``.
    """

    _live_peer: Peer | None = None
    _link: Link | None = None

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
        at: int | None = None,
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
        at: int | None = None,
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
        at: int | None = None,
    ) -> Any:
        """Call ``method`` on the other side and return its result.

        ``returns`` is the type to decode the result to; without it plain values come back. With
        ``timeout`` the time that remains travels with the call, the handler is cancelled when it
        has passed, and ``DeadlineExceeded`` is raised here. Cancelling this coroutine cancels the
        handler. Waits for its turn while the peer's limit ``calls`` is used up. ``at``: the handler
        runs at that time of the shared clock (:meth:`shared_time_ns`), at once where it has passed,
        and is refused more than 60 s ahead; a ``timeout`` counts from now.

        Raises the :class:`~echostream.errors.RpcError` that the peer answered, ``ConnectionClosed``
        when the connection ends first, ``InvalidPayload`` for a value that msgpack cannot carry
        or a result that is not a ``returns``, ``ResourceExhausted`` for a payload above a limit.
        """
        if self._link is not None:
            return await self._link.request(
                method,
                payload,
                returns=returns,
                timeout=timeout,
                metadata=metadata,
                priority=priority,
                max_age=max_age,
                idempotent=idempotent,
                at=at,
            )
        peer = self._live_peer or self._peer
        check_name(method, "request")
        if at is not None:
            metadata = add_at(metadata, at)
        if timeout is not None or max_age is not None or priority != 3:
            check_options(timeout=timeout, max_age=max_age, priority=priority)
        data = peer.encode(payload)
        decode = peer.decode if returns is None else peer.decoder(returns)
        left = timeout
        expires_at = _deadline(peer, max_age)
        if peer.busy or peer.outbox.call_bytes > QUEUE_HIGH or len(peer.calls) >= peer.call_limit:
            left = await _wait_turn(peer, method, timeout, max_age)
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
        peer.connection.wake()
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
        return decode(answer)

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
    ) -> None:
        """Tell the other side; returns when it is queued, without an answer.

        Events of one name arrive in the order of their emits. Waits while the peer does not read
        what was queued before. ``delivery="realtime"`` sends one DATAGRAM: fast, may be lost.
        ``at``: the listener runs at that time of the shared clock, as for ``request``; one for more
        than 60 s ahead is dropped. Later events of this name wait for it.

        Raises ``ConnectionClosed``, ``InvalidPayload`` or ``ResourceExhausted`` as ``request``.
        """
        if self._link is not None:
            await self._link.emit(
                event,
                payload,
                metadata=metadata,
                priority=priority,
                max_age=max_age,
                delivery=delivery,
                at=at,
            )
            return
        peer = self._live_peer or self._peer
        check_name(event, "emit")
        if at is not None:
            metadata = add_at(metadata, at)
        if max_age is not None or priority != 3 or delivery != "reliable":
            check_options(max_age=max_age, priority=priority, delivery=delivery)
        data = peer.encode(payload)
        extra = None if metadata is None else encode_metadata(metadata)
        expires_at = _deadline(peer, max_age)
        if peer.busy or peer.outbox.event_bytes > QUEUE_HIGH:
            await peer.wait_event_room()
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

        Awaiting raises ``MethodNotFound`` when the other side has no such stream handler,
        ``RpcError`` (FAILED_PRECONDITION) when it does not take the format or has no such codec,
        ``ConfigurationError`` for a wrong option.
        """
        from echostream.rpc.sender import StreamBuilder

        check_name(name, "create_stream")
        check_options(timeout=timeout, max_age=max_age, priority=priority, delivery=delivery)
        return StreamBuilder(
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
        )

    def _emit_encoded(
        self,
        event: str,
        data: bytes,
        *,
        metadata: bytes | None = None,
        max_age: float | None = None,
    ) -> bool:
        """Emit what is encoded already; ``False`` where it would have to wait."""
        peer = self._live_peer
        if peer is None or peer.busy or peer.outbox.event_bytes > QUEUE_HIGH:
            return False
        try:
            peer.protocol.emit(event, data, metadata, deadline=_deadline(peer, max_age))
        except ResourceExhausted:
            return False
        peer.connection.wake()
        return True


def check_options(
    *,
    timeout: float | None = None,
    max_age: float | None = None,
    priority: int = 3,
    delivery: str = "reliable",
) -> None:
    """Raise ``ConfigurationError`` for an option that cannot work."""
    for name, value in (("timeout", timeout), ("max_age", max_age)):
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 86_400:
            raise ConfigurationError(f"{name}={value!r} must be seconds, above 0 and up to 86400")
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 7:
        raise ConfigurationError(f"priority={priority!r} must be 0 (most urgent) to 7")
    if delivery not in ("reliable", "realtime"):
        raise ConfigurationError(f"delivery={delivery!r} must be 'reliable' or 'realtime'")


def _deadline(peer: Peer, max_age: float | None) -> float:
    return float("inf") if max_age is None else peer.connection.clock() + max_age


async def _wait_turn(
    peer: Peer, method: str, timeout: float | None, max_age: float | None
) -> float | None:
    """Wait until a call may leave; returns what is left of ``timeout``."""
    started = peer.connection.clock()
    limits = [limit for limit in (timeout, max_age) if limit is not None]
    try:
        await peer.wait_call_slot(min(limits, default=None))
    except RpcError as exc:
        exc.method = method
        raise
    return None if timeout is None else max(timeout - (peer.connection.clock() - started), 0.0)


def _expire(future: asyncio.Future[bytes], timeout: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded(f"no answer within {timeout:g} s"))
