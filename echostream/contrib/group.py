"""Group playout: one server feeds several players, and all of them play the same sample at once.

``Group`` is the server's side, :class:`~echostream.contrib.group_player.GroupPlayer` the plugin of
each client. There is one timeline: frame N of what is sent is heard at :meth:`Group.time_of` N, on
the server's clock, and every packet says so. (The groups of ``ServerContext.group`` are for
events.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from echostream.errors import ConfigurationError, EchoStreamError
from echostream.media.frame import AudioFormat, AudioFrame
from echostream.rpc.clock import local_clock
from echostream.rpc.sender import StreamSender
from echostream.rpc.session import Session

__all__ = ["Group", "Member", "MemberReport"]

logger = logging.getLogger("echostream.group")

SECOND = 1_000_000_000
MARGIN_NS = 20_000_000
"""On top of what the members need: for what the server's own event loop is late."""
MARGIN = 0.25
"""The same, as a share of the need."""
UNKNOWN_NS = 30_000_000
"""What a member is reckoned to need beyond a round trip and its output, until it has measured."""
REPORT_S = 1.0
SETTLE_NS = 10 * SECOND
"""Reports look back as far: after a change of the delay they say nothing for so long."""
BEHIND = 192 * 1024
"""Bytes that a reliable member has not acknowledged, above which packets for it are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """What a player says of itself. Times in ns; see ``SyncStatistics``."""

    synchronized: bool = False
    playing: bool = False
    error_ns: int = 0
    error_peak_ns: int = 0
    error_bound_ns: float = inf
    clock_bound_ns: float = inf
    output_latency_ns: int = 0
    headroom_ns: float = inf
    drift_ppm: float = 0.0
    received: int = 0
    late: int = 0
    concealed_frames: int = 0
    jumps: int = 0


class Member:
    """One player of a group: its session, and what it reported last."""

    def __init__(self, session: Session, stream: StreamSender) -> None:
        self.session = session
        self.stream = stream
        self.report = MemberReport()
        self.skipped = 0
        """Blocks that were not sent to it because it does not keep up (reliable)."""

    def __repr__(self) -> str:
        return f"<Member {self.session!r} bound={self.report.error_bound_ns / 1e6:.3f} ms>"


class Group:
    """Plays one timeline on all its members. Use it as an async context manager, on the server.

    ``name`` is that of the members' ``GroupPlayer``. The delay between :meth:`send` and the
    loudspeakers is what the member with the greatest need asks for and a margin, within
    ``min_delay`` and ``max_delay`` (s; equal ones fix it). It is negotiated at every
    :meth:`start`; where a member needs more later, the timeline moves for all of them at the same
    sample. ``now_ns``: the server's clock, where its builder was given one by ``local_clock``.

    A member whose connection ends leaves the group; the others do not notice.
    """

    def __init__(
        self,
        name: str,
        format: AudioFormat,
        *,
        delivery: Literal["reliable", "realtime"] = "realtime",
        min_delay: float = 0.05,
        max_delay: float = 2.0,
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        if not 0.0 < min_delay <= max_delay <= 10.0:
            raise ConfigurationError(
                f"0 < min_delay ({min_delay}) <= max_delay ({max_delay}) <= 10"
            )
        self.name = name
        self.format = format
        self._delivery: Literal["reliable", "realtime"] = delivery
        self._least_ns = round(min_delay * SECOND)
        self._most_ns = round(max_delay * SECOND)
        self._now_ns = now_ns
        self._members: dict[Session, Member] = {}
        self._delay_ns = self._least_ns
        self._changed_ns = -(2**62)
        self._started = False
        self._frame = 0  # the next to be sent
        self._origin_frame = 0
        self._origin_ns = 0
        self._reporter: asyncio.Task[None] | None = None
        self.moves = 0
        """How often the timeline had to move while it ran: a member needed more delay, or
        :meth:`send` was called too late."""

    async def __aenter__(self) -> Self:
        if self._now_ns is None:
            self._now_ns = local_clock(asyncio.get_running_loop())
        self._reporter = asyncio.create_task(self._report(), name=f"group {self.name}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._reporter is not None:
            self._reporter.cancel()
            await asyncio.gather(self._reporter, return_exceptions=True)
        for member in self.members:
            await self.remove(member.session)

    # Members.

    @property
    def members(self) -> tuple[Member, ...]:
        """Who plays now."""
        return tuple(self._members.values())

    async def add(self, session: Session, *, timeout: float = 5.0) -> Member:
        """Let a client play along; in the middle of the music it joins in time.

        Returns when its clock is synchronised. Raises what ``create_stream`` and ``request``
        raise: ``DeadlineExceeded`` after ``timeout`` s, ``MethodNotFound`` without a player of this
        name.
        """
        if session in self._members:
            return self._members[session]
        stream = await session.create_stream(
            self.name,
            format=self.format,
            delivery=self._delivery,
            time_sync=True,
            playout_delay=0.0,
            timeout=timeout,
        )
        member = Member(session, stream)
        try:
            member.report = await session.request(
                f"{self.name}.ready", returns=MemberReport, timeout=timeout
            )
        except BaseException:
            stream.abort()
            raise
        self._members[session] = member
        self._follow_needs()
        return member

    async def remove(self, session: Session) -> None:
        """A member leaves: it plays what it has. Nothing happens for one that is not here."""
        member = self._members.pop(session, None)
        if member is not None:
            try:
                await member.stream.end()
            except EchoStreamError as exc:
                logger.debug("%r had left: %s", session, exc)

    # The timeline.

    @property
    def delay(self) -> float:
        """Seconds from :meth:`send` to the loudspeakers."""
        return self._delay_ns / SECOND

    @property
    def frame(self) -> int:
        """Number of the frame that is sent next."""
        return self._frame

    def now(self) -> int:
        """The server's clock, in ns: that of all times here."""
        if self._now_ns is None:
            raise ConfigurationError("the group has not begun: async with Group(...) as group")
        return self._now_ns()

    def time_of(self, frame: int) -> int:
        """When a frame is heard, on the server's clock. For streams and events that shall go with
        the music: their times are of the same clock."""
        passed = frame - self._origin_frame
        return self._origin_ns + passed * SECOND // self.format.sample_rate

    async def start(self, at: int | None = None) -> int:
        """The next frame that is sent is heard at the time ``at`` (server's clock, ns), or as soon
        as it can be; returns the time. Two groups that start at one time stay together.

        Raises ``ConfigurationError`` for a time sooner than the delay allows.
        """
        await self.refresh()
        self._delay_ns = self._wanted_ns(self._needed_ns())
        self._changed_ns = self.now()
        earliest = self.now() + self._delay_ns
        if at is not None and at < earliest:
            raise ConfigurationError(
                f"at is {(earliest - at) / 1e6:.1f} ms too soon: the members need "
                f"{self._delay_ns / 1e6:.0f} ms"
            )
        self._origin_frame = self._frame
        self._origin_ns = earliest if at is None else at
        self._started = True
        return self._origin_ns

    async def send(self, samples: NDArray[Any], *, captured: int | None = None) -> None:
        """Send ``(frames, channels)`` of the format's sample type, each when it is its time.

        ``captured``: live sound, which is not paced; its first sample is heard the delay after
        this time (server's clock, ns). Starts the timeline where :meth:`start` did not.
        """
        if not self._started:
            await self.start()
        samples = np.ascontiguousarray(samples)
        if captured is not None:
            self._origin_frame, self._origin_ns = self._frame, captured + self._delay_ns
        else:
            await self._wait_turn()
        frame = AudioFrame(samples, self.format, self._frame)
        at = self.time_of(self._frame)
        self._frame += len(samples)
        for member in self.members:
            await self._send_to(member, frame, at)

    async def flush(self) -> None:
        """Drop what the members have not played yet; the timeline begins anew at :meth:`start`, or
        with the next frame."""
        self._started = False
        for member in self.members:
            try:
                await member.stream.flush()
            except EchoStreamError as exc:
                self._left(member, exc)

    async def cue(self, payload: Any, frame: int | None = None) -> int:
        """Mark a frame (by default the next) with a value: each member is told when it plays that
        very sample. Reliable. Returns the time of the frame."""
        at = self.time_of(self._frame if frame is None else frame)
        for member in self.members:
            try:
                await member.session.emit(f"{self.name}.cue", [at, payload])
            except EchoStreamError as exc:
                self._left(member, exc)
        return at

    async def refresh(self) -> None:
        """Ask all members how they are."""
        await asyncio.gather(*map(self._ask, self.members))

    # Inside.

    async def _wait_turn(self) -> None:
        """Wait until the next frame is to leave; move the timeline where that was too long ago."""
        ahead = self.time_of(self._frame) - self.now()
        if ahead < self._delay_ns - MARGIN_NS:
            self._origin_ns += self._delay_ns - ahead
            self.moves += 1
        while (wait := self.time_of(self._frame) - self.now() - self._delay_ns) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(wait / SECOND, 1.0))

    async def _send_to(self, member: Member, frame: AudioFrame, at: int) -> None:
        stream = member.stream
        if not stream.realtime and stream.statistics().buffered > BEHIND:
            member.skipped += 1
            return
        try:
            await stream.send_with_timestamp(frame, at)
        except EchoStreamError as exc:
            self._left(member, exc)

    def _left(self, member: Member, exc: EchoStreamError) -> None:
        if self._members.pop(member.session, None) is not None:
            logger.info("%r left the group %r: %s", member.session, self.name, exc)
            member.stream.abort()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self.refresh()
            self._follow_needs()

    async def _ask(self, member: Member) -> None:
        try:
            member.report = await member.session.request(
                f"{self.name}.report", returns=MemberReport, timeout=REPORT_S * 5
            )
        except EchoStreamError as exc:
            if member.session not in self._members or member.stream.statistics().packets == 0:
                return
            logger.debug("%r does not report: %s", member.session, exc)

    def _needed_ns(self) -> float:
        """What the member with the greatest need asks for."""
        return max(map(self._need_of, self.members), default=0.0)

    def _need_of(self, member: Member) -> float:
        report = member.report
        if report.headroom_ns < inf:
            return self._delay_ns - report.headroom_ns
        rtt = member.session.statistics().smoothed_rtt * SECOND
        return rtt + report.output_latency_ns + UNKNOWN_NS

    def _wanted_ns(self, needed: float) -> int:
        wanted = round(needed + max(MARGIN_NS, needed * MARGIN))
        return min(max(wanted, self._least_ns), self._most_ns)

    def _follow_needs(self) -> None:
        """More delay from the next frame on, where a member needs it."""
        needed = self._needed_ns()
        settled = self.now() - self._changed_ns > SETTLE_NS
        unknown = any(m.report.headroom_ns == inf for m in self.members)
        wanted = self._wanted_ns(needed)
        if needed <= self._delay_ns or wanted <= self._delay_ns or not (settled or unknown):
            return
        if self._started:
            self._origin_ns += wanted - self._delay_ns
            self.moves += 1
        self._delay_ns = wanted
        self._changed_ns = self.now()
