"""The stubs of compiled modules say what the compiled modules have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
SOURCES = {path.stem for path in (PROJECT / "ext").glob("*.pyx")}
STUBS = {path.stem for path in (PROJECT / "echostream" / "_ext").glob("*.pyi")}


def test_every_compiled_module_has_a_stub() -> None:
    assert STUBS - {"__init__"} == SOURCES


@pytest.mark.slow
@pytest.mark.skipif(not SOURCES, reason="no compiled modules")
def test_the_stubs_are_true() -> None:
    """Fails with an import error where the modules are not built: `make setup` builds them."""
    modules = sorted(f"echostream._ext.{name}" for name in SOURCES)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", *modules),
            *("--allowlist", "tests/stubtest_allowlist.txt", "--ignore-unused-allowlist"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
