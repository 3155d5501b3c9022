"""The options that calls, events and streams share."""

from __future__ import annotations

from typing import Literal

from echostream.errors import ConfigurationError
from echostream.rpc.registry import check_name

__all__ = ["Delivery", "check_once", "check_options", "checked_names"]

Delivery = Literal["reliable", "realtime"]

checked_names: set[str] = set()
"""Names that were found right: the check costs more than the look here."""
MAX_CHECKED = 4096


def check_once(name: str, what: str) -> None:
    """Raise ``ConfigurationError`` for a name that cannot be one; the next look is cheap."""
    check_name(name, what)
    if len(checked_names) < MAX_CHECKED:
        checked_names.add(name)


def check_options(
    *,
    timeout: float | None = None,
    max_age: float | None = None,
    priority: int = 3,
    delivery: str = "reliable",
) -> None:
    """Raise ``ConfigurationError`` for an option that cannot work."""
    for name, value in (("timeout", timeout), ("max_age", max_age)):
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 86_400:
            raise ConfigurationError(f"{name}={value!r} must be seconds, above 0 and up to 86400")
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 7:
        raise ConfigurationError(f"priority={priority!r} must be 0 (most urgent) to 7")
    if delivery not in ("reliable", "realtime"):
        raise ConfigurationError(f"delivery={delivery!r} must be 'reliable' or 'realtime'")
