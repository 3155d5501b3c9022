"""``TracingPlugin``: spans of calls, events and streams, joined by W3C Trace Context.

https://www.w3.org/TR/trace-context/: ``traceparent`` is version, trace id, parent id and flags.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.contrib.logs import status_name
from echostream.errors import ConfigurationError
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.rpc.call import TRACEPARENT, current_call
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed

__all__ = ["Span", "TracingPlugin"]

B = TypeVar("B", ServerBuilder, ClientBuilder)

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_active: ContextVar[tuple[str, str, int] | None] = ContextVar("echostream_span", default=None)


@dataclass(frozen=True, slots=True)
class Span:
    """One call, event or stream as one side saw it. Ids are hexadecimal, times ns since 1970;
    ``parent_id`` is empty for the first span of a trace. ``kind`` is ``"server"`` or ``"client"``,
    ``name`` as OpenTelemetry wants it, ``status`` the name of the status."""

    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    name: str
    start_ns: int
    end_ns: int
    status: str
    attributes: dict[str, str]


class TracingPlugin(Interceptor, ServerPlugin, ClientPlugin):
    """Makes a span of everything of either direction, and gives each to ``export`` when it ends.

    A trace that comes in is continued, also where it is not sampled (then nothing is exported);
    ``sample`` decides for traces that begin here. ``export`` must not block; what it raises is
    raised to the caller, so let it not raise.
    """

    name = "tracing"

    def __init__(
        self,
        export: Callable[[Span], None],
        *,
        sample: Callable[[str], bool] = lambda name: True,
    ) -> None:
        if not callable(export):
            raise ConfigurationError("TracingPlugin wants a function that takes each Span")
        self._export = export
        self._sample = sample

    def install(self, builder: B) -> B:
        """Stand around everything."""
        return builder.interceptor(self)

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        """A server span, child of the caller's."""
        parent = _parsed(call.metadata.get(TRACEPARENT))
        return await self._span("server", call, proceed, parent)

    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        """A client span, child of what runs here; the other side becomes its child."""
        parent = _parsed(call.metadata.get(TRACEPARENT)) or _active.get()
        return await self._span("client", call, proceed, parent)

    async def _span(
        self, kind: str, call: Invocation, proceed: Proceed, parent: tuple[str, str, int] | None
    ) -> Any:
        if parent is None:
            trace_id, parent_id = secrets.token_hex(16), ""
            flags = 1 if self._sample(call.name) else 0
        else:
            trace_id, parent_id, flags = parent
        span_id = secrets.token_hex(8)
        header = f"00-{trace_id}-{span_id}-{flags:02x}"
        if kind == "client":
            call.metadata[TRACEPARENT] = header
        else:
            served = current_call()
            served.metadata = {**served.metadata, TRACEPARENT: header}
        token = _active.set((trace_id, span_id, flags))
        started = time.time_ns()
        error: BaseException | None = None
        try:
            return await proceed()
        except BaseException as exc:
            error = exc
            raise
        finally:
            _active.reset(token)
            if flags & 1:
                status = status_name(error)
                attributes = {
                    "rpc.system.name": "echostream",
                    "rpc.method": call.name,
                    "rpc.response.status_code": status,
                }
                if error is not None:
                    attributes["error.type"] = type(error).__qualname__
                self._export(
                    Span(
                        trace_id,
                        span_id,
                        parent_id,
                        kind,
                        call.name,
                        started,
                        time.time_ns(),
                        status,
                        attributes,
                    )
                )


def _parsed(header: str | bytes | None) -> tuple[str, str, int] | None:
    """Trace id, span id and flags; ``None`` for a header that the specification says to ignore."""
    match = _PARENT.fullmatch(header) if isinstance(header, str) else None
    if match is None or match[1] == "ff" or not int(match[2], 16) or not int(match[3], 16):
        return None
    if match[1] == "00" and match[5]:
        return None
    return match[2], match[3], int(match[4], 16)
