"""One run: for each scenario, rounds; in each round, every contender in turn."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.harness.certificate import make_certificate
from bench.harness.machine import StealMeter
from bench.harness.measure import Figures, Plan, measure_fan_out, measure_memory, measure_rate
from bench.harness.processes import ChildFailed, Pair, started_pair
from bench.harness.scenarios import Scenario

__all__ = ["Cell", "run"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of one contender in one round; ``steal`` in percent of one core."""

    scenario: str
    contender: str
    round: int
    figures: Figures
    steal: float | None


async def run(plan: Plan, progress: Callable[[str], None]) -> tuple[list[Cell], list[str]]:
    """Every cell of the plan, and what failed, as text.

    A contender that fails in a scenario is left out of the rest of that scenario, and goes on
    in the next with new processes.
    """
    cells: list[Cell] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="echostream-bench-") as name:
        make_certificate(Path(name))
        async with _Field(Path(name)) as field_:
            for scenario in plan.scenarios:
                taking_part = [c.name for c in plan.contenders if scenario.name in c.scenarios]
                for round_ in range(plan.rounds):
                    progress(f"{scenario.name}: round {round_ + 1} of {plan.rounds}")
                    turn = round_ % max(len(taking_part), 1)
                    for contender in taking_part[turn:] + taking_part[:turn]:
                        steal = StealMeter()
                        try:
                            figures = await field_.measure(plan, scenario, contender)
                        except ChildFailed as failure:
                            failures.append(f"{scenario.name}: {failure}")
                            taking_part.remove(contender)
                            await field_.end(contender)
                        else:
                            cells.append(
                                Cell(scenario.name, contender, round_, figures, steal.percent())
                            )
    return cells, failures


class _Field:
    """The processes that are up. A contender's pair starts with its first measurement."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pairs: dict[str, tuple[AsyncExitStack, Pair]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*(self.end(contender) for contender in list(self._pairs)))

    async def measure(self, plan: Plan, scenario: Scenario, contender: str) -> Figures:
        """Take one measurement with the contender's pair."""
        if scenario.kind == "memory":  # memory that was freed would hide what is needed
            async with started_pair(contender, self._directory) as fresh:
                return await measure_memory(plan, scenario, fresh)
        pair = await self._pair(contender)
        if scenario.kind == "fan-out":
            return await measure_fan_out(plan, scenario, pair)
        return await measure_rate(plan, scenario, pair)

    async def end(self, contender: str) -> None:
        """End the contender's pair, if it is up."""
        if running := self._pairs.pop(contender, None):
            await running[0].aclose()

    async def _pair(self, contender: str) -> Pair:
        if contender not in self._pairs:
            stack = AsyncExitStack()
            pair = await stack.enter_async_context(started_pair(contender, self._directory))
            self._pairs[contender] = stack, pair
        return self._pairs[contender][1]
