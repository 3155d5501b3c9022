from typing import Any, final

from numpy.typing import NDArray

from echostream._ext.conceal import Extrapolator
from echostream._ext.jitter_ring import JitterRing
from echostream._ext.resample import Polyphase
from echostream._ext.stretch import Wsola

@final
class PlayoutLoop:
    feed_forward_ppm: float
    def __init__(
        self,
        ring: JitterRing,
        concealer: Extrapolator,
        stretcher: Wsola,
        resampler: Polyphase | None,
        rules: object,
    ) -> None: ...
    def fill(self, out: NDArray[Any], now_ns: int) -> int: ...
    def flush(self) -> int: ...
    def end(self) -> None: ...
    @property
    def error_ns(self) -> int: ...
    @property
    def pulled_frames(self) -> int: ...
    @property
    def stretched(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @property
    def drift_ppm(self) -> float: ...
