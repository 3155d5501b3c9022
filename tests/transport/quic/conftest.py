"""What the tests of the QUIC engine share."""

from __future__ import annotations

import pytest
from quic_credentials import Credentials, make_credentials


@pytest.fixture(scope="session")
def credentials() -> Credentials:
    """Made once: keys take a while."""
    return make_credentials()
