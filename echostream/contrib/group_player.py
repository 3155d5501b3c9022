"""The client's side of a :class:`~echostream.contrib.group.Group`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from echostream.builder import ClientBuilder
from echostream.contrib.group import MemberReport
from echostream.media.sync_playout import SyncPlayout
from echostream.plugin.base import ClientPlugin
from echostream.rpc.context import ClientContext
from echostream.rpc.receiver import StreamReceiver

__all__ = ["GroupPlayer"]


class GroupPlayer(ClientPlugin):
    """Plays along in the server's group ``group``.

    ``play`` gets a ``SyncPlayout`` for each stream of the group and pulls from it until it ends:
    in a loop over ``blocks``, or from an audio callback. ``output_latency`` (s) is that of the
    device behind it.
    """

    def __init__(
        self,
        group: str,
        play: Callable[[SyncPlayout], Awaitable[None]],
        *,
        output_latency: float = 0.0,
    ) -> None:
        self.name = f"group.{group}"
        self.playout: SyncPlayout | None = None
        """That of the stream that is played now."""
        self._group = group
        self._play = play
        self._latency = output_latency

    def install(self, builder: ClientBuilder) -> ClientBuilder:
        """Add the stream handler and what the group asks for."""
        return (
            builder.stream_handler(self._group, self._on_stream)
            .handler(f"{self._group}.ready", self._ready)
            .handler(f"{self._group}.report", self._report)
            .listener(f"{self._group}.cue", self._cue)
        )

    async def _on_stream(self, ctx: ClientContext, stream: StreamReceiver) -> None:
        self.playout = stream.playout(profile="sync", output_latency=self._latency)
        await self._play(self.playout)

    async def _ready(self, ctx: ClientContext) -> MemberReport:
        await ctx.clock.wait_synchronized()
        return await self._report(ctx)

    async def _report(self, ctx: ClientContext) -> MemberReport:
        clock = ctx.clock
        if self.playout is None:
            return MemberReport(
                synchronized=clock.synchronized,
                clock_bound_ns=clock.error_bound_ns,
                output_latency_ns=round(self._latency * 1e9),
            )
        seen = self.playout.statistics()
        return MemberReport(
            synchronized=clock.synchronized,
            playing=seen.playing,
            error_ns=seen.error_ns,
            error_peak_ns=seen.error_peak_ns,
            error_bound_ns=seen.error_bound_ns,
            clock_bound_ns=seen.clock_bound_ns,
            output_latency_ns=seen.output_latency_ns,
            headroom_ns=seen.headroom_ns,
            drift_ppm=seen.drift_ppm,
            received=seen.received,
            late=seen.late,
            concealed_frames=seen.concealed_frames,
            jumps=seen.jumps,
        )

    async def _cue(self, ctx: ClientContext, cue: list[Any]) -> None:
        if self.playout is not None:
            self.playout.cue(*cue)
