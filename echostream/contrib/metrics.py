"""``MetricsPlugin``: durations and outcomes of calls, for Prometheus.

Names follow OpenTelemetry's semantic conventions for RPC (``rpc.server.call.duration``, seconds),
in the spelling of Prometheus.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, TypeVar

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.contrib.admin import AdminServer
from echostream.contrib.logs import status_name
from echostream.errors import ConfigurationError
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.rpc.context import ClientContext, ServerContext
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed
from echostream.rpc.session import SessionStatistics, peer_statistics

__all__ = ["MetricsPlugin"]

B = TypeVar("B", ServerBuilder, ClientBuilder)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAX_SERIES = 1024
"""Label sets that are told apart; what comes after them is counted under the name ``_other``."""
CONTENT_TYPE = "text/plain; version=0.0.4"
_HISTOGRAMS = {
    ("in", "call"): ("rpc_server_call_duration_seconds", "Duration of calls served."),
    ("out", "call"): ("rpc_client_call_duration_seconds", "Duration of calls made."),
    ("in", "event"): ("echostream_listener_duration_seconds", "Duration of listeners."),
    ("out", "event"): ("echostream_emit_duration_seconds", "Time until an event was queued."),
    ("in", "stream"): ("echostream_stream_duration_seconds", "Duration of stream handlers."),
    ("out", "stream"): ("echostream_stream_open_seconds", "Time until a stream was accepted."),
}
_GAUGES = {
    "calls_running": "Handlers that run now.",
    "calls_pending": "Calls made and not answered.",
    "streams_in": "Media streams received.",
    "streams_out": "Media streams sent.",
    "queued": "Bytes that wait for room.",
    "buffered": "Bytes sent and not acknowledged.",
}
_COUNTERS = {
    "expired": "Messages not sent because max_age passed.",
    "packets_lost": "QUIC packets lost.",
    "datagrams_dropped": "Datagrams dropped by the transport.",
}


class _Series:
    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.count = 0
        self.total = 0.0


class MetricsPlugin(Interceptor, ServerPlugin, ClientPlugin):
    """Counts and times everything of either direction. :meth:`text` is the exposition.

    With ``port`` (0: any free one) a TCP listener on ``host`` answers ``/metrics``, ``/healthz``
    (200 while the event loop turns) and ``/readyz`` (200 while new connections or calls are taken,
    else 503). It runs from the start of a server or the connect of a client to its end.
    """

    name = "metrics"

    def __init__(self, *, port: int | None = None, host: str = "127.0.0.1") -> None:
        if port is not None and (not isinstance(port, int) or not 0 <= port <= 65_535):
            raise ConfigurationError(f"port={port!r} must be None, or 0 to 65535")
        self._port, self._host = port, host
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._admin: AdminServer | None = None
        self._connections: Callable[[], list[SessionStatistics]] = list
        self._ready: Callable[[], bool] = bool
        self._ended: dict[str, int] = dict.fromkeys(_COUNTERS, 0)

    def install(self, builder: B) -> B:
        """Stand around everything; listen while there is something to tell."""
        builder.interceptor(self)
        if isinstance(builder, ServerBuilder):
            builder.on_start(self._server_started).on_shutdown(self._stop)
            builder.on_disconnect(self._session_ended)
        else:
            builder.on_connect(self._client_connected).on_disconnect(self._client_ended)
        return builder

    @property
    def address(self) -> tuple[str, int]:
        """Where the listener is; ``ConfigurationError`` where there is none."""
        if self._admin is None:
            raise ConfigurationError("MetricsPlugin has no listener: give it a port, and start")
        return self._admin.address

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        """Time what the other side asked for."""
        return await self._timed("in", call, proceed)

    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        """Time what this side asked for."""
        return await self._timed("out", call, proceed)

    def text(self) -> str:
        """All metrics in the text format of Prometheus."""
        lines: list[str] = []
        for key, (metric, help_text) in _HISTOGRAMS.items():
            found = {k: s for k, s in self._series.items() if k[:2] == key}
            if found:
                lines += [f"# HELP {metric} {help_text}", f"# TYPE {metric} histogram"]
                for (_, _, name, status), series in sorted(found.items()):
                    lines += _histogram(metric, name, status, series)
        connections = self._connections()
        lines += _plain("connections", "gauge", "Connections now.", len(connections))
        for field, help_text in _GAUGES.items():
            total = sum(getattr(each, field) for each in connections)
            lines += _plain(field, "gauge", help_text, total)
        for field, help_text in _COUNTERS.items():
            total = self._ended[field] + sum(getattr(each, field) for each in connections)
            lines += _plain(f"{field}_total", "counter", help_text, total)
        return "\n".join(lines) + "\n"

    async def _timed(self, direction: str, call: Invocation, proceed: Proceed) -> Any:
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            return await proceed()
        except BaseException as exc:
            error = exc
            raise
        finally:
            self._observe(direction, call, error, time.perf_counter() - started)

    def _observe(
        self, direction: str, call: Invocation, error: BaseException | None, seconds: float
    ) -> None:
        key = direction, call.kind, call.name, status_name(error)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                key = direction, call.kind, "_other", key[3]
            series = self._series.setdefault(key, _Series())
        series.buckets[bisect_left(BUCKETS, seconds)] += 1
        series.count += 1
        series.total += seconds

    async def _server_started(self, ctx: ServerContext) -> None:
        self._connections = lambda: [session.statistics() for session in ctx.sessions]
        self._ready = lambda: ctx.serving
        await self._start()

    async def _client_connected(self, ctx: ClientContext) -> None:
        self._connections = lambda: [peer_statistics(ctx._peer)]
        self._ready = lambda: ctx._peer.ended is None
        await self._start()

    async def _session_ended(self, session: Any) -> None:
        statistics = session.statistics()
        for field in _COUNTERS:
            self._ended[field] += getattr(statistics, field)

    async def _client_ended(self, ctx: ClientContext) -> None:
        await self._stop(ctx)

    async def _start(self) -> None:
        if self._port is None:
            return
        admin = AdminServer(
            {
                "/metrics": lambda: (200, CONTENT_TYPE, self.text()),
                "/healthz": lambda: (200, "text/plain", "ok\n"),
                "/readyz": lambda: (
                    (200, "text/plain", "ready\n")
                    if self._ready()
                    else (503, "text/plain", "not ready\n")
                ),
            }
        )
        try:
            await admin.start(self._host, self._port)
        except OSError as exc:
            raise ConfigurationError(
                f"MetricsPlugin cannot listen on {self._host} port {self._port}: {exc.strerror}"
            ) from None
        self._admin = admin

    async def _stop(self, _: Any) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.stop()


def _histogram(metric: str, name: str, status: str, series: _Series) -> list[str]:
    labels = (
        f'rpc_system_name="echostream",rpc_method="{_escaped(name)}",'
        f'rpc_response_status_code="{status}"'
    )
    lines, total = [], 0
    for bound, count in zip((*BUCKETS, "+Inf"), series.buckets, strict=True):
        total += count
        lines.append(f'{metric}_bucket{{{labels},le="{bound}"}} {total}')
    lines.append(f"{metric}_sum{{{labels}}} {series.total:.9g}")
    lines.append(f"{metric}_count{{{labels}}} {series.count}")
    return lines


def _plain(name: str, kind: str, help_text: str, value: float) -> list[str]:
    metric = f"echostream_{name}"
    return [f"# HELP {metric} {help_text}", f"# TYPE {metric} {kind}", f"{metric} {value}"]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
