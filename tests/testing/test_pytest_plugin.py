"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]

PLUGINS = ["-p", "echostream.pytest_plugin", "-p", "no:cacheprovider"]
OPTIONS = [*PLUGINS, "--strict-markers", "-W", "error"]

TESTS = """
import asyncio
import time

import pytest

from echostream import DeadlineExceeded


async def slow(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@pytest.fixture
def number():
    return 5


@pytest.mark.echostream
async def test_virtual(echostream_server, echostream_pair, echostream_network, number):
    echostream_server.handler("slow", slow)
    echostream_network.both(delay=0.02, loss=0.1)
    began = time.monotonic()
    async with echostream_pair as (server, client):
        assert await client.request("slow", 1000.0 + number) == 1005
        with pytest.raises(DeadlineExceeded):
            await client.request("slow", 10.0, timeout=1.0)
    assert time.monotonic() - began < 60


@pytest.mark.echostream(virtual=False)
async def test_real(echostream_server, echostream_client, echostream_pair):
    async def double(value: int) -> int:
        return 2 * value

    echostream_client.handler("double", double)
    async with echostream_pair as (server, client):
        while not server.context.sessions:
            await asyncio.sleep(0.001)
        (session,) = server.context.sessions
        assert await session.request("double", 4) == 8


@pytest.mark.echostream(virtual=False, seconds=0.05)
async def test_hangs():
    await asyncio.Event().wait()


@pytest.mark.echostream
async def test_deadlocks():
    await asyncio.Event().wait()


@pytest.mark.echostream(vitual=False)
async def test_wrong_option():
    pass


@pytest.mark.echostream
def test_that_is_no_coroutine():
    pass
"""


def run_pytest(folder: Path, source: str, *words: str) -> str:
    (folder / "test_it.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *words, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_marked_tests_run_with_their_fixtures(tmp_path: Path) -> None:
    out = run_pytest(tmp_path, TESTS, "-rA")
    for name in ("virtual", "real", "that_is_no_coroutine"):
        assert f"PASSED test_it.py::test_{name}" in out, out
    for name, why in (("hangs", "TimeoutError"), ("deadlocks", "DeadlockError")):
        assert f"FAILED test_it.py::test_{name} - " in out, out
        assert why in out
    assert "no option 'vitual'" in out


def test_loading_it_loads_nothing_else(tmp_path: Path) -> None:
    source = (
        "import sys\n"
        "def test_it():\n"
        "    loaded = {m for m in sys.modules if m.startswith('echostream.')}\n"
        "    assert loaded == {'echostream.pytest_plugin'}\n"
        "    assert 'numpy' not in sys.modules\n"
    )
    assert "1 passed" in run_pytest(tmp_path, source)
