"""Congestion control: New Reno (RFC 9002, section 7) that tells congestion from other losses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

__all__ = ["Westwood"]

ROUNDS = 8
"""Round trips whose highest rate of delivery counts."""

SHORTEST_ROUND = 0.01
"""Seconds: over less, a rate is that of bunched acknowledgements."""

RTT_MIN_AGE = 10.0
"""Seconds for which the smallest round trip is believed. The next loss then halves the window, and
what a standing queue adds to the round trip is seen."""


class Westwood(RenoCongestionControl):
    """After a loss the window is what the path delivered in a smallest round trip, where that is
    more than half of it (TCP Westwood+, Mascolo et al. 2001; the rate is a maximum over rounds, as
    in BBR).

    A loss by congestion comes with a full queue: the window then shrinks by the queue. A loss by
    radio comes without, and the window stays. So it is never smaller than New Reno's, and never
    grows by a loss.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._rates: deque[float] = deque(maxlen=ROUNDS)
        self._round_start = -1.0
        self._round_bytes = 0
        self._rtt = 0.0
        self._rtt_min = math.inf
        self._rtt_min_at = 0.0
        self.ack_delay = 0.0
        """How long the peer says that it held the acknowledgement back which comes next."""
        self.path_rtt_min = math.inf
        """The smallest round trip before it."""

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """``packet`` was acknowledged."""
        super().on_packet_acked(now=now, packet=packet)
        self._round_bytes += packet.sent_bytes
        if self._round_start < 0:
            self._round_start, self._round_bytes = now, 0
        elif now - self._round_start >= max(self._rtt, SHORTEST_ROUND):
            self._rates.append(self._round_bytes / (now - self._round_start))
            self._round_start, self._round_bytes = now, 0

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """``packets`` were lost."""
        before = self.congestion_window
        super().on_packets_lost(now=now, packets=packets)
        if self.congestion_window >= before:
            return
        if now - self._rtt_min_at > RTT_MIN_AGE:
            self._rtt_min = math.inf
        elif self._rates and self._rtt_min < math.inf:
            delivered = max(self._rates) * self._rtt_min
            if delivered > self.congestion_window:
                self.congestion_window = min(int(delivered), before)
                self.ssthresh = self.congestion_window

    def on_persistent_congestion(self) -> None:
        """Nothing came through for long."""
        super().on_persistent_congestion()
        self._rates.clear()

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """A round trip took ``rtt``."""
        latest = max(rtt, 0.001)  # as recovery has it: what the peer waited is no queue
        if latest > min(self.path_rtt_min, latest) + self.ack_delay:
            rtt = min(rtt, latest - self.ack_delay)
        super().on_rtt_measurement(now=now, rtt=rtt)
        self._rtt = rtt
        if rtt <= self._rtt_min:
            self._rtt_min, self._rtt_min_at = rtt, now
