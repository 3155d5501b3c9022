"""Loss detection and pacing: what RFC 9002 allows beyond what aioquic does."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from aioquic.quic.congestion.base import (
    create_congestion_control,
    register_congestion_control,
)
from aioquic.quic.connection import QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import (
    K_PACKET_THRESHOLD,
    K_TIME_THRESHOLD,
    QuicPacketPacer,
    QuicPacketSpace,
)

from echostream.transport.quic.congestion import Westwood
from echostream.transport.quic.ecn import EcnValidation
from echostream.transport.quic.options import WESTWOOD
from echostream.transport.quic.path_mtu import MAX_TIMEOUTS, PathMtu

__all__ = ["AdaptiveRecovery", "PacketNumberWindow", "TickPacer"]

REORDERING_WINDOW = 1024
"""Packet numbers over which reordering is tolerated, as sender and as receiver."""

PRESUMED_LOST = 512
"""Packets declared lost that are remembered in case that they were only late."""

LATEST = 0.25
"""Seconds that waiting for a late packet may add to the time threshold at most."""

CALM_EVENTS = 16
"""Loss events without a late packet after which tolerance is halved (RFC 8985, section 6.2)."""

register_congestion_control(WESTWOOD, Westwood)

PACING_TICK = 0.001
"""Event loops' timers are this coarse, in seconds."""

PACING_GAIN = 1.25
"""RFC 9002, section 7.7: above 1, so that pacing does not itself limit the throughput."""


class PacketNumberWindow:
    """Which of the latest packet numbers were received: one bit each.

    Anything below the window counts as received. aioquic's own window has 128 numbers: at
    2000 packets a second a packet 64 ms late is thrown away as a duplicate, and the peer has to
    send it again.
    """

    __slots__ = ("_bits", "_lower")

    def __init__(self) -> None:
        self._lower = 0
        self._bits = 0

    def add(self, packet_number: int) -> None:
        """Note that ``packet_number`` was received."""
        offset = packet_number - self._lower
        if offset < 0:
            return
        if offset >= REORDERING_WINDOW:
            shift = offset - REORDERING_WINDOW + 1
            self._bits = self._bits >> shift if shift < REORDERING_WINDOW else 0
            self._lower += shift
            offset -= shift
        self._bits |= 1 << offset

    def __contains__(self, packet_number: int) -> bool:
        offset = packet_number - self._lower
        return offset < 0 or bool(self._bits >> offset & 1)


class TickPacer(QuicPacketPacer):
    """A pacer for timers that tick: it may send as much as two ticks are worth at once.

    aioquic's bucket of 16 packets, refilled once per tick of 1 ms, caps the rate at 19 MB/s;
    and asking to be called after less than a tick makes the loop spin.
    """

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        if self.bucket_time > 0:
            return None
        return now + max(self.packet_time, PACING_TICK)

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(int(congestion_window * PACING_GAIN), smoothed_rtt)
        self.bucket_max = max(self.bucket_max, 2 * PACING_TICK)


class AdaptiveRecovery(EcnValidation):
    """Recovery that learns how much the path reorders, and refuses forged acknowledgements.

    A packet that is acknowledged after it was declared lost was late, not lost. Then the packet
    threshold (RFC 9002, section 6.1.1) and the time threshold (section 6.1.2) rise to what would
    have been enough, and if nothing else of that event was lost, the congestion window is put
    back (as RFC 4015 does for TCP).
    """

    _pacer: TickPacer

    def __init__(
        self,
        *,
        max_datagram_size: int,
        path_mtu: PathMtu,
        on_black_hole: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(max_datagram_size=max_datagram_size, **kwargs)
        self._pacer = TickPacer(max_datagram_size=max_datagram_size)
        self.path_mtu = path_mtu
        self._on_black_hole = on_black_hole
        self.probe_again = False
        """Whether the coming flush answers a probe timeout of the handshake."""
        self.plain_delivery = False
        """Whether something came up that only a plain flush sends."""
        self.size_probe: int | None = None
        """The number of the latest packet that probed the path MTU."""
        self.largest_delivered = 0
        """Bytes of the largest packet that arrived since large ones were last lost."""
        self.packet_threshold: int = K_PACKET_THRESHOLD
        self.late_by = 0.0
        """Seconds beyond the time threshold that packets have been late."""
        self.packets_sent = 0
        self.packets_lost = 0
        self.eliciting_sent = 0
        self.unanswered = 0
        """Packets in a row that ask for no acknowledgement."""
        self.largest_sent = -1
        self.skipped: int | None = None
        """A packet number that was never sent: an honest peer does not acknowledge it."""
        self._presumed_lost: dict[int, float] = {}
        self._event_lost: set[int] = set()
        self._before_event: Any = None
        self._event_at = 0.0
        self._calm_events = 0
        self._prepare_ecn()

    def restart(self, congestion_control_algorithm: str, max_datagram_size: int) -> None:
        """The path is another one: nothing that was learned of the old one holds (RFC 9000,
        section 9.4)."""
        in_flight = self._cc.bytes_in_flight
        self._cc = create_congestion_control(
            congestion_control_algorithm, max_datagram_size=max_datagram_size
        )
        self._cc.bytes_in_flight = in_flight
        self._pacer = TickPacer(max_datagram_size=max_datagram_size)
        self._rtt_initialized = False
        self._rtt_latest = self._rtt_smoothed = self._rtt_variance = 0.0
        self._rtt_min = math.inf
        self._pto_count = 0
        self.packet_threshold = K_PACKET_THRESHOLD
        self.late_by = 0.0
        self._before_event = None
        self._event_lost.clear()
        self._presumed_lost.clear()
        if self.ecn_state != "off":
            self.begin_ecn()

    def use_datagram_size(self, size: int) -> None:
        """Packets are this large from now on; the window keeps its bytes."""
        self._cc._max_datagram_size = size  # type: ignore[attr-defined]
        self._pacer._max_datagram_size = size

    def on_packet_sent(self, *, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        space.sent_packets[packet.packet_number] = packet
        if packet.in_flight:
            # Application data does not arm the probe timer before the handshake is confirmed
            # (RFC 9002, section 6.2.1).
            if packet.is_ack_eliciting and (
                self.handshake_confirmed or not space.is_application_data
            ):
                assert packet.sent_time is not None
                self._time_of_last_sent_ack_eliciting_packet = packet.sent_time
            self._cc.on_packet_sent(packet=packet)
            if self._quic_logger is not None:
                self._log_metrics_updated()
            if packet.sent_bytes > self.path_mtu.base:
                packet.delivery_handlers.append((self._on_large_delivery, (packet.sent_bytes,)))
        self.largest_sent = packet.packet_number
        self.packets_sent += 1
        if packet.is_ack_eliciting:
            space.ack_eliciting_in_flight += 1
            self.eliciting_sent += 1
            self.unanswered = 0
        else:
            self.unanswered += 1

    def _on_large_delivery(self, delivery: QuicDeliveryState, size: int) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self.largest_delivered = max(self.largest_delivered, size)

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        self._check_ack(ack_rangeset, now, space)
        self._ecn_unweighed = self._ecn_subject(ack_rangeset, space) if self.ecn_marks else None
        if isinstance(self._cc, Westwood):
            self._cc.ack_delay = min(ack_delay, self.max_ack_delay)
            self._cc.path_rtt_min = self._rtt_min
        super().on_ack_received(
            ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
        )

    def _congestion_experienced(self, sent_time: float, now: float) -> None:
        super()._congestion_experienced(sent_time, now)
        self._before_event = None  # no late packet undoes it
        self._event_lost.clear()

    def _check_ack(self, ack_rangeset: RangeSet, now: float, space: QuicPacketSpace) -> None:
        # RFC 9000, section 13.1: an acknowledgement of a packet that was not sent is a
        # PROTOCOL_VIOLATION; section 21.4: skipping numbers shows who acknowledges blindly.
        if ack_rangeset[-1].stop > self.largest_sent + 1 or (
            self.skipped is not None and self.skipped in ack_rangeset
        ):
            raise QuicConnectionError(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=QuicFrameType.ACK,
                reason_phrase="Acknowledgement of a packet that was not sent",
            )
        if self._presumed_lost:
            self._recognise_late(ack_rangeset, now, space)

    def _recognise_late(self, acked: RangeSet, now: float, space: QuicPacketSpace) -> None:
        numbers = sorted(self._presumed_lost)
        late: list[int] = []
        for span in acked:
            late += numbers[bisect_left(numbers, span.start) : bisect_left(numbers, span.stop)]
        if not late:
            return
        base = K_TIME_THRESHOLD * max(self._rtt_latest, self._rtt_smoothed)
        for number in late:
            sent_time = self._presumed_lost.pop(number)
            self.packets_lost -= 1
            self._event_lost.discard(number)
            distance = 2 * (space.largest_acked_packet - number + 1)
            self.packet_threshold = min(max(self.packet_threshold, distance), REORDERING_WINDOW)
            self.late_by = min(max(self.late_by, 2 * (now - sent_time - base)), LATEST)
        self._calm_events = 0
        if not self._event_lost and self._before_event is not None:
            window = self._cc.congestion_window
            self._restore_window(self._before_event)
            self._cc.congestion_window = max(window, self._cc.congestion_window)
            self._before_event = None

    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        if self._ecn_unweighed is not None:  # after round-trip time, before losses: RFC 9002, A.7
            marked, newest_time = self._ecn_unweighed
            self._ecn_unweighed = None
            self._weigh_ecn(self.ack_counts, marked, newest_time, now)
        delay = K_TIME_THRESHOLD * (
            max(self._rtt_latest, self._rtt_smoothed)
            if self._rtt_initialized
            else self._rtt_initial
        )
        delay += self.late_by
        largest = space.largest_acked_packet
        lost_number = largest - self.packet_threshold
        lost_time = now - delay
        lost = []
        space.loss_time = None
        for number, packet in space.sent_packets.items():
            if number > largest:
                break
            sent_time = packet.sent_time
            assert sent_time is not None
            if number <= lost_number or sent_time <= lost_time:
                lost.append(packet)
            elif space.loss_time is None or sent_time + delay < space.loss_time:
                space.loss_time = sent_time + delay
        if lost:
            self._declare_lost(lost, now, space)

    def _declare_lost(self, lost: list[QuicSentPacket], now: float, space: QuicPacketSpace) -> None:
        if self.size_probe is not None or self.path_mtu.size > self.path_mtu.base:
            lost = self._judge_sizes(lost, now, space)
            if not lost:
                return
        persistent = self._in_persistent_congestion(packets=lost)
        window = self._cc.congestion_window
        before = self._window_state()
        self._on_packets_lost(now=now, packets=lost, persistent_congestion=persistent, space=space)
        numbers = [packet.packet_number for packet in lost if packet.in_flight]
        self.packets_lost += len(numbers)
        if persistent:
            self._before_event = None
            self._event_lost.clear()
        elif self._cc.congestion_window < window:
            if self._before_event is None or now - self._event_at > self.get_probe_timeout():
                self._before_event = before
                self._event_lost.clear()
            self._event_at = now
            self._calm_events += 1
            if self._calm_events >= CALM_EVENTS:
                self._calm_events = 0
                self.packet_threshold = max(K_PACKET_THRESHOLD, self.packet_threshold // 2)
                self.late_by /= 2
        if not space.is_application_data:
            return
        for packet in lost:
            if packet.in_flight:
                assert packet.sent_time is not None
                self._presumed_lost[packet.packet_number] = packet.sent_time
                self._event_lost.add(packet.packet_number)
        while len(self._presumed_lost) > PRESUMED_LOST:
            oldest = next(iter(self._presumed_lost))
            del self._presumed_lost[oldest]
            # It is too old to be late: the event was a real one.
            if oldest in self._event_lost:
                self._before_event = None
                self._event_lost.clear()

    def _judge_sizes(
        self, lost: list[QuicSentPacket], now: float, space: QuicPacketSpace
    ) -> list[QuicSentPacket]:
        """What lost packets say of the path MTU. Returns those that say something of congestion:
        a probe does not (RFC 9000, section 14.4)."""
        if space.is_application_data:
            probes = [packet for packet in lost if packet.packet_number == self.size_probe]
            if probes:
                lost = [packet for packet in lost if packet not in probes]
                self.size_probe = None
                self._on_packets_lost(now=now, packets=probes, congestion_event=False, space=space)
        base = self.path_mtu.base
        large = [packet.sent_bytes for packet in lost if packet.sent_bytes > base]
        if large:
            if self.largest_delivered >= min(large):
                self.path_mtu.passed()
            elif self.path_mtu.passed_over(now):
                self._on_black_hole()
            self.largest_delivered = 0
        return lost

    def on_loss_detection_timeout(self, *, now: float) -> None:
        timeouts = self._pto_count
        super().on_loss_detection_timeout(now=now)
        self.probe_again = self._pto_count > timeouts and not self.handshake_confirmed
        self._weigh_timeouts()
        if self._pto_count >= MAX_TIMEOUTS and self.path_mtu.size > self.path_mtu.base:
            self.path_mtu.black_hole(now)
            self._on_black_hole()

    def _window_state(self) -> Any:
        state = {k: v for k, v in vars(self._cc).items() if k not in _NOT_OF_AN_EVENT}
        state["ssthresh"] = self._cc.ssthresh  # until it is first set it is the class's
        return state

    def _restore_window(self, state: Any) -> None:
        vars(self._cc).update(state)


_NOT_OF_AN_EVENT = frozenset(
    {
        "_max_datagram_size",
        "_rates",
        "_round_bytes",
        "_round_start",
        "_rtt",
        "_rtt_min",
        "_rtt_min_at",
        "_rtt_monitor",
        "ack_delay",
        "bytes_in_flight",
        "last_ack",
        "path_rtt_min",
        "rtt",
    }
)
"""What a congestion controller knows that losing packets does not change."""
