"""Runs lifecycle hooks: one after the other, an error of one is logged with its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

__all__ = ["run_hooks", "run_hooks_until_error"]

logger = logging.getLogger("echostream")


async def run_hooks_until_error(
    hooks: Iterable[Callable[[Any], Coroutine[Any, Any, Any]]], argument: Any
) -> None:
    """Run the hooks; the first error ends it and is raised."""
    for hook in hooks:
        await hook(argument)


async def run_hooks(
    what: str, hooks: Iterable[Callable[[Any], Coroutine[Any, Any, Any]]], argument: Any
) -> None:
    """Run all hooks; errors are logged."""
    for hook in hooks:
        try:
            await hook(argument)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("%s hook %s failed", what, getattr(hook, "__qualname__", hook))
