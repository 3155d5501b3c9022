from typing import Self, final

import numpy as np
from numpy.typing import NDArray

@final
class Wsola:
    def __new__(cls, rate: int, channels: int, silence: float) -> Self: ...
    def process(
        self,
        block: NDArray[np.float32],
        out: NDArray[np.float32],
        insert: bool,
        threshold: float,
        several: bool,
    ) -> tuple[int, float]: ...
