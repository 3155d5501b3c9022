"""Floor 5: ready-made parts on top of the public API; some need an extra, and say so. Each name is
loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echostream.contrib.auth import AuthPlugin
    from echostream.contrib.logs import JsonFormatter, LoggingPlugin
    from echostream.contrib.metrics import MetricsPlugin
    from echostream.contrib.rate_limit import RateLimitPlugin
    from echostream.contrib.tracing import Span, TracingPlugin

__all__ = [
    "AuthPlugin",
    "JsonFormatter",
    "LoggingPlugin",
    "MetricsPlugin",
    "RateLimitPlugin",
    "Span",
    "TracingPlugin",
]

_HOME = {
    "AuthPlugin": "auth",
    "JsonFormatter": "logs",
    "LoggingPlugin": "logs",
    "MetricsPlugin": "metrics",
    "RateLimitPlugin": "rate_limit",
    "Span": "tracing",
    "TracingPlugin": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
