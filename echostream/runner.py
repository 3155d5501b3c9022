"""The one place that chooses an event loop: uvloop where it is installed, asyncio's elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run the coroutine ``main`` to its end and return its result, as :func:`asyncio.run` does.

    The loop is uvloop's where uvloop is installed. ``debug`` is asyncio's debug mode;
    ``None`` leaves it to ``PYTHONASYNCIODEBUG``.
    """
    with asyncio.Runner(debug=debug, loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
