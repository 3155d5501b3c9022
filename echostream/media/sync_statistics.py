"""What a group playout tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from echostream.media.codec import CodecStatistics

__all__ = ["SyncStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStatistics:
    """A snapshot; frozen. Times in ns.

    ``error_ns``: how much later than it should be the newest frame was heard, by the local view of
    the sender's clock; ``error_peak_ns`` its largest magnitude in the last 5 to 10 s.
    ``error_bound_ns``: how far it may truly be from its moment, at most: with the clock's bound
    and the noise of stamps and pulls; infinite while nothing is played. Two receivers of one sender
    are apart by no more than the sum of their bounds. It knows nothing of what the device does
    behind ``output_latency_ns``.

    ``headroom_ns``: how much later the packets of the last 5 to 10 s could have come, all of them
    still in time for the pull that needs them; negative: so much more ``playout_delay_ns`` was
    needed. Infinite before the first. ``ratio``: the resampler's; ``drift_ppm``: what the sender's
    clock gains on the one that pulls. ``jumps``: errors above 5 ms that were left behind. Packets:
    ``received``, ``late`` (some of it after its moment), ``early`` (further ahead than is kept,
    dropped).
    Frames: ``pulled_frames`` in all, of which ``concealed_frames`` in ``concealment_events``.
    ``codec``: what became of packets that had to be decoded.
    """

    playing: bool
    error_ns: int
    error_peak_ns: int
    error_bound_ns: float
    clock_bound_ns: float
    playout_delay_ns: int
    output_latency_ns: int
    headroom_ns: float
    ratio: float
    drift_ppm: float
    jumps: int
    received: int
    late: int
    early: int
    pulled_frames: int
    concealed_frames: int
    concealment_events: int
    codec: CodecStatistics | None = None
