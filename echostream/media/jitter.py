"""The jitter buffer: packets in whenever they come, audio out whenever it is due.

Sans-IO: every call that depends on time is given it, in ns on one monotonic clock, so that a
recorded trace replays exactly. What is policy is decided here, once; the mechanism is
``echostream._ext.jitter_ring`` (or its twin, where nothing is compiled).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from echostream.errors import ConfigurationError

if TYPE_CHECKING:
    from echostream._ext.jitter_ring import JitterRing
else:
    try:
        from echostream._ext.jitter_ring import JitterRing
    except ImportError:  # not compiled
        from echostream.media.jitter_twin import JitterRing

__all__ = ["PROFILES", "JitterBuffer", "JitterStatistics", "Profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How fast the playout point may move while audio is played, in seconds per second.

    It moves freely while nothing is there to be played. At the start the target comes down from
    ``start_share`` of the start delay in ``settle_s``, as the playout is able to follow.
    """

    raise_rate: float
    lower_rate: float
    start_share: float
    settle_s: float


PROFILES: Final[dict[str, Profile]] = {
    "voice": Profile(raise_rate=0.1, lower_rate=0.06, start_share=0.5, settle_s=2.0),
    "music": Profile(raise_rate=0.005, lower_rate=0.005, start_share=1.0, settle_s=24.0),
}
"""``voice`` leans on time-stretching; ``music`` stays within half a percent of the pitch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JitterStatistics:
    """Counts since the buffer was made; frozen.

    Packets: ``expected`` by sequence number, ``received`` without duplicates, ``played``,
    ``late`` (came after the moment of their playout; what is left of one may still be heard),
    ``duplicates``, ``stale`` (of a past epoch, or far older than the newest), ``rejected`` (of an
    unexpected numbering that was not confirmed), ``overflows`` (no room), ``restarts`` of the
    sender. Sample frames: ``played_frames``, ``concealed_frames`` in ``concealment_events``,
    ``silent_frames`` (before the first packet, or announced silence), ``raised_frames`` and
    ``lowered_frames`` by stretching, ``skipped_frames`` and ``flushed_frames`` that were dropped.
    """

    expected: int
    received: int
    duplicates: int
    stale: int
    rejected: int
    overflows: int
    restarts: int
    late: int
    played: int
    played_frames: int
    concealed_frames: int
    concealment_events: int
    silent_frames: int
    raised_frames: int
    lowered_frames: int
    skipped_frames: int
    flushed_frames: int
    buffered_ns: int
    target_delay_ns: int
    consumer_jitter_ns: int

    @property
    def lost(self) -> int:
        """Packets that were expected and never came (so far)."""
        return max(self.expected - self.received, 0)

    @property
    def late_rate(self) -> float:
        """Share of the packets received that were late."""
        return self.late / self.received if self.received else 0.0


class JitterBuffer:
    """A jitter buffer for PCM of one stream.

    ``sample_type`` is that of the payloads, ``"float32"`` or ``"int16"``, interleaved; what comes
    out is float32. ``target_late`` is the share of packets that may come too late: the delay
    is as small as that allows. ``start_delay_ms`` counts until the network is known;
    ``min_delay_ms`` and ``max_delay_ms`` bound the delay, and equal ones fix it. ``hold_ms`` is
    how long the playout waits on an empty buffer: 0 keeps to the clock (what comes after its
    moment is late), more keeps the words and lets the delay grow, to be caught up afterwards.

    ``push(sequence_number, timestamp, payload, arrival_ns, epoch=0, silence=False)`` takes in a
    packet (``timestamp`` in sample frames) and tells what became of it;
    ``push_many`` a block of packets of one size; ``pull_into(out, now_ns)`` fills a float32 array
    ``(frames, channels)`` with what is due and returns how many frames came from packets.
    One thread may push while another pulls. Neither allocates.

    Raises :class:`ConfigurationError` for options that cannot work, ``ValueError`` for bad packets.
    """

    __slots__ = (
        "channels",
        "hold",
        "peek_into",
        "pull_into",
        "push",
        "push_many",
        "ring",
        "sample_rate",
        "schedule",
        "take_into",
    )

    push: Callable[..., int]
    push_many: Callable[..., int]
    pull_into: Callable[[Any, int], int]
    schedule: Callable[[int], int]
    peek_into: Callable[..., int]
    take_into: Callable[[Any, int], int]
    hold: Callable[[int], None]

    def __init__(
        self,
        sample_rate: int,
        channels: int = 1,
        *,
        sample_type: str = "float32",
        target_late: float = 0.01,
        profile: str = "voice",
        start_delay_ms: float = 40.0,
        min_delay_ms: float = 0.0,
        max_delay_ms: float = 2000.0,
        hold_ms: float = 0.0,
        capacity: int = 512,
        max_packet_ms: float = 120.0,
        sequence_bits: int = 32,
        timestamp_bits: int = 64,
    ) -> None:
        if not 1000 <= sample_rate <= 768_000:
            raise ConfigurationError(f"sample_rate is from 1000 to 768000 Hz, not {sample_rate}")
        if not 1 <= channels <= 64:
            raise ConfigurationError(f"channels is from 1 to 64, not {channels}")
        if sample_type not in ("float32", "int16"):
            raise ConfigurationError(f'sample_type is "float32" or "int16", not {sample_type!r}')
        if not 0.0001 <= target_late <= 0.5:
            raise ConfigurationError(
                f"target_late is a share from 0.0001 to 0.5 (0.01 is one packet in a hundred), "
                f"not {target_late}"
            )
        if profile not in PROFILES:
            raise ConfigurationError(f"profile is one of {', '.join(PROFILES)}, not {profile!r}")
        if not 0.0 <= min_delay_ms <= max_delay_ms <= 10_000.0:
            raise ConfigurationError(
                f"0 <= min_delay_ms ({min_delay_ms}) <= max_delay_ms ({max_delay_ms}) <= 10000"
            )
        if not 0.0 <= start_delay_ms <= max_delay_ms:
            raise ConfigurationError(
                f"start_delay_ms ({start_delay_ms}) is from 0 to max_delay_ms ({max_delay_ms})"
            )
        if not hold_ms >= 0.0:
            raise ConfigurationError(f"hold_ms is 0 or more, not {hold_ms}")
        if not 64 <= capacity <= 65_536 or capacity & (capacity - 1):
            raise ConfigurationError(
                f"capacity is a power of two from 64 to 65536 packets, not {capacity}"
            )
        if not 0.1 <= max_packet_ms <= 1000.0:
            raise ConfigurationError(f"max_packet_ms is from 0.1 to 1000, not {max_packet_ms}")
        if sequence_bits not in (16, 32) or timestamp_bits not in (32, 64):
            raise ConfigurationError("sequence_bits is 16 or 32, timestamp_bits 32 or 64")
        per_ms = sample_rate / 1000.0
        ring_ms = max(2.0 * max_delay_ms, 1000.0) + max_packet_ms
        self.sample_rate = sample_rate
        self.channels = channels
        self.ring = ring = JitterRing(
            sample_rate=sample_rate,
            channels=channels,
            int16=sample_type == "int16",
            capacity=capacity,
            max_packet_frames=max(1, round(max_packet_ms * per_ms)),
            ring_frames=1 << int(ring_ms * per_ms).bit_length(),
            sequence_bits=sequence_bits,
            timestamp_bits=timestamp_bits,
            late=target_late,
            start_ns=start_delay_ms * 1e6,
            minimum_ns=min_delay_ms * 1e6,
            maximum_ns=max_delay_ms * 1e6,
            raise_rate=PROFILES[profile].raise_rate,
            lower_rate=PROFILES[profile].lower_rate,
            hold_ns=min(int(hold_ms * 1e6), 2**62) if hold_ms < 1e12 else 2**62,
            max_pull=int(250 * per_ms),
            start_share=PROFILES[profile].start_share,
            settle_s=PROFILES[profile].settle_s,
        )
        self.push = ring.push
        self.push_many = ring.push_many
        self.pull_into = ring.pull_into
        self.schedule = ring.schedule
        self.peek_into = ring.peek_into
        self.take_into = ring.take_into
        self.hold = ring.hold

    def statistics(self) -> JitterStatistics:
        """A frozen snapshot; may be taken from any thread."""
        ring = self.ring
        names = JitterStatistics.__dataclass_fields__
        return JitterStatistics(
            **dict(zip(names, ring.counters(), strict=False)),
            buffered_ns=ring.buffered_frames * 1_000_000_000 // self.sample_rate,
            target_delay_ns=ring.wanted_ns,
            consumer_jitter_ns=ring.consumer_ns,
        )
