"""What a peer gives no credit for waits in the outbox, where it is bounded and can expire."""

from __future__ import annotations

from echostream.protocol.outbox import AHEAD, Outbox


class NoCredit:
    """A carrier whose peer lets nothing through."""

    is_client = True
    window_left = 0

    def __init__(self) -> None:
        self.waiting: list[int] = []

    def open_stream(self, bidirectional: bool, urgency: int | None = None) -> int:
        self.waiting.append(0)
        return len(self.waiting) - 1

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        self.waiting[stream_id] += len(data)

    def buffered(self, stream_id: int) -> int:
        return self.waiting[stream_id]

    unsent = buffered


def test_small_calls_do_not_pile_up_in_the_engine() -> None:
    for window in (0, 1 << 20):
        carrier = NoCredit()
        carrier.window_left = window
        outbox = Outbox(carrier)  # type: ignore[arg-type]
        for _ in range(1000):
            outbox.call(bytes(1000))
            outbox.flush(0.0)
        most = AHEAD + 4 * 1000 + min(window, 128 * 1024)
        assert sum(carrier.waiting) <= most
        assert outbox.call_bytes >= 1_000_000 - most
