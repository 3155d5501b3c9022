"""Every fuzz target runs, from a fixed seed; a few thousand inputs of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from full_size import sized

HERE = Path(__file__).parent
AMOUNTS = {
    "fuzz_datagrams": ["--packets", str(sized(1500, 200_000))],
    "fuzz_session": ["--frames", str(sized(3000, 1_000_000))],
}


@pytest.mark.parametrize("target", sorted(path.stem for path in HERE.glob("fuzz_*.py")))
def test_a_target_finds_nothing(target: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / f"{target}.py"),
            *AMOUNTS.get(target, ["--seconds", "1"]),
            "--seed",
            "1",
        ],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env={"PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "nothing found" in done.stdout
    print(done.stdout)
