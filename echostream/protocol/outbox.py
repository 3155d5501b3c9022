"""What leaves: frames queue for the end of the loop's turn and are spread over QUIC streams.

Small frames of one turn share one lane, the next turn takes the next lane, so that they share
packets and a lost packet holds up one lane only. Large calls travel alone, a few at a time. Events
have lanes of their own, chosen by name, and one for large ones: they stay in order, and a peer
whose listeners are slow holds back events but never calls. Control frames of one realtime stream
stay on one lane: none of them may overtake another.

One scheduler decides what leaves. What waits here is written when the congestion window has room
for it, so that priority and age count until the end: first control, then calls and events by
priority, then large calls by priority, begun one after the other. The engine sends streams in the
order of their urgency: control, lanes, then what has a stream of its own, by its priority.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias
from zlib import crc32

from echostream.protocol.carrier import Carrier
from echostream.protocol.frames import EVENT, MARK, encode_frame
from echostream.protocol.resumption import ENTRY_OVERHEAD as EVENT_OVERHEAD
from echostream.protocol.resumption import Entry, Journal

__all__ = [
    "AHEAD",
    "CALL_LANES",
    "EVENT_LANES",
    "OWN_STREAM_SIZE",
    "QUEUE_HIGH",
    "QUEUE_LOW",
    "URGENT_BULK",
    "USUAL",
    "Outbox",
]

CALL_LANES = 4
EVENT_LANES = 4
OWN_STREAM_SIZE = 16 * 1024
"""A call's frame of this size or more gets a QUIC stream of its own, such an event another lane."""
AHEAD = 4 * 1024
"""Bytes that are written beyond what the congestion window has room for: enough that it is filled,
little enough that what is more urgent does not wait for them."""
MOST_AHEAD = 128 * 1024
"""Bytes of one kind (calls, events, large calls) that are written and unsent at most, however wide
the window is: the peer may not give credit."""
LARGE_LIMIT = 1024 * 1024
"""Unacknowledged bytes of large calls at which none begins."""
QUEUE_HIGH = 1024 * 1024
"""Bytes of calls that wait here above which callers wait, until there are :data:`QUEUE_LOW`; the
same for events and emitters."""
QUEUE_LOW = 256 * 1024
PRIORITIES = 8
USUAL = 3
"""The priority of what is given none."""
URGENT_CONTROL, URGENT_LANES, URGENT_BULK = 0, 1, 2
"""Urgencies of QUIC streams; to that of bulk comes its priority."""
MAX_LARGE_NAMES = 1024
"""Names whose last large event is remembered one by one."""
_NEVER = float("inf")
_Call: TypeAlias = tuple[float, int, bytes]
_Event: TypeAlias = tuple[int, float, str, bytes, bytes | None, int, int]
"""As :class:`~echostream.protocol.resumption.Entry`."""


class Outbox:
    """The sending half of a protocol session. Nothing is written before :meth:`flush`.

    ``event_bytes`` of events and ``call_bytes`` of all else wait here. ``expired``: frames that
    were dropped because their deadline passed; ``expired_calls``: ids of the calls among them, for
    the caller to take out. ``acked``: tokens of the events that left and are to be acknowledged, by
    number; ``expired_acks``: tokens of those that expired. ``events_held``: events wait, whatever
    room there is; ``journal`` keeps those that were written. ``charge`` is told how many bytes more
    there are, calls and events.
    """

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
        "_large_before",
        "_large_events",
        "_large_ids",
        "_name_queues",
        "_streams",
        "_turn",
        "acked",
        "call_bytes",
        "charge",
        "event_bytes",
        "events_held",
        "expired",
        "expired_acks",
        "expired_calls",
        "journal",
    )

    def __init__(
        self, carrier: Carrier, charge: Callable[[int], object] = lambda amount: None
    ) -> None:
        self._carrier = carrier
        self.charge = charge
        self._control: list[bytes] = []
        self._control_id = -1
        self._streams: list[tuple[int, bytes]] = []
        self._calls: list[deque[_Call]] = [deque() for _ in range(PRIORITIES)]
        self._call_lanes = [-1] * CALL_LANES
        self._event_lanes = [-1] * (EVENT_LANES + 1)
        self._event_last = [0] * EVENT_LANES
        self._events: dict[int, list[deque[_Event]]] = {USUAL: _event_queues()}
        self._name_queues: dict[str, list[int]] = {}
        self._event_number = 0
        self._large: list[deque[_Call]] = [deque() for _ in range(PRIORITIES)]
        self._large_ids: list[int] = []
        self._large_events: dict[str, int] = {}
        self._large_before = -1
        self._turn = 0
        self.call_bytes = 0
        self.event_bytes = 0
        self.expired = 0
        self.expired_calls: list[int] = []
        self.events_held = False
        self.journal: Journal | None = None
        self.expired_acks: list[int] = []
        self.acked: dict[int, int] = {}

    def control(self, frame: bytes) -> None:
        """Queue for the control stream."""
        self._control.append(frame)
        self.call_bytes += len(frame)

    def stream(self, alias: int, frame: bytes) -> None:
        """Queue a control frame of a media stream; those of one alias stay in order."""
        self._streams.append(((alias >> 1) % CALL_LANES, frame))
        self.call_bytes += len(frame)

    def call(
        self, frame: bytes, priority: int = 3, deadline: float = _NEVER, call_id: int = -1
    ) -> None:
        """Queue a frame of a call. Dropped if ``deadline`` passes first; ``call_id`` is told."""
        if len(frame) >= OWN_STREAM_SIZE:
            self._large[priority].append((deadline, call_id, frame))
        else:
            self._calls[priority].append((deadline, call_id, frame))
        self.call_bytes += len(frame)
        self.charge(len(frame))

    def event(
        self,
        name: str,
        payload: bytes,
        metadata: bytes | None = None,
        priority: int = -1,
        deadline: float = _NEVER,
        token: int = -1,
    ) -> None:
        """Queue an event; those of one name are delivered in this order. With a ``token`` it is to
        be acknowledged.

        The number is given when it is written, so that an expired event leaves no gap."""
        self._queue_event((0, deadline, name, payload, metadata, priority, token))

    def _queue_event(self, event: _Event) -> None:
        """By its priority, but behind what waits of its name."""
        name = event[2]
        place = self._name_queues.get(name)
        if place is None:
            priority = USUAL if event[5] < 0 else event[5]
            self._name_queues[name] = [priority, 1]
            if priority not in self._events:
                self._events[priority] = _event_queues()
                self._events = dict(sorted(self._events.items()))
        else:
            priority = place[0]
            place[1] += 1
        self._events[priority][crc32(name.encode()) % EVENT_LANES].append(event)
        size = len(event[3]) + EVENT_OVERHEAD
        self.event_bytes += size
        self.charge(size)

    def _take_event(self, queue: deque[_Event]) -> None:
        """The first of a queue waits no more."""
        _, _, name, payload, _, _, _ = queue.popleft()
        self.event_bytes -= len(payload) + EVENT_OVERHEAD
        place = self._name_queues[name]
        place[1] -= 1
        if not place[1]:
            del self._name_queues[name]

    def adopt(self, entries: Iterable[Entry], journal: Journal | None) -> None:
        """Write these before anything else: with the number that they have, or a new one. From now
        on ``journal`` keeps what is written for the first time."""
        waiting = self.surrender()
        self.extend(entries)
        self.extend(waiting)
        self.journal = journal
        if journal is not None:
            self._event_number = journal.last

    def extend(self, entries: Iterable[Entry]) -> None:
        """Write these after what waits."""
        for entry in entries:
            self._queue_event(entry)

    def surrender(self) -> list[Entry]:
        """Take out the events that were never written; those of one name are in order."""
        queues = [queue for queues in self._events.values() for queue in queues]
        waiting = [Entry(*event) for queue in queues for event in queue if not event[0]]
        self._clear_events()
        return waiting

    def _clear_events(self) -> None:
        for queues in self._events.values():
            for queue in queues:
                queue.clear()
        self._name_queues.clear()
        self.event_bytes = 0

    def drop_expired(self, now: float) -> None:
        """Drop the calls that are too old now, also behind others that cannot leave."""
        for queue in (*self._calls, *self._large):
            entries = list(queue)
            queue.clear()
            for entry in entries:
                if entry[0] <= now:
                    self.call_bytes -= len(entry[2])
                    self._expire(entry[1])
                else:
                    queue.append(entry)

    @property
    def unsent_calls(self) -> list[int]:
        """Ids of the calls that wait here: the peer knows nothing of them."""
        queues = (*self._calls, *self._large)
        return [call_id for queue in queues for _, call_id, _ in queue if call_id >= 0]

    def clear(self) -> None:
        """Nothing will leave any more."""
        for calls in (*self._calls, *self._large):
            calls.clear()
        self._clear_events()
        self._control.clear()
        self._streams.clear()
        self.call_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits here."""
        return not self.call_bytes and not self.event_bytes

    def is_lane(self, stream_id: int) -> bool:
        """Whether a QUIC stream of ours is to stay open as long as the connection."""
        return (
            stream_id == self._control_id
            or stream_id in self._call_lanes
            or stream_id in self._event_lanes
        )

    def is_large(self, stream_id: int) -> bool:
        """Whether a QUIC stream of ours carries one large call."""
        return stream_id in self._large_ids

    def open_control(self, hello: bytes) -> None:
        """Open the control stream with HELLO. Called once, before anything else is flushed."""
        self._control_id = self._carrier.open_stream(False, URGENT_CONTROL)
        self._carrier.send_stream(self._control_id, hello, False)

    def flush(self, now: float) -> None:
        """Write what may leave now. What waits for lane space stays."""
        if not self.call_bytes and not self.event_bytes:
            return
        self._turn += 1
        if self._control:
            data = b"".join(self._control)
            self._control.clear()
            self.call_bytes -= len(data)
            self._carrier.send_stream(self._control_id, data, False)
        if self._streams:
            self._write_stream_control()
        room = min(self._carrier.window_left, MOST_AHEAD) + AHEAD
        if (
            not self.event_bytes
            and 2 * self.call_bytes < min(room, OWN_STREAM_SIZE)
            and self._has_free_lane()
        ):
            self._write_few(now)
            return
        events = self._events if self.event_bytes and not self.events_held else {}
        calls, space = self._calls, 0
        if any(calls):
            space = room - self._unsent(self._call_lanes)
        for priority in range(PRIORITIES):
            if calls[priority] and space > 0:
                space = self._write_calls(calls[priority], space, now)
            if priority in events:
                self._write_events(events[priority], room, now)
        if any(self._large):
            self._write_large(room, now)

    def _write_few(self, now: float) -> None:
        """What is usual: few calls wait, and the window has room for more."""
        space = OWN_STREAM_SIZE
        for queue in self._calls:
            if queue:
                space = self._write_calls(queue, space, now)

    def _lane(self, lanes: list[int], index: int) -> int:
        if lanes[index] < 0:
            urgency = URGENT_LANES if index < EVENT_LANES else URGENT_BULK + USUAL
            lanes[index] = self._carrier.open_stream(False, urgency)
        return lanes[index]

    def _unsent(self, lanes: list[int]) -> int:
        unsent = self._carrier.unsent
        return sum([unsent(lane) for lane in lanes if lane >= 0])

    def _write_stream_control(self) -> None:
        for index, frame in self._streams:
            self.call_bytes -= len(frame)
            self._carrier.send_stream(self._lane(self._call_lanes, index), frame, False)
        self._streams.clear()

    def _write_calls(self, queue: deque[_Call], space: int, now: float) -> int:
        """All of one priority that there is space for, on one lane; returns what is left of it."""
        out: list[bytes] = []
        while queue and space > 0:
            deadline, call_id, frame = queue.popleft()
            self.call_bytes -= len(frame)
            if deadline < now:
                self._expire(call_id)
                continue
            space -= len(frame)
            out.append(frame)
        if out:
            lane = self._lane(self._call_lanes, self._next_lane())
            self._carrier.send_stream(lane, out[0] if len(out) == 1 else b"".join(out), False)
        return space

    def _next_lane(self) -> int:
        """That of this turn, or the first behind it where nothing waits: there is no need to stand
        behind what is less urgent."""
        unsent = self._carrier.unsent
        for turn in range(self._turn, self._turn + CALL_LANES):
            lane = self._call_lanes[turn % CALL_LANES]
            if lane < 0 or not unsent(lane):
                return turn % CALL_LANES
        return self._turn % CALL_LANES

    def _has_free_lane(self) -> bool:
        """Whether nothing waits on the next lane: what the peer gives no credit for shall wait
        here, where it counts."""
        lane = self._call_lanes[self._next_lane()]
        return lane < 0 or not self._carrier.unsent(lane)

    def _write_large(self, room: int, now: float) -> None:
        """Begin large calls, the next one when there is room for more than what is left of those
        before."""
        buffered = self._carrier.buffered
        self._large_ids = [stream_id for stream_id in self._large_ids if buffered(stream_id)]
        unacknowledged = sum(map(buffered, self._large_ids))
        space = min(room - self._unsent(self._large_ids), LARGE_LIMIT - unacknowledged)
        for priority, queue in enumerate(self._large):
            while queue and space > 0:
                deadline, call_id, frame = queue.popleft()
                self.call_bytes -= len(frame)
                if deadline < now:
                    self._expire(call_id)
                    continue
                stream_id = self._carrier.open_stream(False, URGENT_BULK + priority)
                self._carrier.send_stream(stream_id, frame, True)
                self._large_ids.append(stream_id)
                space -= len(frame)

    def _expire(self, call_id: int) -> None:
        self.expired += 1
        if call_id >= 0:
            self.expired_calls.append(call_id)

    def _write_events(self, queues: list[deque[_Event]], room: int, now: float) -> None:
        """Write events of one priority. A lane has a share of the room in any case, so that one
        that gets no credit does not hold back the others, and all that others leave."""
        if not any(queues):
            return
        unsent = self._carrier.unsent
        space = room - self._unsent(self._event_lanes[:EVENT_LANES])
        for index, queue in enumerate(queues):
            if queue:
                own = room // EVENT_LANES - unsent(self._lane(self._event_lanes, index))
                space -= self._write_lane(index, queue, max(space, own), room, now)

    def _write_lane(
        self, index: int, queue: deque[_Event], space: int, room: int, now: float
    ) -> int:
        """Write events of one queue, small ones to its lane, large ones to the lane of those. Who
        follows on another lane than the event before it names that one as its predecessor. Returns
        the bytes that were written to the lane."""
        journal = self.journal
        lane = self._lane(self._event_lanes, index)
        before = space
        out: list[bytes] = []
        while queue and space > 0:
            number, deadline, name, payload, metadata, priority, token = queue[0]
            small = len(payload) < OWN_STREAM_SIZE
            if number:
                pass  # it was written before, and is expected
            elif journal is not None and journal.full:
                break
            elif deadline < now:
                self._take_event(queue)
                self.expired += 1
                if token >= 0:
                    self.expired_acks.append(token)
                continue
            if not small:
                large = self._lane(self._event_lanes, EVENT_LANES)
                if self._carrier.unsent(large) >= room:
                    break
            self._take_event(queue)
            age_us = -1 if deadline == _NEVER else max(int((deadline - now) * 1e6), 0)
            if not number:
                self._event_number = number = self._event_number + 1
                if journal is not None:
                    journal.record(
                        Entry(number, deadline, name, payload, metadata, priority, token)
                    )
            if small:
                predecessor = min(self._large_before, number - 1)
                if self._large_events:
                    predecessor = self._large_events.pop(name, predecessor)
                self._event_last[index] = number
            else:
                predecessor = self._event_last[index] or -1
                if len(self._large_events) == MAX_LARGE_NAMES:
                    self._large_before = number - 1
                    self._large_events.clear()
                self._large_events[name] = number
            flags = 0
            if token >= 0:
                flags = MARK
                self.acked[number] = token
            frame = encode_frame(
                EVENT, number, payload, flags, name, metadata, age_us, predecessor, priority
            )
            if small:
                space -= len(frame)
                out.append(frame)
            else:
                self._carrier.send_stream(large, frame, False)
        if out:
            self._carrier.send_stream(lane, b"".join(out), False)
        return before - space


def _event_queues() -> list[deque[_Event]]:
    return [deque() for _ in range(EVENT_LANES)]
