"""Streams that go on over lost connections: the part of the sender, and that of the receiver."""

from __future__ import annotations

import asyncio
import logging
import secrets
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from echostream.codes import Status
from echostream.errors import (
    ConnectionClosed,
    EchoStreamError,
    InvalidPayload,
    RpcError,
    StreamReset,
    Unavailable,
)
from echostream.protocol import payload as payloads
from echostream.protocol.stream_journal import Item, Place, StreamJournal

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer
    from echostream.rpc.sender import StreamSender

__all__ = ["Offer", "Reading", "Revival", "resumes"]

logger = logging.getLogger("echostream.rpc")

NAME_BYTES = 16
ACKNOWLEDGE_EVERY = 64
ACKNOWLEDGE_BYTES = 64 * 1024
ACKNOWLEDGE_S = 0.05
"""So many items or bytes, or so long after the first of them, are acknowledged together."""
PAUSE_S = 0.05
"""Before a server that is about to leave is asked again."""


class Offer(NamedTuple):
    """What STREAM_OPEN says of a stream that can go on: its name, and the first item to come."""

    name: bytes
    offset: int

    @classmethod
    def from_wire(cls, options: bytes) -> Offer | None:
        """``None`` for a stream that ends with its connection. Raises ``InvalidPayload``."""
        body = payloads.decode(options)
        name = body.get("resume") if isinstance(body, dict) else None
        if name is None:
            return None
        offset = body.get("offset", 0)
        if not isinstance(name, bytes) or len(name) != NAME_BYTES:
            raise InvalidPayload(f"$.resume of a stream must be {NAME_BYTES} bytes")
        if type(offset) is not int or not 0 <= offset < 1 << 61:
            raise InvalidPayload("$.offset of a stream must be the number of an item")
        return cls(name, offset)


def resumes(options: bytes) -> bool:
    """Whether STREAM_OPEN is for a stream that can go on. What is malformed is refused later."""
    try:
        return Offer.from_wire(options) is not None
    except InvalidPayload:
        return False


class Revival:
    """The sender's part: keeps what was not read, and opens the stream again."""

    def __init__(self, sender: StreamSender, options: dict[str, Any]) -> None:
        self._sender = sender
        self._options = options | {"resume": secrets.token_bytes(NAME_BYTES)}
        self.journal = StreamJournal()
        self.live = False
        """Whether items can be written to a connection now."""
        self.resent = 0
        self._ended = False
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] | None = None

    @property
    def options(self) -> bytes:
        """For STREAM_OPEN."""
        return payloads.encode(self._options | {"offset": self.journal.first})

    def record(self, payload: Any, timestamp: int, capture_ts: int | None) -> Item:
        """The next item; it is written now where :attr:`live`."""
        return self.journal.record(bytes(payload), timestamp, capture_ts)

    async def wait_room(self) -> None:
        """Wait while too much was sent and not read."""
        while self.journal.full and not self._sender.over:
            await self._changed()

    async def wait_ended(self) -> None:
        """Wait until the other side has read everything."""
        self._ended = True
        while not self._over and not self._sender.over:
            await self._changed()

    def accepted(self, agreed: object) -> None:
        """The other side says where to go on. Raises ``RpcError`` where it cannot."""
        if self.live:  # or each small frame would send all again that was not read
            raise RpcError(
                "the other side accepted the stream twice", status=Status.FAILED_PRECONDITION
            )
        body = agreed if isinstance(agreed, dict) else {}
        offset = body.get("offset")
        if body.get("resume") is not True or type(offset) is not int:
            raise RpcError(
                "the other side knows no streams that go on: open it without resume",
                status=Status.FAILED_PRECONDITION,
            )
        if not self.journal.first <= offset <= self.journal.next:
            raise RpcError(
                f"the other side wants item {offset}, of {self.journal.first} to "
                f"{self.journal.next}",
                status=Status.DATA_LOSS,
            )
        self.journal.acknowledge(offset)
        self._over = body.get("ended") is True
        self.live = True
        for item in self.journal.items:
            self.resent += 1
            self._sender.write(item)
        if self._ended and not self._over:
            self._sender.write_end()
        self.tell()

    def acknowledged(self, upto: int, end: bool) -> None:
        """The other side's program has read so far. Raises ``ProtocolError``."""
        self.journal.acknowledge(upto)
        self._over = self._over or (end and self._ended)
        self.tell()

    def connection_lost(self, error: ConnectionClosed) -> None:
        """Go on with the next connection."""
        self.live = False
        self.tell()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._revive())

    def cancel(self) -> None:
        """It does not go on."""
        if self._task is not None:
            self._task.cancel()
        self.tell()

    def tell(self) -> None:
        """Something changed: who waits looks again."""
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    async def _changed(self) -> None:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    async def _revive(self) -> None:
        sender = self._sender
        try:
            while not self.live and not sender.over:
                peer = await sender.successor()
                try:
                    await sender.reopen(peer)
                except (ConnectionClosed, Unavailable):
                    await asyncio.sleep(PAUSE_S)
        except EchoStreamError as error:
            self._give_up(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._give_up(StreamReset(f"the stream could not go on: {error}"))
            raise

    def _give_up(self, error: EchoStreamError) -> None:
        told = copy(error)
        if self.journal.first < self.journal.next:
            unread = f"items from number {self.journal.first} on were not read, or nobody knows"
            told.args = (f"{error}; {unread}",)
        self._sender.fail(told)
        self.tell()


class Reading:
    """The receiver's part: remembers how far the program has read, and tells the sender."""

    def __init__(self, peer: Peer, alias: int, offer: Offer, place: Place) -> None:
        self._peer = peer
        self._alias = alias
        self._place = place
        place.owner = self
        self.lost = 0
        if place.next < 0:
            place.next = offer.offset
        elif place.next < offer.offset:
            self.lost = offer.offset - place.next
            logger.warning(
                "items %d to %d of a stream from %s were lost",
                place.next,
                offer.offset - 1,
                peer.peer_addr,
            )
            place.next = offer.offset
        self.offset = place.next
        self._items = 0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def current(self) -> bool:
        """Whether nobody else goes on with the stream."""
        return self._place.owner is self

    @property
    def ended(self) -> bool:
        """Whether the stream was read to its end, now or before."""
        return self._place.ended

    def agreed(self) -> dict[str, Any]:
        """For STREAM_ACCEPT."""
        return {"resume": True, "offset": self._place.next, "ended": self._place.ended}

    def read(self, number: int, size: int) -> None:
        """The program has taken an item."""
        if not self.current:
            return
        self._place.next = number + 1
        self._items += 1
        self._bytes += size
        if self._items >= ACKNOWLEDGE_EVERY or self._bytes >= ACKNOWLEDGE_BYTES:
            self._acknowledge()
        elif self._timer is None:
            self._timer = self._peer.loop.call_later(ACKNOWLEDGE_S, self._acknowledge)

    def end(self) -> None:
        """The program has read the end."""
        if self.current and not self._place.ended:
            self._place.ended = True
            self._acknowledge()

    def stop(self) -> None:
        """Nothing more is read here."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _acknowledge(self) -> None:
        self.stop()
        self._items = self._bytes = 0
        if self._peer.ended is None:
            self._peer.protocol.acknowledge_media(self._alias, self._place.next, self._place.ended)
            self._peer.connection.wake()
