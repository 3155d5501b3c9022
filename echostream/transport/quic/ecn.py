"""Whether a path carries ECN marks, and what they say of congestion (RFC 9000, section 13.4).

Once the handshake is confirmed every packet leaves as ECT(0), until the path or the peer proves not
to be up to it: marks that are cleared or changed on the way, a peer that reports none, packets that
vanish because they are marked. From then on nothing is marked, and all is as it was before.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

__all__ = ["CE", "COUNTS_CAPACITY", "EcnCounts", "EcnValidation", "count_mark"]

ECT1, ECT0, CE = 1, 2, 3
"""Two bits of the IP header (RFC 3168, section 5)."""

COUNTS_CAPACITY = 24
"""Bytes that the counts take in an ACK_ECN frame at most."""

TESTING_TIMEOUTS, CAPABLE_TIMEOUTS = 2, 3
"""Probe timeouts in a row after which it may be the marks that the path does not let through: where
none has come through yet, and where some have."""

MARKED_LEAVES = 0.85
"""Of the window, at most, where a packet was marked (RFC 8511: 0.8 for Reno, 0.85 for CUBIC)."""

NEVER = 1 << 62
"""A packet number that is not reached."""

EcnCounts: TypeAlias = tuple[int, int, int]
"""Packets received as ECT(0), ECT(1) and CE."""


class _Marked(NamedTuple):
    """What a congestion controller is told to be lost, when nothing is."""

    sent_time: float
    sent_bytes: int = 0


class EcnValidation(QuicPacketRecovery):
    """The part of recovery that knows what became of marks."""

    largest_sent: int

    def _prepare_ecn(self) -> None:
        self.ecn_marks = False
        """Whether packets leave marked."""
        self.ecn_capable = False
        """Whether marks have come through."""
        self.ecn_first = NEVER
        """The number of the first packet that was marked."""
        self.ecn_from = NEVER
        """The same since marking last began: all packets from this one on are."""
        self.ecn_ect0 = 0
        self.ecn_ce = 0
        """What the peer has reported."""
        self.ack_counts: EcnCounts | None = None
        """Of the ACK frame that is being handled, where it has them."""
        self._ecn_unweighed: tuple[int, float] | None = None
        self._ecn_shrunk_at = 0.0

    @property
    def ecn_state(self) -> str:
        """``"off"``, ``"testing"``, ``"capable"``, or ``"failed"``."""
        if not self.ecn_marks:
            return "off" if self.ecn_first == NEVER else "failed"
        return "capable" if self.ecn_capable else "testing"

    def begin_ecn(self) -> None:
        """Mark what is sent from now on, on a path of which nothing is known."""
        self.ecn_marks = True
        self.ecn_capable = False
        self.ecn_from = self.largest_sent + 1
        self.ecn_first = min(self.ecn_first, self.ecn_from)

    def fail_ecn(self) -> None:
        """Mark nothing more."""
        self.ecn_marks = self.ecn_capable = False
        self.ecn_from = NEVER

    def _ecn_subject(
        self, ack_rangeset: RangeSet, space: QuicPacketSpace
    ) -> tuple[int, float] | None:
        """How many marked packets an ACK frame is the first to acknowledge, and when the newest was
        sent; ``None`` for one that says nothing new (RFC 9000, section 13.4.2.1)."""
        if ack_rangeset[-1].stop - 1 <= space.largest_acked_packet:
            return None
        found = [packet for number, packet in space.sent_packets.items() if number in ack_rangeset]
        if not found:
            return None
        sent_time = found[-1].sent_time
        assert sent_time is not None
        return sum(packet.packet_number >= self.ecn_from for packet in found), sent_time

    def _weigh_ecn(
        self, counts: EcnCounts | None, marked: int, sent_time: float, now: float
    ) -> None:
        """An ACK frame acknowledged ``marked`` packets, the newest of all sent at ``sent_time``;
        it had these counts."""
        if counts is None:
            if marked:
                self.fail_ecn()
            return
        ect0, ect1, ce = counts
        if (
            ect1
            or ect0 < self.ecn_ect0
            or ce < self.ecn_ce
            or ect0 + ce - self.ecn_ect0 - self.ecn_ce < marked
            or ect0 + ce > self.largest_sent + 1 - self.ecn_first
        ):
            self.fail_ecn()
            return
        if marked:
            self.ecn_capable = True
        congested = ce > self.ecn_ce
        self.ecn_ect0, self.ecn_ce = ect0, ce
        if congested:
            self._congestion_experienced(sent_time, now)

    def _congestion_experienced(self, sent_time: float, now: float) -> None:
        """RFC 9002, section 7.3.2: as a loss of a packet sent then, once per round trip. No radio
        sets marks: whatever the controller makes of a loss, the window shrinks (RFC 8511)."""
        control = self._cc
        before = control.congestion_window
        control.on_packets_lost(now=now, packets=[_Marked(sent_time)])  # type: ignore[list-item]
        if sent_time > self._ecn_shrunk_at:
            self._ecn_shrunk_at = now
            most = max(int(before * MARKED_LEAVES), 2 * control._max_datagram_size)  # type: ignore[attr-defined]
            if control.congestion_window > most:
                control.congestion_window = control.ssthresh = most
        self._pacer.update_rate(
            congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed
        )

    def _weigh_timeouts(self) -> None:
        """Nothing comes back: perhaps it is the marks."""
        limit = CAPABLE_TIMEOUTS if self.ecn_capable else TESTING_TIMEOUTS
        if self.ecn_marks and self._pto_count >= limit:
            self.fail_ecn()


def count_mark(space: Any, ecn: int) -> None:
    """A packet was received with a mark."""
    if ecn == ECT0:
        space.ect0 += 1
    elif ecn == CE:
        space.ce += 1
    elif ecn == ECT1:
        space.ect1 += 1
