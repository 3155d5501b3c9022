"""Logging without giving the peer a pen: its text is escaped and shortened."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

from aioquic.quic.logger import QuicFileLogger, QuicLoggerTrace

__all__ = ["ConnectionLogger", "KeyLog", "QlogDirectory", "printable"]

logger = logging.getLogger("echostream.quic")

LONGEST_TEXT = 256
MOST_QLOG_EVENTS = 200_000


def printable(value: object) -> str:
    """``value`` as one line of at most 256 characters, control characters escaped."""
    text = str(value)[: 4 * LONGEST_TEXT]
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


class ConnectionLogger(logging.LoggerAdapter[logging.Logger]):
    """What aioquic logs of one connection, all at DEBUG: every line of it can be caused by
    whoever sends packets, so none may fill a server's log by default."""

    def __init__(self, connection_id: bytes) -> None:
        super().__init__(logger, {})
        self._prefix = f"[{connection_id.hex()}] "

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.logger.isEnabledFor(logging.DEBUG):
            safe = [a if isinstance(a, (int, float)) else printable(a) for a in args]
            text = msg if isinstance(msg, str) and args else printable(msg)
            self.logger.debug(self._prefix + text, *safe, **kwargs)

    def debug(self, msg: object, *args: object, **kwargs: Any) -> None:
        if self.logger.isEnabledFor(logging.DEBUG):
            self.log(logging.DEBUG, msg, *args, **kwargs)


class KeyLog:
    """Appends TLS secrets to a file, in the format of SSLKEYLOGFILE. The file is private."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path

    def write(self, line: str) -> int:
        """Append one line."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            return os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)

    def flush(self) -> None:
        """Nothing is held back."""


class QlogDirectory(QuicFileLogger):
    """One qlog file per connection and side, with the latest 200,000 events of it."""

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        trace = super().start_trace(is_client, odcid)
        trace._events = deque(maxlen=MOST_QLOG_EVENTS)
        return trace

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        content: Mapping[str, Any] = trace.to_dict()
        side = content["vantage_point"]["type"]
        name = f"{content['common_fields']['ODCID']}_{side}.qlog"
        with open(os.path.join(self.path, name), "w", encoding="utf-8") as file:
            json.dump({"qlog_format": "JSON", "qlog_version": "0.3", "traces": [content]}, file)
        self._traces.remove(trace)
