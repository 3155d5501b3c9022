"""Events that no listener will have, and whose sender wants to know."""

from __future__ import annotations

from typing import Any

from echostream.codes import Status
from echostream.protocol import events as ev
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.protocol.hello import Hello, Limits
from echostream.protocol.session import ProtocolSession

CONTROL, LANE = 2, 6


class Sink:
    """A carrier of a server that takes everything."""

    is_client = False
    max_datagram_payload = 1200

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0


def event(number: int, payload: bytes = b"\xc0", age_us: int = -1) -> bytes:
    return encode_frame(frames.EVENT, number, payload, frames.MARK, "a", None, age_us)


def receiver() -> ProtocolSession:
    session = ProtocolSession(Sink(), Limits(message_size=65_536))  # type: ignore[arg-type]
    hello = Hello(session=bytes(16)).encode()
    session.inbox.receive_stream(CONTROL, encode_frame(frames.HELLO, 1, hello), False)
    assert isinstance(session.inbox.next_event(), ev.HelloReceived)
    return session


def taken(session: ProtocolSession) -> list[Any]:
    return list(iter(session.inbox.next_event, None))


def test_what_was_handled_before_is_not_delivered_and_is_answered() -> None:
    session = receiver()
    session.inbox.receive_stream(LANE, b"".join(map(event, (1, 2, 3, 4))), False)
    assert taken(session) == []
    session.inbox.begin_events(1, [3])
    first, second, third, fourth = taken(session)
    assert first == ev.EventSkipped(1, True, Status.UNAVAILABLE)
    assert (second.number, second.ack) == (2, True)
    assert third == ev.EventSkipped(3, True, Status.UNAVAILABLE)
    assert (fourth.number, fourth.ack) == (4, True)
    assert session.inbox.repeated_events == 2


def test_too_old_and_too_large() -> None:
    session = receiver()
    session.inbox.begin_events(0, [])
    large = event(2, bytes(200_000))
    session.inbox.receive_stream(LANE, event(1, age_us=0) + large + event(3), False)
    old, oversize, good = taken(session)
    assert old == ev.EventSkipped(1, True, Status.DEADLINE_EXCEEDED)
    assert oversize == ev.EventSkipped(2, True, Status.RESOURCE_EXHAUSTED)
    assert good.number == 3
