from collections.abc import Iterable
from typing import Any, ClassVar, Self, final

from aioquic.quic.events import StreamDataReceived, StreamReset
from aioquic.quic.packet import QuicResetStreamFrame, QuicStopSendingFrame, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState
from typing_extensions import Buffer, disjoint_base

__all__ = [
    "NumberWindow",
    "Pacer",
    "PacketSpace",
    "Ranges",
    "RecoveryState",
    "SendPath",
    "SentPacket",
    "Stream",
    "StreamLimit",
    "StreamReceiver",
    "StreamSender",
    "Westwood",
]

@final
class Ranges:
    def __new__(cls) -> Self: ...
    def add(self, start: int, stop: int | None = None) -> None: ...
    def subtract(self, start: int, stop: int) -> None: ...
    def shift(self) -> range: ...
    def bounds(self) -> range: ...
    def __bool__(self) -> bool: ...
    def __contains__(self, number: int, /) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __getitem__(self, index: int, /) -> range: ...
    def __len__(self) -> int: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@final
class NumberWindow:
    def __new__(cls) -> Self: ...
    def add(self, number: int) -> None: ...
    def __contains__(self, number: int, /) -> bool: ...

@final
class StreamReceiver:
    highest_offset: int
    is_finished: bool
    stop_pending: bool
    _buffer: bytearray
    _buffer_start: int
    _final_size: Any
    @property
    def _ranges(self) -> Ranges: ...
    @property
    def _stream_id(self) -> Any: ...
    _stop_error_code: Any
    def __new__(cls, stream_id: int | None, readable: bool) -> Self: ...
    def handle_frame(self, frame: QuicStreamFrame) -> StreamDataReceived | None: ...
    def handle_reset(self, *, final_size: int, error_code: int = 0) -> StreamReset | None: ...
    def starting_offset(self) -> int: ...
    def stop(self, error_code: int = 0) -> None: ...
    def get_stop_frame(self) -> QuicStopSendingFrame: ...
    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None: ...

@final
class StreamSender:
    buffer_is_empty: bool
    highest_offset: int
    is_finished: bool
    reset_pending: bool
    @property
    def _acked(self) -> Ranges: ...
    _acked_fin: bool
    _buffer: bytearray
    _buffer_fin: Any
    _buffer_start: int
    _buffer_stop: int
    @property
    def _pending(self) -> Ranges: ...
    _pending_eof: bool
    _reset_error_code: Any
    @property
    def _stream_id(self) -> Any: ...
    def __new__(cls, stream_id: int | None, writable: bool) -> Self: ...
    @property
    def next_offset(self) -> int: ...
    def write(self, data: Buffer, end_stream: bool = False) -> None: ...
    def get_frame(self, max_size: int, max_offset: int | None = None) -> QuicStreamFrame | None: ...
    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None: ...
    def reset(self, error_code: int) -> None: ...
    def get_reset_frame(self) -> QuicResetStreamFrame: ...
    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None: ...

@final
class Stream:
    is_blocked: bool
    max_stream_data_local: int
    max_stream_data_local_sent: int
    max_stream_data_remote: int
    @property
    def receiver(self) -> StreamReceiver: ...
    @property
    def sender(self) -> StreamSender: ...
    @property
    def stream_id(self) -> Any: ...
    def __new__(
        cls,
        stream_id: int,
        max_stream_data_local: int,
        max_stream_data_remote: int,
        readable: bool = True,
        writable: bool = True,
    ) -> Self: ...
    @property
    def is_finished(self) -> bool: ...

@final
class StreamLimit:
    frame_type: Any
    name: Any
    sent: int
    used: int
    value: int
    def __new__(cls, frame_type: int, name: str, value: int) -> Self: ...

@final
class SentPacket:
    @property
    def packet_number(self) -> int: ...
    sent_time: float
    @property
    def sent_bytes(self) -> int: ...
    @property
    def in_flight(self) -> bool: ...
    @property
    def is_ack_eliciting(self) -> bool: ...
    @property
    def is_crypto_packet(self) -> bool: ...
    @property
    def packet_type(self) -> Any: ...

@final
class PacketSpace:
    ack_at: Any
    @property
    def ack_queue(self) -> Ranges: ...
    discarded: bool
    expected_packet_number: int
    @property
    def is_application_data(self) -> bool: ...
    largest_received_packet: int
    largest_received_time: Any
    @property
    def received_packets(self) -> NumberWindow: ...
    ack_eliciting_in_flight: int
    largest_acked_packet: int
    loss_time: Any
    @property
    def sent_packets(self) -> dict[Any, Any]: ...
    ect0: int
    ect1: int
    ce: int
    def __new__(cls) -> Self: ...

@final
class Pacer:
    _max_datagram_size: float
    @property
    def bucket_max(self) -> float: ...
    @property
    def bucket_time(self) -> float: ...
    @property
    def evaluation_time(self) -> float: ...
    def __new__(cls, *, max_datagram_size: int, tick: float, gain: float) -> Self: ...
    @property
    def packet_time(self) -> float | None: ...
    def next_send_time(self, now: float) -> float | None: ...
    def update_after_send(self, now: float) -> None: ...
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None: ...

@final
class Westwood:
    bytes_in_flight: int
    congestion_window: int
    ssthresh: Any
    _max_datagram_size: int
    def __new__(cls, *, max_datagram_size: int) -> Self: ...
    def on_packet_acked(self, *, now: float, packet: Any) -> None: ...
    def on_packet_sent(self, *, packet: Any) -> None: ...
    def on_packets_expired(self, *, packets: Iterable[Any]) -> None: ...
    def on_packets_lost(self, *, now: float, packets: Iterable[Any]) -> None: ...
    def on_persistent_congestion(self) -> None: ...
    def on_rtt_measurement(self, *, now: float, rtt: float) -> None: ...
    def state(self) -> tuple[Any, ...]: ...
    def restore(self, state: tuple[Any, ...]) -> None: ...

@disjoint_base
class RecoveryState:
    handshake_confirmed: bool
    max_ack_delay: float
    peer_completed_address_validation: bool
    spaces: Any
    _cc: Any
    _pacer: Any
    _pto_count: int
    _rtt_initial: float
    _rtt_initialized: bool
    _rtt_latest: float
    _rtt_min: float
    _rtt_smoothed: float
    _rtt_variance: float
    _rtt_first_sample_time: float
    _time_of_last_sent_ack_eliciting_packet: float
    packet_threshold: int
    late_by: float
    packets_sent: int
    packets_lost: int
    eliciting_sent: int
    unanswered: int
    largest_sent: int
    skipped: Any
    largest_delivered: int
    _presumed_lost: dict[Any, Any]
    ecn_marks: bool
    ecn_capable: bool
    ecn_first: int
    ecn_from: int
    ecn_ect0: int
    ecn_ce: int
    ack_counts: Any
    plain_delivery: bool
    def find_lost(self, now: float, space: PacketSpace) -> list[Any]: ...
    def note_sent(self, packet: Any, space: PacketSpace) -> None: ...
    def note_acknowledged(
        self, ack_rangeset: Iterable[range], ack_delay: float, now: float, space: PacketSpace
    ) -> None: ...
    def give_up(
        self, packets: list[Any], space: PacketSpace, now: float, congestion: bool
    ) -> int: ...

@disjoint_base
class ConnectionState:
    _ack_eliciting_sent_since_receipt: bool
    _application_space: Any
    _close_at: Any
    _close_pending: bool
    datagram_ecn: int
    _datagrams: Any
    _datagram_lead: int
    _events: Any
    _handshake_confirmed: bool
    _handshake_done_pending: bool
    host_cid: bytes
    _is_client: bool
    _key_since: int
    _last_served: int
    _local_max_data: Any
    _local_max_streams_bidi: Any
    _local_max_streams_uni: Any
    _local_max_stream_data_bidi_local: int
    _local_max_stream_data_bidi_remote: int
    _local_max_stream_data_uni: int
    _local_next_stream_id_bidi: int
    _local_next_stream_id_uni: int
    _loss: Any
    _loss_at: Any
    _max_datagram_size: int
    _network_paths: list[Any]
    _options: Any
    _pacing_at: Any
    _packet_number: int
    packets_received: int
    _peer_cid: Any
    _ping_pending: list[Any]
    _probe_pending: bool
    _remote_ack_delay_exponent: int
    _remote_max_data: int
    _remote_max_data_used: int
    _remote_max_stream_data_bidi_local: int
    _remote_max_stream_data_bidi_remote: int
    _remote_max_stream_data_uni: int
    _remote_max_streams_bidi: int
    _remote_max_streams_uni: int
    _retire_connection_ids: list[Any]
    _skip_at: int
    _spin_bit: bool
    _spin_highest_pn: int
    _state: Any
    _streams: dict[Any, Any]
    _streams_blocked_bidi: list[Any]
    _streams_blocked_uni: list[Any]
    _streams_blocked_pending: bool
    _streams_queue: list[Any]
    _urgency: dict[int, int]
    @property
    def buffered_total(self) -> int: ...
    @property
    def typed(self) -> bool: ...
    def get_timer(self) -> float | None: ...
    def send_stream_data(self, stream_id: int, data: Any, end_stream: bool = False) -> None: ...
    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> Any: ...
    def _get_or_create_stream_for_send(self, stream_id: int) -> Any: ...

class ReceivePath(ConnectionState):
    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None: ...

@disjoint_base
class SendPath(ReceivePath):
    @property
    def idle(self) -> bool: ...
    @property
    def max_datagram_payload(self) -> int: ...
    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]: ...
