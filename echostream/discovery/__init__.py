"""Finding servers by name on the local network: DNS-SD (RFC 6763) over multicast DNS (RFC 6762).

Nothing that is found is believed: an announcement names candidates, and the key decides.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echostream.discovery.advertiser import Advertiser
    from echostream.discovery.resolver import Browser, ServiceChange, discover_services
    from echostream.discovery.service import Announcement, Service

__all__ = [
    "Advertiser",
    "Announcement",
    "Browser",
    "Service",
    "ServiceChange",
    "discover_services",
]

_HOME = {
    "Advertiser": "advertiser",
    "Announcement": "service",
    "Browser": "resolver",
    "Service": "service",
    "ServiceChange": "resolver",
    "discover_services": "resolver",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for: who only validates a name does not load zeroconf (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
