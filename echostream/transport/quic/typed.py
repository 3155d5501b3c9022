"""What the compiled data path needs of Python, and the classes that join it to the plain ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from aioquic import tls
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace

from echostream._ext.quic_path import (
    Pacer,
    PacketSpace,
    RecoveryState,
    SendPath,
    StreamLimit,
    Westwood,
)
from echostream.transport.quic.hardened import HardenedConnection
from echostream.transport.quic.recovery import (
    PACING_GAIN,
    PACING_TICK,
    AdaptiveRecovery,
)

__all__ = ["TypedConnection", "TypedRecovery"]

AnySpace: TypeAlias = QuicPacketSpace | PacketSpace


class TypedRecovery(RecoveryState, AdaptiveRecovery):
    """``AdaptiveRecovery`` with the application's packet space compiled."""

    def __init__(self, *, max_datagram_size: int, **kwargs: Any) -> None:
        super().__init__(max_datagram_size=max_datagram_size, **kwargs)
        self._adopt(max_datagram_size)

    def restart(self, congestion_control_algorithm: str, max_datagram_size: int) -> None:
        super().restart(congestion_control_algorithm, max_datagram_size)
        self._adopt(max_datagram_size)

    def _adopt(self, max_datagram_size: int) -> None:
        """Put compiled objects in the place of new plain ones."""
        control = Westwood(max_datagram_size=max_datagram_size)
        control.bytes_in_flight = self._cc.bytes_in_flight
        self._cc = control
        self._pacer = Pacer(max_datagram_size=max_datagram_size, tick=PACING_TICK, gain=PACING_GAIN)

    def on_packet_sent(self, *, packet: QuicSentPacket, space: AnySpace) -> None:
        if isinstance(space, PacketSpace):
            self.note_sent(packet, space)
        else:
            super().on_packet_sent(packet=packet, space=space)

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: AnySpace
    ) -> None:
        if isinstance(space, PacketSpace):
            self._check_ack(ack_rangeset, now, space)  # type: ignore[arg-type]
            self.note_acknowledged(ack_rangeset, ack_delay, now, space)
        else:
            super().on_ack_received(
                ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
            )

    def _detect_loss(self, *, now: float, space: AnySpace) -> None:
        if isinstance(space, PacketSpace):
            lost = self.find_lost(now, space)
            if lost:
                self._declare_lost(lost, now, space)  # type: ignore[arg-type]
        else:
            super()._detect_loss(now=now, space=space)

    def _on_packets_lost(
        self,
        *,
        congestion_event: bool = True,
        now: float,
        packets: Iterable[QuicSentPacket],
        persistent_congestion: bool = False,
        space: AnySpace,
    ) -> None:
        if not isinstance(space, PacketSpace):
            super()._on_packets_lost(
                congestion_event=congestion_event,
                now=now,
                packets=packets,
                persistent_congestion=persistent_congestion,
                space=space,
            )
        elif self.give_up(list(packets), space, now, congestion_event) and congestion_event:
            if persistent_congestion:
                self._cc.on_persistent_congestion()
            self._pacer.update_rate(
                congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed
            )

    def _window_state(self) -> Any:
        return self._cc.state()

    def _restore_window(self, state: Any) -> None:
        self._cc.restore(state)


class TypedConnection(SendPath, HardenedConnection):
    """``HardenedConnection`` whose 1-RTT packets take the compiled path where they can."""

    recovery_class = TypedRecovery

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("_local_max_data", "_local_max_streams_bidi", "_local_max_streams_uni"):
            plain = getattr(self, name)
            setattr(self, name, StreamLimit(plain.frame_type, plain.name, plain.value))

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        space = PacketSpace()
        self._spaces[tls.Epoch.ONE_RTT] = space  # type: ignore[assignment]
        self._application_space = space
        self._loss.spaces = list(self._spaces.values())

    def has_early_keys(self) -> bool:
        """Whether a server still takes 0-RTT packets: the plain class drops their keys with the
        first 1-RTT packet."""
        return not self._is_client and self._cryptos[tls.Epoch.ZERO_RTT].recv.is_valid()

    def may_be_typed(self) -> bool:
        """Whether this connection is one that the compiled path knows: its header protection is
        AES, and only the application's packet space is left."""
        return (
            self._application_keys.recv.hp is not None
            and not self._application_keys.recv.hp._is_chacha20
            and self._quic_logger is None
            and all(
                space is self._application_space or space.discarded for space in self._loss.spaces
            )
        )

    def has_plain_frames(self) -> bool:
        """Whether there is something to send that only the plain class writes."""
        return (
            any(not connection_id.was_sent for connection_id in self._host_cids)
            or not self._application_crypto.sender.buffer_is_empty
            or bool(self.path_mtu.due)
            or (self._is_client and self._remote_preferred_address is not None)
            or bool(self._network_paths[0].remote_challenges)
            or any(
                path.remote_challenges or not (path.is_validated or path.local_challenge_sent)
                for path in self._network_paths[1:]
            )
        )
