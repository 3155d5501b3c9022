"""What every test may use: reproducible randomness, and data that lies beside the project."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, so that a red build is red for everybody. To look further:
# HYPOTHESIS_PROFILE=explore make check (a failure then prints the line that reproduces it).
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that is fixed for each test, or ECHOSTREAM_TEST_SEED; printed when the test fails."""
    given = os.environ.get("ECHOSTREAM_TEST_SEED")
    value = int(given) if given else zlib.crc32(request.node.nodeid.encode())
    print(f"repeat with ECHOSTREAM_TEST_SEED={value}")
    return value


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """``shared_data("traces")`` is that path in the data beside the project; skips without it."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"no {name} in the data beside the project")
        return path

    return find
