"""``LoggingPlugin``: one record for each call, event and stream, with its facts as fields."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any, TypeVar

from echostream.builder import ClientBuilder, ServerBuilder
from echostream.codes import Status
from echostream.errors import RpcError
from echostream.plugin.base import ClientPlugin, ServerPlugin
from echostream.rpc.interceptors import Interceptor, Invocation, Proceed

__all__ = ["JsonFormatter", "LoggingPlugin", "status_name"]

B = TypeVar("B", ServerBuilder, ClientBuilder)


def status_name(error: BaseException | None) -> str:
    """How a call ended, as the name of its status."""
    if error is None:
        return Status.OK.name
    if isinstance(error, asyncio.CancelledError):
        return Status.CANCELLED.name
    if isinstance(error, RpcError):
        return error.status.name if isinstance(error.status, Status) else str(error.status)
    return Status.INTERNAL.name


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message and the fields of the plugin."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "echostream", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class LoggingPlugin(Interceptor, ServerPlugin, ClientPlugin):
    """Logs to ``logger`` when each call, event or stream of either direction ends: at ``level``,
    or as a warning where it failed. The record's ``echostream`` is a dict with ``direction``,
    ``kind``, ``name``, ``status``, ``duration_s`` and ``peer``. Payloads are not logged."""

    name = "logging"

    def __init__(
        self, *, logger: str | logging.Logger = "echostream.calls", level: int = logging.INFO
    ) -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._level = level

    def install(self, builder: B) -> B:
        """Stand around everything."""
        return builder.interceptor(self)

    async def incoming(self, call: Invocation, proceed: Proceed) -> Any:
        """Log what the other side asked for."""
        return await self._logged("in", call, proceed)

    async def outgoing(self, call: Invocation, proceed: Proceed) -> Any:
        """Log what this side asked for."""
        return await self._logged("out", call, proceed)

    async def _logged(self, direction: str, call: Invocation, proceed: Proceed) -> Any:
        started = time.monotonic()
        error: BaseException | None = None
        try:
            return await proceed()
        except BaseException as exc:
            error = exc
            raise
        finally:
            duration = time.monotonic() - started
            status = status_name(error)
            fields = {
                "direction": direction,
                "kind": call.kind,
                "name": call.name,
                "status": status,
                "duration_s": round(duration, 6),
                "peer": _peer_of(call.context),
            }
            self._logger.log(
                self._level if error is None else logging.WARNING,
                "%s %s %s: %s in %.1f ms",
                direction,
                call.kind,
                call.name,
                status,
                duration * 1e3,
                extra={"echostream": fields},
            )


def _peer_of(context: Any) -> str:
    address = getattr(context, "peer_addr", None) or context.server_addr
    return f"{address[0]}:{address[1]}"
