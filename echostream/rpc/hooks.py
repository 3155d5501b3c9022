"""Runs lifecycle hooks, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from echostream.rpc.listeners import LISTENER_GRACE_S

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer

__all__ = ["run_hooks", "run_hooks_until_error", "run_hooks_while_open"]

logger = logging.getLogger("echostream")

Hooks = Iterable[Callable[[Any], Coroutine[Any, Any, Any]]]


async def run_hooks_until_error(hooks: Hooks, argument: Any) -> None:
    """Run the hooks; the first error ends it and is raised."""
    for hook in hooks:
        await hook(argument)


async def run_hooks_while_open(hooks: Hooks, argument: Any, peer: Peer) -> None:
    """The same, but when the connection ends they are cancelled and ``ConnectionClosed`` is
    raised; after ``LISTENER_GRACE_S`` where events of a peer that left in an orderly way wait for
    them. A hook that raises CancelledError by itself is a ``RuntimeError``."""
    if not hooks:
        return
    running = asyncio.ensure_future(run_hooks_until_error(hooks, argument))
    closed = asyncio.ensure_future(peer.wait_closed())
    try:
        await asyncio.wait((running, closed), return_when=asyncio.FIRST_COMPLETED)
        if not running.done() and peer.dispatcher.has_early_events:
            await asyncio.wait((running,), timeout=LISTENER_GRACE_S)
    finally:
        closed.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait((running,))
    if running.cancelled():
        peer.check_open()
        raise RuntimeError("a hook was cancelled from inside")
    running.result()


async def run_hooks(what: str, hooks: Hooks, argument: Any) -> None:
    """Run all hooks; errors are logged."""
    for hook in hooks:
        try:
            await hook(argument)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            logger.error("%s hook %s was cancelled from inside", what, _shown(hook))
        except Exception:
            logger.exception("%s hook %s failed", what, _shown(hook))


def _shown(hook: object) -> object:
    return getattr(hook, "__qualname__", hook)
