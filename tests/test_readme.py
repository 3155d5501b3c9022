"""What the README shows, runs.

A block that opens with ```` ```python run ```` is run. The blocks of the page are one
program, in their order, in a new process and an empty folder. They are on the clock: an example
that hangs is a failure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("**/*.md"))]
LIMIT_S = 60

_BLOCK = re.compile(r"^```python run *\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def program_in(text: str) -> str:
    """The runnable blocks, each at the line where it stands in the page, so that a traceback
    names the page's lines. Empty where there are none."""
    program = ""
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        program += "\n" * (line - program.count("\n")) + block["code"]
    return program


def run_page(page: Path, folder: Path, limit_s: float) -> subprocess.CompletedProcess[str]:
    runner = folder / "run_page.py"
    runner.write_text(
        "import sys\n"
        f"name = {str(page)!r}\n"
        "program = compile(sys.stdin.read(), name, 'exec')\n"
        "exec(program, {'__name__': '__main__'})\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", str(runner)],
        input=program_in(page.read_text()),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "ECHOSTREAM_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if program_in(page.read_text())],
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    done = run_page(page, tmp_path, LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_has_an_example_that_runs() -> None:
    assert program_in(PAGES[0].read_text())


def test_blocks_run_in_order_and_share_their_names(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python run\nx = 1\n```\n```python\nx = 2\n```\n\n```python run\nprint(x)\n1 / 0\n```\n"
    )
    done = run_page(page, tmp_path, LIMIT_S)
    assert done.stdout == "1\n"
    assert 'page.md", line 10' in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_an_example_that_hangs_is_stopped(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python run\nimport threading\nthreading.Event().wait()\n```\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_page(page, tmp_path, 0.2)
