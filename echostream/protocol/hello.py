"""HELLO: what each side says first. Version, capabilities, limits (wire format, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from echostream._version import __version__
from echostream.errors import ConfigurationError, InvalidPayload, ProtocolError
from echostream.protocol import payload

__all__ = ["CAPABILITIES", "SMALLEST_MESSAGE", "VERSION", "Hello", "Limits"]

VERSION = 1
CAPABILITIES: tuple[str, ...] = ("datagram", "ndarray", "resume")
MAX_HELLO = 64 * 1024
MIN_SESSION, MAX_SESSION = 16, 64
SMALLEST_MESSAGE = 4096
"""The least that a limit `message_size` can be."""
_FLOORS = {"message_size": SMALLEST_MESSAGE, "nesting": 4, "items": 64, "calls": 1, "streams": 1}
_LOCAL_FLOORS = {"assembly": 65_536, "assembly_total": 65_536, "sending_total": 1 << 20, "stall": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side accepts. Passing one is answered with ``ResourceExhausted`` that names it.

    ``message_size``: bytes of payload of one call, event or item. ``nesting`` and ``items``: depth
    and number of entries of one payload. ``calls``: handlers that run at once for one connection.
    ``streams``: media streams that one connection holds open.

    These stay with this side; who passes one has its stream stopped, with ``Reset.TOO_LARGE`` or
    ``Reset.TOO_SLOW``. ``assembly``: bytes of messages of one connection that have begun to arrive
    and are not complete; ``assembly_total``: the same for all connections of a server. ``stall``:
    seconds within which an unfinished message must grow by as many KiB, or end. ``sending_total``:
    bytes that wait to be sent or are not acknowledged, of all connections of a server (of a
    client's one), above which whoever wants to send more waits.
    """

    message_size: int = 4 * 1024 * 1024
    nesting: int = 32
    items: int = 65_536
    calls: int = 128
    streams: int = 64
    assembly: int = 32 * 1024 * 1024
    assembly_total: int = 256 * 1024 * 1024
    sending_total: int = 256 * 1024 * 1024
    stall: int = 30

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            low = (_FLOORS | _LOCAL_FLOORS)[f.name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**30:
                raise ConfigurationError(
                    f"limit {f.name}={value!r} must be a whole number from {low} to {2**30 - 1}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first frame of each side on its control stream. ``session``: a client's event session,
    which goes on over several connections."""

    version: int = VERSION
    agent: str = f"echostream/{__version__}"
    capabilities: tuple[str, ...] = CAPABILITIES
    limits: Limits = field(default_factory=Limits)
    auth: Mapping[str, Any] | None = field(default=None, repr=False)
    """What a client says about who it is: ``scheme``, and what belongs to it."""
    challenge: bytes | None = None
    """What a server wants signed; with it, the server says WELCOME before the client may go on."""
    session: bytes | None = None

    @property
    def resumes(self) -> bool:
        """Whether the sender understands RESUME."""
        return "resume" in self.capabilities

    def encode(self) -> bytes:
        """The payload of a HELLO frame."""
        optional = {"auth": self.auth, "challenge": self.challenge}
        return payload.encode(
            {
                **{key: value for key, value in optional.items() if value is not None},
                "version": self.version,
                "agent": self.agent,
                "capabilities": list(self.capabilities),
                "limits": {name: getattr(self.limits, name) for name in _FLOORS},
            }
            | ({} if self.session is None else {"session": self.session})
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Hello:
        """Read a peer's HELLO. Unknown keys are ignored; a wrong one is a ``ProtocolError``."""
        try:
            body = payload.decode(data)
        except InvalidPayload as exc:
            raise ProtocolError(f"HELLO is not valid msgpack: {exc.message}") from None
        if not isinstance(body, dict):
            raise ProtocolError("HELLO must be a map")
        version = _field(body, "version", int)
        if version < 1:
            raise ProtocolError(f"HELLO names wire version {version}; this side speaks {VERSION}")
        capabilities = _field(body, "capabilities", list)
        if len(capabilities) > 64 or not all(isinstance(c, str) for c in capabilities):
            raise ProtocolError("HELLO capabilities must be at most 64 strings")
        auth, challenge = body.get("auth"), body.get("challenge")
        if auth is not None and not (
            isinstance(auth, dict) and isinstance(auth.get("scheme"), str)
        ):
            raise ProtocolError("HELLO auth must be a map with a scheme")
        if challenge is not None and not (isinstance(challenge, bytes) and len(challenge) == 32):
            raise ProtocolError("HELLO challenge must be 32 bytes")
        return cls(
            auth=auth,
            challenge=challenge,
            version=min(version, VERSION),
            agent=str(_field(body, "agent", str))[:256],
            capabilities=tuple(capabilities),
            limits=_limits(_field(body, "limits", dict)),
            session=_session(body),
        )


def _field(body: Mapping[str, Any], key: str, kind: type) -> Any:
    value = body.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ProtocolError(f"HELLO {key!r} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _session(body: Mapping[str, Any]) -> bytes | None:
    if body.get("session") is None:
        return None
    session: bytes = _field(body, "session", bytes)
    if not MIN_SESSION <= len(session) <= MAX_SESSION:
        raise ProtocolError(f"HELLO session must be {MIN_SESSION} to {MAX_SESSION} bytes")
    return session


def _limits(given: Mapping[str, Any]) -> Limits:
    known: dict[str, int] = {}
    for key, low in _FLOORS.items():
        if key in given:
            value = _field(given, key, int)
            if value < low:
                raise ProtocolError(f"HELLO limit {key!r} is {value}, below the minimum of {low}")
            known[key] = min(value, 2**30 - 1)
    return Limits(**known)
