"""The congestion controller: what it does, and that the compiled one does the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostream.transport.quic.congestion import RTT_MIN_AGE, Westwood

MSS = 1200
CONTROLS: list[Any] = [Westwood]
try:
    from echostream._ext.quic_path import Westwood as CompiledWestwood
except ImportError:
    pass
else:
    CONTROLS.append(CompiledWestwood)

control_class = pytest.mark.parametrize(
    "kind", CONTROLS, ids=["plain", "compiled"][: len(CONTROLS)]
)


@dataclass(frozen=True)
class Packet:
    sent_time: float
    sent_bytes: int = MSS


class Path:
    """A bottleneck of ``rate`` bytes per second with an endless queue, kept full by ``control``."""

    def __init__(self, control: Any, rate: float, rtt: float = 0.03) -> None:
        self.control = control
        self.rate = rate
        self.rtt = rtt
        self.now = 100.0
        self.free_at = 0.0
        self.flying: list[tuple[float, Packet]] = []

    def run(self, seconds: float, lose_every: int = 0) -> None:
        end = self.now + seconds
        count = 0
        while self.now < end:
            while self.control.bytes_in_flight + MSS <= self.control.congestion_window:
                packet = Packet(self.now)
                self.control.on_packet_sent(packet=packet)
                self.free_at = max(self.free_at, self.now) + MSS / self.rate
                self.flying.append((self.free_at + self.rtt, packet))
            at, packet = self.flying.pop(0)
            self.now = at
            count += 1
            if lose_every and not count % lose_every:
                self.control.on_packets_lost(now=self.now, packets=[packet])
            else:
                self.control.on_packet_acked(now=self.now, packet=packet)
                self.control.on_rtt_measurement(now=self.now, rtt=self.now - packet.sent_time)

    def lose_one(self) -> None:
        _, packet = self.flying.pop()
        self.control.on_packets_lost(now=self.now, packets=[packet])


def settled(kind: Any, window: int, rate: float) -> Path:
    """A connection out of slow start, with this window, at work for a second."""
    control = kind(max_datagram_size=MSS)
    control.ssthresh = control.congestion_window = window
    path = Path(control, rate)
    path.run(1.0)
    return path


@control_class
def test_a_loss_without_a_queue_leaves_the_window(kind: Any) -> None:
    path = settled(kind, 30 * MSS, rate=10e6)
    before = path.control.congestion_window
    path.lose_one()
    assert 0.9 * before <= path.control.congestion_window <= before


@control_class
def test_a_loss_with_a_queue_takes_the_queue_away(kind: Any) -> None:
    path = settled(kind, 20 * MSS, rate=1e6)  # the path holds 25 packets
    path.control.congestion_window = 40 * MSS
    path.run(0.5)
    path.lose_one()
    assert 24 * MSS <= path.control.congestion_window <= 27 * MSS
    assert path.control.ssthresh == path.control.congestion_window


@control_class
def test_a_deep_queue_halves_the_window(kind: Any) -> None:
    path = settled(kind, 20 * MSS, rate=1e6)
    path.control.congestion_window = 100 * MSS
    path.run(1.0)
    before = path.control.congestion_window
    path.lose_one()
    assert path.control.congestion_window == before // 2


@control_class
def test_an_old_round_trip_is_not_believed(kind: Any) -> None:
    """It may be that of a queue which never was empty."""
    path = settled(kind, 30 * MSS, rate=10e6)
    path.run(RTT_MIN_AGE + 1.0)
    path.rtt = 0.0301
    path.run(RTT_MIN_AGE + 1.0)
    before = path.control.congestion_window
    path.lose_one()
    assert path.control.congestion_window == before // 2
    path.run(1.0)
    before = path.control.congestion_window
    path.lose_one()
    assert path.control.congestion_window > 0.9 * before


@control_class
def test_random_losses_leave_most_of_the_path_in_use(kind: Any) -> None:
    path = settled(kind, 30 * MSS, rate=1e6)
    path.run(5.0, lose_every=50)
    assert path.control.congestion_window >= 20 * MSS


@control_class
def test_persistent_congestion_begins_anew(kind: Any) -> None:
    path = settled(kind, 30 * MSS, rate=10e6)
    path.control.on_persistent_congestion()
    assert path.control.congestion_window == 2 * MSS
    path.control.congestion_window = 10 * MSS
    path.lose_one()
    assert path.control.congestion_window == 5 * MSS


@pytest.mark.skipif(len(CONTROLS) < 2, reason="nothing is compiled")
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["sent", "acked", "lost", "rtt", "persistent", "expired"]),
            st.floats(0.0, 0.05),
            st.integers(1, 9000),
        ),
        max_size=200,
    ),
    window=st.integers(2, 200),
)
def test_both_do_the_same(steps: list[tuple[str, float, int]], window: int) -> None:
    plain, compiled = (kind(max_datagram_size=MSS) for kind in CONTROLS)
    for control in (plain, compiled):
        control.congestion_window = window * MSS
    now = 1.0
    for what, passed, size in steps:
        now += passed
        packet = Packet(now - passed, size)
        for control in (plain, compiled):
            if what == "sent":
                control.on_packet_sent(packet=packet)
            elif what == "acked":
                control.on_packet_acked(now=now, packet=packet)
            elif what == "lost":
                control.on_packets_lost(now=now, packets=[packet])
            elif what == "rtt":
                control.on_rtt_measurement(now=now, rtt=passed + size / 1e5)
            elif what == "persistent":
                control.on_persistent_congestion()
            else:
                control.on_packets_expired(packets=[packet])
        assert plain.congestion_window == compiled.congestion_window
        assert plain.ssthresh == compiled.ssthresh
        assert plain.bytes_in_flight == compiled.bytes_in_flight
