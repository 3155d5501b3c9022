"""What ends a command with exit status 2."""

from __future__ import annotations

__all__ = ["BadInput"]


class BadInput(Exception):  # noqa: N818 - reads as what it is
    """What was typed cannot work. The message is one line that says what to type instead."""
