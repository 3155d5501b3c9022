"""The hardened connection with its 1-RTT data path compiled.

``echostream._ext.quic_path`` works on aioquic's private state, so it is used only with releases
of aioquic whose sources are exactly those that it was tested with. docs/design.md says how a new
release is admitted. ``ECHOSTREAM_ACCEL=0`` in the environment turns it off.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from pathlib import Path

import aioquic

from echostream.transport.quic.hardened import HardenedConnection
from echostream.transport.quic.options import WESTWOOD, QuicOptions

__all__ = ["MIRRORED", "TESTED", "connection_class", "sources_digest", "typed_class"]

logger = logging.getLogger("echostream.quic")

MIRRORED = (
    "_crypto.py",
    "quic/congestion/base.py",
    "quic/congestion/reno.py",
    "quic/connection.py",
    "quic/crypto.py",
    "quic/events.py",
    "quic/packet.py",
    "quic/packet_builder.py",
    "quic/rangeset.py",
    "quic/recovery.py",
    "quic/stream.py",
)
"""Sources of aioquic whose behaviour or attributes the typed path relies on."""

TESTED = {
    "1.7.1": "ed26878f36e53ea5676df6b2eebd6d92d2e18d8c38cff6dec8bdc140f5e5cde3",
    "1.7.2": "1a9838af054704fd06d605b35700254c45c1eec1c6991f26011e1ef4960e0c87",
}
"""The digest of :data:`MIRRORED` in each release that the test suite passed with."""


def sources_digest(package: Path) -> str:
    """SHA-256 over the mirrored sources in a directory of aioquic. ``OSError`` if one is not
    there."""
    digest = hashlib.sha256()
    for name in MIRRORED:
        digest.update(hashlib.sha256((package / name).read_bytes()).digest())
    return digest.hexdigest()


def connection_class(options: QuicOptions) -> type[HardenedConnection]:
    """The class to make connections of: the typed one where it can be used."""
    if options.qlog_dir is not None or options.congestion_control != WESTWOOD:
        return HardenedConnection  # neither is mirrored
    return typed_class() or HardenedConnection


@functools.cache
def typed_class() -> type[HardenedConnection] | None:
    """The class with the compiled path, or ``None`` where it cannot be used; says why once."""
    if os.environ.get("ECHOSTREAM_ACCEL") == "0":
        return None
    try:
        known = sources_digest(Path(aioquic.__file__).parent) in TESTED.values()
    except OSError:
        known = False
    if not known:
        logger.warning(
            "aioquic %s is not a release that the compiled data path was tested with: "
            "connections work as well without it, but slower",
            aioquic.__version__,
        )
        return None
    try:
        from echostream.transport.quic.typed import TypedConnection
    except ImportError:  # nothing was compiled
        return None
    return TypedConnection
