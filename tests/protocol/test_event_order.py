"""Events keep their order per name, whatever QUIC streams do to them."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream.errors import ProtocolError
from echostream.protocol import frames
from echostream.protocol.events import EventReceived
from echostream.protocol.frames import FrameParser
from echostream.protocol.ordering import MAX_AHEAD, MAX_HELD_BYTES, EventOrder
from echostream.protocol.outbox import OWN_STREAM_SIZE, Outbox


def event(number: int, name: str = "a", payload: bytes = b"") -> EventReceived:
    return EventReceived(number, name, payload, None, 0)


class Lanes:
    """A carrier that keeps each stream's frames; the test decides which stream goes on."""

    is_client = True

    def __init__(self) -> None:
        self.streams: dict[int, deque[tuple[int, str, int, int, bytes]]] = {}

    def open_stream(self, bidirectional: bool, urgency: int) -> int:
        self.streams[len(self.streams)] = deque()
        return len(self.streams) - 1

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        parser = FrameParser(1 << 24)
        parser.feed(data)
        while parser.next():
            assert parser.type == frames.EVENT
            assert parser.name
            entry = (parser.id, parser.name, parser.number, stream_id, parser.payload_bytes())
            self.streams[stream_id].append(entry)

    window_left = 1 << 20

    def buffered(self, stream_id: int) -> int:
        return 0

    def unsent(self, stream_id: int) -> int:
        return 0


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.booleans()), max_size=60),
    st.randoms(use_true_random=False),
)
def test_what_the_outbox_sends_is_delivered_in_order(
    sent: list[tuple[str, bool, bool]], chance: object
) -> None:
    """Model: what came in by name, however the streams between are served."""
    carrier = Lanes()
    outbox = Outbox(carrier)  # type: ignore[arg-type]
    expected: dict[str, list[int]] = {}
    for index, (name, large, flush) in enumerate(sent):
        payload = index.to_bytes(4, "big") + (bytes(OWN_STREAM_SIZE) if large else b"")
        outbox.event(name, payload)
        expected.setdefault(name, []).append(index)
        if flush:
            outbox.flush(0.0)
    outbox.flush(0.0)
    assert outbox.idle
    order = EventOrder()
    delivered: dict[str, list[int]] = {}
    while live := [stream for stream in carrier.streams.values() if stream]:
        number, name, predecessor, stream_id, payload = chance.choice(live).popleft()  # type: ignore[attr-defined]
        came = EventReceived(number, name, payload, None, stream_id)
        for each in order.accept(came, predecessor) or ():
            delivered.setdefault(each.name, []).append(int.from_bytes(each.payload[:4], "big"))
        assert order.accept(came, predecessor) is None  # a repeated one
    assert delivered == expected
    assert order.held == 0
    assert order.delivered == len(sent)


@given(st.data())
def test_any_predecessors_in_any_order(data: st.DataObject) -> None:
    """Numbers arrive in any order, with any smaller predecessor: each is delivered after its."""
    count = data.draw(st.integers(1, 30))
    arrivals = data.draw(st.permutations(range(1, count + 1)))
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    predecessors = [data.draw(st.integers(-1, number - 1)) for number in range(1, count + 1)]
    order = EventOrder()
    out: list[EventReceived] = []
    for number in arrivals:
        out += order.accept(event(number, names[number - 1]), predecessors[number - 1]) or []
    done = [each.number for each in out]
    assert sorted(done) == list(range(1, count + 1))
    for index, number in enumerate(done):
        before = predecessors[number - 1]
        assert before <= 0 or before in done[:index]
    assert order.held == 0


def test_a_skipped_number_lets_its_followers_go() -> None:
    order = EventOrder()
    assert order.accept(event(2), 1) == []
    assert order.accept(event(3, "b"), 2) == []
    assert [each.number for each in order.skip(1)] == [2, 3]
    assert order.skip(1) == []
    assert order.delivered == 3


def test_bounds() -> None:
    order = EventOrder()
    with pytest.raises(ProtocolError, match="too far ahead"):
        order.accept(event(1 + MAX_AHEAD), -1)
    with pytest.raises(ProtocolError, match="predecessor"):
        order.accept(event(1), 5)
    order.accept(event(3, payload=bytes(MAX_HELD_BYTES)), 1)
    with pytest.raises(ProtocolError, match="exceed"):
        order.accept(event(4, payload=b"x"), 1)


def test_many_names_of_large_events_are_not_remembered_one_by_one() -> None:
    carrier = Lanes()
    outbox = Outbox(carrier)  # type: ignore[arg-type]
    for index in range(3000):
        outbox.event(f"name {index}", bytes(OWN_STREAM_SIZE))
        outbox.flush(0.0)
        assert len(outbox._large_events) <= 1024
    outbox.event("name 0", b"small")
    outbox.flush(0.0)
    small = [
        entry for stream in carrier.streams.values() for entry in stream if entry[4] == b"small"
    ]
    assert small[0][2] >= 1  # it names an event at or after the large one of its name
