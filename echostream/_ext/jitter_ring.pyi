from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

ACCEPTED: int
DUPLICATE: int
STALE: int
REJECTED: int
OVERFLOW: int

@final
class JitterRing:
    known_drift_ppm: float
    def __init__(
        self,
        sample_rate: int,
        channels: int,
        int16: bool,
        capacity: int,
        max_packet_frames: int,
        ring_frames: int,
        sequence_bits: int,
        timestamp_bits: int,
        late: float,
        start_ns: float,
        minimum_ns: float,
        maximum_ns: float,
        raise_rate: float,
        lower_rate: float,
        hold_ns: int,
        max_pull: int,
        start_share: float = 0.5,
        settle_s: float = 2.0,
    ) -> None: ...
    def push(
        self,
        sequence_number: int,
        timestamp: int,
        payload: Buffer | NDArray[Any],
        arrival_ns: int,
        epoch: int = 0,
        silence: bool = False,
    ) -> int: ...
    def push_late(
        self, sequence_number: int, timestamp: int, arrival_ns: int, epoch: int = 0
    ) -> int: ...
    def push_many(
        self,
        sequence_numbers: NDArray[np.int64],
        timestamps: NDArray[np.int64],
        payloads: NDArray[np.uint8],
        arrivals_ns: NDArray[np.int64],
        epoch: int = 0,
    ) -> int: ...
    def pull_into(self, out: Buffer | NDArray[np.float32], now_ns: int) -> int: ...
    def pull_many_into(
        self, out: Buffer | NDArray[np.float32], now_ns: int, cursors: NDArray[np.int64]
    ) -> None: ...
    def schedule(self, now_ns: int) -> int: ...
    def peek_into(self, out: Buffer | NDArray[np.float32], ahead: int = 0) -> int: ...
    def take_into(self, out: Buffer | NDArray[np.float32], instead_of: int) -> int: ...
    def position(self, timestamp: int) -> int: ...
    def patch(self, timestamp: int, payload: Buffer | NDArray[Any]) -> int: ...
    def gap(self, frames: int, ahead: int = 0) -> int: ...
    def drop(self) -> int: ...
    def pass_over(self, frames: int) -> int: ...
    def skip(self, frames: int) -> None: ...
    def hold(self, frames: int) -> None: ...
    def is_silence(self, ahead: int = 0) -> bool: ...
    @property
    def flushes(self) -> int: ...
    @property
    def playing(self) -> bool: ...
    @property
    def cursor_timestamp(self) -> int: ...
    @property
    def buffered_frames(self) -> int: ...
    @property
    def target_ns(self) -> int: ...
    @property
    def wanted_ns(self) -> int: ...
    @property
    def drift_ppm(self) -> float: ...
    @property
    def consumer_ns(self) -> int: ...
    def counters(self) -> tuple[int, ...]: ...
