"""What the tests of the QUIC engine share."""

from __future__ import annotations

import pytest
from quic_credentials import Credentials, make_credentials

from echostream.transport.quic import acceptor, engine
from echostream.transport.quic.accelerated import typed_class
from echostream.transport.quic.hardened import HardenedConnection

BOTH_PATHS = {
    "test_conformance",
    "test_ecn",
    "test_fuzz",
    "test_path_mtu",
    "test_receiving",
    "test_resumption",
    "test_sending",
}
"""Modules whose tests run on the plain connection and on the compiled one."""


@pytest.fixture(scope="session")
def credentials() -> Credentials:
    """Made once: keys take a while."""
    return make_credentials()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in BOTH_PATHS:
        metafunc.fixturenames.insert(0, "data_path")
        metafunc.parametrize("data_path", ["plain", "compiled"], indirect=True)


@pytest.fixture
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which class the engines of this test use."""
    if request.param == "plain":
        for module in (acceptor, engine):
            monkeypatch.setattr(module, "connection_class", lambda options: HardenedConnection)
    elif typed_class() is None:
        pytest.skip("the data path is not compiled, or not for this aioquic")
    return str(request.param)
