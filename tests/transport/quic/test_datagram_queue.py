"""The bounded queue of DATAGRAM frames, against a list of entries with both their deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from echostream.transport.quic.datagram_queue import DatagramQueue

CAPACITY, MAX_AGE = 5, 3.0
Action = tuple[str, float]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(("put", "timed", "flush", "sent")), st.integers(0, 6)), max_size=60
)


@given(ACTIONS)
def test_against_a_model(actions: list[Action]) -> None:
    queue = DatagramQueue(CAPACITY, MAX_AGE)
    model: list[list[float]] = []  # number, deadline of its own, deadline since it was held back
    now, dropped, forever = 0.0, 0, float("inf")
    for number, (action, value) in enumerate(actions):
        if action in ("put", "timed"):
            own = now + value if action == "timed" else None
            queue.put(number.to_bytes(2, "big"), own)
            if len(model) == CAPACITY:
                model.pop(0)
                dropped += 1
            model.append([number, forever if own is None else own, forever])
        elif action == "flush":
            now += value
            queue.expire(now)
            left = [entry for entry in model if entry[1] >= now and entry[2] > now]
            dropped += len(model) - len(left)
            model = left
            queue.held_back(now)
            for entry in model:
                entry[2] = min(entry[2], now + MAX_AGE)
        elif model:
            assert queue.head == int(model.pop(0)[0]).to_bytes(2, "big")
            queue.pop()
        assert len(queue) == len(model)
        assert queue.dropped == dropped
    queue.clear()
    assert not queue
    queue.put(b"after")
    queue.expire(now + 100)
    assert queue.head == b"after"
