"""Calls, events and live audio streams between two programs, on one QUIC connection and one
shared clock.

Importing this package imports nothing else: each name is loaded when it is first used (PEP 562),
so that a program pays only for the parts it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echostream._version import __version__
    from echostream.builder import ClientBuilder, ServerBuilder
    from echostream.client import RpcClient
    from echostream.errors import (
        Cancelled,
        ConfigurationError,
        ConnectionClosed,
        DeadlineExceeded,
        DiscoveryError,
        EchoStreamError,
        IdentityError,
        InternalError,
        InvalidPayload,
        MethodNotFound,
        PermissionDenied,
        ProtocolError,
        ResourceExhausted,
        RpcError,
        StreamReset,
        Unavailable,
    )
    from echostream.media.clock import ClockSync
    from echostream.media.frame import AudioFormat, AudioFrame
    from echostream.media.jitter import JitterBuffer
    from echostream.media.playout import Playout
    from echostream.plugin.base import ClientPlugin, ServerPlugin
    from echostream.rpc.context import ClientContext, ServerContext
    from echostream.rpc.receiver import StreamReceiver
    from echostream.rpc.registry import handler, listener, stream_handler
    from echostream.rpc.sender import StreamSender
    from echostream.rpc.session import Session
    from echostream.runner import run
    from echostream.server import RpcServer
    from echostream.transport.identity import Identity

__all__ = [
    "AudioFormat",
    "AudioFrame",
    "Cancelled",
    "ClientBuilder",
    "ClientContext",
    "ClientPlugin",
    "ClockSync",
    "ConfigurationError",
    "ConnectionClosed",
    "DeadlineExceeded",
    "DiscoveryError",
    "EchoStreamError",
    "Identity",
    "IdentityError",
    "InternalError",
    "InvalidPayload",
    "JitterBuffer",
    "MethodNotFound",
    "PermissionDenied",
    "Playout",
    "ProtocolError",
    "ResourceExhausted",
    "RpcClient",
    "RpcError",
    "RpcServer",
    "ServerBuilder",
    "ServerContext",
    "ServerPlugin",
    "Session",
    "StreamReceiver",
    "StreamReset",
    "StreamSender",
    "Unavailable",
    "__version__",
    "handler",
    "listener",
    "run",
    "stream_handler",
]

_HOME = {
    "AudioFormat": "media.frame",
    "AudioFrame": "media.frame",
    "ClientBuilder": "builder",
    "ClientContext": "rpc.context",
    "ClientPlugin": "plugin.base",
    "ClockSync": "media.clock",
    "Identity": "transport.identity",
    "JitterBuffer": "media.jitter",
    "Playout": "media.playout",
    "RpcClient": "client",
    "RpcServer": "server",
    "ServerBuilder": "builder",
    "ServerContext": "rpc.context",
    "ServerPlugin": "plugin.base",
    "Session": "rpc.session",
    "StreamReceiver": "rpc.receiver",
    "StreamSender": "rpc.sender",
    "__version__": "_version",
    "handler": "rpc.registry",
    "listener": "rpc.registry",
    "run": "runner",
    "stream_handler": "rpc.registry",
}
"""Where a public name is defined; what is not listed is one of the errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
