"""What leaves: frames queue for the end of the loop's turn and are spread over QUIC streams.

Small frames of one turn share one lane, the next turn takes the next lane, so that they share
packets and a lost packet holds up one lane only. Large ones travel alone. Events have lanes of
their own, chosen by name: they stay in order, and a peer whose listeners are slow holds back events
but never calls. Order of leaving: control, datagrams, calls by priority, events, large messages.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias
from zlib import crc32

from echostream.protocol.carrier import Carrier
from echostream.protocol.frames import EVENT, encode_frame

__all__ = [
    "CALL_LANES",
    "EVENT_LANES",
    "LANE_LIMIT",
    "LARGE_LIMIT",
    "OWN_STREAM_SIZE",
    "QUEUE_HIGH",
    "Outbox",
]

CALL_LANES = 4
EVENT_LANES = 2
OWN_STREAM_SIZE = 16 * 1024
"""A frame of this size or more gets a QUIC stream of its own."""
LANE_LIMIT = 256 * 1024
"""Unacknowledged bytes on one lane above which frames wait here, where priority and age count."""
LARGE_LIMIT = 1024 * 1024
"""Unacknowledged bytes of messages with streams of their own above which the next one waits here:
more on the way makes none of them faster, and the receiver has to hold what is not complete."""
QUEUE_HIGH = 1024 * 1024
"""Bytes that wait here above which callers, emitters and answers wait."""
ENTRY = 128
"""Bytes that an entry of a queue is counted for beyond its content."""
PRIORITIES = 8
_NEVER = float("inf")
_Event: TypeAlias = tuple[float, str, bytes, bytes | None, int]


class Outbox:
    """The sending half of a protocol session. Nothing is written before :meth:`flush`."""

    __slots__ = (
        "_call_lanes",
        "_calls",
        "_carrier",
        "_control",
        "_control_id",
        "_event_lanes",
        "_event_last",
        "_event_number",
        "_events",
        "_large",
        "_large_events",
        "_large_streams",
        "_turn",
        "expired",
        "queued_bytes",
    )

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._control: list[bytes] = []
        self._control_id = -1
        self._calls: list[deque[tuple[float, bytes]]] = [deque() for _ in range(PRIORITIES)]
        self._call_lanes = [-1] * CALL_LANES
        self._event_lanes = [-1] * EVENT_LANES
        self._event_last = [0] * EVENT_LANES
        self._events: list[deque[_Event]] = [deque() for _ in range(EVENT_LANES)]
        self._event_number = 0
        self._large: deque[tuple[float, bytes]] = deque()
        self._large_events: dict[str, int] = {}
        self._large_streams: list[int] = []
        self._turn = 0
        self.queued_bytes = 0
        self.expired = 0

    def control(self, frame: bytes) -> None:
        """Queue for the control stream."""
        self._control.append(frame)
        self.queued_bytes += len(frame)

    def call(self, frame: bytes, priority: int = 3, deadline: float = _NEVER) -> None:
        """Queue a frame of a call or a stream's control. Dropped if ``deadline`` passes first."""
        if len(frame) >= OWN_STREAM_SIZE:
            self._large.append((deadline, frame))
        else:
            self._calls[priority].append((deadline, frame))
        self.queued_bytes += len(frame) + ENTRY

    def event(
        self,
        name: str,
        payload: bytes,
        metadata: bytes | None = None,
        priority: int = -1,
        deadline: float = _NEVER,
    ) -> None:
        """Queue an event; those of one name are delivered in this order.

        The number is given when it is written, so that an expired event leaves no gap."""
        lane = crc32(name.encode()) % EVENT_LANES
        self._events[lane].append((deadline, name, payload, metadata, priority))
        self.queued_bytes += len(payload) + ENTRY

    @property
    def idle(self) -> bool:
        """Whether nothing waits here."""
        return self.queued_bytes == 0

    def open_control(self, hello: bytes) -> None:
        """Open the control stream with HELLO. Called once, before anything else is flushed."""
        self._control_id = self._carrier.open_stream(False)
        self._carrier.send_stream(self._control_id, hello, False)

    def flush(self, now: float) -> None:
        """Write what may leave now. What waits for lane space stays."""
        if not self.queued_bytes:
            return
        if self._control:
            data = b"".join(self._control)
            self._control.clear()
            self.queued_bytes -= len(data)
            self._carrier.send_stream(self._control_id, data, False)
        for queue in self._calls:
            if queue:
                self._write_calls(now)
                break
        for index, events in enumerate(self._events):
            if events:
                self._write_events(index, now)
        while self._large and self._large_room():
            deadline, frame = self._large.popleft()
            self.queued_bytes -= len(frame) + ENTRY
            if deadline < now:
                self.expired += 1
                continue
            self._write_large(frame)

    def carries(self, stream_id: int) -> bool:
        """Whether messages that nobody else knows of travel on this stream of ours."""
        return stream_id >= 0 and (
            stream_id == self._control_id
            or stream_id in self._call_lanes
            or stream_id in self._event_lanes
            or stream_id in self._large_streams
        )

    def _large_room(self) -> bool:
        buffered = self._carrier.buffered
        self._large_streams = [s for s in self._large_streams if buffered(s)]
        return sum(map(buffered, self._large_streams)) < LARGE_LIMIT

    def _write_large(self, frame: bytes) -> None:
        stream_id = self._carrier.open_stream(False)
        self._carrier.send_stream(stream_id, frame, True)
        self._large_streams.append(stream_id)

    def _write_calls(self, now: float) -> None:
        self._turn += 1
        index = self._turn % CALL_LANES
        for _ in range(CALL_LANES):
            lane = self._call_lanes[index]
            if lane < 0:
                lane = self._call_lanes[index] = self._carrier.open_stream(False)
                break
            if self._carrier.buffered(lane) < LANE_LIMIT:
                break
            index = (index + 1) % CALL_LANES
        else:
            return
        out: list[bytes] = []
        space = LANE_LIMIT
        for queue in self._calls:
            while queue and space > 0:
                deadline, frame = queue.popleft()
                self.queued_bytes -= len(frame) + ENTRY
                if deadline < now:
                    self.expired += 1
                    continue
                space -= len(frame)
                out.append(frame)
        if out:
            self._carrier.send_stream(lane, out[0] if len(out) == 1 else b"".join(out), False)

    def _write_events(self, index: int, now: float) -> None:
        queue = self._events[index]
        lane = self._event_lanes[index]
        if lane < 0:
            lane = self._event_lanes[index] = self._carrier.open_stream(False)
        space = LANE_LIMIT - self._carrier.buffered(lane)
        out: list[bytes] = []
        while queue and space > 0:
            if len(queue[0][2]) >= OWN_STREAM_SIZE and not self._large_room():
                break
            deadline, name, payload, metadata, priority = queue.popleft()
            self.queued_bytes -= len(payload) + ENTRY
            if deadline < now:
                self.expired += 1
                continue
            age_us = -1 if deadline == _NEVER else int((deadline - now) * 1e6)
            self._event_number = number = self._event_number + 1
            if len(payload) < OWN_STREAM_SIZE:
                predecessor = self._large_events.pop(name, -1)
                self._event_last[index] = number
            else:
                predecessor = self._large_events.get(name, 0) or self._event_last[index] or -1
                self._large_events[name] = number
            frame = encode_frame(
                EVENT, number, payload, 0, name, metadata, age_us, predecessor, priority
            )
            space -= len(frame)
            if len(payload) < OWN_STREAM_SIZE:
                out.append(frame)
            else:
                self._write_large(frame)
        if out:
            self._carrier.send_stream(lane, b"".join(out), False)
