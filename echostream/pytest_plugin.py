"""A pytest plugin for programs that use EchoStream; found by pytest where EchoStream is installed.

::

    @pytest.mark.echostream
    async def test_login(echostream_server, echostream_pair, echostream_network):
        echostream_server.handler(login)
        echostream_network.both(delay=0.02, loss=0.05)
        async with echostream_pair as (server, client):
            assert await client.request("user.login", "Ada", timeout=2.0)

Coroutine tests with the marker run on virtual time: an hour of waiting takes no time, and every run
is the same. ``@pytest.mark.echostream(virtual=False)`` is for tests with real sockets, which fail
after ``seconds=60``.

This module imports nothing of EchoStream before it is used: pytest loads it for every project.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from echostream.builder import ClientBuilder, ServerBuilder
    from echostream.client import RpcClient
    from echostream.server import RpcServer

__all__ = ["Network"]

_OPTIONS: dict[str, Any] = {"virtual": True, "seconds": 60.0}


class Network:
    """What the path between the two does. ``up`` is from the client, ``down`` to it; the options
    are those of ``echostream.testing.Impairment``. ``seed`` makes another run of the same faults.
    """

    def __init__(self) -> None:
        self.seed = 1
        self._up: dict[str, Any] = {}
        self._down: dict[str, Any] = {}

    def up(self, **faults: Any) -> Network:
        """Faults of the path from the client."""
        self._up = faults
        return self

    def down(self, **faults: Any) -> Network:
        """Faults of the path to the client."""
        self._down = faults
        return self

    def both(self, **faults: Any) -> Network:
        """The same in both directions."""
        return self.up(**faults).down(**faults)


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line(
        "markers",
        "echostream(virtual=True, seconds=60): run this coroutine test, on virtual time or not",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run marked coroutine tests."""
    marker = pyfuncitem.get_closest_marker("echostream")
    if marker is None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    unknown = sorted(set(marker.kwargs) - set(_OPTIONS))
    if marker.args or unknown:
        raise pytest.UsageError(f"@pytest.mark.echostream has no option {(unknown or ['?'])[0]!r}")
    options = {**_OPTIONS, **marker.kwargs}
    names = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    if options["virtual"]:
        from echostream.testing import run_virtual

        run_virtual(test)
    else:
        from echostream.runner import run

        run(_limited(test, options["seconds"]))
    return True


async def _limited(test: Any, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await test


@pytest.fixture
def echostream_server() -> ServerBuilder:
    """The builder of the server: add handlers to it."""
    from echostream.builder import ServerBuilder

    return ServerBuilder()


@pytest.fixture
def echostream_client() -> ClientBuilder:
    """The builder of the client."""
    from echostream.builder import ClientBuilder

    return ClientBuilder()


@pytest.fixture
def echostream_network() -> Network:
    """The path between the two; perfect unless told otherwise."""
    return Network()


@pytest.fixture
def echostream_pair(
    echostream_server: ServerBuilder,
    echostream_client: ClientBuilder,
    echostream_network: Network,
) -> AbstractAsyncContextManager[tuple[RpcServer, RpcClient]]:
    """``async with`` it: the server and the client, connected through memory."""
    return _Pair(echostream_server, echostream_client, echostream_network)


class _Pair(AbstractAsyncContextManager["tuple[RpcServer, RpcClient]"]):
    """Reads the network when it connects, not when the fixture was made."""

    def __init__(self, server: ServerBuilder, client: ClientBuilder, network: Network) -> None:
        self._ends = server, client
        self._network = network
        self._connected: Any = None

    async def __aenter__(self) -> tuple[RpcServer, RpcClient]:
        from echostream.testing import Impairment, connected_pair

        self._connected = connected_pair(
            *self._ends,
            up=Impairment(**self._network._up),
            down=Impairment(**self._network._down),
            seed=self._network.seed,
        )
        pair: tuple[RpcServer, RpcClient] = await self._connected.__aenter__()
        return pair

    async def __aexit__(self, *error: Any) -> bool | None:
        result: bool | None = await self._connected.__aexit__(*error)
        return result
