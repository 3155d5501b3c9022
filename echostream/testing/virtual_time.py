"""An event loop on which hours pass in milliseconds, and every run is the same."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

__all__ = ["DeadlockError", "VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")

START = 1000.0
"""Seconds on a new loop's clock."""


class DeadlockError(RuntimeError):
    """Nothing is scheduled and the program is not done: it would wait for ever."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """When nothing is left to do now, time jumps to the next timer.

    There are no sockets, signals or threads on it: what is watched never becomes ready, and
    ``run_in_executor`` calls the function at once. With nothing to wait for,
    :class:`DeadlockError` names the tasks that hang; it is raised too when the clock would pass
    ``limit`` seconds since the start, as it does when only periodic timers are left.
    """

    virtual_time = True
    """Engines on this loop run on :meth:`time` (see ``transport.connection.loop_clock``)."""

    def __init__(self, *, limit: float = 86_400.0) -> None:
        self._virtual_now = START
        self._limit = START + limit
        super().__init__(_TimeJump(self._jump))

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual_now

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call ``func`` now."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _jump(self, timeout: float | None) -> None:
        if timeout is None:
            raise DeadlockError(f"nothing is scheduled, and these tasks wait: {self._waiting()}")
        if timeout > 0:
            # Not time() + timeout: that may round to just before the timer.
            then: float = self._scheduled[0].when()  # type: ignore[attr-defined]
            if then > self._limit:
                raise DeadlockError(
                    f"the virtual clock passed its limit of {self._limit - START:g} s, and these "
                    f"tasks wait: {self._waiting()}"
                )
            self._virtual_now = max(self._virtual_now, then)

    def _waiting(self) -> str:
        lines = []
        for task in asyncio.all_tasks(self):
            stack = task.get_stack(limit=1)
            where = f" at {stack[0].f_code.co_qualname}:{stack[0].f_lineno}" if stack else ""
            lines.append(f"{task.get_name()}{where}")
        return ", ".join(sorted(lines)) or "none"


class _TimeJump(selectors.SelectSelector):
    """Instead of waiting for descriptors, moves the clock."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._jump(timeout)
        return []


def run_virtual(
    main: Coroutine[Any, Any, T],
    *,
    limit: float = 86_400.0,
    context: contextvars.Context | None = None,
) -> T:
    """``asyncio.run`` on a :class:`VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(limit=limit)) as runner:
        return runner.run(main, context=context)
