"""Floor 5: plugins that come with EchoStream. Each works for servers and for clients."""

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
