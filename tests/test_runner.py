"""`run`: the result, the loop it ran on, debug mode, and life without uvloop."""

from __future__ import annotations

import asyncio
import sys

import pytest

from echostream.runner import run


async def loop_and_debug() -> tuple[str, bool]:
    loop = asyncio.get_running_loop()
    return type(loop).__module__.split(".")[0], loop.get_debug()


def test_it_runs_on_uvloop_where_that_is_installed() -> None:
    pytest.importorskip("uvloop")
    assert run(loop_and_debug(), debug=False) == ("uvloop", False)


@pytest.mark.parametrize("debug", [False, True])
def test_it_runs_on_asyncio_elsewhere(monkeypatch: pytest.MonkeyPatch, debug: bool) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # an import of it now fails
    assert run(loop_and_debug(), debug=debug) == ("asyncio", debug)


def test_what_main_raises_comes_out() -> None:
    async def main() -> None:
        raise KeyError("that")

    with pytest.raises(KeyError, match="that"):
        run(main())
