"""The items of one streaming call, both ways: credit, order and bounds. Sans-IO.

A streaming call has a bidirectional QUIC stream of its own (wire format, section 4). The receiver
of items says by CREDIT how many more may come; bytes are bounded by pausing the QUIC stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from echostream.errors import ProtocolError

__all__ = ["ARGUMENT_CREDIT", "RECEIVE_BYTES", "WINDOW", "Flow"]

WINDOW = 256
"""Items that may come ahead of the reader."""
ARGUMENT_CREDIT = 64
"""Items that a caller may send before the first CREDIT (wire format, section 2)."""
RECEIVE_BYTES = 256 * 1024
"""Bytes of items that wait for the reader, above which the QUIC stream is paused."""


class Flow:
    """Both halves of one streaming call.

    ``waiting`` and ``held``: payloads that were received and not taken, and their bytes.
    ``complete``: no more will come. ``sent`` and ``credit``: items that left, and that may leave.
    ``over``: nothing is sent here any more. ``wake`` is called on every change.
    """

    __slots__ = (
        "_given",
        "call_id",
        "complete",
        "credit",
        "held",
        "over",
        "paused",
        "sent",
        "stream_id",
        "waiting",
        "wake",
    )

    def __init__(self, call_id: int, stream_id: int, *, credit: int, given: int) -> None:
        self.call_id = call_id
        self.stream_id = stream_id
        self.waiting: deque[bytes] = deque()
        self.held = 0
        self.complete = given == 0
        self.paused = False
        self.credit = credit
        self.sent = 0
        self.over = False
        self.wake: Callable[[], None] = _nobody
        self._given = given

    def receive(self, payload: bytes, end: bool) -> bool:
        """Take an item of the peer; ``False`` when its QUIC stream should be paused. Raises
        ``ProtocolError`` for one that was not allowed."""
        if self.complete:
            raise ProtocolError(f"an item of call {self.call_id} after its last one")
        if payload:
            if not self._given:
                raise ProtocolError(f"an item of call {self.call_id} beyond the credit for it")
            self._given -= 1
            self.waiting.append(payload)
            self.held += len(payload)
        self.complete = end
        self.wake()
        return self.held <= RECEIVE_BYTES

    def take(self) -> tuple[bytes, int]:
        """The next item, and how many more to allow the peer now: often 0."""
        payload = self.waiting.popleft()
        self.held -= len(payload)
        room = WINDOW - self._given - len(self.waiting)
        if self.complete or room < WINDOW // 2:
            return payload, 0
        self._given += room
        return payload, room

    def allow(self, count: int) -> None:
        """The peer takes ``count`` items more."""
        self.credit = min(self.credit + count, 1 << 30)
        self.wake()

    def end(self) -> None:
        """Nothing is sent or received any more. What waits can still be taken."""
        self.over = self.complete = True
        self.wake()

    def clear(self) -> None:
        """Nobody will take what waits."""
        self.waiting.clear()
        self.held = 0


def _nobody() -> None:
    """Nobody waits."""
