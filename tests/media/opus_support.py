"""For tests with Opus: every libopus of this machine, or a reason to skip."""

from __future__ import annotations

import pytest

from echostream.contrib import opus

LIBRARIES = [path for path in opus.libraries() if opus.open_library(path) is not None]

needs_opus = pytest.mark.skipif(
    not LIBRARIES, reason="libopus is not here: pip install 'echostream[opus]'"
)
