"""ThreadSanitizer over the compiled jitter ring and playout; and, so that this says something,
over copies in which one guard is missing, where it has to find the race.

Each case compiles: ``make races``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = ("jitter_ring", "playout_loop", "conceal", "stretch", "resample")
RACE = 66
"""What a process ends with in which a race was found."""

MISSING_GUARDS = {
    "the producer does not look at what is being read": (
        "ext/jitter_ring/producer.pxi",
        "if atomic_observe(&r.reading) == slot:",
        "if False and atomic_observe(&r.reading) == slot:",
    ),
    "a slot's bit does not publish what is in it": (
        "echostream/_ext/atomic.pxd",
        "__atomic_fetch_or((p), (b), __ATOMIC_SEQ_CST)",
        "__atomic_fetch_or((p), (b), __ATOMIC_RELAXED)",
    ),
    "the cursor is looked at plainly": (
        "ext/jitter_ring.pyx",
        "return atomic_load(&self.cursor)",
        "return self.cursor",
    ),
    "the ratio is shown plainly": (
        "ext/playout_loop/pieces.pxi",
        "atomic_store_real(&p.shown_ratio, p.drift.ratio)",
        "p.shown_ratio = p.drift.ratio",
    ),
}

pytestmark = pytest.mark.skipif(
    os.environ.get("ECHOSTREAM_RACES") != "1", reason="set ECHOSTREAM_RACES=1: it compiles a while"
)


def runtime() -> str:
    """The sanitizer's library, which has to be there before Python is."""
    found = subprocess.run(
        [os.environ.get("CC", "cc"), "-print-file-name=libtsan.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip("the compiler has no libtsan.so")
    return found


def compile_in(tree: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "ECHOSTREAM_SANITIZE": "thread"},
        check=True,
        capture_output=True,
    )


def run_in(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "race_program.py"],
        cwd=tree,
        env={
            **os.environ,
            "LD_PRELOAD": runtime(),
            "TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE}",
            "PYTHONPATH": str(tree),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("races") / "clean"
    unneeded = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PROJECT / "echostream", tree / "echostream", ignore=unneeded)
    (tree / "ext").mkdir()
    for name in SOURCES:
        shutil.copy(PROJECT / "ext" / f"{name}.pyx", tree / "ext")
        if (PROJECT / "ext" / name).is_dir():
            shutil.copytree(PROJECT / "ext" / name, tree / "ext" / name)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, tree)
    shutil.copy(Path(__file__).with_name("race_program.py"), tree)
    compile_in(tree)
    return tree


def test_no_race_is_found(sanitized: Path) -> None:
    done = run_in(sanitized)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.parametrize("name", MISSING_GUARDS)
def test_a_missing_guard_is_found(sanitized: Path, name: str) -> None:
    file, guard, without = MISSING_GUARDS[name]
    tree = sanitized.with_name(name.replace(" ", "-"))
    shutil.copytree(sanitized, tree)
    text = (tree / file).read_text(encoding="utf-8")
    assert text.count(guard) == 1
    (tree / file).write_text(text.replace(guard, without), encoding="utf-8")
    compile_in(tree)
    done = run_in(tree)
    assert done.returncode == RACE, done.stdout + done.stderr[-2000:]
    assert "ThreadSanitizer: data race" in done.stderr
