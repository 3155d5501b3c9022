"""Who takes part, and in what."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from bench.harness.scenarios import SCENARIOS

__all__ = ["CONTENDERS", "Contender"]

_CALLS = frozenset({"serial", "calls-16", "calls-64", "calls-256"})
_ALL = frozenset(SCENARIOS)


@dataclass(frozen=True, slots=True)
class Contender:
    """One stack. ``module`` is below ``bench.harness.contenders``; ``requires`` names what must
    be importable, each as ``module`` or ``module:attribute``."""

    name: str
    what: str
    module: str
    scenarios: frozenset[str]
    requires: tuple[str, ...] = ()
    variant: str = ""

    def missing(self) -> str | None:
        """Why it cannot take part, or ``None``."""
        for requirement in self.requires:
            name, _, attribute = requirement.partition(":")
            if importlib.util.find_spec(name) is None:
                return f"the module {name!r} is not installed"
            if attribute and not hasattr(importlib.import_module(name), attribute):
                return f"{name!r} has no {attribute!r}"
        return None


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("echostream", "EchoStream", "ours", _ALL, ("echostream:RpcServer",)),
        Contender(
            "udp",
            "UDP echo, no security, no reliability: the floor",
            "udp",
            _CALLS | {"realtime", "fan-out"},
        ),
        Contender(
            "aioquic",
            "aioquic.asyncio, echo on one shared stream",
            "quic",
            _ALL,
            ("aioquic",),
            "aioquic",
        ),
        Contender(
            "aioquic-streams",
            "aioquic.asyncio, one stream per call",
            "quic",
            _CALLS,
            ("aioquic",),
            "aioquic streams",
        ),
        Contender("qh3", "qh3.asyncio, echo on one shared stream", "quic", _ALL, ("qh3",), "qh3"),
        Contender(
            "qh3-streams",
            "qh3.asyncio, one stream per call",
            "quic",
            _CALLS,
            ("qh3",),
            "qh3 streams",
        ),
        Contender(
            "grpc",
            "grpc.aio with TLS, generic handlers, bytes in and out",
            "grpc_aio",
            _ALL - {"realtime"},
            ("grpc",),
        ),
        Contender(
            "tls-msgpack",
            "TLS on TCP, length and msgpack",
            "tls_msgpack",
            _ALL - {"realtime"},
            ("msgpack",),
        ),
        Contender(
            "zenoh",
            "eclipse-zenoh over its QUIC link, get and put",
            "zenoh_quic",
            (_CALLS | {"events", "handshakes"}),
            ("zenoh",),
        ),
    )
}
